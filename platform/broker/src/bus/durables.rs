//! The durable consumers of a stream, all of them, and the first message that each has not finished.
//!
//! What is trimmed cannot be had back. So a consumer that the listing may have passed over is an error, and what a consumer
//! has not finished is looked up in the stream: the counts of a consumer follow the stream a moment later.

use super::{Bus, BusError, resolve::filters_of};
use async_nats::jetstream::{
    consumer,
    response::Response,
    stream::{RawMessageErrorKind, Stream},
};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

/// A durable consumer, as it was when it was listed.
#[derive(Debug, Clone)]
pub(super) struct Durable {
    pub(super) info: consumer::Info,
}

/// Where a message is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) sequence: u64,
    pub(super) stored_at: OffsetDateTime,
}

#[derive(Deserialize)]
struct Page {
    total: usize,
    #[serde(default)]
    consumers: Option<Vec<consumer::Info>>,
    /// Consumers whose server does not answer.
    #[serde(default)]
    missing: Option<Vec<String>>,
}

impl Bus {
    /// All durable consumers of a stream.
    ///
    /// # Errors
    /// The broker does not answer, or the list is not whole: consumers came and went meanwhile, or a server is away.
    pub(super) async fn durables(&self, stream: &str) -> Result<Vec<Durable>, BusError> {
        let what = || format!("listing the consumers of {stream}");
        let mut listed: Vec<consumer::Info> = Vec::new();
        loop {
            // One that is listed already comes first, so that a shift of the pages is seen.
            let offset = listed.len().saturating_sub(1);
            let subject = format!("CONSUMER.LIST.{stream}");
            let page = self.jetstream.request(subject, &json!({ "offset": offset })).await;
            let page: Response<Page> = page.map_err(|error| BusError::unavailable(what(), error))?;
            let page = match page {
                Response::Ok(page) => page,
                Response::Err { error } => return Err(BusError::refused(what(), error)),
            };
            if page.missing.is_some_and(|missing| !missing.is_empty()) {
                return Err(BusError::unavailable(what(), "a server of the cluster is away"));
            }
            let mut consumers = page.consumers.unwrap_or_default().into_iter();
            if let Some(last) = listed.last()
                && consumers.next().is_none_or(|first| first.name != last.name)
            {
                return Err(BusError::unavailable(what(), "consumers came and went meanwhile"));
            }
            let before = listed.len();
            listed.extend(consumers);
            if listed.len() >= page.total || listed.len() == before {
                break;
            }
        }
        Ok(listed.into_iter().filter(|info| info.config.durable_name.is_some()).map(|info| Durable { info }).collect())
    }
}

impl Durable {
    pub(super) fn name(&self) -> &str {
        &self.info.name
    }

    /// All before this is finished, or not for it.
    pub(super) fn floor(&self) -> u64 {
        self.info.ack_floor.stream_sequence + 1
    }

    /// Messages that it has not finished, as the broker counts them.
    pub(super) fn unfinished(&self) -> u64 {
        self.info.num_pending + u64::try_from(self.info.num_ack_pending).unwrap_or(u64::MAX)
    }

    /// The first message for it from `sequence` on.
    pub(super) async fn next_from(&self, stream: &Stream, sequence: u64) -> Result<Option<Place>, BusError> {
        let what = || format!("looking for the next message of {}", self.info.name);
        let mut next: Option<Place> = None;
        for filter in filters_of(&self.info.config) {
            // From the leader, since a replica may not have it yet.
            let asked = stream.raw_message_builder().sequence(sequence.max(1)).next_by_subject(filter).send().await;
            let found = match asked {
                Ok(message) => Place { sequence: message.sequence, stored_at: message.time },
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
