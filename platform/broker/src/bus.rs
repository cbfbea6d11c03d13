//! NATS JetStream, and the only place that knows it: events in, deliveries out.
//!
//! # Layout
//! - `streams`: the streams, made and migrated idempotently. `buckets`: the same for buckets and object stores, and which are full.
//! - `older`: what a Nerve without identities left.
//! - `provenance`: where a delivered message was stored first, and what copies of it say of that.
//! - `resolve`: the stream that subjects are in.
//! - `publish`: an event out, with its message id, acknowledged. `batches`: many of them at once.
//! - `body`: bodies too large for a message, in the Object Store by reference.
//! - `consumer`: the durable consumer of a function. `place`: how far it is, beyond its life. `replay`: sent back again.
//! - `delivery`: one message to settle, by value, so that it is settled once.
//! - `lease`: extends every delivery in flight from one timer.
//! - `pull`: deliveries as there are free slots, and no more.
//! - `results`: what a run returned, stored whole or not at all, by `sets`.
//! - `runs`: what is remembered of runs that did not end well.
//! - `space`: how full EVENTS is. `full`: what fills it. `trim`: kept within its bound in bytes. `expiry`: what its age removes. `durables`: who
//!   has not finished what.
//! - `seen`: webhooks that were taken in, remembered for long. `drops`: how many duplicates were dropped, and why.
//! - `tail`: a stream read in order from anywhere, over reconnects.
//! - `trace`: everything that one event led to.
//! - `dead`: dead letters. `retry`: what is asked to be tried again. `timers`: what comes later. `attempts`: what sinks have
//!   posted.
//! - `answers`: answers while they are made. `requests`: what came with an `Idempotency-Key`. `views`: documents that last.
//! - `erase`: everything of a tenant, found and deleted.
//! - `invoke`: a function called directly, past the log.
//! - `logs`: what functions say.

mod answers;
mod attempts;
mod batches;
mod body;
mod buckets;
mod consumer;
mod dead;
mod delivery;
mod disk;
mod drops;
mod durables;
mod erase;
mod expiry;
mod full;
mod invoke;
mod kv;
mod lease;
mod logs;
mod objects;
mod older;
mod place;
mod provenance;
mod publish;
mod pull;
mod replay;
mod requests;
mod resolve;
mod results;
mod retry;
mod runs;
mod seen;
mod sets;
mod space;
mod streams;
mod tail;
mod timers;
mod trace;
mod trim;
mod views;

pub use answers::{AnswerPart, AnswerParts, AnswerState, Ending};
pub use attempts::{ATTEMPTS, SinkAttempt, SinkAttempts, SinkOutcome, WhichAttempts};
pub use batches::Batches;
pub use buckets::FullBucket;
pub use consumer::Unfinished;
pub use dead::{DeadLetter, DeadLetterState, DeadLetters};
pub use delivery::{Attempt, Delivery};
pub use drops::{DropCounts, DropReason, DropScope, Drops};
pub use erase::{ErasedMessages, Erasure, ErasureOutcome, StoredView};
pub use full::{Full, FullReason};
pub use invoke::{Invocation, InvokeError};
pub use kv::{Bucket, BucketChanges, BucketEntry};
pub use logs::{LogRecord, Logs};
pub use objects::Objects;
pub use publish::{PublishError, Published};
pub use pull::{Puller, Pulling, Pulse};
pub use replay::Replay;
pub use resolve::Retention;
pub use seen::Seen;
pub use streams::{ANSWERS, ARTIFACTS, DEAD, EVENTS, FUNCTIONS, LOGS, REDRIVE_PREFIX, SECRETS, SEEN, consumer_name};
pub use tail::{Start, Tail, Tailed};
pub use timers::TIMERS;
pub use trace::{Trace, Traced};

pub use answers::{Failure, Wish};
pub use body::BodyError;
pub use buckets::watch as watch_buckets;
pub use consumer::{Beginning, Binding, MAX_ACK_PENDING};
pub use disk::{size as disk_size, watch as watch_disk};
pub use lease::Leases;
pub use older::OlderResults;
pub use place::Restored;
pub use place::{Bound, Places};
pub use provenance::Provenance;
pub use requests::{RequestRecord, StoredRequest};
pub use results::{CommittedResults, RunResult};
pub use retry::{REQUESTS, Retried, RetryRequest, loose_ends};
pub use runs::{Resumption, RunHistory};
pub use sets::{MAX_MESSAGES as MAX_RESULTS, SetOutcome, Sets};
pub use timers::{TICKS, TICKS_CONSUMER, due_subject};
pub use trim::{Returns, Trimmer};

