//! Amazon SNS from the subscription on: its certificate is fetched by HTTPS, through the proxy that the environment names.

use nerve_tests::{Folder, Nerve, Script, Streams, checkout, eventually, nerve::Options, seconds, tls::SelfSigned};
use serde_json::{Value, json};

const HOST: &str = "sns.eu-west-1.amazonaws.com";
const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:orders";

#[tokio::test]
async fn a_topic_is_confirmed_and_its_messages_are_taken_by_the_certificate_at_its_own_address() {
    let fixture = |name: &str| checkout().join("tests/fixtures/sns").join(name).display().to_string();
    let tls = SelfSigned::of(HOST);
    let mut aws = Script::node("aws.mjs", &[HOST, &tls.cert, &tls.key, &fixture("certificate.pem")]);
    let ready: Value = aws.line(seconds(30), |line| serde_json::from_str(line).ok()).await;
    let envs = [("SSL_CERT_FILE", tls.cert.clone()), ("HTTPS_PROXY", ready["proxy"].as_str().unwrap().to_owned())];
    let envs = envs.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let streams = Streams::connect(&nerve.nats).await;
    let manifest = format!("[source.orders]\nprovider = \"sns\"\ntopics = [\"{TOPIC}\"]\n");
    nerve.cli().deploy(Folder::new(&manifest).path()).await;
    let hook = nerve.url("/hooks/orders");
    eventually("the source is served", seconds(20), || async {
        let status = reqwest::Client::new().post(&hook).body("{}").send().await.ok()?.status();
        (status == 401).then_some(())
    })
    .await;

    let port = ready["port"].to_string();
    let sender = Script::node("sns.mjs", &[&hook, TOPIC, HOST, &port, &tls.cert, &fixture("key.pem")]);
    let (told, _) = sender.finish(seconds(60)).await;
    for (case, status) in told.as_object().unwrap() {
        let wanted = match case.split(',').next().unwrap() {
            "confirm" | "unsubscribed" => 204,
            "good" | "again" => 202,
            // What AWS signs it signs with a time and an id, so one that lacks them was never signed.
            _ => 401,
        };
        assert_eq!(status, wanted, "{case}: {told:#}");
    }
    assert_eq!(told.as_object().unwrap().len(), 23, "{told:#}");
    let stored = streams.read("EVENTS", "events.orders.>").await;
    let ids: Vec<_> = stored.iter().map(|event| (event.subject.as_str(), event.header("ce-id"))).collect();
    assert_eq!(ids, ["m-1", "m-2", "m-3"].map(|id| ("events.orders.Notification", id)));
    let data: Value = serde_json::from_slice(&stored[0].data).unwrap();
    assert_eq!(data["Message"], "{\"order\":\n7, \"by\": \"Zoë\"}");

    // The validator asks for itself, and not through the proxy.
    let lines: Vec<Value> = aws.lines().iter().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.iter().all(|line| line.get("connect").is_none_or(|to| *to == json!(format!("{HOST}:443")))),
        "{lines:#?}"
    );
    let asked = |start: &str| {
        lines.iter().filter(|line| line["get"].as_str().is_some_and(|path| path.starts_with(start))).count()
    };
    assert_eq!((asked("/SimpleNotificationService-1.pem"), asked("/none.pem")), (2, 1), "once each: {lines:#?}");
    assert_eq!(asked("/?Action=ConfirmSubscription"), 1, "{lines:#?}");
}
