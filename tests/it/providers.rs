//! Webhooks of every provider, signed or approved by its SDK where it has one that does: taken in as they are, refused when
//! anything is off.

use nerve_tests::{Folder, Nerve, Script, Streams, eventually, models::python, seconds};
use serde_json::{Value, json};
use std::{collections::BTreeSet, process::Command, time::Duration};

const WHSEC: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// What is tried with each provider, besides a good delivery and the same again.
const TRIED: &[&str] = &["body", "old", "future", "wrong", "without", "twice", "replay"];

/// A provider's deliveries.
struct Provider {
    name: &'static str,
    /// What its good delivery becomes: the events' subjects.
    stored: &'static [&'static str],
    /// What of [`TRIED`] its scheme has nothing for.
    lacks: &'static [&'static str],
    /// What the same under a fresh id is answered.
    replay: u16,
}

const UNTIMED: &[&str] = &["old", "future"];
/// What a fresh id is answered: where the id is signed, where only what is signed can tell, and where there is none.
const SIGNED: u16 = 401;
const UNSIGNED: u16 = 409;
const NO_ID: u16 = 0;

const fn provider(
    name: &'static str,
    stored: &'static [&'static str],
    lacks: &'static [&'static str],
    replay: u16,
) -> Provider {
    Provider { name, stored, lacks, replay }
}

/// Those whose SDK on npm signs, or approves of what is signed.
const SDKS: &[Provider] = &[
    provider("standard-webhooks", &["events.standard-webhooks.invoice.paid"], &[], SIGNED),
    provider("svix", &["events.svix.invoice.paid"], &[], SIGNED),
    provider("github", &["events.github.pull_request.opened"], UNTIMED, UNSIGNED),
    provider("gitlab", &["events.gitlab.Push_Hook"], &[], SIGNED),
    provider("stripe", &["events.stripe.invoice.paid"], &[], SIGNED),
    provider("slack", &["events.slack.message"], &[], SIGNED),
    provider("shopify", &["events.shopify.orders.create"], UNTIMED, UNSIGNED),
    provider("twilio", &["events.twilio.event", "events.twilio.event"], UNTIMED, UNSIGNED),
    provider("discord", &["events.discord.2"], &[], SIGNED),
    provider("sendgrid", &["events.sendgrid.delivered", "events.sendgrid.open"], &[], SIGNED),
    provider("linear", &["events.linear.Issue.create"], &[], UNSIGNED),
    provider("square", &["events.square.payment.created"], UNTIMED, SIGNED),
    provider("paddle", &["events.paddle.transaction.paid"], &[], SIGNED),
    provider("hubspot", &["events.hubspot.contact.creation", "events.hubspot.contact.creation"], &[], SIGNED),
    provider("notion", &["events.notion.page.created"], UNTIMED, SIGNED),
    // A token signs nothing: its holder may send any body.
    provider("cloudevents", &["events.cloudevents.order.made"], &["body", "old", "future", "replay"], NO_ID),
];

/// Those whose SDKs neither sign nor verify, signed as their documentation says.
const DOCUMENTED: &[Provider] = &[
    provider("pagerduty", &["events.pagerduty.incident.triggered"], UNTIMED, SIGNED),
    provider("zendesk", &["events.zendesk.zen:event-type:ticket.created"], &[], UNSIGNED),
    provider("meta", &["events.meta.page.feed"], &["old", "future", "replay"], NO_ID),
    provider("intercom", &["events.intercom.conversation.user.created"], UNTIMED, SIGNED),
    provider("typeform", &["events.typeform.form_response"], UNTIMED, SIGNED),
    provider("calendly", &["events.calendly.invitee.created"], &["replay"], NO_ID),
    provider("zoom", &["events.zoom.meeting.started"], &["replay"], NO_ID),
    provider("sentry", &["events.sentry.issue.created"], UNTIMED, UNSIGNED),
    provider("jira", &["events.jira.jira:issue_updated"], UNTIMED, UNSIGNED),
    provider("docusign", &["events.docusign.envelope-completed"], &["old", "future", "replay"], NO_ID),
];

