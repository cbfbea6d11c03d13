//! Workers and brokers that end between two steps of one event: what was decided before stands.

use crate::{identity::function, post_event};
use futures::{StreamExt, TryStreamExt};
use nerve_tests::{Nats, Nerve, Proxy, Streams, eventually, nerve, seconds};
use nix::sys::signal::{Signal, kill};
use std::path::Path;

/// The shortest time for which JetStream may know an id.
pub(crate) const SHORT_WINDOW: [(&str, &str); 1] = [("NERVE_STREAMS_DEDUPE_WINDOW", "10s")];

/// Waits until nothing of `f` is waiting or in flight.
async fn is_done(streams: &Streams) {
    eventually("all is done", seconds(90), || async {
        let info = streams.consumer("EVENTS", "f").await?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
}

/// A line of Python that appends the event's id to `file`.
fn record(file: &Path) -> String {
    format!("with open({:?}, 'a') as file: file.write(id + '\\n')", file.display().to_string())
}

fn runs(file: &Path, id: &str) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().filter(|line| *line == id).count()
}

#[tokio::test]
async fn event_that_kills_its_worker_alone_is_a_dead_letter_and_costs_no_other() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let gateway = Nerve::gateway(&nats.url()).await;
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("runs");
    let handle =
        format!("{}\nif id == 'kill': continue\ntime.sleep(3)\nsay(call, events=results('c.out'))", record(&file));
    let worker = nerve::worker(&nats.url(), data.path()).await;
    let extra = "concurrency = 4\nretry = { attempts = 2, backoff = [\"10ms\"] }";
    gateway.cli().deploy(function("\"c.*\"", extra, &handle).path()).await;
    post_event(&gateway, "in", "kill", "{}").await;
    post_event(&gateway, "in", "beside", "{}").await;
    // A function cannot signal its worker, so the test kills it while the event runs: first beside the other one.
    for run in 1..=3 {
        eventually("the event runs", seconds(60), || async {
            (runs(&file, "kill") == run && (run > 1 || runs(&file, "beside") > 0)).then_some(())
        })
        .await;
        kill(worker.server(), Signal::SIGKILL).unwrap();
    }
    streams.reaches("DEAD", "dead.f", 1, seconds(90)).await;
    is_done(&streams).await;
    let dead = gateway.cli().run(&["dlq", "list", "--output", "json"]).await.ok().json();
    assert_eq!((dead.as_array().map(Vec::len), &dead[0]["attempts"]), (Some(1), &2.into()), "{dead}");
    assert!(dead.to_string().contains("the worker process crashed while it ran this event"), "{dead}");
    // Once beside another event, which is no attempt, and twice alone.
    assert_eq!(runs(&file, "kill"), 3);
    eventually("each death is logged", seconds(20), || async {
        let log = worker.stderr();
        let died = log.lines().filter(|line| line.contains("the server process crashed") && line.contains("SIGKILL"));
        (died.filter(|line| line.contains("of EVENTS in f")).count() == 3).then_some(())
    })
    .await;
    let results = streams.read("EVENTS", "events.c.out").await;
    assert!(results.iter().all(|result| result.header("ce-causationid") == "beside") && results.len() == 1);
    drop(worker);
}

#[tokio::test]
async fn empty_set_stands_though_its_acknowledgement_is_lost() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, go) = (folder.path().join("runs"), folder.path().join("go"));
    // The first run returns nothing, the second one a result.
    let handle = format!(
        "{}\nrun = open({:?}).read().split().count(id)\n\
         while not os.path.exists({:?} + str(run)): time.sleep(0.02)\n\
         say(call, events=results(*([] if run == 1 else ['c.out'])))",
        record(&file),
        file.display().to_string(),
        go.display().to_string()
    );
    nerve.cli().deploy(function("\"c.*\"", "", &handle).path()).await;
    post_event(&nerve, "in", "1", "{}").await;
    eventually("it has started", seconds(30), || async { (runs(&file, "1") == 1).then_some(()) }).await;
    // Nobody takes the acknowledgement, and the consumer that is made instead delivers the event again.
    streams.stream("EVENTS").await.delete_consumer("nerve-f").await.unwrap();
    std::fs::write(go.with_file_name("go1"), "").unwrap();
    streams.reaches("EVENTS", "empty.f", 1, seconds(60)).await;
    std::fs::write(go.with_file_name("go2"), "").unwrap();
    is_done(&streams).await;
    eventually("the second run is counted as a duplicate", seconds(30), || async {
        let described = nerve.cli().run(&["describe", "f", "--output", "json"]).await.ok().json();
        described.to_string().contains("result").then_some(())
    })
    .await;
    assert_eq!(runs(&file, "1"), 2);
    assert_eq!(streams.count("EVENTS", "events.c.out").await, 0, "another run adds nothing");
}

