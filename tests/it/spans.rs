//! Log lines of one request, delivery, post or deploy carry its ids.

use crate::post_event;
use nerve_tests::{Folder, Nerve, Receiver, eventually, guest, nerve::Options, receiver::Reply, seconds};

/// The first line of the server's log that contains all of these.
async fn line(nerve: &Nerve, parts: &[&str]) -> String {
    eventually(&format!("a log line with {parts:?}"), seconds(30), || async {
        let log = nerve.daemon.stderr();
        log.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
    })
    .await
}

#[tokio::test]
async fn log_lines_of_one_event_carry_its_id() {
    let envs = vec![("NERVE_LOG".to_owned(), "info,nerve_gateway=debug".to_owned())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let fails = r#"
import json, sys
for line in sys.stdin:
    call = json.loads(line)
    print(json.dumps({"id": call["id"], "error": {"kind": "invalid", "message": "broken"}}), flush=True)
"#;
    nerve.cli().deploy(guest::python("broken", "events.a", "b", "", fails).path()).await;
    let receiver = Receiver::start([]).await;
    receiver.from_now_on(Reply::Status(400));
    let manifest = format!(
        "[sink.crm]\nurl = \"{}\"\non = [\"events.a\"]\nallow = [\"127.0.0.0/8\", \"::1\"]\nretry = {{ attempts = 1 }}\n\
         [source.hub]\nprovider = \"github\"\nsecrets = [\"HUB\"]\n",
        receiver.url
    );
    nerve.cli().deploy(Folder::new(&manifest).path()).await;
    nerve.cli().secret("HUB", "a secret of the hub").await;

    assert_eq!(post_event(&nerve, "a", "event-7", "{}").await, 202);
    let event = "event=\"event-7\"";
    line(&nerve, &["delivery{function=\"broken\" ", event, "dead-letter queue"]).await;
    line(&nerve, &["delivery{sink=\"crm\" ", event, "dead-letter queue"]).await;

    let refused = reqwest::Client::new().post(nerve.url("/hooks/hub")).body("{}").send().await.unwrap();
    assert!(refused.status().is_client_error(), "{refused:?}");
    let refusal = line(&nerve, &["request{id=", "method=\"POST\" route=\"/hooks/{source}\"}", "webhook refused"]).await;
    assert_eq!(refusal.matches("request{").count(), 1, "{refusal}");

    let folder = guest::python("keeper", "events.a", "b", "secrets = [\"NOWHERE\"]", "");
    nerve.cli().run(&["deploy", &folder.path().display().to_string()]).await;
    line(&nerve, &["deploy{function=\"keeper\" revision=", "NOWHERE"]).await;
}
