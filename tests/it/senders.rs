//! Webhooks signed by a scheme that is declared in the manifest, or by nobody.

use crate::source_is_served;
use nerve_tests::{Folder, Nerve, Streams, eventually, seconds};

#[tokio::test]
async fn a_declared_scheme_is_verified_and_two_secrets_may_be_live() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().secret("OLD", "the old secret").await;
    nerve.cli().secret("NEW", "the new secret").await;
    let manifest = r#"[source.till]
provider = "custom"
secrets = ["OLD", "NEW"]
signature = "X-Till-Signature"
prefix = "v1="
signed = "{timestamp}.{body}"
algorithm = "sha256"
encoding = "hex"
timestamp = "X-Till-Time"
id = "/event/id"
type = "/event/kind"
tolerance = "2m"
"#;
    nerve.cli().deploy(Folder::new(manifest).path()).await;
    source_is_served(&nerve, "till").await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let send = |id: &str, secret: &str, time: u64| {
        let body = format!(r#"{{"event":{{"id":"{id}","kind":"sale"}}}}"#);
        let signature = nerve_tests::github::signature(secret, format!("{time}.{body}").as_bytes());
        let signature = signature.replace("sha256=", "v1=");
        let request = reqwest::Client::new().post(nerve.url("/hooks/till")).header("content-type", "application/json");
        request.header("X-Till-Signature", signature).header("X-Till-Time", time.to_string()).body(body).send()
    };
    assert!(send("1", "the old secret", now).await.unwrap().status().is_success());
    assert!(send("2", "the new secret", now).await.unwrap().status().is_success());
    assert_eq!(send("3", "no secret", now).await.unwrap().status(), 401);
    assert_eq!(send("4", "the new secret", now - 600).await.unwrap().status(), 401);
    let stored = streams.read("EVENTS", ">").await;
    let ids: Vec<_> = stored.iter().map(|event| event.header("ce-id")).collect();
    assert_eq!(ids, ["1", "2"]);
    assert!(stored.iter().all(|event| event.subject == "events.till.sale"));
}

#[tokio::test]
async fn a_source_that_verifies_nothing_takes_what_comes() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let manifest = "[source.open]\nprovider = \"custom\"\nverify = \"none\"\n";
    nerve.cli().deploy(Folder::new(manifest).path()).await;
    let url = nerve.url("/hooks/open");
    eventually("the gateway serves the source", seconds(10), || async {
        let request = reqwest::Client::new().post(&url).header("content-type", "text/plain");
        request.body("hello").send().await.ok()?.status().is_success().then_some(())
    })
    .await;
    let stored = streams.read("EVENTS", ">").await;
    assert_eq!((stored[0].subject.as_str(), &stored[0].data[..]), ("events.open.event", &b"hello"[..]));
}
