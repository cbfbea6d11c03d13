//! Reopening an index: after a restart, without its files, and from an older version.

use super::*;

#[test]
fn restart_keeps_changes_and_rebuilds_lost_files() {
    let folder = tempfile::tempdir().unwrap();
    let expected = {
        let index = open(folder.path());
        index.apply(&[replace("a", 1, &[("first words", 1)]), replace("b", 1, &[("second words", 2)])]).unwrap();
        index.save().unwrap();
        // These changes are in no saved graph.
        index.apply(&[replace("c", 1, &[("third words", 3)]), Change::Remove(document("a", 2))]).unwrap();
        ids(&index.search(&query("words", 3)).unwrap())
    };
    assert_eq!(expected.len(), 2);
    let found = || ids(&open(folder.path()).search(&query("words", 3)).unwrap());
    assert_eq!(found(), expected);
    for lost in ["vectors", "words"] {
        std::fs::remove_dir_all(folder.path().join(lost)).unwrap();
        assert_eq!(found(), expected, "without {lost}");
    }
    let index = open(folder.path());
    index.save().unwrap();
    drop(index);
    for (folder, name) in [("vectors", "4.usearch"), ("words", "meta.json")].map(|(a, b)| (folder.path().join(a), b)) {
        let file = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let file =
            file.filter(|file| file.extension().is_some_and(|it| it == "usearch") || file.ends_with("meta.json"));
        let file: Vec<_> = file.collect();
        assert_eq!(file.len(), 1, "{name}: {file:?}");
        std::fs::write(&file[0], "broken").unwrap();
    }
    assert_eq!(found(), expected, "with broken files");
}

#[test]
fn older_index_is_migrated_when_opened() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).apply(&[replace("a", 1, &[("old words", 1)])]).unwrap();
    let database = rusqlite::Connection::open(folder.path().join("chunks.sqlite")).unwrap();
    let older = "drop index documents_by_size; alter table documents drop column bytes;
                 alter table documents drop column digest";
    database.execute_batch(older).unwrap();
    drop(database);
    let shared = PostgresServer::start();
    shared.index().apply(&[replace("a", 1, &[("old words", 1)])]).unwrap();
    let older = "alter table nerve.documents drop column digest; alter table nerve.documents drop column bytes;
                 update nerve.settings set value = '1' where name = 'schema'";
    shared.server.execute("postgres", older).unwrap();
    for index in [open(folder.path()), shared.index()] {
        assert_eq!(index.collection_usage("default").unwrap(), (1, 9), "its text is counted");
        let is_unchanged = |change: Change| index.apply(&[change]).unwrap()[0].unchanged;
        let confirm = |uploaded_at| with_digest(Change::Confirm(document("a", uploaded_at)), "d");
        assert!(!is_unchanged(confirm(2)));
        let Change::Replace { document: mut again, chunks } = replace("a", 3, &[("old words", 1)]) else {
            unreachable!()
        };
        again.digest = "d".into();
        assert!(is_unchanged(Change::Replace { document: again, chunks }));
        assert!(is_unchanged(confirm(4)));
        assert_eq!(texts(&index.search(&query("words", 1)).unwrap()), ["old words"]);
    }
}
