use super::*;
use crate::{
    Database, FusionWeights, Index,
    tests::{DIMENSIONS, PostgresServer, document, query, replace, server::PASSWORD, texts, vector},
};
use nerve_core::Secret;
use serde_json::{Map, Value, json};
use std::time::Instant;

/// An error with all its causes, as logs and dead letters show it.
fn error_text(error: &IndexError) -> String {
    let mut error_text = format!("{error:?} {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        error_text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    error_text
}

#[test]
fn two_workers_share_one_index() {
    let shared = PostgresServer::start();
    let (one, two) = std::thread::scope(|scope| {
        // Both find no tables, and one creates them.
        let (one, two) = (scope.spawn(|| shared.index()), scope.spawn(|| shared.index()));
        (one.join().unwrap(), two.join().unwrap())
    });
    one.apply(&[replace("a", 1, &[("first words", 1)])]).unwrap();
    two.apply(&[replace("b", 1, &[("second words", 2)])]).unwrap();
    for index in [&one, &two] {
        assert_eq!(index.len().unwrap(), 2);
        let mut found =
            texts(&index.search(&query("words", 1)).unwrap()).into_iter().map(str::to_owned).collect::<Vec<_>>();
        found.sort();
        assert_eq!(found, ["first words", "second words"]);
    }
    assert!(two.apply(&[Change::Remove(document("a", 2))]).unwrap()[0].replaced);
    assert!(one.apply(&[replace("a", 1, &[("first words", 1)])]).unwrap()[0].stale);
    assert_eq!(one.len().unwrap(), 1);
}

#[test]
fn concurrent_writers_keep_the_latest_without_deadlocks() {
    let shared = PostgresServer::start();
    let rounds = 30;
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let index = shared.index();
            scope.spawn(move || {
                for round in 0..rounds {
                    let name = |n: i64| if worker % 2 == 0 { n } else { 9 - n }.to_string();
                    let uploaded_at = round * 4 + worker;
                    let text = uploaded_at.to_string();
                    let changes: Vec<Change> =
                        (0..10).map(|n| replace(&name(n), uploaded_at, &[(text.as_str(), 1), ("more", 2)])).collect();
                    index.apply(&changes).unwrap();
                }
            });
        }
    });
    let sql = "select count(*), min(text), max(text) from nerve.chunks where place = 0";
    assert_eq!(shared.server.execute("postgres", sql).unwrap(), format!("10|{0}|{0}", rounds * 4 - 1));
    assert_eq!(shared.server.execute("postgres", "select count(*) from nerve.vectors").unwrap(), "20");
}

#[test]
fn server_crash_loses_no_confirmed_change() {
    let mut shared = PostgresServer::start();
    let index = shared.index();
    index.apply(&[replace("kept", 1, &[("kept words", 1)])]).unwrap();
    shared.server.kill9();
    for error in [
        index.apply(&[replace("late", 1, &[("late words", 2)])]).unwrap_err(),
        index.search(&query("words", 1)).unwrap_err(),
        index.len().unwrap_err(),
        shared.connect("test", DIMENSIONS).err().unwrap(),
    ] {
        assert!(matches!(error, IndexError::Unavailable { .. }), "{error:?}");
        assert!(
            error_text(&error).contains("onnect") && !error_text(&error).contains(PASSWORD),
            "{}",
            error_text(&error)
        );
    }
    shared.server.restart();
    index.apply(&[replace("late", 1, &[("late words", 2)])]).unwrap();
    let hits = index.search(&query("words", 1)).unwrap();
    assert_eq!(texts(&hits), ["kept words", "late words"]);
    // After a kill during a stream of changes, the confirmed ones are stored.
    let confirmed = std::thread::scope(|scope| {
        let (started, has_started) = std::sync::mpsc::channel();
        let writing = scope.spawn({
            let index = &index;
            move || {
                let mut confirmed = Vec::new();
                for n in 0.. {
                    let name = n.to_string();
                    match index.apply(&[replace(&name, 1, &[("streamed", n)])]) {
                        Ok(_) => confirmed.push(name),
                        Err(error) => {
                            assert!(matches!(error, IndexError::Unavailable { .. }), "{error:?}");
                            return confirmed;
                        }
                    }
                    started.send(n).unwrap();
                }
                confirmed
            }
        });
        while has_started.recv().unwrap() < 20 {}
        shared.server.kill9();
        // The sender never blocks, and stops with the thread.
        let confirmed = writing.join().unwrap();
        drop(has_started);
        confirmed
    });
    shared.server.restart();
    for name in &confirmed {
        assert!(index.apply(&[replace(name, 0, &[])]).unwrap()[0].stale, "{name} is lost");
    }
}

