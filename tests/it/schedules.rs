//! Events at certain times, on JetStream's own schedules.

use nerve_tests::{Folder, Nerve, Streams, seconds};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn schedule(cron: &str) -> Folder {
    Folder::new(&format!(
        "[schedule.digest]\ncron = \"{cron}\"\nemit = \"digest.due\"\ndata = {{ limit = 3 }}\ntimezone = \"Europe/Rome\"\n"
    ))
}

#[tokio::test]
async fn a_schedule_emits_an_event_each_time() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let cli = nerve.cli();
    cli.deploy(schedule("* * * * * *").path()).await;
    streams.reaches("EVENTS", "events.digest.due", 3, seconds(20)).await;
    let events = streams.read("EVENTS", "events.digest.due").await;
    let ids: BTreeSet<&str> = events.iter().map(|event| event.header("ce-id")).collect();
    assert_eq!(ids.len(), events.len(), "each has an id of its own: {ids:?}");
    assert_eq!(events[0].header("ce-source"), "/schedules/digest");
    assert_eq!(serde_json::from_slice::<Value>(&events[0].data).unwrap(), json!({"limit": 3}));

    let again = cli.deploy(schedule("* * * * * *").path()).await;
    assert!(again.stdout.contains("nothing changed"), "{again:?}");
    let listed = cli.run(&["list", "--output", "json"]).await.ok().json();
    assert_eq!(listed["schedules"][0]["spec"]["cron"], "* * * * * *");
    assert!(cli.run(&["list"]).await.ok().stdout.contains("Europe/Rome"));

    // A schedule that is changed ticks by the new one only.
    cli.deploy(schedule("0 0 7 1 1 *").path()).await;
    // What was on its way has come within two seconds; a tick of the old schedule would follow within one.
    tokio::time::sleep(seconds(2)).await;
    let before = streams.count("EVENTS", "events.digest.due").await;
    tokio::time::sleep(seconds(2)).await;
    assert_eq!(streams.count("EVENTS", "events.digest.due").await, before);

    let refused = Folder::new("[schedule.x]\ncron = \"@daily\"\nemit = \"a\"\ntimezone = \"Europe/Nowhere\"\n");
    let refused = cli.run(&["deploy", &refused.path().display().to_string()]).await.failed(1);
    assert!(refused.stderr.contains("time zone"), "{refused:?}");
    cli.run(&["remove", "digest"]).await.ok();
    assert_eq!(streams.count("TIMERS", "timers.cron.>").await, 0);
}
