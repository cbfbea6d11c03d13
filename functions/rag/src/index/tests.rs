use super::*;
use nerve_core::Secret;
use serde_json::json;
use server::Postgres as Server;
use std::time::Instant;
use tokio::runtime::Runtime;

// It is public in the harness of the integration tests, where it lives.
#[allow(unreachable_pub)]
#[path = "../../../../tests/src/postgres.rs"]
pub(super) mod server;

pub(super) const WIDTH: usize = 32;

/// A PostgreSQL of the test's own, and the runtime that connections to it live on.
pub(super) struct Shared {
    pub(super) server: Server,
    runtime: Runtime,
}

impl Shared {
    pub(super) fn start() -> Self {
        Self { server: Server::start(), runtime: Runtime::new().unwrap() }
    }

    pub(super) fn connect(&self, model: &str, width: usize) -> Result<Index, IndexError> {
        let _entered = self.runtime.enter();
        Index::connect(&Database::parse(&Secret::new(self.server.url("postgres"))).unwrap(), model, width)
    }

    pub(super) fn index(&self) -> Index {
        self.connect("test", WIDTH).unwrap()
    }
}

/// Shows the same of both kinds of index, each of them empty.
fn of_both(show: impl Fn(&Index)) {
    let folder = tempfile::tempdir().unwrap();
    show(&open(folder.path()));
    println!("the same in PostgreSQL");
    show(&Shared::start().index());
}

/// A unit vector that depends on `seed` alone.
pub(super) fn vector(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut numbers: Vec<f32> = (0..WIDTH)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect();
    let length = numbers.iter().map(|x| x * x).sum::<f32>().sqrt();
    numbers.iter_mut().for_each(|x| *x /= length);
    numbers
}

pub(super) fn document(name: &str, uploaded_at: i64) -> Document {
    Document {
        collection: "default".into(),
        document: name.into(),
        name: name.into(),
        version: String::new(),
        uploaded_at,
        metadata: Map::new(),
    }
}

pub(super) fn replace(name: &str, uploaded_at: i64, texts: &[(&str, u64)]) -> Change {
    let chunk = |(index, (text, seed)): (usize, &(&str, u64))| {
        let heading = vec![format!("About {name}")];
        (Chunk { index, text: (*text).to_owned(), heading, start: 0, end: text.len() }, vector(*seed))
    };
    Change::Replace { document: document(name, uploaded_at), chunks: texts.iter().enumerate().map(chunk).collect() }
}

pub(super) fn query(text: &str, seed: u64) -> Query {
    Query {
        collection: "default".into(),
        text: text.into(),
        vector: vector(seed),
        filter: Map::new(),
        limit: 3,
        weights: Weights::default(),
    }
}

fn open(folder: &Path) -> Index {
    Index::open(folder, "test", WIDTH).unwrap()
}

/// What was found, in order; BM25 also counts what was deleted, until tantivy merges it away.
fn ids(hits: &[Hit]) -> Vec<(String, Option<f32>)> {
    hits.iter().map(|hit| (hit.id.clone(), hit.similarity)).collect()
}

pub(super) fn texts(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.chunk.text.as_str()).collect()
}

#[test]
fn what_is_near_by_words_and_by_meaning_comes_first() {
    of_both(|index| {
        let changes = [
            replace("fees", 1, &[("Invoices paid late cost ten percent more.", 1), ("Refunds take a week.", 2)]),
            replace("trains", 1, &[("The night train is slow.", 3), ("Tickets are cheap on Mondays.", 4)]),
        ];
        index.apply(&changes).unwrap();
        let hits = index.search(&query("What does paying an invoice late cost?", 1)).unwrap();
        assert_eq!(hits[0].chunk.text, "Invoices paid late cost ten percent more.");
        assert!(hits[0].bm25.is_some() && hits[0].similarity.unwrap() > 0.99, "{:?}", hits[0]);
        assert_eq!(
            (hits[0].document.as_str(), hits[0].chunk.heading.as_slice()),
            ("fees", ["About fees".to_owned()].as_slice())
        );
        // Each way alone finds what only it can.
        let words =
            index.search(&Query { weights: Weights { lexical: 1.0, dense: 0.0 }, ..query("slow trains", 2) }).unwrap();
        assert_eq!(words[0].chunk.text, "The night train is slow.");
        let meaning = index.search(&query("zzz", 4)).unwrap();
        assert_eq!(meaning[0].chunk.text, "Tickets are cheap on Mondays.");
        assert!(index.search(&Query { vector: vec![1.0], ..query("a", 1) }).unwrap_err().to_string().contains("32"));
    });
}

