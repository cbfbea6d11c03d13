//! `[sink.NAME]`: an outbound webhook, as it is stored.

use crate::{Name, Pattern, RetryPolicy};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, time::Duration};

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

/// So many in a time, such as `10/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    /// A second, a minute or an hour.
    pub per: Duration,
}

const UNITS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3600)];

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(count, unit)| {
            let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
            let count = count.trim().parse::<u32>().ok().filter(|count| (1..=100_000).contains(count))?;
            Some(Self { count, per: Duration::from_secs(*seconds) })
        });
        parsed.ok_or_else(|| format!("`{text}` is not a rate: write a number up to 100000 and a unit, as in \"10/s\""))
    }
}

impl TryFrom<String> for Rate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, seconds)| *seconds == self.per.as_secs()).map_or("s", |(name, _)| name);
        write!(f, "{}/{unit}", self.count)
    }
}

/// A network in CIDR notation, such as `10.0.0.0/8`; a plain address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

impl Network {
    /// Whether an address is in it.
    pub fn contains(&self, address: &IpAddr) -> bool {
        self.0.contains(address)
    }
}

impl FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        parsed
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a network: write it as in \"10.0.0.0/8\" or \"fd00::/8\""))
    }
}

impl TryFrom<String> for Network {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
