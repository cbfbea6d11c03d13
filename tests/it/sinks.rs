//! Outbound webhooks: signed for other people's SDKs, shaped, kept from private networks. [`failures`]: what is not taken.

mod failures;

use crate::post_event;
use nerve_tests::{
    Cli, Folder, Nerve, Receiver, Script, Streams, eventually, nerve::Options, receiver::Received, seconds,
    tls::SelfSigned,
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
async fn verified(endpoint: &mut Script, n: &str) -> Value {
    endpoint
        .line(seconds(40), |line| {
            let seen: Value = serde_json::from_str(line).ok()?;
            (seen["body"]["data"]["n"] == n).then(|| seen["verified"].clone())
        })
        .await
}

/// Tries the sink until the SDKs say this: a worker hears of a change within a moment.
async fn verified_by(cli: &Cli, endpoint: &mut Script, wanted: Value) {
    for _ in 0..40 {
        let n = uuid::Uuid::now_v7().to_string();
        call(cli, &["test", "crm", "--data", &json!({"n": n}).to_string()]).await;
        if verified(endpoint, &n).await == wanted {
            return;
        }
    }
    panic!("never {wanted}");
}

/// Posts to an endpoint that knows two secrets, while one replaces the other.
async fn verified_while_secrets_rotate(mut endpoint: Script) {
    let nerve = Nerve::up().await;
    let cli = nerve.cli();
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
async fn official_sdks_verify_what_is_sent_while_secrets_rotate() {
    verified_while_secrets_rotate(Script::node("receive.mjs", &[FIRST, SECOND])).await;
}

#[tokio::test]
async fn official_sdks_for_python_verify_what_is_sent_while_secrets_rotate() {
    verified_while_secrets_rotate(Script::python("receive.py", &[FIRST, SECOND])).await;
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
    assert!(shown.contains("SINK_CRM_SECRET") && shown.contains("healthy"), "{shown}");
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
    let tls = SelfSigned::of("localhost");
    let mut endpoint = Script::node("receive.mjs", &["--tls", &tls.cert, &tls.key, FIRST]);
    let url = endpoint.line(seconds(30), |line| line.starts_with("https").then(|| line.to_owned())).await;
    let manifest = sink(&url, "secrets = [\"KEY\"]");
    for (trusted, status) in [(true, json!(204)), (false, Value::Null)] {
        let envs = if trusted { vec![("SSL_CERT_FILE".to_owned(), tls.cert.clone())] } else { vec![] };
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
