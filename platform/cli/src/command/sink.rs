//! `nerve sink`

mod add;
mod attempts;
mod redeliver;
mod state;
mod trial;

use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
    fields, moment,
    output::{self, shortened},
};
use clap::Subcommand;
use nerve_core::{Name, manifest::did_you_mean, redact};
use nerve_registry::{Entry, Registry, SinkRecord, SinkState};
use serde::Serialize;
use std::collections::BTreeMap;

/// Outbound webhooks
#[derive(Debug, Subcommand)]
pub(crate) enum Sink {
    /// Add a sink, or change one: its events are posted to a URL, signed
    #[command(after_help = "\
The events are signed as Standard Webhooks defines it, with a secret of `nerve secrets`. Where none is
named one is made, and shown this once: the endpoint verifies with it. `[sink.NAME]` in a nerve.toml,
deployed by `nerve deploy`, does the same and takes more: retries, templates, timeouts.

Examples:
  nerve sink add crm --url https://crm.example/hooks --on events.answer.generated
  nerve sink add chat --url https://chat.example/hook --on 'events.github.>' --rate 10/s --order
  nerve sink add crm --url https://crm.example/hooks --on 'events.>' --secret NEW --secret OLD")]
    Add(add::Add),
    /// List the sinks, and how their endpoints are doing
    #[command(after_help = "\
Examples:
  nerve sink list
  nerve sink list --output json | jq '.[] | select(.state.disabled)'")]
    List(DataFolder),
    /// Post one event to a sink now, and show what it answers; no other function sees it
    #[command(after_help = "\
Examples:
  nerve sink test crm
  nerve sink test crm --data '{\"hello\": \"there\"}'")]
    Test(trial::Trial),
    /// Show what was posted to a sink and what it answered
    #[command(after_help = "\
Examples:
  nerve sink attempts crm
  nerve sink attempts crm --failed --since 2h
  nerve sink attempts crm --event 0198c5d2-7a8b-7f00-8000-000000000000 --output json
  nerve sink attempts crm --follow")]
    Attempts(attempts::Attempts),
    /// Post events to a sink once more: some, or all that were given up
    #[command(after_help = "\
An event is named by its id, by the id that the endpoint knows (msg_…) or by its sequence in the
stream. It keeps the id that the endpoint knows, and its attempts count anew. With --since, all events
that were given up since then are posted once more; with --all, the delivered ones too. An event that
is a dead letter is taken out of `nerve dlq`, which still has it when its stream no longer does.

Examples:
  nerve sink redeliver crm 0198c5d2-7a8b-7f00-8000-000000000000
  nerve sink redeliver crm 4711 4712
  nerve sink redeliver crm --since 2h --dry-run
  nerve sink redeliver crm --since 2026-01-31T12:00:00Z --all")]
    Redeliver(redeliver::Redeliver),
    /// Post to a disabled sink again, beginning with what has waited
    #[command(after_help = "\
Examples:
  nerve sink enable crm")]
    Enable(state::Named),
    /// Post nothing to a sink until it is enabled; its events wait in their stream
    #[command(after_help = "\
Examples:
  nerve sink disable crm")]
    Disable(state::Named),
}

/// A sink, and how its endpoint is doing.
#[derive(Serialize)]
pub(super) struct Listed {
    #[serde(flatten)]
    pub(super) entry: Entry<SinkRecord>,
    pub(super) state: SinkState,
}

impl Sink {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run(globals).await,
            Self::List(folder) => list(globals, &folder).await,
            Self::Test(trial) => trial.run(globals).await,
            Self::Attempts(attempts) => attempts.run(globals).await,
            Self::Redeliver(redeliver) => redeliver.run(globals).await,
            Self::Enable(named) => named.enable(globals).await,
            Self::Disable(named) => named.disable(globals).await,
        }
    }
}

async fn list(globals: &Globals, folder: &DataFolder) -> anyhow::Result<()> {
    let registry = Connection::open(globals, folder).await?.registry().await?;
    let sinks = listed(&registry).await?;
    globals.output.show(&fields::redacted(&sinks)?, |_| match sinks.is_empty() {
        true => "there are no sinks; add one with `nerve sink add NAME --url URL --on PATTERN`".to_owned(),
        false => table(&sinks),
    })
}

/// All sinks, by name.
pub(super) async fn listed(registry: &Registry) -> anyhow::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for entry in registry.sinks().await? {
        let state = registry.sink_state(&entry.name).await?.map(|state| state.record).unwrap_or_default();
        listed.push(Listed { entry, state });
    }
    Ok(listed)
}

/// Sinks for people.
pub(super) fn table(sinks: &[Listed]) -> String {
    let row = |Listed { entry: Entry { name, revision, record }, state }: &Listed| {
        let on: Vec<&str> = record.spec.on.iter().map(|pattern| pattern.as_str()).collect();
        [
            name.to_string(),
            redact::urls(&record.spec.url).into_owned(),
            on.join(" "),
            shortened(&told(state), 60),
            revision.to_string(),
            moment::shown(record.deployed_at),
        ]
    };
    output::table(["SINK", "URL", "ON", "STATE", "REVISION", "DEPLOYED (UTC)"], sinks.iter().map(row))
}

/// How an endpoint is doing, in words.
pub(super) fn told(state: &SinkState) -> String {
    match (&state.disabled, state.failing_since) {
        (Some(disabled), _) => format!("disabled: {}", disabled.reason),
        (None, Some(since)) => format!("failing since {} UTC", moment::shown(since)),
        (None, None) => "well".to_owned(),
    }
}

/// A sink that must be there.
async fn deployed(registry: &Registry, name: &Name) -> anyhow::Result<Entry<SinkRecord>> {
    if let Some(entry) = registry.sink(name).await? {
        return Ok(entry);
    }
    let known: BTreeMap<Name, ()> = registry.sinks().await?.into_iter().map(|entry| (entry.name, ())).collect();
    let known: Vec<&str> = known.keys().map(Name::as_str).collect();
    let near = did_you_mean(name.as_str(), &known);
    Err(Failure::new(format!("there is no sink `{name}`{near}")).next("`nerve sink list` shows which there are").into())
}