#[tokio::test]
async fn empty_set_stands_after_its_consumer_is_deleted() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("runs");
    let gateway = Nerve::gateway_with(&nats.url(), &SHORT_WINDOW).await;
    let worker = nerve::worker_with(&nats.url(), data.path(), &SHORT_WINDOW).await;
    // An event that is never answered keeps the place before the others. These return nothing at first, and a result later.
    let handle = format!(
        "{}\nif id == 'waits':\n    continue\n\
         again = open({:?}).read().split().count(id) > 1\nsay(call, events=results(*(['c.out'] if again else [])))",
        record(&file),
        file.display().to_string()
    );
    gateway.cli().deploy(function("\"c.*\"", "timeout = \"1h\"", &handle).path()).await;
    for id in ["waits", "1", "2"] {
        post_event(&gateway, "in", id, "{}").await;
    }
    let only_one_waits = || async {
        eventually("only the first one is left", seconds(60), || async {
            let info = streams.consumer("EVENTS", "f").await?;
            (info.num_ack_pending == 1 && info.num_pending == 0).then_some(())
        })
        .await;
    };
    only_one_waits().await;
    streams.dedupe_window_passes().await;
    streams.stream("EVENTS").await.delete_consumer("nerve-f").await.unwrap();
    eventually("the first one comes again", seconds(60), || async { (runs(&file, "waits") == 2).then_some(()) }).await;
    only_one_waits().await;
    assert_eq!(streams.count("EVENTS", "events.c.out").await, 0, "another run adds nothing");
    assert_eq!(streams.count("EVENTS", "empty.f").await, 2);
    drop(worker);
}

#[tokio::test]
async fn event_of_a_function_that_may_emit_nothing_stores_nothing() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(function("", "", "say(call, events=[])").path()).await;
    post_event(&nerve, "in", "1", "{}").await;
    is_done(&streams).await;
    assert_eq!(streams.count("EVENTS", "empty.>").await, 0);
}

#[tokio::test]
async fn results_stand_though_a_later_version_emits_another_type() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let gateway = Nerve::gateway_with(&nats.url(), &SHORT_WINDOW).await;
    let proxy = Proxy::start(nats.url().trim_start_matches("nats://").to_owned()).await;
    let mut worker = nerve::worker_with(&format!("nats://{}", proxy.address), data.path(), &SHORT_WINDOW).await;
    let started = folder.path().join("started");
    let handle = format!(
        "open({:?}, 'w').close()\ntime.sleep(1)\nsay(call, events=results('c.out'))",
        started.display().to_string()
    );
    gateway.cli().deploy(function("\"c.*\"", "", &handle).path()).await;
    post_event(&gateway, "in", "1", "{}").await;
    eventually("it has started", seconds(30), || async { started.exists().then_some(()) }).await;
    // Its result is stored, and the worker is not told so before it is killed.
    proxy.mute(true);
    streams.reaches("EVENTS", "events.c.out", 1, seconds(30)).await;
    worker.kill9();
    gateway.cli().deploy(function("\"d.*\"", "", "say(call, events=results('d.out'))").path()).await;
    streams.dedupe_window_passes().await;
    let worker = nerve::worker_with(&nats.url(), data.path(), &SHORT_WINDOW).await;
    is_done(&streams).await;
    assert_eq!(streams.count("EVENTS", "events.c.out").await, 1);
    assert_eq!(streams.count("EVENTS", "events.d.out").await, 0, "the first set stands");
    drop(worker);
}

#[tokio::test]
async fn part_of_an_answer_is_copied_after_a_kill_between_log_and_answer() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let gateway = Nerve::gateway(&nats.url()).await;
    let data = tempfile::tempdir().unwrap();
    let mut worker = nerve::worker(&nats.url(), data.path()).await;
    let handle = "part = {'type': 'documents.retrieved', 'data': {'question': 'q', 'documents': []}}\n\
                  say(call, events=[part])";
    gateway.cli().deploy(function("\"documents.retrieved\"", "", handle).path()).await;
    // ANSWERS takes nothing, so the worker is between the two when it is killed.
    let mut answers = streams.stream("ANSWERS").await.cached_info().config.clone();
    let subjects = std::mem::replace(&mut answers.subjects, vec!["elsewhere.>".to_owned()]);
    streams.jetstream.update_stream(&answers).await.unwrap();
    post_event(&gateway, "in", "1", "{}").await;
    streams.reaches("EVENTS", "events.documents.retrieved", 1, seconds(30)).await;
    worker.kill9();
    answers.subjects = subjects;
    streams.jetstream.update_stream(&answers).await.unwrap();
    assert_eq!(streams.count("ANSWERS", "answers.>").await, 0);
    let worker = nerve::worker(&nats.url(), data.path()).await;
    streams.reaches("ANSWERS", "answers.>", 1, seconds(60)).await;
    is_done(&streams).await;
    assert_eq!(streams.count("EVENTS", "events.documents.retrieved").await, 1);
    assert_eq!(streams.count("ANSWERS", "answers.>").await, 1);
    drop(worker);
}

