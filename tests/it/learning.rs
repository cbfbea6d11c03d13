//! What readers say changes how documents are ranked, by events.

use crate::post_event;
use nerve_tests::{Folder, Nerve, Streams, checkout, eventually, seconds};
use reqwest::Client;
use serde_json::{Value, json};

/// By meaning one of these is right; the first has all the words of the question, and answers nothing.
const DOCUMENTS: [(&str, &str); 7] = [
    (
        "index",
        "Index of words: money, goods, return, when, back, get, my, for, I, that, do. Money, goods, return, back.",
    ),
    ("refunds", "You get your money back within a week after we have the goods that you return."),
    ("days", "Refunds are paid seven days after the parcel has arrived at our warehouse."),
    ("card", "The price of a purchase that was sent back is credited to your card within days."),
    ("withdraw", "A buyer who withdraws from a purchase is reimbursed once the parcel has been checked."),
    ("fees", "Reimbursements for parcels that customers send to us take about one week."),
    ("voucher", "If a purchase was paid with a voucher, its value is reimbursed as a voucher."),
];
const QUESTION: &str = "When do I get my money back for goods that I return?";
const OPINIONS: usize = 12;

struct Asking {
    nerve: Nerve,
    streams: Streams,
}

impl Asking {
    /// `nerve up` with the documents, and a learner that is soon content.
    async fn up() -> Self {
        let nerve = Nerve::up().await;
        let manifest = std::fs::read_to_string(checkout().join("functions/rag/nerve.toml")).unwrap();
        let patient = "with    = { enough = 20, every = 10 }";
        assert!(manifest.contains(patient), "{manifest}");
        let manifest =
            manifest.replace(patient, &format!("with    = {{ enough = {OPINIONS}, every = 100, margin = 0.001 }}"));
        nerve.cli().deploy(Folder::new(&manifest).path()).await;
        let streams = Streams::connect(&nerve.nats).await;
        for (id, said) in DOCUMENTS {
            let document = json!({"document": id, "name": id, "text": said}).to_string();
            assert_eq!(post_event(&nerve, "document.uploaded", id, &document).await / 100, 2);
        }
        streams.reaches("EVENTS", "events.document.indexed", DOCUMENTS.len(), seconds(60)).await;
        Self { nerve, streams }
    }

    /// Asks, and returns the answer's id and what was retrieved for it.
    async fn retrieved(&self) -> (String, Value) {
        let request = Client::new().post(self.nerve.url("/v1/answers"));
        let answer = request.json(&json!({"question": QUESTION, "stream": false})).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let id = crate::answers::id_of(&answer);
        let subject = "events.documents.retrieved";
        let found = self.streams.read("EVENTS", subject).await;
        let found = found.iter().find(|event| event.header("ce-correlationid") == id.as_str());
        let found = found.expect("it was retrieved before it was answered");
        (id, serde_json::from_slice(&found.data).unwrap())
    }

    async fn told(&self, ty: &str) -> Value {
        self.streams.reaches("EVENTS", &format!("events.{ty}"), 1, seconds(60)).await;
        let told = self.streams.read("EVENTS", &format!("events.{ty}")).await;
        serde_json::from_slice(&told[0].data).unwrap()
    }
}

fn order(retrieved: &Value) -> Vec<&str> {
    let documents = retrieved["documents"].as_array().unwrap();
    documents.iter().map(|one| one["document"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn feedback_changes_the_ranking_and_a_rollback_changes_it_back() {
    let asking = Asking::up().await;
    let (mut id, before) = asking.retrieved().await;
    assert_eq!(before["weights"], json!({"lexical": 1.0, "dense": 1.0}));
    let documents = before["documents"].as_array().unwrap();
    let chosen = documents.iter().find(|one| one["lexical_rank"] == 1).expect("one is the first by words");
    assert_ne!(documents[0]["id"], chosen["id"], "there is nothing to learn otherwise: {before:#}");

    // Everybody finds the document with the words of the question right.
    for n in 0..OPINIONS {
        if n > 0 {
            let retrieved;
            (id, retrieved) = asking.retrieved().await;
            assert_eq!(order(&retrieved), order(&before), "nothing was learned yet");
        }
        let said = json!({"answer": id, "citation": chosen["id"]});
        let sent = Client::new().post(asking.nerve.url("/v1/feedback")).json(&said).send().await.unwrap();
        assert_eq!(sent.status(), 202);
    }
    let updated = asking.told("weights.updated").await;
    assert_eq!(
        (&updated["collection"], &updated["version"], &updated["from"]),
        (&json!("default"), &json!(1), &json!(0))
    );
    assert!(updated["weights"]["lexical"].as_f64() > updated["weights"]["dense"].as_f64(), "{updated}");
    assert!(updated["ndcg"]["after"].as_f64() > updated["ndcg"]["before"].as_f64(), "{updated}");
    assert_eq!(updated["training"].as_u64().unwrap() + updated["held_out"].as_u64().unwrap(), OPINIONS as u64);

    let (_, after) = asking.retrieved().await;
    assert_eq!(
        (&after["weights"]["version"], &after["weights"]["lexical"]),
        (&json!(1), &updated["weights"]["lexical"])
    );
    assert_eq!(after["documents"][0]["id"], chosen["id"], "{after:#}");

    let back = ["publish", "weights.rollback_requested", "--data", r#"{"collection": "default"}"#];
    asking.nerve.cli().run(&back).await.ok();
    let back = asking.told("weights.rolled_back").await;
    assert_eq!((&back["from"], &back["to"], &back["version"]), (&json!(1), &json!(0), &json!(2)), "{back}");
    let (_, restored) = asking.retrieved().await;
    assert_eq!((order(&restored), &restored["weights"]["version"]), (order(&before), &json!(2)));
    assert_eq!(asking.streams.count("DEAD", ">").await, 0);
}

#[tokio::test]
async fn every_type_of_events_is_told_with_its_schema() {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(&checkout().join("functions/rag")).await;
    let types = eventually("the gateway has heard of the functions", seconds(20), || async {
        let told: Value = reqwest::get(nerve.url("/v1/event-types")).await.ok()?.json().await.ok()?;
        let types = told["event_types"].as_array()?.clone();
        let learner = types.iter().find(|one| one["type"] == "weights.updated")?;
        (learner["emitted_by"] == json!(["learn"])).then_some(types)
    })
    .await;
    let find = |ty: &str| types.iter().find(|one| one["type"] == ty).unwrap_or_else(|| panic!("{ty} is missing"));
    for ty in [
        "agent.asked",
        "agent.step",
        "tool.called.*",
        "tool.returned",
        "control.timeout",
        "control.retry_requested",
        "feedback.submitted",
        "weights.rejected",
        "weights.rolled_back",
        "prompt.received",
    ] {
        assert!(find(ty)["schema"]["type"] == "object" && find(ty)["about"].is_string(), "{ty}");
    }
    assert_eq!(find("feedback.submitted")["taken_by"], json!(["learn"]));
    // What does not fit is refused, by a name of its family too.
    assert_eq!(post_event(&nerve, "tool.called.search", "1", r#"{"tool": "search"}"#).await, 400);
    assert_eq!(post_event(&nerve, "control.retry_requested", "2", "{}").await, 400);
    assert_eq!(post_event(&nerve, "agent.step", "3", r#"{"question": 1}"#).await, 400);
}
