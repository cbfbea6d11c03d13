//! Webhooks: a verified delivery becomes one event or several.
//!
//! - `receive`: the handler. `handshake`: requests of senders that are not deliveries. `certificates`: signing certificates of Amazon SNS.
//! - `ingest`: makes the events of a delivery, deduplicates and stores them. `limits`: rate, concurrency and addresses per source.
//! - `spool`: stores deliveries on disk while NATS is unavailable. `log_limit`: limits log lines that a sender can cause.

pub(crate) mod certificates;
pub(crate) mod handshake;
pub(crate) mod ingest;
pub(crate) mod limits;
pub(crate) mod log_limit;
pub(crate) mod receive;
pub(crate) mod spool;