#[test]
fn hnsw_search_has_high_recall() {
    let shared = PostgresServer::start();
    let index = shared.index();
    let count = 5000;
    let changes: Vec<Change> = (0..count / 10)
        .map(|n| {
            let chunks: Vec<(&str, u64)> = (0..10).map(|m| ("words", n * 10 + m + 1)).collect();
            replace(&n.to_string(), 1, &chunks)
        })
        .collect();
    let started = Instant::now();
    for changes in changes.chunks(50) {
        index.apply(changes).unwrap();
    }
    let filled = started.elapsed();
    shared.server.execute("postgres", "analyze").unwrap();
    let plan = "explain select chunk from nerve.vectors order by vector <=> (select vector from nerve.vectors limit 1)
                limit 200";
    assert!(shared.server.execute("postgres", plan).unwrap().contains("vectors_by_nearness"));
    let (mut right, mut times) = (0, Vec::new());
    let queries = 100;
    for n in 0..queries {
        let question = vector(1_000_000 + n);
        let mut exact: Vec<(f32, u64)> = (1..=count)
            .map(|seed| (vector(seed).iter().zip(&question).map(|(a, b)| a * b).sum::<f32>(), seed))
            .collect();
        exact.sort_by(|a, b| b.0.total_cmp(&a.0));
        let weights = FusionWeights { lexical: 0.0, dense: 1.0 };
        let started = Instant::now();
        let hits = index.search(&Query { vector: question, limit: 10, weights, ..query("nothing", 1) }).unwrap();
        times.push(started.elapsed());
        let expected: Vec<(String, usize)> =
            exact[..10].iter().map(|(_, seed)| (((seed - 1) / 10).to_string(), ((seed - 1) % 10) as usize)).collect();
        right += hits.iter().filter(|hit| expected.contains(&(hit.document.clone(), hit.chunk.index))).count();
    }
    times.sort();
    let recall = right as f64 / (queries * 10) as f64;
    println!("recall@10 {recall}, search p50 {:?} p99 {:?}, {count} chunks in {filled:?}", times[50], times[99]);
    assert!(recall >= 0.97, "recall@10 is {recall}");
}

#[test]
fn frequently_replaced_document_does_not_hide_others() {
    let shared = PostgresServer::start();
    let index = shared.index();
    shared.server.execute("postgres", "alter table nerve.vectors set (autovacuum_enabled = off)").unwrap();
    let others: Vec<Change> = (0..20).map(|n| replace(&format!("other-{n}"), 1, &[("other", 500 + n)])).collect();
    index.apply(&others).unwrap();
    for uploaded_at in 0..30 {
        let chunks: Vec<(&str, u64)> = (0..100).map(|_| ("same", 1)).collect();
        index.apply(&[replace("busy", uploaded_at, &chunks)]).unwrap();
    }
    let found = index.search(&Query { limit: 100, ..query("zzz", 1) }).unwrap();
    assert_eq!((found.len(), found[0].document.as_str()), (100, "busy"));
    let found = index.search(&Query { limit: 100, ..query("zzz", 501) }).unwrap();
    assert_eq!(found[0].document, "other-1");
}

