//! NATS JetStream: publishes events and delivers messages.
//!
//! # Layout
//! - `streams`: creates and migrates the streams. `buckets`: the same for buckets and object stores, and their fill levels.
//! - `legacy`: events and results of versions of Nerve without identities.
//! - `provenance`: the original position of a delivered message. `headers`: its headers in copies.
//! - `resolve`: the stream of a function's subjects.
//! - `publish`: publishes an event with its message id, and waits for the ack. `fast_batch`: many of them at once.
//! - `large_body`: bodies over the message limit, in the Object Store by reference.
//! - `consumer`: the durable consumer of a function. `progress`: its stored progress. `replay`: moves it back.
//! - `delivery`: a message to acknowledge, by value, so that it is acknowledged once.
//! - `ack_extender`: extends all deliveries in flight from one timer.
//! - `pull`: pulls as many messages as there are free slots.
//! - `results`: stores the results of a run, all or none, by `atomic_batch`.
//! - `run_history`: the history of unsuccessful runs.
//! - `capacity`: the free capacity of EVENTS. `stream_full`: why it is full. `trim`: keeps it within its limit. `expiry`: counts expired events.
//!   `durables`: the unfinished messages of all consumers.
//! - `dedupe`: the dedupe store of webhooks. `duplicates`: counts dropped duplicates by reason.
//! - `tail`: reads a stream in order from any position, across reconnects.
//! - `trace`: the effects of one event.
//! - `dead`: dead letters. `retry`: retry requests. `delayed`: delayed messages and ticks. `sink_attempts`: the outcomes of
//!   sink requests.
//! - `answers`: answers in progress. `idempotency`: requests with an `Idempotency-Key`. `views`: stored documents of functions.
//! - `erase`: deletes all data of a tenant.
//! - `invoke`: direct calls of functions.
//! - `logs`: logs of functions. `kv`, `objects`: buckets and object stores for other crates. `error`: errors.

mod ack_extender;
mod answers;
mod atomic_batch;
mod buckets;
mod capacity;
mod consumer;
mod dead;
mod dedupe;
mod delayed;
mod delivery;
mod disk;
mod duplicates;
mod durables;
mod erase;
mod error;
mod expiry;
mod fast_batch;
mod headers;
mod idempotency;
mod invoke;
mod kv;
mod large_body;
mod legacy;
mod logs;
mod objects;
mod progress;
mod provenance;
mod publish;
mod pull;
mod replay;
mod resolve;
mod results;
mod retry;
mod run_history;
mod sink_attempts;
mod stream_full;
mod streams;
mod tail;
mod trace;
mod trim;
mod views;

pub use answers::{AnswerPart, AnswerParts, AnswerState, EndReason};
pub use buckets::FullBucket;
pub use consumer::UnfinishedMessages;
pub use dead::{DeadLetter, DeadLetterFilter, DeadLetterState};
pub use dedupe::DedupeStore;
pub use delivery::{Attempt, Delivery};
pub use duplicates::{DuplicateCounters, DuplicateCounts, DuplicateReason, DuplicateScope};
pub use erase::{ErasedMessages, Erasure, ErasureOutcome, StoredView};
pub use error::BusError;
pub use fast_batch::FastPublisher;
pub use invoke::{Invocation, InvokeError};
pub use kv::{Bucket, BucketChanges, BucketEntry};
pub use logs::{LogRecord, Logs};
pub use objects::Objects;
pub use publish::{PublishError, Published};
pub use pull::{Liveness, PullContext, Puller};
pub use replay::Replay;
pub use resolve::Retention;
pub use sink_attempts::{ATTEMPTS, SinkAttempt, SinkAttemptFilter, SinkAttempts, SinkOutcome};
pub use stream_full::{StreamFull, StreamFullReason};
pub use streams::{
    ANSWERS, ARTIFACTS, DEAD, EVENTS, FUNCTIONS, LOGS, REDRIVE_PREFIX, SECRETS, SEEN, TIMERS, consumer_name,
};
pub use tail::{Start, Tail, TailedEvent};
pub use trace::{Trace, TracedEvent};

pub use ack_extender::AckExtender;
pub use answers::{AnswerFailure, AnswerSignal};
pub use atomic_batch::{MAX_MESSAGES as MAX_RESULTS, ResultSetOutcome, ResultSetPublisher};
pub use buckets::watch as monitor_buckets;
pub use consumer::{ConsumerSpec, MAX_ACK_PENDING, StartPosition};
pub use delayed::{TICKS, TICKS_CONSUMER, due_subject};
pub use disk::{size as disk_size, watch as monitor_disk};
pub use idempotency::{RequestRecord, StoredRequest};
pub use large_body::BodyError;
pub use legacy::LegacyResults;
pub use progress::RestoredConsumer;
pub use progress::{BoundConsumer, ProgressRecorder};
pub use provenance::Provenance;
pub use results::{CommittedResults, RunResult};
pub use retry::{RETRY_CONSUMER, RetryOutcome, unfinished_leaves};
pub use run_history::{Resumption, RunHistory};
pub use trim::{Returns, Trimmer};

