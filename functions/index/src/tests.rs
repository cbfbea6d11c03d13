mod quotas;
mod reopening;

use crate::*;
use nerve_core::Secret;
use nerve_events::{
    documents::{Chunk, Document},
    retrieval::Hit,
};
use serde_json::json;
use serde_json::{Map, Value};
use server::Postgres as TestServer;
use std::path::Path;
use std::time::Instant;
use tokio::runtime::Runtime;

// The test harness of the integration tests declares it public.
#[allow(unreachable_pub)]
#[path = "../../../tests/src/postgres.rs"]
pub(crate) mod server;

pub(crate) const DIMENSIONS: usize = 32;

/// A PostgreSQL server of one test, and the runtime of its connections.
pub(crate) struct PostgresServer {
    pub(crate) server: TestServer,
    runtime: Runtime,
}

impl PostgresServer {
    pub(crate) fn start() -> Self {
        Self { server: TestServer::start(), runtime: Runtime::new().unwrap() }
    }

    pub(crate) fn connect(&self, model: &str, width: usize) -> Result<Index, IndexError> {
        let _entered = self.runtime.enter();
        Index::connect(&Database::parse(&Secret::new(self.server.url("postgres"))).unwrap(), model, width)
    }

    pub(crate) fn index(&self) -> Index {
        self.connect("test", DIMENSIONS).unwrap()
    }
}

/// Runs a check on both kinds of index, each empty.
pub(crate) fn for_both_kinds(show: impl Fn(&Index)) {
    let folder = tempfile::tempdir().unwrap();
    show(&open(folder.path()));
    println!("the same in PostgreSQL");
    show(&PostgresServer::start().index());
}

/// A deterministic unit vector.
pub(crate) fn vector(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut numbers: Vec<f32> = (0..DIMENSIONS)
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

pub(crate) fn document(name: &str, uploaded_at: i64) -> Document {
    Document {
        collection: "default".into(),
        document: name.into(),
        name: name.into(),
        version: String::new(),
        digest: String::new(),
        uploaded_at,
        metadata: Map::new(),
    }
}

pub(crate) fn replace(name: &str, uploaded_at: i64, texts: &[(&str, u64)]) -> Change {
    let chunk = |(index, (text, seed)): (usize, &(&str, u64))| {
        let heading = vec![format!("About {name}")];
        (Chunk { index, text: (*text).to_owned(), heading, start: 0, end: text.len() }, vector(*seed))
    };
    Change::Replace { document: document(name, uploaded_at), chunks: texts.iter().enumerate().map(chunk).collect() }
}

pub(crate) fn query(text: &str, seed: u64) -> Query {
    Query {
        collection: "default".into(),
        text: text.into(),
        vector: vector(seed),
        filter: Map::new(),
        limit: 3,
        weights: FusionWeights::default(),
    }
}

pub(crate) fn open(folder: &Path) -> Index {
    Index::open(folder, "test", DIMENSIONS).unwrap()
}

/// Ids and similarities, in order. BM25 is left out: it counts deleted documents until tantivy merges segments.
fn ids(hits: &[Hit]) -> Vec<(String, Option<f32>)> {
    hits.iter().map(|hit| (hit.id.clone(), hit.similarity)).collect()
}

pub(crate) fn texts(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.chunk.text.as_str()).collect()
}

#[test]
fn best_lexical_and_dense_match_ranks_first() {
    for_both_kinds(|index| {
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
        // Each ranking alone finds what only it can find.
        let words = index
            .search(&Query { weights: FusionWeights { lexical: 1.0, dense: 0.0 }, ..query("slow trains", 2) })
            .unwrap();
        assert_eq!(words[0].chunk.text, "The night train is slow.");
        let meaning = index.search(&query("zzz", 4)).unwrap();
        assert_eq!(meaning[0].chunk.text, "Tickets are cheap on Mondays.");
        assert!(index.search(&Query { vector: vec![1.0], ..query("a", 1) }).unwrap_err().to_string().contains("32"));
    });
}

/// Result of a change of a document with this last upload or deletion.
fn applied(chunks: usize, replaced: bool, latest_upload: i64) -> ChangeResult {
    ChangeResult { chunks, replaced, latest_upload, ..ChangeResult::default() }
}

#[test]
fn older_change_does_not_replace_a_newer_one() {
    for_both_kinds(|index| {
        let apply = |change: Change| index.apply(&[change]).unwrap()[0];
        assert_eq!(apply(replace("a", 5, &[("old words", 1)])), applied(1, false, 5));
        assert_eq!(apply(replace("a", 6, &[("new words", 2)])), applied(1, true, 6));
        assert_eq!(texts(&index.search(&query("words", 1)).unwrap()), ["new words"]);
        assert_eq!(apply(replace("a", 5, &[("old words", 1)])), ChangeResult { stale: true, ..applied(1, true, 6) });
        assert_eq!(texts(&index.search(&query("words", 1)).unwrap()), ["new words"]);
        assert_eq!(apply(Change::Remove(document("a", 7))), applied(0, true, 7));
        assert!(index.search(&query("words", 2)).unwrap().is_empty());
        let late = apply(replace("a", 6, &[("late words", 1)]));
        assert!(late.stale, "a redelivery does not bring back what was deleted");
        assert!(index.is_empty().unwrap());
    });
}

/// `change` as an upload with this digest.
fn with_digest(change: Change, digest: &str) -> Change {
    let digest = digest.to_owned();
    match change {
        Change::Replace { document, chunks } => {
            Change::Replace { document: Document { digest, version: "v".into(), ..document }, chunks }
        }
        Change::Remove(document) => Change::Remove(Document { digest, ..document }),
        Change::Confirm(document) => Change::Confirm(Document { digest, ..document }),
    }
}