#[test]
fn an_upload_replaces_a_removal_removes_and_what_is_older_changes_nothing() {
    of_both(|index| {
        let applied = |change: Change| index.apply(&[change]).unwrap()[0];
        assert_eq!(applied(replace("a", 5, &[("old words", 1)])), Applied { chunks: 1, replaced: false, stale: false });
        assert_eq!(applied(replace("a", 6, &[("new words", 2)])), Applied { chunks: 1, replaced: true, stale: false });
        assert_eq!(texts(&index.search(&query("words", 1)).unwrap()), ["new words"]);
        assert_eq!(applied(replace("a", 5, &[("old words", 1)])), Applied { chunks: 1, replaced: true, stale: true });
        assert_eq!(texts(&index.search(&query("words", 1)).unwrap()), ["new words"]);
        assert_eq!(applied(Change::Remove(document("a", 7))), Applied { chunks: 0, replaced: true, stale: false });
        assert!(index.search(&query("words", 2)).unwrap().is_empty());
        assert!(
            applied(replace("a", 6, &[("late words", 1)])).stale,
            "a redelivery does not bring back what was deleted"
        );
        assert!(index.is_empty().unwrap());
    });
}

#[test]
fn collections_and_filters_keep_apart() {
    of_both(|index| {
        let with = |name: &str, collection: &str, metadata: Value, seed: u64| match replace(
            name,
            1,
            &[("same words", seed)],
        ) {
            Change::Replace { mut document, chunks } => {
                document.collection = collection.into();
                document.metadata = metadata.as_object().unwrap().clone();
                Change::Replace { document, chunks }
            }
            other => other,
        };
        let changes = [
            with("a", "default", json!({"team": "x", "tags": ["one", "two"]}), 1),
            with("b", "default", json!({"team": "y", "tags": ["two"]}), 2),
            with("c", "other", json!({"team": "x"}), 3),
        ];
        index.apply(&changes).unwrap();
        let found = |collection: &str, filter: Value| {
            let filter = filter.as_object().unwrap().clone();
            let hits =
                index.search(&Query { collection: collection.into(), filter, ..query("same words", 1) }).unwrap();
            let mut names: Vec<String> = hits.into_iter().map(|hit| hit.document).collect();
            names.sort();
            names
        };
        assert_eq!(found("default", json!({})), ["a", "b"]);
        assert_eq!(found("other", json!({})), ["c"]);
        assert_eq!(found("default", json!({"team": "x"})), ["a"]);
        assert_eq!(found("default", json!({"team": ["x", "y"], "tags": "two"})), ["a", "b"]);
        assert_eq!(found("default", json!({"tags": ["one", "three"]})), ["a"]);
        assert!(found("default", json!({"nothing": 1})).is_empty());
    });
}