#[test]
fn values_unsupported_by_postgresql_are_replaced_or_rejected() {
    let shared = PostgresServer::start();
    let index = shared.index();
    index.apply(&[replace("a", 1, &[("nul\0and it's \\ 'quoted' words", 1)])]).unwrap();
    assert_eq!(texts(&index.search(&query("it's \\quoted'", 2)).unwrap()), ["nul and it's \\ 'quoted' words"]);
    let Change::Replace { mut document, chunks } = replace("b", 1, &[("words", 1)]) else { unreachable!() };
    document.metadata = json!({"name": "nul\0"}).as_object().unwrap().clone();
    let refused = index.apply(&[replace("c", 1, &[("words", 2)]), Change::Replace { document, chunks }]).unwrap_err();
    assert!(matches!(&refused, IndexError::Invalid(why) if why.contains("\\u0000")), "{refused:?}");
    assert_eq!(index.len().unwrap(), 1, "all of a batch or none");
    let refused = index.apply(&[replace(&"long".repeat(100_000), 1, &[])]).unwrap_err();
    assert!(matches!(refused, IndexError::Invalid(_)), "{refused:?}");
}

#[test]
fn filter_compares_whole_values() {
    let shared = PostgresServer::start();
    let index = shared.index();
    let with = |name: &str, metadata: Value| match replace(name, 1, &[("words", 1)]) {
        Change::Replace { mut document, chunks } => {
            document.metadata = metadata.as_object().unwrap().clone();
            Change::Replace { document, chunks }
        }
        other => other,
    };
    let changes = [
        with("nested", json!({"k": {"a": 1, "b": 2}})),
        with("array", json!({"k": [{"a": 1}, null, "it's"]})),
        with("null", json!({"k": null})),
        with("none", json!({})),
    ];
    index.apply(&changes).unwrap();
    let found = |filter: Value| {
        let filter: Map<String, Value> = filter.as_object().unwrap().clone();
        let hits = index.search(&Query { filter, limit: 10, ..query("words", 1) }).unwrap();
        let mut names: Vec<String> = hits.into_iter().map(|hit| hit.document).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(found(json!({"k": {"a": 1}})), "array");
    assert_eq!(found(json!({"k": {"a": 1, "b": 2}})), "nested");
    assert_eq!(found(json!({"k": null})), "array null");
    assert_eq!(found(json!({"k": "it's"})), "array");
    assert_eq!(found(json!({"k": []})), "");
    let many: Vec<Value> = (0..1000).map(|n| json!(n)).chain([json!("it's")]).collect();
    assert_eq!(found(json!({"k": many})), "array");
}

#[test]
fn wrong_password_and_newer_tables_are_rejected() {
    let shared = PostgresServer::start();
    drop(shared.index());
    let url = shared.server.url("postgres").replace("correct", "wrong");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let database = Database::parse(&Secret::new(url)).unwrap();
    let error = Index::connect(&database, "test", DIMENSIONS).err().unwrap();
    assert!(error_text(&error).contains("authentication failed"), "{}", error_text(&error));
    assert!(!error_text(&error).contains("wrong"), "{}", error_text(&error));
    shared.server.execute("postgres", "update nerve.settings set value = '99' where name = 'schema'").unwrap();
    let error = shared.connect("test", DIMENSIONS).err().unwrap().to_string();
    assert!(error.contains("newer nerve") && error.contains("99"), "{error}");
    assert!(shared.connect("test", 4096).err().unwrap().to_string().contains("at most 2000"));
}

#[test]
fn rare_word_outweighs_common_words() {
    let shared = PostgresServer::start();
    let index = shared.index();
    let pages: Vec<(String, String)> =
        (0..400).map(|n| (n.to_string(), if n == 123 { "one gasket" } else { "pump pump valve" }.to_owned())).collect();
    let changes: Vec<Change> = pages.iter().map(|(name, text)| replace(name, 1, &[(text, 1)])).collect();
    index.apply(&changes).unwrap();
    let found = |text: &str| {
        let weights = FusionWeights { lexical: 1.0, dense: 0.0 };
        let hits = index.search(&Query { weights, ..query(text, 2) }).unwrap();
        hits.into_iter().filter(|hit| hit.bm25.is_some()).map(|hit| hit.chunk.text).collect::<Vec<_>>()
    };
    // Before and after `analyze`.
    for _ in 0..2 {
        assert_eq!(found("pump valve gasket")[0], "one gasket");
        assert_eq!(found("pump"), ["pump pump valve"; 3]);
        assert_eq!(found("pump nowhere"), ["pump pump valve"; 3]);
        assert!(found("nowhere").is_empty() && found("").is_empty() && found("the").is_empty());
        shared.server.execute("postgres", "analyze").unwrap();
    }
}
