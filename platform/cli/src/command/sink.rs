//! `nerve sink`

mod add;
mod attempts;
mod redeliver;
mod state;
mod test;

use crate::{
    connection::Connection,
    display_fields,
    failure::Failure,
    globals::{DataFolder, Globals},
    output::{self, truncated},
};
use clap::Subcommand;
use nerve_core::{Name, manifest::did_you_mean, redact};
use nerve_registry::{Entry, Registry, SinkRecord, SinkState};
use serde::Serialize;
use std::collections::BTreeMap;

/// Outbound webhooks
#[derive(Debug, Subcommand)]
pub(crate) enum Sink {
    /// Add or update a sink, which posts signed events to a URL
    #[command(after_help = "\
Requests are signed according to Standard Webhooks with a secret of `nerve secrets`. Without --secret, a
secret is generated and printed once, for the configuration of the receiver. `[sink.NAME]` in a nerve.toml,
deployed by `nerve deploy`, creates the same sink with more options: retries, templates, timeouts.

Examples:
  nerve sink add crm --url https://crm.example/hooks --on events.answer.generated
  nerve sink add chat --url https://chat.example/hook --on 'events.github.>' --rate 10/s --order
  nerve sink add crm --url https://crm.example/hooks --on 'events.>' --secret NEW --secret OLD")]
    Add(add::Add),
    /// List the sinks with the state of their endpoints
    #[command(after_help = "\
Examples:
  nerve sink list
  nerve sink list --output json | jq '.[] | select(.state.disabled)'")]
    List(DataFolder),
    /// Post a test event to a sink and show the response; no other function receives it
    #[command(after_help = "\
Examples:
  nerve sink test crm
  nerve sink test crm --data '{\"hello\": \"there\"}'")]
    Test(test::Test),
    /// Show delivery attempts of a sink with the responses
    #[command(after_help = "\
Examples:
  nerve sink attempts crm
  nerve sink attempts crm --failed --since 2h
  nerve sink attempts crm --event 0198c5d2-7a8b-7f00-8000-000000000000 --output json
  nerve sink attempts crm --follow")]
    Attempts(attempts::Attempts),
    /// Redeliver events to a sink: selected ones, or all dead letters
    #[command(after_help = "\
An event is selected by its ID, its webhook ID (msg_…) or its sequence in the stream. It keeps its webhook ID,
and its attempts are counted from 1 again. With --since, all dead letters since then are redelivered; with
--all, delivered events too. A redelivered dead letter is removed from `nerve dlq`, which also contains
events that are no longer in their stream.

Examples:
  nerve sink redeliver crm 0198c5d2-7a8b-7f00-8000-000000000000
  nerve sink redeliver crm 4711 4712
  nerve sink redeliver crm --since 2h --dry-run
  nerve sink redeliver crm --since 2026-01-31T12:00:00Z --all")]
    Redeliver(redeliver::Redeliver),
    /// Resume deliveries of a disabled sink, starting with pending events
    #[command(after_help = "\
Examples:
  nerve sink enable crm")]
    Enable(state::NamedSink),
    /// Pause deliveries; events are kept
    #[command(after_help = "\
Examples:
  nerve sink disable crm")]
    Disable(state::NamedSink),
}

/// A sink with the state of its endpoint.
#[derive(Serialize)]
pub(super) struct SinkOverview {
    #[serde(flatten)]
    pub(super) entry: Entry<SinkRecord>,
    pub(super) state: SinkState,
}

impl Sink {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run(globals).await,
            Self::List(folder) => list(globals, &folder).await,
            Self::Test(test) => test.run(globals).await,
            Self::Attempts(attempts) => attempts.run(globals).await,
            Self::Redeliver(redeliver) => redeliver.run(globals).await,
            Self::Enable(named) => named.enable(globals).await,
            Self::Disable(named) => named.disable(globals).await,
        }
    }
}

async fn list(globals: &Globals, folder: &DataFolder) -> anyhow::Result<()> {
    let registry = Connection::open(globals, folder).await?.registry().await?;
    let sinks = overviews(&registry).await?;
    globals.output.show(&display_fields::redacted(&sinks)?, |_| match sinks.is_empty() {
        true => "no sinks; add one with `nerve sink add NAME --url URL --on PATTERN`".to_owned(),
        false => table(&sinks),
    })
}

/// Returns all sinks, by name.
pub(super) async fn overviews(registry: &Registry) -> anyhow::Result<Vec<SinkOverview>> {
    let mut overviews = Vec::new();
    for entry in registry.sinks().await? {
        let state = registry.sink_state(&entry.name).await?.map(|state| state.record).unwrap_or_default();
        overviews.push(SinkOverview { entry, state });
    }
    Ok(overviews)
}

/// Formats sinks as a table.
pub(super) fn table(sinks: &[SinkOverview]) -> String {
    let row = |SinkOverview { entry: Entry { name, revision, record }, state }: &SinkOverview| {
        let on: Vec<&str> = record.spec.on.iter().map(|pattern| pattern.as_str()).collect();
        [
            name.to_string(),
            redact::urls(&record.spec.url).into_owned(),
            on.join(" "),
            truncated(&state_text(state), 60),
            revision.to_string(),
            output::timestamp(record.deployed_at),
        ]
    };
    output::table(["SINK", "URL", "ON", "STATE", "REVISION", "DEPLOYED (UTC)"], sinks.iter().map(row))
}

/// Formats the state of an endpoint.
pub(super) fn state_text(state: &SinkState) -> String {
    match (&state.disabled, state.failing_since) {
        (Some(disabled), _) => format!("disabled: {}", disabled.reason),
        (None, Some(since)) => format!("failing since {} UTC", output::timestamp(since)),
        (None, None) => "healthy".to_owned(),
    }
}

/// Returns a deployed sink, or an error.
async fn deployed(registry: &Registry, name: &Name) -> anyhow::Result<Entry<SinkRecord>> {
    if let Some(entry) = registry.sink(name).await? {
        return Ok(entry);
    }
    let known: BTreeMap<Name, ()> = registry.sinks().await?.into_iter().map(|entry| (entry.name, ())).collect();
    let known: Vec<&str> = known.keys().map(Name::as_str).collect();
    let near = did_you_mean(name.as_str(), &known);
    Err(Failure::new(format!("no sink `{name}`{near}")).next("see `nerve sink list`").into())
}
