//! A no-op component through a worker, against a bare loop over async-nats.

use crate::{ROUNDS, Side, compare};
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use futures::StreamExt;
use nerve_tests::{
    Cli, Nats, Streams,
    daemon::{Daemon, is_stopped},
    guest, nerve, seconds,
};
use nix::sys::signal::{Signal, kill};

/// Events a round.
const EVENTS: usize = 20_000;
/// In flight at once, on both sides.
const IN_FLIGHT: usize = 256;
/// Bytes of each event's body.
const BODY: usize = 256;

pub(crate) async fn compare_with_raw_loop(nats: &Nats) {
    let data = tempfile::tempdir().expect("a temporary folder");
    let worker = nerve::worker(&nats.url(), data.path()).await;
    let extra = format!("concurrency = {IN_FLIGHT}");
    let folder = guest::wasm("noop", "events.bench.in", "bench.out", &extra, &guest::echo("bench.out"));
    Cli::new(&nats.url()).deploy(folder.path()).await;
    let folder = guest::wasm("twice", "events.bench.two", "bench.twice", &extra, &guest::twice("bench.twice"));
    Cli::new(&nats.url()).deploy(folder.path()).await;
    let streams = Streams::connect(&nats.url()).await;
    // One event to make sure that the function runs.
    preload(&streams, "bench.in", 1).await;
    streams.reaches("EVENTS", "events.bench.out", 1, seconds(60)).await;
    preload(&streams, "bench.two", 1).await;
    streams.reaches("EVENTS", "events.bench.twice", 2, seconds(60)).await;
    let raw = raw_consumer(&streams).await;

    let (mut component, mut bare, mut same, mut two) =
        (Side::default(), Side::default(), Side::default(), Side::default());
    for _ in 0..ROUNDS {
        pause(&worker).await;
        let before = preload(&streams, "bench.in", EVENTS).await;
        kill(worker.server(), Signal::SIGCONT).expect("a server process");
        component.rates.push(rate_of_results(&streams, before, EVENTS).await);

        pause(&worker).await;
        let before = preload(&streams, "bench.two", EVENTS).await;
        kill(worker.server(), Signal::SIGCONT).expect("a server process");
        two.rates.push(rate_of_results(&streams, before, 2 * EVENTS).await / 2.0);

        let before = preload(&streams, "bench.raw", EVENTS).await;
        raw_loop(&streams, &raw, Sent::Body).await;
        bare.rates.push(rate_of_results(&streams, before, EVENTS).await);

        let before = preload(&streams, "bench.raw", EVENTS).await;
        raw_loop(&streams, &raw, Sent::Event).await;
        same.rates.push(rate_of_results(&streams, before, EVENTS).await);
    }
    let title = format!("no-op component, {BODY} B, {IN_FLIGHT} in flight: event to result, both acknowledged");
    compare(&title, "events/s", ("component through the host", &component), ("raw async-nats loop", &bare));
    // What the broker itself costs once results are CloudEvents under message ids, which is how none is stored twice.
    let title = "the same, the raw loop's results being CloudEvents with message ids, as Nerve's are";
    compare(title, "events/s", ("component through the host", &component), ("raw loop, same messages", &same));
    // The results of one event are stored all or none, which takes atomic batches; many events share one.
    let title = "two results an event, stored together, against one";
    compare(title, "events/s", ("two results an event", &two), ("one result an event", &component));
}

/// Stops the worker's threads, each of them: one that still ran would have results before the round begins.
pub(crate) async fn pause(worker: &Daemon) {
    let server = worker.server();
    kill(server, Signal::SIGSTOP).expect("a server process");
    nerve_tests::eventually("the worker stops", seconds(10), || async { is_stopped(server).then_some(()) }).await;
}

/// Publishes `count` events of type `ty`; returns the stream's last sequence.
async fn preload(streams: &Streams, ty: &str, count: usize) -> u64 {
    let body = bytes::Bytes::from(format!("\"{}\"", "x".repeat(BODY - 2)));
    // A result's id comes from its event's: were ids used twice, the second round's results would be duplicates.
    let round = uuid::Uuid::now_v7();
    let sent = futures::stream::iter(0..count).map(|n| {
        let body = body.clone();
        async move {
            let mut headers = async_nats::HeaderMap::new();
            let id = format!("{round}-{n}");
            for (name, value) in [("ce-specversion", "1.0"), ("ce-type", ty), ("ce-source", "/bench"), ("ce-id", &id)] {
                headers.insert(name, value);
            }
            let sent = streams.jetstream.publish_with_headers(format!("events.{ty}"), headers, body).await;
            sent.expect("a publish").await.expect("an acknowledgement").sequence
        }
    });
    sent.buffer_unordered(512).fold(0, async |last, sequence| last.max(sequence)).await
}

/// Results a second from the first to the last of a round, by the server's own clock: what was started when, and
/// who was told how fast, does not count.
pub(crate) async fn rate_of_results(streams: &Streams, before: u64, count: usize) -> f64 {
    let stream = streams.stream("EVENTS").await;
    let last = before + count as u64;
    nerve_tests::eventually("the round's results", seconds(120), || async {
        let stream = streams.stream("EVENTS").await;
        (stream.cached_info().state.last_sequence >= last).then_some(())
    })
    .await;
    let time = async |sequence| stream.get_raw_message(sequence).await.expect("a stored result").time;
    let elapsed = time(last).await - time(before + 1).await;
    (count - 1) as f64 / elapsed.as_seconds_f64()
}

async fn raw_consumer(streams: &Streams) -> PullConsumer {
    let config = pull::Config {
        durable_name: Some("raw".to_owned()),
        filter_subject: "events.bench.raw".to_owned(),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: -1,
        ..Default::default()
    };
    streams.stream("EVENTS").await.create_consumer(config).await.expect("a consumer")
}

/// What the raw loop publishes.
#[derive(Clone, Copy)]
enum Sent {
    /// The body alone.
    Body,
    /// The headers that Nerve's results have.
    Event,
}

impl Sent {
    fn headers(self, sequence: u64) -> async_nats::HeaderMap {
        let mut headers = async_nats::HeaderMap::new();
        if let Self::Event = self {
            let id = format!("raw-{sequence:024}-0");
            for (name, value) in [
                ("ce-specversion", "1.0"),
                ("ce-id", &id),
                ("ce-source", "/functions/raw"),
                ("ce-type", "bench.rawout"),
                ("ce-time", "2026-01-01T00:00:00.000000000Z"),
                ("ce-causationid", &id),
                ("ce-correlationid", &id),
                ("content-type", "application/json"),
                ("Nats-Msg-Id", &format!("/functions/raw#{id}")),
            ] {
                headers.insert(name, value);
            }
        }
        headers
    }
}

/// Pulls, publishes with ack and acknowledges every preloaded event.
async fn raw_loop(streams: &Streams, consumer: &PullConsumer, sent: Sent) {
    let messages = consumer.messages().await.expect("messages").take(EVENTS);
    let handled = messages.for_each_concurrent(IN_FLIGHT, |message| async move {
        let message = message.expect("a message");
        let (subject, body) = ("events.bench.rawout", message.payload.clone());
        let published = match sent {
            Sent::Body => streams.jetstream.publish(subject, body).await,
            Sent::Event => {
                let sequence = message.info().expect("a delivery").stream_sequence;
                streams.jetstream.publish_with_headers(subject, sent.headers(sequence), body).await
            }
        };
        published.expect("a publish").await.expect("an acknowledgement");
        message.ack().await.expect("an ack");
    });
    handled.await;
}
