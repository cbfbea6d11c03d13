//! `[sink.NAME]`: an outbound webhook, as the registry stores it.

use super::{Network, Rate};
use crate::{Name, Pattern, RetryPolicy};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// An endpoint: its events, their format and the retry policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkSpec {
    /// The URL to which events are posted.
    pub url: String,
    /// Subjects that the sink subscribes to.
    pub on: Vec<Pattern>,
    /// The stream of those subjects; looked up if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Names of the signing secrets, several during a rotation. Never empty.
    pub secrets: Vec<String>,
    /// Format of the body.
    pub body: SinkBody,
    /// Additional headers. `${NAME}` in a value is replaced by the secret of that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Maximum duration of one attempt.
    #[serde(with = "crate::manifest::millis")]
    pub timeout: Duration,
    /// Concurrent requests per worker.
    pub concurrency: usize,
    /// Maximum request rate per worker; unlimited if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Attempts and waits.
    pub retry: RetryPolicy,
    /// Whether an event waits until the previous one is delivered or dead-lettered, across all workers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub order: bool,
    /// Non-public networks that the sink may connect to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Network>,
    /// Duration of continuous failure after which the sink is disabled.
    #[serde(with = "crate::manifest::millis")]
    pub disable_after: Duration,
}

/// Format of the body posted to a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "lowercase")]
pub enum SinkBody {
    /// `{"type", "timestamp", "data"}`, recommended by Standard Webhooks.
    #[default]
    Standard,
    /// The CloudEvent in JSON format.
    CloudEvents,
    /// The event's data, unchanged, with its media type.
    Data,
    /// The output of a minijinja template.
    Template {
        /// The template.
        text: String,
        /// Media type of the output. If it is JSON, the template's values are JSON-encoded.
        content_type: String,
    },
}

impl SinkBody {
    /// Name of the format in a manifest.
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
    /// Names of the signing secrets and of the secrets in headers.
    pub fn secret_names(&self) -> Vec<String> {
        let of_headers = self.headers.values().flat_map(|value| referenced_secrets(value)).map(str::to_owned);
        let mut names: Vec<String> = self.secrets.iter().cloned().chain(of_headers).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Default name of a sink's signing secret.
pub fn default_sink_secret(sink: &Name) -> String {
    format!("SINK_{}_SECRET", sink.as_str().to_ascii_uppercase().replace('-', "_"))
}

/// Names of the `${NAME}` references in a header value.
pub(super) fn referenced_secrets(value: &str) -> impl Iterator<Item = &str> {
    value.split("${").skip(1).filter_map(|rest| Some(rest.split_once('}')?.0))
}
