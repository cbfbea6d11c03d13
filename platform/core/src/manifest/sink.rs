//! `[sink.NAME]`: an outbound webhook, as it is stored.

use super::{Network, Rate};
use crate::{Name, Pattern, RetryPolicy};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// One endpoint: which events are posted to it, how they look, and how often it is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkSpec {
    /// Where events are posted.
    pub url: String,
    /// The subjects whose messages are.
    pub on: Vec<Pattern>,
    /// The stream those subjects are in; found from them when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Names of secrets that sign, each; several while rotating. Never empty.
    pub secrets: Vec<String>,
    /// What is posted.
    pub body: SinkBody,
    /// More headers; `${NAME}` in a value is the secret of that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The longest one attempt may take.
    #[serde(with = "crate::manifest::millis")]
    pub timeout: Duration,
    /// Posts in flight a worker.
    pub concurrency: usize,
    /// The most posts in a time, a worker; no bound when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Tries and waits.
    pub retry: RetryPolicy,
    /// Whether an event waits until the one before it is delivered or given up, across all workers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub order: bool,
    /// Networks that it may reach although they are not public.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Network>,
    /// An endpoint that has failed for so long without a success is disabled.
    #[serde(with = "crate::manifest::millis")]
    pub disable_after: Duration,
}

/// What is posted to a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "lowercase")]
pub enum SinkBody {
    /// `{"type", "timestamp", "data"}`, as Standard Webhooks recommends.
    #[default]
    Standard,
    /// The CloudEvent in its JSON form.
    CloudEvents,
    /// The event's data as it is, under its own media type.
    Data,
    /// What a minijinja template makes of the event.
    Template {
        /// The template.
        text: String,
        /// The media type of what it makes; when that is JSON, values are written as JSON.
        content_type: String,
    },
}

impl SinkBody {
    /// Its name in a manifest.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::CloudEvents => "cloudevents",
            Self::Data => "data",
            Self::Template { .. } => "template",
        }
    }
}

impl SinkSpec {
    /// The secrets that sign, and those that stand in headers.
    pub fn secret_names(&self) -> Vec<String> {
        let of_headers = self.headers.values().flat_map(|value| secrets_in(value)).map(str::to_owned);
        let mut names: Vec<String> = self.secrets.iter().cloned().chain(of_headers).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The name of the secret that signs for a sink which names none.
pub fn default_sink_secret(sink: &Name) -> String {
    format!("SINK_{}_SECRET", sink.as_str().to_ascii_uppercase().replace('-', "_"))
}

/// The names in `${NAME}` in a header's value.
pub(super) fn secrets_in(value: &str) -> impl Iterator<Item = &str> {
    value.split("${").skip(1).filter_map(|rest| Some(rest.split_once('}')?.0))
}
