//! All durable consumers of a stream, and the first unfinished message of each.
//!
//! Trimming is irreversible. An incomplete list is therefore an error, and unfinished messages are looked up in the stream,
//! because the counts of a consumer lag behind the stream.

use super::error::ResultExt as _;
use super::{Bus, BusError, resolve::filters_of};
use async_nats::jetstream::{
    consumer,
    response::Response,
    stream::{RawMessageErrorKind, Stream},
};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

/// A durable consumer, as listed.
#[derive(Debug, Clone)]
pub(super) struct DurableConsumer {
    pub(super) info: consumer::Info,
}

/// The position of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessagePosition {
    pub(super) sequence: u64,
    pub(super) stored_at: OffsetDateTime,
}

#[derive(Deserialize)]
struct ConsumerPage {
    total: usize,
    #[serde(default)]
    consumers: Option<Vec<consumer::Info>>,
    /// Consumers whose server does not respond.
    #[serde(default)]
    missing: Option<Vec<String>>,
}

impl Bus {
    /// Lists all durable consumers of a stream.
    ///
    /// # Errors
    /// If the broker does not respond, or the list is incomplete: consumers changed meanwhile, or a server is unavailable.
    pub(super) async fn durables(&self, stream: &str) -> Result<Vec<DurableConsumer>, BusError> {
        let what = || format!("listing the consumers of {stream}");
        let mut listed: Vec<consumer::Info> = Vec::new();
        loop {
            // Each page begins with the last known consumer, so that a shift of the pages is detected.
            let offset = listed.len().saturating_sub(1);
            let subject = format!("CONSUMER.LIST.{stream}");
            let page = self.jetstream.request(subject, &json!({ "offset": offset })).await;
            let page: Response<ConsumerPage> = page.unavailable(what)?;
            let page = match page {
                Response::Ok(page) => page,
                Response::Err { error } => return Err(BusError::refused(what(), error)),
            };
            if page.missing.is_some_and(|missing| !missing.is_empty()) {
                return Err(BusError::unavailable(what(), "a server of the cluster is unavailable"));
            }
            let mut consumers = page.consumers.unwrap_or_default().into_iter();
            if let Some(last) = listed.last()
                && consumers.next().is_none_or(|first| first.name != last.name)
            {
                return Err(BusError::unavailable(what(), "consumers were created or deleted meanwhile"));
            }
            let before = listed.len();
            listed.extend(consumers);
            if listed.len() >= page.total || listed.len() == before {
                break;
            }
        }
        Ok(listed
            .into_iter()
            .filter(|info| info.config.durable_name.is_some())
            .map(|info| DurableConsumer { info })
            .collect())
    }
}

impl DurableConsumer {
    pub(super) fn name(&self) -> &str {
        &self.info.name
    }

    /// The sequence below which it has finished all its messages.
    pub(super) fn floor(&self) -> u64 {
        self.info.ack_floor.stream_sequence + 1
    }

    /// Its unfinished messages, as counted by the broker.
    pub(super) fn unfinished(&self) -> u64 {
        self.info.num_pending + u64::try_from(self.info.num_ack_pending).unwrap_or(u64::MAX)
    }

    /// Its first message from `sequence` on.
    pub(super) async fn next_from(&self, stream: &Stream, sequence: u64) -> Result<Option<MessagePosition>, BusError> {
        let what = || format!("finding the next message of {}", self.info.name);
        let mut next: Option<MessagePosition> = None;
        for filter in filters_of(&self.info.config) {
            // From the leader, since a replica may lag.
            let asked = stream.raw_message_builder().sequence(sequence.max(1)).next_by_subject(filter).send().await;
            let found = match asked {
                Ok(message) => MessagePosition { sequence: message.sequence, stored_at: message.time },
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => continue,
                Err(error) => return Err(BusError::unavailable(what(), error)),
            };
            if next.is_none_or(|next| found.sequence < next.sequence) {
                next = Some(found);
            }
        }
        Ok(next)
    }
}