use crate::{Connection, NatsSettings, connection::REQUEST_TIMEOUT};
use async_nats::{
    Client,
    connection::State,
    jetstream::{self, Context, kv as nats_kv},
};
use capacity::EventsCapacity;
use std::sync::Arc;
use tokio::sync::{OnceCell, watch};

/// A connection to NATS JetStream; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus {
    // A client and a context are many handles each, and every delivery carries a bus.
    client: Arc<Client>,
    jetstream: Arc<Context>,
    /// The subject prefix of the JetStream API.
    api_prefix: Arc<str>,
    reconnects: watch::Receiver<u64>,
    /// The bucket of consumer progress, opened on first use.
    places: Arc<OnceCell<nats_kv::Store>>,
    older: legacy::SharedLegacyEvents,
    space: Arc<EventsCapacity>,
    drops: DuplicateCounters,
    /// The bucket of requests, opened on first use.
    requests: Arc<OnceCell<nats_kv::Store>>,
}

impl Bus {
    /// Connects, and reconnects for as long as it lives. `name` identifies the client in the server's connection list.
    ///
    /// # Errors
    /// If no connection is established within seconds.
    pub async fn connect(settings: &NatsSettings, name: &str) -> Result<Self, BusError> {
        Ok(Self::over(settings.connect(name).await?, settings))
    }

    /// Connects a server, which may start before its broker: waits until that is reachable.
    ///
    /// # Errors
    /// If waiting cannot help.
    pub async fn connect_when_reachable(settings: &NatsSettings, name: &str) -> Result<Self, BusError> {
        Ok(Self::over(settings.connect_when_reachable(name).await?, settings))
    }

    /// A bus over a connection that was established with these settings.
    pub fn over(connection: Connection, settings: &NatsSettings) -> Self {
        let Connection { client, reconnects, .. } = connection;
        let api_prefix = settings.api_prefix();
        let jetstream = jetstream::context::ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .ack_timeout(REQUEST_TIMEOUT)
            .max_ack_inflight(16 * 1024)
            .backpressure_on_inflight(true)
            .api_prefix(api_prefix.clone())
            .build(client.clone());
        Self {
            client: Arc::new(client),
            jetstream: Arc::new(jetstream),
            api_prefix: api_prefix.into(),
            reconnects,
            places: Arc::default(),
            older: Arc::default(),
            space: Arc::default(),
            drops: DuplicateCounters::default(),
            requests: Arc::default(),
        }
    }

    /// Opens another connection that shares the capacity of EVENTS, the events of an earlier version, and the counters.
    pub async fn connect_shared(&self, settings: &NatsSettings, name: &str) -> Result<Self, BusError> {
        let connected = Self::connect_when_reachable(settings, name).await?;
        let (space, older, drops) = (Arc::clone(&self.space), Arc::clone(&self.older), self.drops.clone());
        Ok(Self { space, older, drops, ..connected })
    }

    /// A bus without a broker, for tests of other crates.
    ///
    /// # Errors
    /// None in practice: the client connects in the background.
    #[doc(hidden)]
    pub async fn disconnected() -> Result<Self, async_nats::ConnectError> {
        let connect = async_nats::ConnectOptions::new().retry_on_initial_connect();
        let client = connect.connect("127.0.0.1:1").await?;
        let jetstream = jetstream::new(client.clone());
        Ok(Self {
            client: Arc::new(client),
            jetstream: Arc::new(jetstream),
            api_prefix: "$JS.API".into(),
            reconnects: watch::channel(0).1,
            places: Arc::default(),
            older: Arc::default(),
            space: Arc::default(),
            drops: DuplicateCounters::default(),
            requests: Arc::default(),
        })
    }

    /// Returns whether the client is connected.
    pub fn connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Checks that EVENTS is available.
    pub async fn ready(&self) -> Result<(), BusError> {
        if !self.connected() {
            return Err(BusError::unavailable("asking JetStream", "there is no connection"));
        }
        match self.jetstream.get_stream(EVENTS).await {
            Ok(_) => Ok(()),
            Err(error) => Err(BusError::unavailable("asking JetStream for the stream EVENTS", error)),
        }
    }

    /// Sends buffered messages, before the process exits.
    ///
    /// # Errors
    /// If there is no connection in time: the client alone would wait forever.
    pub async fn flush(&self) -> Result<(), BusError> {
        let unavailable = |error: async_nats::Error| BusError::unavailable("flushing", error);
        match tokio::time::timeout(REQUEST_TIMEOUT, self.client.flush()).await {
            Ok(flushed) => flushed.map_err(|error| unavailable(error.into())),
            Err(_) => Err(unavailable("there is no connection to NATS".into())),
        }
    }

    /// The number of connections established. A change means that replies to the old connection are lost.
    pub fn reconnects(&self) -> watch::Receiver<u64> {
        let mut reconnects = self.reconnects.clone();
        // A clone has seen what the original has, which is never read: the current connection is not a change.
        reconnects.mark_unchanged();
        reconnects
    }

    /// The client, for modules of this crate that use core NATS.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn jetstream(&self) -> &Context {
        &self.jetstream
    }
}
