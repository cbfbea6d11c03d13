//! `nerve list`

use super::sink::{self, SinkOverview};
use crate::{
    connection::Connection,
    display_fields,
    globals::{DataFolder, Globals},
    output,
};
use clap::Args;
use nerve_core::Pattern;
use nerve_registry::{Entry, FunctionRecord, ScheduleRecord, SourceRecord};
use serde::Serialize;

/// List deployed functions, sources, sinks and schedules
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve list
  nerve list --output json | jq '.functions[].name'")]
pub(crate) struct List {
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Serialize)]
struct Listing {
    functions: Vec<Entry<FunctionRecord>>,
    sources: Vec<Entry<SourceRecord>>,
    sinks: Vec<SinkOverview>,
    schedules: Vec<Entry<ScheduleRecord>>,
}

impl List {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let registry = Connection::open(globals, &self.folder).await?.registry().await?;
        let listing = Listing {
            functions: registry.functions().await?,
            sources: registry.sources().await?,
            sinks: sink::overviews(&registry).await?,
            schedules: registry.schedules().await?,
        };
        globals.output.show(&display_fields::redacted(&listing)?, |_| text(&listing))
    }
}

fn text(listing: &Listing) -> String {
    let joined = |patterns: &[Pattern]| patterns.iter().map(Pattern::as_str).collect::<Vec<_>>().join(" ");
    let functions = listing.functions.iter().map(|Entry { name, revision, record }| {
        let spec = &record.spec;
        [
            name.to_string(),
            spec.run.runtime().to_owned(),
            joined(&spec.on),
            joined(&spec.emits),
            revision.to_string(),
            output::timestamp(record.deployed_at),
        ]
    });
    let sources = listing.sources.iter().map(|Entry { name, revision, record }| {
        let provider = record.spec.provider.name().to_owned();
        [
            name.to_string(),
            provider,
            format!("/hooks/{name}"),
            revision.to_string(),
            output::timestamp(record.deployed_at),
        ]
    });
    let mut parts = Vec::new();
    if !listing.functions.is_empty() {
        parts.push(output::table(["FUNCTION", "RUNTIME", "ON", "EMITS", "REVISION", "DEPLOYED (UTC)"], functions));
    }
    if !listing.sources.is_empty() {
        parts.push(output::table(["SOURCE", "PROVIDER", "PATH", "REVISION", "DEPLOYED (UTC)"], sources));
    }
    if !listing.sinks.is_empty() {
        parts.push(sink::table(&listing.sinks));
    }
    let schedules = listing.schedules.iter().map(|Entry { name, revision, record }| {
        let zone = record.spec.timezone.clone().unwrap_or_else(|| "UTC".to_owned());
        let (cron, emit) = (record.spec.cron.clone(), record.spec.emit.to_string());
        [name.to_string(), cron, zone, emit, revision.to_string(), output::timestamp(record.deployed_at)]
    });
    if !listing.schedules.is_empty() {
        parts.push(output::table(["SCHEDULE", "CRON", "ZONE", "EMITS", "REVISION", "DEPLOYED (UTC)"], schedules));
    }
    if parts.is_empty() {
        return "nothing is deployed; start with `nerve new NAME --template wasm-js` and `nerve deploy NAME`"
            .to_owned();
    }
    parts.join("\n\n")
}