#[tokio::test]
async fn place_follows_events_that_end_long_after_the_last_was_taken() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let handle = "time.sleep(4 if id == 'slow' else 0)\nsay(call, events=results('c.out'))";
    nerve.cli().deploy(function("\"c.*\"", "", handle).path()).await;
    for id in ["slow", "1", "2", "3"] {
        post_event(&nerve, "in", id, "{}").await;
    }
    is_done(&streams).await;
    let places = streams.jetstream.get_key_value("places").await.unwrap();
    eventually("its place is behind all of them", seconds(20), || async {
        let place = places.get("EVENTS.nerve-f").await.ok()??;
        let place: serde_json::Value = serde_json::from_slice(&place).ok()?;
        (place["done"].as_u64()? >= 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn replay_of_older_events_leaves_no_consumers_behind() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let (data, gateway) = (tempfile::tempdir().unwrap(), Nerve::gateway_with(&nats.url(), &SHORT_WINDOW).await);
    let worker = nerve::worker_with(&nats.url(), data.path(), &SHORT_WINDOW).await;
    gateway.cli().deploy(function("\"c.*\"", "", "say(call, events=results('c.out'))").path()).await;
    for n in 0..100 {
        post_event(&gateway, "in", &n.to_string(), "{}").await;
    }
    is_done(&streams).await;
    // From half of the window on each of them is looked up in the log before it is run.
    let newest = streams.read("EVENTS", "events.in").await.last().unwrap().time;
    eventually("the events are old", seconds(20), || async {
        (time::OffsetDateTime::now_utc() - newest > seconds(6)).then_some(())
    })
    .await;
    gateway.cli().run(&["replay", "f", "--since", "first"]).await.ok();
    streams.reaches("EVENTS", "events.c.out", 200, seconds(60)).await;
    is_done(&streams).await;
    let consumers = streams.stream("EVENTS").await.cached_info().state.consumer_count;
    assert!(consumers < 20, "{consumers} consumers");
    drop(worker);
}

#[tokio::test]
async fn consumer_that_several_workers_restore_at_once_is_made_once() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let gateway = Nerve::gateway(&nats.url()).await;
    let data: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut workers = Vec::new();
    for data in &data {
        workers.push(nerve::worker(&nats.url(), data.path()).await);
    }
    gateway.cli().deploy(function("\"c.*\"", "", "say(call, events=results('c.out'))").path()).await;
    for round in 1..=8 {
        post_event(&gateway, "in", &round.to_string(), "{}").await;
        streams.reaches("EVENTS", "events.c.out", round, seconds(30)).await;
        let name = streams.consumer("EVENTS", "f").await.unwrap().name;
        streams.stream("EVENTS").await.delete_consumer(&name).await.unwrap();
        eventually("it is made again", seconds(30), || async { streams.consumer("EVENTS", "f").await.map(drop) }).await;
    }
    post_event(&gateway, "in", "last", "{}").await;
    streams.reaches("EVENTS", "events.c.out", 9, seconds(30)).await;
    let mut made: Vec<String> = streams.stream("EVENTS").await.consumer_names().try_collect().await.unwrap();
    made.retain(|name| name.starts_with("nerve-f"));
    assert_eq!(made.len(), 1, "{made:?}");
    drop(workers);
}

#[tokio::test]
async fn redrive_that_was_cut_off_and_repeated_is_one_run() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let (data, gateway) = (tempfile::tempdir().unwrap(), Nerve::gateway_with(&nats.url(), &SHORT_WINDOW).await);
    let worker = nerve::worker_with(&nats.url(), data.path(), &SHORT_WINDOW).await;
    let fail = "say(call, error={'kind': 'invalid', 'message': 'no'})";
    gateway.cli().deploy(function("\"c.*\"", "", fail).path()).await;
    post_event(&gateway, "in", "1", "{}").await;
    streams.reaches("DEAD", "dead.f", 1, seconds(30)).await;
    gateway.cli().deploy(function("\"c.*\"", "", "say(call, events=results('c.out'))").path()).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let mut redriven = client.subscribe("redrive.f").await.unwrap();
    client.flush().await.unwrap();
    gateway.cli().run(&["dlq", "redrive", "--all"]).await.ok();
    let redriven = redriven.next().await.unwrap();
    streams.reaches("EVENTS", "events.c.out", 1, seconds(30)).await;
    let stored = streams.read("EVENTS", "events.c.out").await[0].time;
    eventually("JetStream has forgotten the first", seconds(30), || async {
        (time::OffsetDateTime::now_utc() - stored > seconds(12)).then_some(())
    })
    .await;
    // As by a command that was killed before it deleted the dead letter, and run again.
    let again = streams.jetstream.publish_with_headers("redrive.f", redriven.headers.unwrap(), redriven.payload).await;
    again.unwrap().await.unwrap();
    eventually("it is done", seconds(30), || async { (streams.count("DEAD", ">").await == 0).then_some(()) }).await;
    assert_eq!(streams.count("EVENTS", "events.c.out").await, 1);
    drop(worker);
}
