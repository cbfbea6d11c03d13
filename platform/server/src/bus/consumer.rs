//! The durable consumer of a function: where in its stream the function is.
//!
//! A function begins with what comes after its deployment, and a replay sends it back, which the broker allows a
//! consumer of everything only. So a consumer of everything is made, paused, sent to its beginning and let go; the
//! place it begins at stands in its metadata, so that whoever finds it half made can finish it.

use super::{Bus, BusError, consumer_name};
use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, Info, pull},
    context::{ConsumerInfoErrorKind, GetStreamErrorKind},
    stream::{ConsumerCreateStrictErrorKind, ConsumerResetErrorKind, ConsumerUpdateErrorKind, Stream},
};
use nerve_core::Name;
use std::{collections::HashMap, time::Duration};
use time::{OffsetDateTime, macros::datetime};

/// Deliveries of one function that may be in flight over all workers.
pub(crate) const MAX_ACK_PENDING: i64 = 65_536;
/// Where a consumer begins: a sequence, in its metadata.
const BEGINS: &str = "nerve-begins";
/// Until when a consumer is paused that is not at its beginning yet; no operator's pause ends at this moment.
const HALF_MADE: OffsetDateTime = datetime!(2222-02-22 22:22:22 UTC);
/// How often a consumer is looked at that somebody else makes or deletes at the same time.
const TRIES: usize = 3;

/// A durable consumer as it should be.
pub(crate) struct Binding<'s> {
    pub(crate) stream: &'s str,
    pub(crate) consumer: String,
    /// For whoever lists the broker's consumers.
    pub(crate) description: String,
    pub(crate) subjects: Vec<String>,
    pub(crate) ack_wait: Duration,
    /// Deliveries in flight over all workers; one keeps the order.
    pub(crate) in_flight: i64,
}

impl Bus {
    /// Makes or updates the consumer of a function on one stream. A new one begins with what comes from now on.
    pub(crate) async fn ensure_consumer(
        &self,
        stream: &str,
        function: &Name,
        subjects: Vec<String>,
        ack_wait: Duration,
    ) -> Result<(), BusError> {
        let description = format!("Nerve's function {function}");
        let consumer = consumer_name(function);
        self.bind(Binding { stream, consumer, description, subjects, ack_wait, in_flight: MAX_ACK_PENDING }).await
    }

    /// Makes or updates a durable consumer. A new one begins with what comes from now on.
    pub(crate) async fn bind(&self, binding: Binding<'_>) -> Result<(), BusError> {
        let Binding { stream, consumer: name, description, subjects, ack_wait, in_flight } = binding;
        let what = || format!("making the consumer {name} on {stream}");
        let wanted = pull::Config {
            durable_name: Some(name.clone()),
            description: Some(description),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            // The worker counts attempts and writes the dead letter; the server would drop the message silently.
            max_deliver: -1,
            max_ack_pending: in_flight,
            filter_subjects: subjects,
            ..<_>::default()
        };
        for _ in 0..TRIES {
            // Read before the consumer is made, so that what comes meanwhile is not passed over.
            let handle = self.stream(stream, what).await?;
            let existing = consumer_of(&handle, &name, what).await?;
            let Some(existing) = existing else {
                let at = handle.cached_info().state.last_sequence + 1;
                let metadata = HashMap::from([(BEGINS.to_owned(), at.to_string())]);
                let config = pull::Config { metadata, pause_until: Some(HALF_MADE), ..wanted.clone() };
                match handle.create_consumer_strict(config).await {
                    Ok(made) => return begin(&handle, made.cached_info(), what).await,
                    Err(error) => match error.kind() {
                        ConsumerCreateStrictErrorKind::AlreadyExists => continue,
                        ConsumerCreateStrictErrorKind::JetStream(why) => return Err(BusError::refused(what(), why)),
                        _ => return Err(BusError::unavailable(what(), error)),
                    },
                }
            };
            let config = pull::Config {
                // The broker changes no policy; a consumer of an older Nerve has another one.
                deliver_policy: existing.config.deliver_policy,
                metadata: begins(&existing).into_iter().map(|at| (BEGINS.to_owned(), at.to_string())).collect(),
                ..wanted.clone()
            };
            match handle.update_consumer(config).await {
                Ok(_) => return begin(&handle, &existing, what).await,
                Err(error) => match error.kind() {
                    ConsumerUpdateErrorKind::DoesNotExist => {}
                    ConsumerUpdateErrorKind::JetStream(why) => return Err(BusError::refused(what(), why)),
                    _ => return Err(BusError::unavailable(what(), error)),
                },
            }
        }
        Err(BusError::unavailable(what(), "it is made and deleted by others at the same time"))
    }

    pub(super) async fn stream(&self, name: &str, what: impl Fn() -> String) -> Result<Stream, BusError> {
        self.jetstream.get_stream(name).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(why) => BusError::refused(what(), why),
            _ => BusError::unavailable(what(), error),
        })
    }
}

/// What the broker knows of a consumer; `None` where there is none.
pub(super) async fn consumer_of(
    stream: &Stream,
    name: &str,
    what: impl Fn() -> String,
) -> Result<Option<Info>, BusError> {
    match stream.consumer_info(name).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
        Err(error) => Err(BusError::unavailable(what(), error)),
    }
}

/// Where a consumer began, as it was written down when it was made.
fn begins(info: &Info) -> Option<u64> {
    info.config.metadata.get(BEGINS)?.parse().ok()
}

/// Sends a consumer that is half made to its beginning, and lets it go; leaves any other alone.
async fn begin(stream: &Stream, info: &Info, what: impl Fn() -> String) -> Result<(), BusError> {
    let half_made = info.config.pause_until == Some(HALF_MADE);
    let Some(at) = begins(info).filter(|_| half_made) else { return Ok(()) };
    reset(stream, &info.name, at, &what).await?;
    let resumed = stream.resume_consumer(&info.name).await;
    resumed.map(drop).map_err(|error| BusError::unavailable(what(), error))
}

/// Has the broker deliver from a sequence on, whatever was delivered before.
pub(super) async fn reset(stream: &Stream, name: &str, at: u64, what: impl Fn() -> String) -> Result<(), BusError> {
    let Err(error) = stream.reset_consumer(name, Some(at)).await else { return Ok(()) };
    Err(match error.kind() {
        // Nobody answers for what a broker does not know.
        ConsumerResetErrorKind::NotFound => BusError::refused(
            what(),
            "the consumer is gone, or this NATS server is older than 2.14, which it must not be",
        ),
        ConsumerResetErrorKind::InvalidReset => BusError::refused(what(), "the broker does not let it go back"),
        ConsumerResetErrorKind::JetStream(why) => BusError::refused(what(), why),
        _ => BusError::unavailable(what(), error),
    })
}
