//! Nerve's types: events, subjects, manifests, the function trait and verdicts.
//!
//! # Layout
//! - [`event`]: a CloudEvent, and its JSON and binary-mode (header) forms.
//! - [`subject`]: validated NATS subjects, patterns and event types.
//! - [`manifest`]: `nerve.toml`, parsed with the line of every mistake, and the records it is stored as.
//! - [`duration`]: reads durations from text.
//! - [`answer`]: the event types that clients see while an answer is streamed.
//! - [`function`]: the contract between a worker and a function host.
//! - [`redact`]: removes credentials from URLs before they are shown or logged.
//! - [`tool`]: functions that agents call, and the data of calls and results.
//! - [`identity`]: message ids for JetStream deduplication.
//! - [`quota`]: quotas and usage of collections.
//! - [`rate_limit`]: the rates of sinks, sources and keys.
//! - [`shares`]: a fair limiter of slots.
//! - [`limits`]: limits on numbers, lists and maps in external input.
//! - [`inference`]: the contract between the gateway and the model runtime.
//! - [`verdict`]: decides between ack, retry and dead letter, as a pure function.
//!
//! # Flow
//! A worker turns a NATS message into an [`Event`], hands a batch to a [`Function`], publishes each
//! [`Emission`] it returns, and acknowledges the message by the [`Verdict`].
//!
//! This crate does no I/O and has no async runtime, so every crate can depend on it.

pub mod answer;
pub mod duration;
pub mod event;
pub mod function;
pub mod identity;
pub mod inference;
pub mod limits;
pub mod manifest;
pub mod name;
pub mod quota;
pub mod rate_limit;
pub mod redact;
pub mod shares;
pub mod subject;
pub mod tool;
pub mod verdict;

pub use event::Event;
pub use function::{Context, Deployment, Emission, Fault, Function, FunctionError, Host, LoadError, Outcome, Secret};
pub use identity::{Generation, Identity, Input, Origin, Run};
pub use inference::Inference;
pub use manifest::{FunctionSpec, Manifest, ScheduleSpec, SinkSpec, SourceSpec};
pub use name::{ModelName, Name};
pub use subject::{EventType, Pattern, Subject};
pub use verdict::{RetryPolicy, Verdict};