/// Those whose SDK on PyPI signs, or approves of what is signed.
const PYTHON: &[Provider] = &[
    provider("standard-webhooks", &["events.standard-webhooks.invoice.paid"], &[], SIGNED),
    provider("svix", &["events.svix.invoice.paid"], &[], SIGNED),
    provider("stripe", &["events.stripe.invoice.paid"], &[], SIGNED),
    provider("slack", &["events.slack.message"], &[], SIGNED),
    provider("twilio", &["events.twilio.event"], UNTIMED, UNSIGNED),
    provider("mailgun", &["events.mailgun.delivered"], &["body", "twice"], SIGNED),
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

/// The secret of each, as its sender has it.
async fn deploy_all<'p>(nerve: &Nerve, providers: impl Iterator<Item = &'p Provider>) -> Value {
    let cli = nerve.cli();
    let mut keys = json!({});
    let mut manifest = String::new();
    for Provider { name, replay, .. } in providers {
        let variable = format!("{}_KEY", name.to_uppercase().replace('-', "_"));
        let kind = match *name {
            "discord" => Some("ed25519"),
            "sendgrid" => Some("ec"),
            _ => None,
        };
        let secret = match (kind, *name) {
            (Some(kind), _) => {
                let pair = key_pair(kind).await;
                keys[*name] = pair.clone();
                keys[format!("{name}:other")] = key_pair(kind).await;
                pair["public"].as_str().unwrap().to_owned()
            }
            (None, "standard-webhooks" | "svix" | "gitlab") => WHSEC.to_owned(),
            (None, _) => format!("the secret of {name}"),
        };
        if kind.is_none() {
            keys[*name] = json!(secret);
        }
        cli.secret(&variable, &secret).await;
        let url = nerve.url(&format!("/hooks/{name}"));
        manifest +=
            &format!("[source.{name}]\nprovider = \"{name}\"\nsecrets = [\"{variable}\"]\npublic_url = \"{url}\"\n");
        manifest += if *replay == UNSIGNED { "dedupe = \"signed\"\n\n" } else { "\n" };
    }
    keys["twilio-json"] = keys["twilio"].clone();
    cli.deploy(Folder::new(&manifest).path()).await;
    keys
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

/// Asserts that everything was tried, and that nothing but what is good was taken in.
async fn only_good_ones_are_taken<'p>(streams: &Streams, told: &Value, providers: impl Iterator<Item = &'p Provider>) {
    for Provider { name, stored, lacks, replay } in providers {
        // Twilio posts forms and JSON.
        let senders =
            told.as_object().expect("a table").iter().filter(|(sender, _)| sender.split("-json").next() == Some(name));
        let mut count = 0;
        for (sender, statuses) in senders {
            count += 1;
            let statuses = statuses.as_object().expect("a table");
            let tried: BTreeSet<&str> = statuses.keys().filter_map(|case| case.split(' ').next()).collect();
            let wanted = TRIED.iter().copied().filter(|case| !lacks.contains(case)).chain(["good", "again"]);
            assert_eq!(tried, wanted.collect(), "{sender}");
            for (case, status) in statuses {
                let wanted = match case.as_str() {
                    "good" | "again" => 202,
                    "replay" => *replay,
                    _ => 401,
                };
                assert_eq!(status, wanted, "{sender}, {case}: {told:#}");
            }
        }
        assert!(count > 0, "nothing was sent by {name}");
        let found = streams.read("EVENTS", &format!("events.{name}.>")).await;
        let mut found: Vec<_> = found.iter().map(|event| event.subject.as_str()).collect();
        found.sort_unstable();
        assert_eq!(&found, stored, "{name}");
    }
}

#[tokio::test]
async fn what_an_sdk_signs_is_stored_once_and_what_is_off_is_refused() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let all = || SDKS.iter().chain(DOCUMENTED);
    let keys = deploy_all(&nerve, all()).await;
    for provider in all() {
        is_served(&nerve, provider.name).await;
    }
    let sender = Script::node("providers.mjs", &[&nerve.url("/hooks"), &keys.to_string()]);
    let (told, _) = sender.finish(seconds(120)).await;
    only_good_ones_are_taken(&streams, &told, all()).await;
    let items = streams.read("EVENTS", "events.sendgrid.>").await;
    assert_eq!(
        (items[0].header("ce-id"), &items[0].data[..]),
        ("sg-1", &br#"{"sg_event_id":"sg-1","event":"delivered"}"#[..])
    );
    let cloud = &streams.read("EVENTS", "events.cloudevents.>").await[0];
    assert_eq!((cloud.header("ce-id"), cloud.header("ce-source")), ("ce-1", "/shop"));
}

#[tokio::test]
async fn what_an_sdk_for_python_signs_is_stored_once_and_what_is_off_is_refused() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let keys = deploy_all(&nerve, PYTHON.iter()).await;
    for provider in PYTHON {
        is_served(&nerve, provider.name).await;
    }
    let told = python("webhooks.py", &[&nerve.url("/hooks"), &keys.to_string()]).await;
    only_good_ones_are_taken(&streams, &told, PYTHON.iter()).await;
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
