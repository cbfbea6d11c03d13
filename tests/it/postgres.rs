//! Documents in PostgreSQL: what one worker indexes every other one finds.

use crate::documents::{ask, indexed, upload};
use nerve_tests::{Nerve, Postgres, Streams, checkout, nerve::Options, postgres::PASSWORD, seconds};
use serde_json::json;

/// `nerve up` with a broker and a data folder of its own, and that database.
async fn up(postgres: &Postgres) -> Nerve {
    let envs = vec![("NERVE_RAG_POSTGRES".to_owned(), postgres.url("postgres"))];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    nerve.cli().deploy(&checkout().join("functions/rag")).await;
    nerve
}

#[tokio::test]
async fn documents_in_a_database_are_found_by_every_worker_and_outlive_it() {
    let mut postgres = Postgres::start();
    let one = up(&postgres).await;
    let streams = Streams::connect(&one.nats).await;
    upload(&one, "1", json!({"document": "fees", "text": "Late invoices cost ten percent more."})).await;
    upload(&one, "2", json!({"document": "trains", "text": "The night train leaves at ten."})).await;
    indexed(&streams, 2).await;
    let question = json!({"question": "What do late invoices cost?"});
    let found = ask(&one, &streams, "q1", question.clone()).await;
    assert_eq!((found.len(), &found[0]["document"]), (2, &json!("fees")));
    assert!(found[0]["similarity"].as_f64().unwrap() > 0.5 && found[0]["bm25"].is_number(), "{found:#?}");

    // Another machine, which never saw the documents.
    let two = up(&postgres).await;
    let asked = ask(&two, &Streams::connect(&two.nats).await, "q1", question.clone()).await;
    assert_eq!(asked, found);

    // A database that is gone for a while delays a document, and loses none.
    postgres.kill9();
    upload(&one, "3", json!({"document": "fees", "text": "Late invoices cost nothing."})).await;
    streams.reaches("LOGS", "logs.index", 1, seconds(20)).await;
    postgres.restart();
    assert_eq!(indexed(&streams, 3).await[2]["replaced"], true);
    let asked = ask(&two, &Streams::connect(&two.nats).await, "q2", question).await;
    assert_eq!(asked[0]["text"], "Late invoices cost nothing.");
    assert_eq!(streams.count("DEAD", "dead.>").await, 0);

    let secret = urlencoded(PASSWORD);
    for nerve in [&one, &two] {
        let said = nerve.daemon.stderr() + &nerve.daemon.stdout();
        assert!(!said.contains(PASSWORD) && !said.contains(&secret), "{said}");
    }
    for event in streams.read("LOGS", "logs.>").await {
        let said = format!("{:?} {}", event.headers, String::from_utf8_lossy(&event.data));
        assert!(!said.contains(PASSWORD) && !said.contains(&secret), "{said}");
    }
}

fn urlencoded(text: &str) -> String {
    text.replace('/', "%2F").replace('@', "%40")
}
