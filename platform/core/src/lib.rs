//! Nerve's types: what an event, a subject, a manifest, a function and a verdict are.
//!
//! # Layout
//! - [`event`]: a CloudEvent, and its JSON and binary-mode (header) forms.
//! - [`subject`]: validated NATS subjects, patterns and event types.
//! - [`manifest`]: `nerve.toml`, parsed with the line of every mistake, and the records it is stored as.
//! - [`answer`]: answers while they are made: which events their readers see.
//! - [`function`]: the contract between a worker and whatever runs a function.
//! - [`redact`]: URLs without the credentials in them, for what people and programs read.
//! - [`tool`]: functions that agents call, and what passes between the two.
//! - [`identity`]: what makes two stored things the same thing; every id that JetStream compares is made there.
//! - [`quota`]: what collections may have, and what they have used.
//! - [`rate_limit`]: the rates of sinks, sources and keys.
//! - [`shares`]: fair shares of what is bounded.
//! - [`limits`]: limits of the numbers that come from outside.
//! - [`inference`]: the contract between the gateway and whatever runs models.
//! - [`verdict`]: what becomes of an event after a function has had it, as one pure function.
//!
//! # Flow
//! A worker turns a NATS message into an [`Event`], hands a batch to a [`Function`], publishes each
//! [`Emission`] it returns, and settles the message by the [`Verdict`].
//!
//! There is no I/O here and no async runtime, so every crate can depend on this one.

pub mod answer;
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