use crate::{ConnectError, Connection, NatsSettings, connection::REQUEST_TIMEOUT};
use async_nats::{
    Client,
    connection::State,
    jetstream::{self, Context, kv as nats_kv},
};
use space::Space;
use std::sync::Arc;
use tokio::sync::{OnceCell, watch};

/// A connection to NATS JetStream; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus {
    // A client and a context are many handles each, and every delivery carries a bus.
    client: Arc<Client>,
    jetstream: Arc<Context>,
    /// What subjects of JetStream's API begin with.
    api_prefix: Arc<str>,
    reconnects: watch::Receiver<u64>,
    /// The bucket of places, once it was needed.
    places: Arc<OnceCell<nats_kv::Store>>,
    older: older::Older,
    space: Arc<Space>,
    drops: Drops,
    /// The bucket of requests, once it was needed.
    requests: Arc<OnceCell<nats_kv::Store>>,
}

/// What went wrong with the broker, split by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The broker cannot be reached or does not answer: try again later.
    #[error("{what}: NATS is not available")]
    Unavailable {
        /// What was being done.
        what: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The broker said no: the request itself must change.
    #[error("{what}: {why}")]
    Refused {
        /// What was being done.
        what: String,
        /// What the broker says.
        why: String,
    },
    /// A bucket has no room for what is to be written.
    #[error("{what}: {full}")]
    Full {
        /// What was being done.
        what: String,
        /// Which bucket.
        full: FullBucket,
    },
    /// The thing asked for is not there.
    #[error("{0} does not exist")]
    NotFound(String),
    /// There is no connection, and none will be.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl BusError {
    /// A failure to reach the broker, while doing `what`.
    pub fn unavailable(what: impl Into<String>, source: impl Into<async_nats::Error>) -> Self {
        Self::Unavailable { what: what.into(), source: source.into() }
    }

    /// A refusal by the broker, while doing `what`.
    pub fn refused(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Refused { what: what.into(), why: why.to_string() }
    }
}

impl Bus {
    /// Connects, and goes on reconnecting for as long as it lives. `name` is what the server lists it as.
    ///
    /// # Errors
    /// When there is no connection within seconds.
    pub async fn connect(settings: &NatsSettings, name: &str) -> Result<Self, BusError> {
        Ok(Self::over(settings.connect(name).await?, settings))
    }

    /// The same for a server, which may start before its broker: waits until that is reachable.
    ///
    /// # Errors
    /// When waiting does not help.
    pub async fn connect_when_reachable(settings: &NatsSettings, name: &str) -> Result<Self, BusError> {
        Ok(Self::over(settings.connect_when_reachable(name).await?, settings))
    }

    /// A bus over a connection that was made with these settings.
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
            drops: Drops::default(),
            requests: Arc::default(),
        }
    }

    /// Another connection, which shares what is known of the room in EVENTS, of an older Nerve's events, and what is counted.
    pub async fn connect_beside(&self, settings: &NatsSettings, name: &str) -> Result<Self, BusError> {
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
            drops: Drops::default(),
            requests: Arc::default(),
        })
    }

    /// Whether the connection stands at this moment.
    pub fn connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Asks JetStream for the log; an error says why it cannot be written to.
    pub async fn ready(&self) -> Result<(), BusError> {
        if !self.connected() {
            return Err(BusError::unavailable("asking JetStream", "there is no connection"));
        }
        match self.jetstream.get_stream(EVENTS).await {
            Ok(_) => Ok(()),
            Err(error) => Err(BusError::unavailable("asking JetStream for the stream EVENTS", error)),
        }
    }

    /// Sends what is buffered; for the end of a process.
    ///
    /// # Errors
    /// When there is no connection, or none comes back in time: the client alone would wait for it without end.
    pub async fn flush(&self) -> Result<(), BusError> {
        let unavailable = |error: async_nats::Error| BusError::unavailable("flushing", error);
        match tokio::time::timeout(REQUEST_TIMEOUT, self.client.flush()).await {
            Ok(flushed) => flushed.map_err(|error| unavailable(error.into())),
            Err(_) => Err(unavailable("there is no connection to NATS".into())),
        }
    }

    /// Counts the connections made: whoever waits for an answer over an old one hears of the new one here.
    pub fn reconnects(&self) -> watch::Receiver<u64> {
        let mut reconnects = self.reconnects.clone();
        // A clone has seen what the original has, which nobody reads: the connection that stands is not news.
        reconnects.mark_unchanged();
        reconnects
    }

    /// The client, for parts of this crate that speak core NATS.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn jetstream(&self) -> &Context {
        &self.jetstream
    }
}
