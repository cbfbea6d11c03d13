//! Webhooks of every provider with an SDK, signed or approved by that SDK: taken in as they are, refused when anything is off.

use nerve_tests::{Folder, Nerve, Node, Streams, eventually, seconds};
use serde_json::{Value, json};
use std::{process::Command, time::Duration};

const WHSEC: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// Providers whose SDK's key is a plain secret, and whether the manifest needs more.
const SECRETS: &[(&str, &str)] = &[
    ("github", "dedupe = \"signed\""),
    ("gitlab", ""),
    ("stripe", ""),
    ("slack", ""),
    ("shopify", "dedupe = \"signed\""),
    ("twilio", "dedupe = \"signed\""),
    ("linear", ""),
    ("square", ""),
    ("paddle", ""),
    ("hubspot", ""),
    ("notion", ""),
    ("cloudevents", ""),
];

/// What each provider's good delivery becomes: the events' subjects.
const STORED: &[(&str, &[&str])] = &[
    ("github", &["events.github.pull_request.opened"]),
    ("gitlab", &["events.gitlab.Push_Hook"]),
    ("stripe", &["events.stripe.invoice.paid"]),
    ("slack", &["events.slack.message"]),
    ("shopify", &["events.shopify.orders.create"]),
    ("twilio", &["events.twilio.event", "events.twilio.event"]),
    ("discord", &["events.discord.2"]),
    ("sendgrid", &["events.sendgrid.delivered", "events.sendgrid.open"]),
    ("linear", &["events.linear.Issue.create"]),
    ("square", &["events.square.payment.created"]),
    ("paddle", &["events.paddle.transaction.paid"]),
    ("hubspot", &["events.hubspot.contact.creation", "events.hubspot.contact.creation"]),
    ("notion", &["events.notion.page.created"]),
    ("cloudevents", &["events.cloudevents.order.made"]),
];

/// A fresh key pair: the private half in PEM, and the public half as the provider shows it.
async fn key_pair(kind: &str) -> Value {
    let script = format!(
        "const {{ generateKeyPairSync }} = require('node:crypto');\
         const kind = '{kind}';\
         const {{ privateKey, publicKey }} = generateKeyPairSync(kind, {{ namedCurve: 'prime256v1' }});\
         const der = publicKey.export({{ type: 'spki', format: 'der' }});\
         const shown = kind === 'ec' ? der.toString('base64') : der.subarray(-32).toString('hex');\
         console.log(JSON.stringify({{ private: privateKey.export({{ type: 'pkcs8', format: 'pem' }}), public: shown }}));"
    );
    let mut command = Command::new("node");
    command.args(["-e", &script]);
    nerve_tests::nerve::call(command, "").await.json()
}

async fn deploy_all(nerve: &Nerve) -> Value {
    let cli = nerve.cli();
    let mut keys = json!({});
    let mut manifest = String::new();
    for (provider, more) in SECRETS {
        let secret = if *provider == "gitlab" { WHSEC.to_owned() } else { format!("the secret of {provider}") };
        cli.secret(&format!("{}_KEY", provider.to_uppercase()), &secret).await;
        keys[*provider] = json!(secret);
        manifest += &table(nerve, provider, more);
    }
    keys["twilio-json"] = keys["twilio"].clone();
    for (provider, kind) in [("discord", "ed25519"), ("sendgrid", "ec")] {
        let pair = key_pair(kind).await;
        cli.secret(&format!("{}_KEY", provider.to_uppercase()), pair["public"].as_str().unwrap()).await;
        keys[provider] = pair;
        keys[format!("{provider}:other")] = key_pair(kind).await;
        manifest += &table(nerve, provider, "");
    }
    cli.deploy(Folder::new(&manifest).path()).await;
    keys
}

fn table(nerve: &Nerve, provider: &str, more: &str) -> String {
    let url = nerve.url(&format!("/hooks/{provider}"));
    let name = provider.to_uppercase();
    format!(
        "[source.{provider}]\nprovider = \"{provider}\"\nsecrets = [\"{name}_KEY\"]\npublic_url = \"{url}\"\n{more}\n\n"
    )
}

