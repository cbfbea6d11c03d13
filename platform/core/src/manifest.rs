//! `nerve.toml`: the resources to deploy.
//!
//! [`Manifest::parse`] reads the file and reports every mistake with its line, its key and the most similar valid key.
//! The registry stores its tables ([`FunctionSpec`], [`SourceSpec`], [`SinkSpec`], [`ScheduleSpec`]) as JSON.

mod function;
mod function_table;
pub mod limits;
pub(crate) mod millis;
mod network;
mod parse;
mod problem;
mod rate;
mod reader;
mod schedule;
mod scheme;
mod sink;
mod sink_table;
mod source;
mod source_table;
#[cfg(test)]
mod tests;
mod values;

pub use function::{BUILTINS, Batch, FunctionSpec, RuntimeSpec};
pub use network::Network;
pub use problem::{ManifestError, Problem};
pub use rate::Rate;
pub use reader::did_you_mean;
pub use schedule::ScheduleSpec;
pub use scheme::{Algorithm, CustomScheme, Encoding, KeyForm, Locator, TimestampUnit};
pub use sink::{SinkBody, SinkSpec, default_sink_secret};
pub use source::{Dedupe, Ids, Provider, SourceSpec, Verify};

use crate::Name;
use std::collections::BTreeMap;

/// The contents of a `nerve.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// `[function.NAME]`
    pub functions: BTreeMap<Name, FunctionSpec>,
    /// `[source.NAME]`
    pub sources: BTreeMap<Name, SourceSpec>,
    /// `[sink.NAME]`
    pub sinks: BTreeMap<Name, SinkSpec>,
    /// `[schedule.NAME]`
    pub schedules: BTreeMap<Name, ScheduleSpec>,
}
