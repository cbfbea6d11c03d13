//! Outbound webhooks: signed for other people's SDKs, tried again, given up, sent again, kept from private networks.

use crate::post_event;
use nerve_tests::{
    Cli, Folder, Nats, Nerve, Node, Receiver, Streams, eventually,
    nerve::{self, Options},
    receiver::{Received, Reply},
    seconds,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

const FIRST: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const SECOND: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// What lets a sink reach the endpoints of these tests.
const LOOPBACK: &str = "allow = [\"127.0.0.0/8\", \"::1\"]\n";

/// A sink for events of the type `a`.
fn sink(url: &str, lines: &str) -> Folder {
    Folder::new(&format!("[sink.crm]\nurl = \"{url}\"\non = [\"events.a\"]\n{LOOPBACK}{lines}\n"))
}

/// `nerve sink ARGS… --output json`, which must succeed.
async fn call(cli: &Cli, args: &[&str]) -> Value {
    cli.run(&[&["sink"], args, &["--output", "json"]].concat()).await.ok().json()
}

/// The attempts of the sink, once there are so many.
async fn attempts(cli: &Cli, wanted: usize) -> Vec<Value> {
    eventually("the attempts are written down", seconds(40), || async {
        let attempts = call(cli, &["attempts", "crm"]).await;
        attempts.as_array().cloned().filter(|attempts| attempts.len() >= wanted)
    })
    .await
}

fn ids(received: &[Received]) -> BTreeSet<&str> {
    received.iter().map(|one| one.header("webhook-id")).collect()
}

/// What the SDKs say of the event whose data has this `n`.
async fn verified(endpoint: &mut Node, n: &str) -> Value {
    endpoint
        .line(seconds(40), |line| {
            let seen: Value = serde_json::from_str(line).ok()?;
            (seen["body"]["data"]["n"] == n).then(|| seen["verified"].clone())
        })
        .await
}

/// Tries the sink until the SDKs say this: a worker hears of a change within a moment.
async fn verified_by(cli: &Cli, endpoint: &mut Node, wanted: Value) {
    for _ in 0..40 {
        let n = uuid::Uuid::now_v7().to_string();
        call(cli, &["test", "crm", "--data", &json!({"n": n}).to_string()]).await;
        if verified(endpoint, &n).await == wanted {
            return;
        }
    }
    panic!("never {wanted}");
}

#[tokio::test]
async fn official_sdks_verify_what_is_sent_while_secrets_rotate() {
    let nerve = Nerve::up().await;
    let cli = nerve.cli();
    let mut endpoint = Node::start("receive.mjs", &[FIRST, SECOND]);
    let url = endpoint.line(seconds(30), |line| line.starts_with("http").then(|| line.to_owned())).await;
    cli.secret("OLD", FIRST).await;
    cli.secret("NEW", SECOND).await;
    cli.deploy(sink(&url, "secrets = [\"OLD\"]").path()).await;
    post_event(&nerve, "a", "1", r#"{"n": "1"}"#).await;
    assert_eq!(verified(&mut endpoint, "1").await, json!(["standardwebhooks:0", "svix:0"]));
    // Both sign while the endpoint learns the new one; then the new one alone does.
    cli.deploy(sink(&url, "secrets = [\"NEW\", \"OLD\"]").path()).await;
    let both = json!(["standardwebhooks:0", "standardwebhooks:1", "svix:0", "svix:1"]);
    verified_by(&cli, &mut endpoint, both.clone()).await;
    post_event(&nerve, "a", "2", r#"{"n": "2"}"#).await;
    assert_eq!(verified(&mut endpoint, "2").await, both);
    cli.deploy(sink(&url, "secrets = [\"NEW\"]").path()).await;
    verified_by(&cli, &mut endpoint, json!(["standardwebhooks:1", "svix:1"])).await;
    // A new value under the same name is picked up, too.
    cli.secret("NEW", FIRST).await;
    verified_by(&cli, &mut endpoint, json!(["standardwebhooks:0", "svix:0"])).await;
}

#[tokio::test]
async fn a_sink_that_is_added_has_a_secret_that_is_shown_once() {
    let nerve = Nerve::up().await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([]).await);
    let add = ["add", "crm", "--url", &endpoint.url, "--on", "events.a", "--allow", "127.0.0.1"];
    let added = call(&cli, &add).await;
    let made = added["made_secrets"][0].clone();
    let secret = made["value"].as_str().unwrap().to_owned();
    assert!(made["name"] == "SINK_CRM_SECRET" && secret.starts_with("whsec_"), "{added}");
    let again = call(&cli, &add).await;
    assert_eq!((&again["changed"], &again["made_secrets"]), (&json!(false), &json!([])));

    let tried = call(&cli, &["test", "crm"]).await;
    assert_eq!((&tried["status"], &tried["outcome"]), (&json!(204), &json!("delivered")), "{tried}");
    let received = endpoint.received();
    assert_eq!((received.len(), received[0].json()["type"].as_str()), (1, Some("sink.test")));
    post_event(&nerve, "a", "1", r#"{"n":12345678901234567890}"#).await;
    let received = endpoint.reaches(2, seconds(30)).await;
    let body = String::from_utf8(received[1].body.to_vec()).unwrap();
    assert!(body.ends_with(r#""data":{"n":12345678901234567890}}"#), "{body}");
    assert_eq!(received[1].header("content-type"), "application/json");

    let mut shown = String::new();
    for args in [
        &["sink", "list"][..],
        &["sink", "list", "--output", "json"],
        &["sink", "attempts", "crm"],
        &["describe", "crm"],
        &["describe", "crm", "--output", "json"],
        &["list"],
        &["logs", "crm"],
    ] {
        shown.push_str(&cli.run(args).await.ok().text());
    }
    assert!(shown.contains("SINK_CRM_SECRET") && shown.contains("well"), "{shown}");
    shown.push_str(&(nerve.daemon.stdout() + &nerve.daemon.stderr()));
    assert!(!shown.contains(&secret), "{shown}");
    // A function may not have its name, and no sink of that name is left once it is removed.
    let clash = "[function.crm]\nruntime = \"http\"\nurl = \"http://127.0.0.1:9\"\non = [\"events.b\"]\n";
    let clash = Folder::new(clash);
    let refused = cli.run(&["deploy", &clash.path().display().to_string()]).await.failed(1);
    assert!(refused.stderr.contains("a sink has this name"), "{refused:?}");
    cli.run(&["remove", "crm"]).await.ok();
    cli.run(&["sink", "attempts", "crm"]).await.failed(1);
    cli.deploy(clash.path()).await;
}

#[tokio::test]
async fn whatever_an_endpoint_does_its_event_comes_again_under_one_id() {
    let nerve = Nerve::up().await;
    let replies = [
        Reply::Status(500),
        Reply::Later(429, "2"),
        Reply::Hang,
        Reply::BreakOff,
        Reply::Redirect("http://169.254.169.254/latest/meta-data/"),
        Reply::Status(404),
    ];
    let (cli, endpoint) = (nerve.cli(), Receiver::start(replies).await);
    let lines = "timeout = \"500ms\"\nretry = { attempts = 9, backoff = [\"100ms\"] }";
    cli.deploy(sink(&endpoint.url, lines).path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    let received = endpoint.reaches(7, seconds(60)).await;
    assert_eq!(ids(&received).len(), 1, "{received:#?}");
    let waited = received[2].at - received[1].at;
    assert!(waited >= seconds(2), "the endpoint asked for 2 s and got {waited:?}");
    let attempts = attempts(&cli, 7).await;
    let told: Vec<(Value, Value)> =
        attempts.iter().map(|attempt| (attempt["status"].clone(), attempt["outcome"].clone())).collect();
    let retry = |status: Value| (status, json!("retry"));
    let retried = [json!(500), json!(429), Value::Null, json!(200), json!(302), json!(404)].map(retry);
    assert_eq!(told[..6], retried, "{attempts:#?}");
    assert_eq!(told[6], (json!(204), json!("delivered")));
    for (number, said) in [(0, "500"), (2, "did not answer within"), (3, "in the middle"), (4, "not followed")] {
        assert!(attempts[number]["error"].as_str().unwrap().contains(said), "{:#?}", attempts[number]);
    }
    assert_eq!((&attempts[0]["answer"], &attempts[3]["answer"]), (&json!("said 500"), &json!("half")));
    let numbers: Vec<u64> = attempts.iter().map(|attempt| attempt["attempt"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    // What waited and what was due is gone, and nothing was given up.
    let streams = Streams::connect(&nerve.nats).await;
    assert_eq!((streams.count("TIMERS", "timers.wait.>").await, streams.count("DEAD", ">").await), (0, 0));
    assert_eq!(endpoint.received().len(), 7);
}

#[tokio::test]
async fn what_is_given_up_is_kept_whole_and_sent_again_on_demand() {
    let nerve = Nerve::up().await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([]).await);
    let streams = Streams::connect(&nerve.nats).await;
    endpoint.from_now_on(Reply::Status(503));
    cli.deploy(sink(&endpoint.url, "retry = { attempts = 2, backoff = [\"50ms\"] }").path()).await;
    for id in ["1", "2", "3"] {
        post_event(&nerve, "a", id, r#"{"k": "v"}"#).await;
    }
    streams.reaches("DEAD", "dead.crm", 3, seconds(40)).await;
    let letters = cli.run(&["dlq", "list", "crm", "--output", "json"]).await.ok().json();
    let letter = &letters[0];
    assert_eq!((&letter["attempts"], &letter["event"]["data"]), (&json!(2), &json!({"k": "v"})), "{letter}");
    let errors = letter["errors"].as_array().unwrap();
    let told = |error: &Value| error["error"]["message"].as_str().unwrap().contains("503");
    assert!(errors.len() == 2 && errors.iter().all(told), "{letter}");
    assert_eq!(call(&cli, &["attempts", "crm", "--failed"]).await.as_array().unwrap().len(), 6);

    endpoint.from_now_on(Reply::Status(204));
    let before = endpoint.received().len();
    let known = call(&cli, &["attempts", "crm", "--event", "2"]).await[0]["id"].as_str().unwrap().to_owned();
    call(&cli, &["redeliver", "crm", "2"]).await;
    let received = endpoint.reaches(before + 1, seconds(30)).await;
    assert_eq!(received[before].header("webhook-id"), known, "it is known by the same id");
    let last = eventually("it is delivered", seconds(20), || async {
        let attempts = call(&cli, &["attempts", "crm", "--event", &known]).await;
        attempts.as_array().unwrap().last().cloned().filter(|last| last["outcome"] == "delivered")
    })
    .await;
    assert_eq!(last["attempt"], 1, "attempts count anew");

    let dry = call(&cli, &["redeliver", "crm", "--since", "1h", "--dry-run"]).await;
    assert_eq!(dry["redelivered"].as_array().unwrap().len(), 2, "{dry}");
    call(&cli, &["redeliver", "crm", "--since", "1h"]).await;
    let received = endpoint.reaches(before + 3, seconds(30)).await;
    assert_eq!(ids(&received[before..]).len(), 3);
    attempts(&cli, 9).await;
    let all = call(&cli, &["redeliver", "crm", "--since", "1h", "--all", "--dry-run"]).await;
    assert_eq!(all["redelivered"].as_array().unwrap().len(), 3, "{all}");

    cli.run(&["dlq", "redrive", "--function", "crm"]).await.ok();
    let received = endpoint.reaches(before + 6, seconds(30)).await;
    assert_eq!(ids(&received[before + 3..]).len(), 3);
    // By its place, whether it was posted or not.
    post_event(&nerve, "other", "x", "{}").await;
    let place = streams.read("EVENTS", "events.other").await[0].sequence.to_string();
    call(&cli, &["redeliver", "crm", &place]).await;
    assert_eq!(endpoint.reaches(before + 7, seconds(30)).await[before + 6].json()["type"], "other");
    let unknown = cli.run(&["sink", "redeliver", "crm", "nobody"]).await.failed(1);
    assert!(unknown.stderr.contains("no event `nobody` was posted"), "{unknown:?}");
}

#[tokio::test]
async fn a_retry_outlives_its_worker_and_comes_once() {
    let nats = Nats::start().await;
    let nerve = Nerve::gateway(&nats.url()).await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([Reply::Status(500)]).await);
    let data = tempfile::tempdir().unwrap();
    let mut worker = nerve::worker(&nats.url(), data.path()).await;
    cli.deploy(sink(&endpoint.url, "retry = { attempts = 3, backoff = [\"3s\"] }").path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    attempts(&cli, 1).await;
    let streams = Streams::connect(&nats.url()).await;
    streams.reaches("TIMERS", "timers.wait.crm.>", 1, seconds(20)).await;
    worker.kill9();
    // It is due while nobody is there to take it.
    streams.reaches("TIMERS", "timers.due.crm", 1, seconds(20)).await;
    assert_eq!(endpoint.received().len(), 1);
    let _worker = nerve::worker(&nats.url(), data.path()).await;
    let received = endpoint.reaches(2, seconds(30)).await;
    assert_eq!(ids(&received).len(), 1);
    let attempts = attempts(&cli, 2).await;
    assert_eq!((&attempts[1]["attempt"], &attempts[1]["outcome"]), (&json!(2), &json!("delivered")));
    // Longer than the ack wait: a delivery that was not settled would be back.
    tokio::time::sleep(seconds(4)).await;
    assert_eq!(endpoint.received().len(), 2);
}

#[tokio::test]
async fn an_endpoint_that_fails_for_long_is_disabled_until_it_is_enabled() {
    let nerve = Nerve::up().await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([]).await);
    let streams = Streams::connect(&nerve.nats).await;
    endpoint.from_now_on(Reply::Status(500));
    let lines = "disable_after = \"1s\"\nretry = { attempts = 50, backoff = [\"400ms\"] }";
    cli.deploy(sink(&endpoint.url, lines).path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    streams.reaches("EVENTS", "events.sink.disabled", 1, seconds(40)).await;
    let event = &streams.read("EVENTS", "events.sink.disabled").await[0];
    let data: Value = serde_json::from_slice(&event.data).unwrap();
    assert_eq!((&data["sink"], &data["host"]), (&json!("crm"), &json!("127.0.0.1")), "{data}");
    assert!(data["reason"].as_str().unwrap().contains("500"), "{data}");
    let listed = eventually("the list says so", seconds(20), || async {
        let listed = call(&cli, &["list"]).await;
        listed[0]["state"]["disabled"].is_object().then_some(listed)
    })
    .await;
    assert!(listed[0]["state"]["failing_since"].is_string(), "{listed}");
    let refused = cli.run(&["sink", "test", "crm"]).await.failed(1);
    assert!(refused.stderr.contains("disabled"), "{refused:?}");
    // Nothing is posted any more, neither what is new nor what is due.
    post_event(&nerve, "a", "2", "{}").await;
    tokio::time::sleep(seconds(1)).await;
    let before = endpoint.received().len();
    tokio::time::sleep(seconds(2)).await;
    assert_eq!(endpoint.received().len(), before);

    endpoint.from_now_on(Reply::Status(204));
    call(&cli, &["enable", "crm"]).await;
    let received = endpoint.reaches(before + 2, seconds(40)).await;
    assert_eq!(ids(&received[before..]).len(), 2, "what has waited is posted");
    eventually("its endpoint is well", seconds(20), || async {
        (call(&cli, &["list"]).await[0]["state"] == json!({})).then_some(())
    })
    .await;

    // One that says that it is gone is disabled at once, and by hand it is, too.
    endpoint.from_now_on(Reply::Status(410));
    post_event(&nerve, "a", "3", "{}").await;
    streams.reaches("EVENTS", "events.sink.disabled", 2, seconds(40)).await;
    endpoint.from_now_on(Reply::Status(204));
    eventually("it is enabled again", seconds(20), || async {
        (call(&cli, &["enable", "crm"]).await["changed"] == true).then_some(())
    })
    .await;
    let disabled = call(&cli, &["disable", "crm"]).await;
    assert_eq!(disabled["changed"], true);
    let reasons = streams.read("EVENTS", "events.sink.disabled").await;
    let reason = |at: usize| serde_json::from_slice::<Value>(&reasons[at].data).unwrap()["reason"].to_string();
    assert!(reason(1).contains("410") && reason(reasons.len() - 1).contains("by hand"));
    streams.reaches("EVENTS", "events.sink.enabled", 2, seconds(10)).await;
}

#[tokio::test]
async fn private_addresses_are_reached_only_where_somebody_allowed_it() {
    let endpoint = Receiver::start([]).await;
    let local = endpoint.url.replace("127.0.0.1", "localhost");
    let manifest = |name: &str, url: &str| {
        let retry = "retry = { attempts = 1, backoff = [] }";
        format!("[sink.{name}]\nurl = \"{url}\"\non = [\"events.a\"]\n{retry}\n")
    };
    let urls = [
        ("literal", endpoint.url.clone()),
        ("named", local.clone()),
        ("mapped", endpoint.url.replace("127.0.0.1", "[::ffff:7f00:1]")),
        ("metadata", "http://169.254.169.254/latest/meta-data/".to_owned()),
    ];
    let all = Folder::new(&urls.iter().map(|(name, url)| manifest(name, url)).collect::<String>());
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(all.path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    streams.reaches("DEAD", "dead.>", urls.len(), seconds(40)).await;
    for (name, _) in &urls {
        let attempts = call(&nerve.cli(), &["attempts", name]).await;
        let error = attempts[0]["error"].as_str().unwrap();
        assert!(error.contains("which sinks may not reach"), "{name}: {error}");
    }
    assert!(endpoint.received().is_empty());

    let envs = vec![("NERVE_SINKS_ALLOW".to_owned(), "127.0.0.0/8, ::1".to_owned())];
    let open = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let named = Folder::new(&(manifest("literal", &endpoint.url) + &manifest("named", &local)));
    open.cli().deploy(named.path()).await;
    post_event(&open, "a", "2", "{}").await;
    assert_eq!(ids(&endpoint.reaches(2, seconds(30)).await).len(), 1, "one event, two sinks");
}

#[tokio::test]
async fn in_order_an_event_waits_for_the_one_before_it() {
    let nerve = Nerve::up().await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([Reply::Status(500), Reply::Status(500)]).await);
    let lines = "order = true\nretry = { attempts = 5, backoff = [\"300ms\"] }";
    cli.deploy(sink(&endpoint.url, lines).path()).await;
    for n in 1..=5 {
        post_event(&nerve, "a", &n.to_string(), &json!({"n": n}).to_string()).await;
    }
    let received = endpoint.reaches(7, seconds(60)).await;
    let order: Vec<u64> = received.iter().map(|one| one.json()["data"]["n"].as_u64().unwrap()).collect();
    assert_eq!(order, [1, 1, 1, 2, 3, 4, 5]);
    let attempts = attempts(&cli, 7).await;
    let numbers: Vec<u64> = attempts.iter().map(|attempt| attempt["attempt"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 1, 1, 1, 1]);
}

#[tokio::test]
async fn a_rate_a_template_and_headers_are_kept_to() {
    let nerve = Nerve::up().await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([]).await);
    cli.secret("CRM_TOKEN", "t0ken").await;
    let lines = "rate = \"5/s\"\ntemplate = '{\"text\": {{ \"New: \" ~ data.title }}}'\n\
                 headers = { Authorization = \"Bearer ${CRM_TOKEN}\", X-Team = \"a\" }";
    cli.deploy(sink(&endpoint.url, lines).path()).await;
    for n in 1..=6 {
        post_event(&nerve, "a", &n.to_string(), &json!({"title": format!("\"{n}\"")}).to_string()).await;
    }
    let received = endpoint.reaches(6, seconds(40)).await;
    let spread = received[5].at - received[0].at;
    assert!(spread >= Duration::from_millis(900), "six posts at 5/s took {spread:?}");
    let texts: BTreeSet<String> = received.iter().map(|one| one.json()["text"].to_string()).collect();
    assert!(texts.contains(r#""New: \"1\"""#), "{texts:?}");
    assert_eq!((received[0].header("authorization"), received[0].header("x-team")), ("Bearer t0ken", "a"));

    // A body too large for a message is posted whole.
    cli.deploy(sink(&endpoint.url, "format = \"data\"").path()).await;
    eventually("the new revision is at work", seconds(20), || async {
        call(&cli, &["test", "crm", "--data", "[1]"]).await;
        (endpoint.received().last()?.body == "[1]").then_some(())
    })
    .await;
    let before = endpoint.received().len();
    let large = json!({"x": "y".repeat(3 << 20)}).to_string();
    cli.run_with(&["publish", "a", "--data", "-"], &large).await.ok();
    let received = endpoint.reaches(before + 1, seconds(40)).await;
    assert_eq!(received[before].body.len(), large.len());
    // What a template cannot make is given up at once.
    cli.deploy(sink(&endpoint.url, "template = '\"{{ type }}\"'").path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    eventually("the new revision is at work", seconds(20), || async {
        (cli.run(&["sink", "test", "crm"]).await.code == Some(1)).then_some(())
    })
    .await;
    post_event(&nerve, "a", "7", "{}").await;
    streams.reaches("DEAD", "dead.crm", 1, seconds(20)).await;
}

#[tokio::test]
async fn a_certificate_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let mut endpoint = Node::start("receive.mjs", &["--tls", &cert, &key, FIRST]);
    let url = endpoint.line(seconds(30), |line| line.starts_with("https").then(|| line.to_owned())).await;
    let manifest = sink(&url, "secrets = [\"KEY\"]");
    for (trusted, status) in [(true, json!(204)), (false, Value::Null)] {
        let envs = if trusted { vec![("SSL_CERT_FILE".to_owned(), cert.clone())] } else { vec![] };
        let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
        nerve.cli().secret("KEY", FIRST).await;
        nerve.cli().deploy(manifest.path()).await;
        let tried = nerve.cli().run(&["sink", "test", "crm", "--output", "json"]).await;
        assert_eq!(tried.code, Some(if trusted { 0 } else { 1 }), "{tried:?}");
        let attempt = tried.json();
        assert_eq!(attempt["status"], status, "{attempt}");
        assert!(trusted || attempt["error"].as_str().unwrap().contains("certificate"), "{attempt}");
    }
}