#[test]
fn what_is_found_by_words_alone_is_told_with_its_likeness_too() {
    of_both(|index| {
        let mut changes: Vec<Change> =
            (0..300).map(|n| replace(&n.to_string(), 1, &[("common words here", 7)])).collect();
        changes.push(replace("rare", 1, &[("the zephyr blows", 8)]));
        index.apply(&changes).unwrap();
        let hits = index.search(&query("zephyr", 7)).unwrap();
        let rare = hits.iter().find(|hit| hit.document == "rare").unwrap();
        assert!(rare.bm25.is_some() && rare.dense_rank.is_none(), "{rare:?}");
        let (a, b) = (vector(7), vector(8));
        let exact = a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>();
        assert!((rare.similarity.unwrap() - exact).abs() < 0.01, "{exact} {rare:?}");
    });
}

#[test]
fn a_filter_that_few_pass_finds_them_among_many() {
    of_both(|index| {
        let mut changes: Vec<Change> =
            (0..2000).map(|n| replace(&n.to_string(), 1, &[("common words here", n)])).collect();
        if let Change::Replace { document, .. } = &mut changes[1234] {
            document.metadata = json!({"rare": true}).as_object().unwrap().clone();
        }
        index.apply(&changes).unwrap();
        let filter = json!({"rare": true}).as_object().unwrap().clone();
        let hits = index.search(&Query { filter, ..query("common words", 7) }).unwrap();
        assert_eq!((hits.len(), hits[0].document.as_str()), (1, "1234"));
        assert!(hits[0].bm25.is_some() && hits[0].similarity.is_some(), "{hits:?}");
    });
}

#[test]
fn what_was_applied_is_there_after_a_restart_and_what_is_lost_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = {
        let index = open(folder.path());
        index.apply(&[replace("a", 1, &[("first words", 1)]), replace("b", 1, &[("second words", 2)])]).unwrap();
        index.save().unwrap();
        // These are in none of the graphs that were written down.
        index.apply(&[replace("c", 1, &[("third words", 3)]), Change::Remove(document("a", 2))]).unwrap();
        ids(&index.search(&query("words", 3)).unwrap())
    };
    assert_eq!(wanted.len(), 2);
    let found = || ids(&open(folder.path()).search(&query("words", 3)).unwrap());
    assert_eq!(found(), wanted);
    for lost in ["vectors", "words"] {
        std::fs::remove_dir_all(folder.path().join(lost)).unwrap();
        assert_eq!(found(), wanted, "without {lost}");
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
    assert_eq!(found(), wanted, "with broken files");
}

#[test]
fn another_models_vectors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let shared = Shared::start();
    drop(shared.index());
    for other in [Index::open(folder.path(), "other", WIDTH), shared.connect("other", WIDTH)] {
        let error = other.err().unwrap();
        assert!(matches!(error, IndexError::Invalid(_)), "{error}");
        assert!(error.to_string().contains("made with test, 32 dimensions, not with other"), "{error}");
    }
    assert!(shared.connect("test", 16).err().unwrap().to_string().contains("not with test, 16 dimensions"));
    let short = Change::Replace { document: document("a", 1), chunks: vec![(Chunk::default(), vec![1.0])] };
    for index in [open(folder.path()), shared.index()] {
        assert!(matches!(index.apply(std::slice::from_ref(&short)), Err(IndexError::Invalid(_))));
    }
}

#[test]
fn searches_go_on_while_documents_come() {
    of_both(|index| {
        index.apply(&[replace("first", 1, &[("steady words", 1)])]).unwrap();
        std::thread::scope(|scope| {
            let searching = scope.spawn(|| {
                let started = Instant::now();
                let mut searches = 0;
                while started.elapsed().as_millis() < 800 {
                    let hits = index.search(&query("steady", 1)).unwrap();
                    assert!(hits.iter().any(|hit| hit.document == "first"));
                    searches += 1;
                }
                searches
            });
            for n in 0..40 {
                let changes: Vec<Change> =
                    (0..50).map(|m| replace(&format!("{n}-{m}"), 1, &[("other", n * 50 + m + 2)])).collect();
                index.apply(&changes).unwrap();
            }
            assert!(searching.join().unwrap() > 0);
        });
        assert_eq!(index.len().unwrap(), 2001);
    });
}
