//! What is really in JetStream, read past Nerve.

use crate::{Broker, eventually};
use async_nats::jetstream::{
    self,
    consumer::{self, DeliverPolicy},
    stream::Stream,
};
use futures::StreamExt;
use std::{collections::BTreeMap, time::Duration};

/// A client of its own on a NATS server.
pub struct Streams {
    /// The context, for what has no shortcut here.
    pub jetstream: jetstream::Context,
}

/// One stored message.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its place in the stream.
    pub sequence: u64,
    /// When it was stored, by the broker's clock.
    pub time: time::OffsetDateTime,
    /// Its subject.
    pub subject: String,
    /// Its headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub data: bytes::Bytes,
}

impl Stored {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Streams {
    /// Connects.
    pub async fn connect<B: Broker + ?Sized>(broker: &B) -> Self {
        let client = crate::broker::client(broker).await;
        let client = client.unwrap_or_else(|e| panic!("no NATS at {}: {e}", broker.url()));
        Self { jetstream: jetstream::new(client) }
    }

    /// A stream that must exist.
    pub async fn stream(&self, name: &str) -> Stream {
        let stream = self.jetstream.get_stream(name).await;
        stream.unwrap_or_else(|e| panic!("no stream {name}: {e}"))
    }

    /// The functions that have a consumer on a stream; the server's own consumers are left out.
    pub async fn functions(&self, stream: &str) -> Vec<String> {
        let names: Vec<_> = self.stream(stream).await.consumer_names().collect().await;
        let names = names.into_iter().map(|name| name.expect("a consumer's name"));
        // A replay gives a function a consumer whose name ends with `~` and the replay's id.
        let function = |name: String| name.strip_prefix("nerve-")?.split('~').next().map(str::to_owned);
        names.filter_map(function).collect()
    }

    /// The consumer of a function as it is now; one that was made again, or by a replay, has another name.
    pub async fn consumer(&self, stream: &str, function: &str) -> Option<consumer::Info> {
        let stream = self.jetstream.get_stream(stream).await.ok()?;
        let (name, replayed) = (format!("nerve-{function}"), format!("nerve-{function}~"));
        let names: Vec<String> = stream.consumer_names().filter_map(async |name| name.ok()).collect().await;
        let found = names.into_iter().find(|found| *found == name || found.starts_with(&replayed))?;
        stream.consumer_info(found).await.ok()
    }

    /// Deletes a stream, with what it remembers of ids; a server that starts makes it anew.
    pub async fn delete(&self, name: &str) {
        self.jetstream.delete_stream(name).await.unwrap_or_else(|e| panic!("{name} is not deleted: {e}"));
    }

    /// How many messages a stream holds on subjects that match `filter`.
    pub async fn count(&self, stream: &str, filter: &str) -> usize {
        let Ok(stream) = self.jetstream.get_stream(stream).await else { return 0 };
        let subjects = stream.info_with_subjects(filter).await.expect("the stream's subjects");
        subjects.map(|entry| entry.expect("a subject and its count").1).collect::<Vec<_>>().await.iter().sum()
    }

    /// How many messages the streams for events, answers and dead letters hold together.
    pub async fn total(&self) -> usize {
        self.count("EVENTS", ">").await + self.count("ANSWERS", ">").await + self.count("DEAD", ">").await
    }

    /// Waits until a stream holds at least `wanted` messages on `filter`.
    pub async fn reaches(&self, stream: &str, filter: &str, wanted: usize, timeout: Duration) {
        let what = format!("{wanted} messages on {filter} in {stream}");
        eventually(&what, timeout, || async { (self.count(stream, filter).await >= wanted).then_some(()) }).await;
    }

    /// Waits until JetStream has forgotten the ids of what is in EVENTS.
    pub async fn dedupe_window_passes(&self) {
        let probe = async || {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", "probe");
            let sent = self.jetstream.publish_with_headers("events.probe", headers, "".into()).await;
            sent.unwrap().await.unwrap()
        };
        let first = probe().await.sequence;
        eventually("the dedupe window has passed", Duration::from_secs(30), || async {
            (probe().await.sequence > first).then_some(())
        })
        .await;
    }

    /// Every message of a stream on subjects that match `filter`, in order.
    pub async fn read(&self, stream: &str, filter: &str) -> Vec<Stored> {
        let wanted = self.count(stream, filter).await;
        let config = jetstream::consumer::pull::OrderedConfig {
            filter_subjects: vec![filter.to_owned()],
            deliver_policy: DeliverPolicy::All,
            ..Default::default()
        };
        let consumer = self.stream(stream).await.create_consumer(config).await.expect("an ordered consumer");
        let mut messages = consumer.messages().await.expect("messages").take(wanted);
        let mut stored = Vec::with_capacity(wanted);
        while let Some(message) = messages.next().await {
            let message = message.expect("a message");
            let headers = message.headers.iter().flat_map(|headers| headers.iter());
            let headers = headers.flat_map(|(name, values)| {
                values.iter().map(|value| (name.to_string().to_ascii_lowercase(), value.to_string()))
            });
            let info = message.info().expect("JetStream's reply subject");
            stored.push(Stored {
                sequence: info.stream_sequence,
                time: info.published,
                subject: message.subject.to_string(),
                headers: headers.collect(),
                data: message.payload.clone(),
            });
        }
        stored
    }
}