#[test]
fn unchanged_upload_writes_no_chunk_and_counts_as_the_latest() {
    for_both_kinds(|index| {
        let apply = |change: Change| index.apply(&[change]).unwrap()[0];
        let words = [("some words", 1), ("nul\0and more", 2)];
        let upload = |uploaded_at: i64| with_digest(replace("a", uploaded_at, &words), "d");
        let unchanged = |uploaded_at: i64| ChangeResult { unchanged: true, ..applied(2, true, uploaded_at) };
        apply(upload(5));
        let ids = || ids(&index.search(&query("words", 1)).unwrap());
        let before = ids();
        // Rounding by the model is not a change of content.
        let Change::Replace { document: again, mut chunks } = upload(7) else { unreachable!() };
        chunks.iter_mut().for_each(|(_, vector)| vector[0] += 1e-4);
        assert_eq!(apply(Change::Replace { document: again, chunks }), unchanged(7));
        assert_eq!(ids(), before, "the chunks keep their ids");
        // A late upload of the same content is unchanged too.
        assert_eq!(apply(upload(6)), ChangeResult { stale: true, ..unchanged(7) });
        let other = apply(with_digest(replace("a", 6, &[("other words", 1)]), "e"));
        assert_eq!(
            other,
            ChangeResult { stale: true, ..applied(2, true, 7) },
            "it was uploaded before the unchanged one"
        );
        // The same upload again, after a crash or in a replay, is not another upload.
        assert_eq!(apply(upload(7)), applied(2, true, 7));
        for changed in [
            replace("a", 8, &[("some words", 1)]),
            replace("a", 9, &[("some words", 1), ("nul\0and less", 2)]),
            replace("a", 10, &[("some words", 1), ("nul\0and less", 3)]),
        ] {
            let result = apply(with_digest(changed, "d"));
            assert!(!result.unchanged && !result.stale && result.replaced, "{result:?}");
        }
        apply(upload(11));
        let Change::Replace { document: mut renamed, chunks } = upload(12) else { unreachable!() };
        renamed.name = "b".into();
        assert!(!apply(Change::Replace { document: renamed, chunks }).unchanged);
        assert_eq!(index.search(&query("words", 1)).unwrap()[0].name, "b");
    });
}

#[test]
fn confirmation_updates_only_a_document_with_the_same_digest() {
    for_both_kinds(|index| {
        let apply = |change: Change| index.apply(&[change]).unwrap()[0];
        let confirm = |digest: &str, uploaded_at| with_digest(Change::Confirm(document("a", uploaded_at)), digest);
        let upload =
            |uploaded_at: i64, text: &str, digest: &str| with_digest(replace("a", uploaded_at, &[(text, 1)]), digest);
        assert_eq!(apply(confirm("A", 1)), ChangeResult::default(), "the extension is missing");
        apply(upload(2, "words of A", "A"));
        assert_eq!(apply(confirm("B", 3)), applied(1, true, 2), "it has other content");
        assert_eq!(apply(confirm("", 3)), applied(1, true, 2), "no digest is no content");
        assert_eq!(apply(confirm("A", 4)), ChangeResult { unchanged: true, ..applied(1, true, 4) });
        // B was uploaded before A was confirmed, and arrives later.
        assert!(apply(upload(3, "words of B", "B")).stale);
        assert_eq!(texts(&index.search(&query("words", 1)).unwrap()), ["words of A"]);
        assert!(!apply(upload(5, "words of B", "B")).stale);
        assert_eq!(apply(confirm("A", 6)), applied(1, true, 5));
        apply(Change::Remove(document("a", 7)));
        for digest in ["A", "B", ""] {
            assert_eq!(apply(confirm(digest, 8)), applied(0, false, 7), "it was deleted");
        }
        assert!(!apply(upload(8, "words of B", "B")).unchanged);
        // Each change of a batch sees the preceding ones.
        let batch = [confirm("B", 9), upload(10, "words of A", "A"), confirm("B", 11), confirm("A", 12)];
        let unchanged: Vec<bool> = index.apply(&batch).unwrap().iter().map(|one| one.unchanged).collect();
        assert_eq!(unchanged, [true, false, false, true]);
        assert_eq!(texts(&index.search(&query("words", 1)).unwrap()), ["words of A"]);
    });
}

#[test]
fn search_respects_collection_and_filter() {
    for_both_kinds(|index| {
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
fn lexical_hit_has_a_similarity() {
    for_both_kinds(|index| {
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
fn selective_filter_finds_its_only_match() {
    for_both_kinds(|index| {
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
fn vectors_of_another_model_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let shared = PostgresServer::start();
    drop(shared.index());
    for other in [Index::open(folder.path(), "other", DIMENSIONS), shared.connect("other", DIMENSIONS)] {
        let error = other.err().unwrap();
        assert!(matches!(error, IndexError::Invalid(_)), "{error}");
        assert!(error.to_string().contains("built with test, 32 dimensions, not with other"), "{error}");
    }
    assert!(shared.connect("test", 16).err().unwrap().to_string().contains("not with test, 16 dimensions"));
    let short = Change::Replace { document: document("a", 1), chunks: vec![(Chunk::default(), vec![1.0])] };
    for index in [open(folder.path()), shared.index()] {
        assert!(matches!(index.apply(std::slice::from_ref(&short)), Err(IndexError::Invalid(_))));
    }
}

#[test]
fn searches_continue_during_writes() {
    for_both_kinds(|index| {
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
