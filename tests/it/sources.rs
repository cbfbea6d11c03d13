//! `nerve source`: sources are added, tried out and given new secrets; and what senders ask of them is answered.

use crate::source_is_served;
use nerve_tests::{Folder, Nerve, Streams, eventually, github, nerve::call, seconds};
use serde_json::json;

/// `nerve ARGS…` against a `nerve up`, on its data folder.
async fn on_data(nerve: &Nerve, args: &[&str]) -> nerve_tests::nerve::Output {
    let mut command = nerve.cli().command(args);
    command.args(["--output", "json"]).env("NERVE_DATA_DIR", nerve.data());
    call(command, "").await
}

#[tokio::test]
async fn a_source_is_added_tried_out_and_given_a_new_secret() {
    let nerve = Nerve::up().await;
    let (cli, streams) = (nerve.cli(), Streams::connect(&nerve.nats).await);
    let folder = Folder::new("[source.other]\nprovider = \"custom\"\nverify = \"none\"\n");
    let manifest = folder.path().join("nerve.toml").display().to_string();
    let add = ["source", "add", "github", "--provider", "github", "--stdin", "--write", &manifest, "--output", "json"];
    let added = cli.run_with(&add, "the first secret").await.ok().json();
    assert_eq!((&added["path"], &added["missing_secrets"]), (&json!("/hooks/github"), &json!([])));
    let kept = std::fs::read_to_string(&manifest).unwrap();
    assert!(kept.contains("[source.github]\nprovider = \"github\"\nsecrets = [\"GITHUB_WEBHOOK_SECRET\"]\n"), "{kept}");

    // The data folder has the key that the secret is sealed to, and says where the gateway is.
    let tested = on_data(&nerve, &["source", "test", "github"]).await.ok().json();
    assert_eq!((&tested["status"], &tested["answer"]["type"]), (&json!(202), &json!("github.test")));
    assert_eq!(streams.count("EVENTS", "events.github.test").await, 1);

    let send = |secret: &str, id: &str| {
        let body = format!(r#"{{"id":"{id}"}}"#);
        let request = github::unsigned(&nerve.url("/hooks/github"), "ping", id);
        request.header("X-Hub-Signature-256", github::signature(secret, body.as_bytes())).body(body).send()
    };
    let rotated =
        cli.run_with(&["source", "rotate", "github", "--output", "json"], "the second secret").await.ok().json();
    assert_eq!(rotated["secrets"], json!(["GITHUB_WEBHOOK_SECRET_2", "GITHUB_WEBHOOK_SECRET"]));
    eventually("the second secret counts", seconds(20), || async {
        send("the second secret", "a").await.ok()?.status().is_success().then_some(())
    })
    .await;
    assert_eq!(send("the first secret", "b").await.unwrap().status(), 202, "both count");
    let retired = cli.run(&["source", "rotate", "github", "--retire", "--output", "json"]).await.ok().json();
    assert_eq!(
        (&retired["secrets"], &retired["retired"]),
        (&json!(["GITHUB_WEBHOOK_SECRET_2"]), &json!(["GITHUB_WEBHOOK_SECRET"]))
    );
    eventually("the first secret counts no more", seconds(20), || async {
        (send("the first secret", "c").await.ok()?.status() == 401).then_some(())
    })
    .await;
    assert_eq!(send("the second secret", "d").await.unwrap().status(), 202);
    let listed = cli.run(&["source", "list", "--output", "json"]).await.ok().json();
    assert_eq!(listed[0]["secrets"], json!([{"name": "GITHUB_WEBHOOK_SECRET_2", "set": true}]));
    assert!(!cli.run(&["secrets", "list"]).await.ok().stdout.contains("GITHUB_WEBHOOK_SECRET "));

    let refused = cli.run(&["source", "add", "pay", "--provider", "square", "--allow", "10.0.0.0/33"]).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("allow: `10.0.0.0/33`"), "{refused:?}");
    let bounds = ["--rate", "5/s", "--concurrency", "2", "--allow", "10.0.0.0/8", "--max-body", "1MiB"];
    let added = cli.run(&[&["source", "add", "pay", "--provider", "square"], &bounds[..]].concat()).await.ok();
    assert!(added.stderr.contains("public_url"), "what the gateway needs then: {added:?}");
    let described = cli.run(&["describe", "pay"]).await.ok().stdout;
    for said in ["5/s", "10.0.0.0/8", "1MiB"] {
        assert!(described.contains(said), "{described}");
    }
    let listed = cli.run(&["source", "list"]).await.ok().stdout;
    assert!(listed.contains("5/s, 2 concurrent, up to 1MiB, from 10.0.0.0/8"), "{listed}");
}

#[tokio::test]
async fn senders_that_ask_whether_the_url_is_ours_are_answered() {
    let nerve = Nerve::up().await;
    let (cli, streams) = (nerve.cli(), Streams::connect(&nerve.nats).await);
    cli.secret("META_SECRET", "the app's secret").await;
    cli.secret("META_TOKEN", "the token & more").await;
    cli.secret("CE_TOKEN", "a token of the sender's").await;
    let manifest = "[source.meta]\nprovider = \"meta\"\nsecrets = [\"META_SECRET\"]\nverify_token = \"META_TOKEN\"\n\
                    [source.partner]\nprovider = \"cloudevents\"\nsecrets = [\"CE_TOKEN\"]\n\
                    [source.pages]\nprovider = \"notion\"\nsecrets = [\"NOTION_TOKEN\"]\n";
    cli.deploy(Folder::new(manifest).path()).await;
    source_is_served(&nerve, "meta").await;
    let client = reqwest::Client::new();
    let ask = |token: &str| {
        let query = [("hub.mode", "subscribe"), ("hub.challenge", "1158201444"), ("hub.verify_token", token)];
        client.get(reqwest::Url::parse_with_params(&nerve.url("/hooks/meta"), query).unwrap()).send()
    };
    let answer = ask("the token & more").await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "1158201444"));
    assert_eq!(ask("the app's secret").await.unwrap().status(), 403);
    assert_eq!(client.get(nerve.url("/hooks/partner")).send().await.unwrap().status(), 405);

    let options = client.request(reqwest::Method::OPTIONS, nerve.url("/hooks/partner"));
    let options = options.header("WebHook-Request-Origin", "events.example").header("WebHook-Request-Rate", "120");
    let answer = options.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["webhook-allowed-origin"], "events.example");
    assert_eq!(answer.headers()["webhook-allowed-rate"], "*");
    let elsewhere = client.request(reqwest::Method::OPTIONS, nerve.url("/hooks/meta")).send().await.unwrap();
    assert_eq!(elsewhere.status(), 405);

    let token = "secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl";
    let bring = || client.post(nerve.url("/hooks/pages")).json(&json!({"verification_token": token})).send();
    eventually("the token is taken", seconds(20), || async { (bring().await.ok()?.status() == 204).then_some(()) })
        .await;
    nerve.daemon.logs("the operator is told the token", &[token]).await;
    cli.secret("NOTION_TOKEN", token).await;
    eventually("there is a secret", seconds(20), || async { (bring().await.ok()?.status() == 401).then_some(()) })
        .await;
    assert_eq!(streams.total().await, 0, "none of it is an event");
}