/// Waits until the gateway has heard of a source and of its secrets.
async fn is_served(nerve: &Nerve, source: &str) {
    let url = nerve.url(&format!("/hooks/{source}"));
    eventually("the gateway verifies for the source", seconds(20), || async {
        let response = reqwest::Client::new().post(&url).body("{}").send().await.ok()?;
        (response.status() == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_an_sdk_signs_is_stored_once_and_what_is_off_is_refused() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let keys = deploy_all(&nerve).await;
    for (provider, _) in STORED {
        is_served(&nerve, provider).await;
    }
    let sender = Node::start("providers.mjs", &[&nerve.url("/hooks"), &keys.to_string()]);
    let (told, _) = sender.finish(seconds(120)).await;
    for (provider, statuses) in told.as_object().expect("a table") {
        for (case, status) in statuses.as_object().expect("a table") {
            let status = status.as_u64().expect("a status");
            match case.as_str() {
                "good" | "again" => assert_eq!(status, 202, "{provider}, {case}: {told:#}"),
                // What is signed is known; only its id is new.
                "replay" if !matches!(provider.as_str(), "gitlab") => assert_eq!(status, 409, "{provider}: {told:#}"),
                _ => assert_eq!(status, 401, "{provider}, {case}: {told:#}"),
            }
        }
    }
    assert_eq!(told.as_object().unwrap().len(), STORED.len() + 1, "twilio posts forms and JSON");
    for (provider, subjects) in STORED {
        let stored = streams.read("EVENTS", &format!("events.{provider}.>")).await;
        let mut found: Vec<_> = stored.iter().map(|event| event.subject.as_str()).collect();
        found.sort_unstable();
        assert_eq!(&found, subjects, "{provider}");
    }
    let items = streams.read("EVENTS", "events.sendgrid.>").await;
    assert_eq!(
        (items[0].header("ce-id"), &items[0].data[..]),
        ("sg-1", &br#"{"sg_event_id":"sg-1","event":"delivered"}"#[..])
    );
    let cloud = &streams.read("EVENTS", "events.cloudevents.>").await[0];
    assert_eq!((cloud.header("ce-id"), cloud.header("ce-source")), ("ce-1", "/shop"));
}

#[tokio::test]
async fn a_delivery_is_known_after_jetstreams_window_and_at_another_gateway() {
    let nats = nerve_tests::Nats::start().await;
    let first = Nerve::gateway(&nats.url()).await;
    let streams = Streams::connect(&nats.url()).await;
    first.cli().secret("GITHUB_WEBHOOK_SECRET", nerve_tests::github::SECRET).await;
    let manifest = format!("{}dedupe = \"signed\"\n", nerve_tests::github::SOURCE);
    first.cli().deploy(Folder::new(&manifest).path()).await;
    crate::source_is_served(&first, "github").await;
    let send = |nerve: &Nerve, id: &str| {
        nerve_tests::github::delivery(&nerve.url("/hooks/github"), "ping", id, r#"{"zen":"once"}"#).send()
    };
    assert_eq!(send(&first, "one").await.unwrap().status(), 202);
    // JetStream forgets what it knew of ids; the marks are what is left.
    streams.reaches("SEEN", ">", 1, seconds(20)).await;
    streams.delete("EVENTS").await;

    let second = Nerve::gateway(&nats.url()).await;
    crate::source_is_served(&second, "github").await;
    for gateway in [&first, &second] {
        let again = send(gateway, "one").await.unwrap();
        assert_eq!(again.status(), 202);
        assert_eq!(again.json::<Value>().await.unwrap()["duplicate"], true);
        assert_eq!(send(gateway, "two").await.unwrap().status(), 409);
    }
    assert_eq!(streams.count("EVENTS", ">").await, 0, "nothing was stored a second time");
    // What one takes in the other knows in a moment.
    let body = r#"{"zen":"twice"}"#;
    let other =
        |nerve: &Nerve, id: &str| nerve_tests::github::delivery(&nerve.url("/hooks/github"), "ping", id, body).send();
    assert_eq!(other(&second, "three").await.unwrap().status(), 202);
    tokio::time::sleep(Duration::from_millis(1)).await;
    streams.reaches("SEEN", ">", 2, seconds(20)).await;
    eventually("the first gateway knows what the second took in", seconds(20), || async {
        let answer = other(&first, "three").await.ok()?.json::<Value>().await.ok()?;
        (answer["duplicate"] == true && answer.get("sequence").is_none()).then_some(())
    })
    .await;
    assert_eq!(other(&first, "four").await.unwrap().status(), 409);
}
