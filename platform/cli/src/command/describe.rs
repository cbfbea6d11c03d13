//! `nerve describe`

use super::sink;
use crate::{
    connection::Connection,
    display_fields,
    failure::Failure,
    globals::{DataFolder, Globals},
    output,
};
use clap::Args;
use nerve_broker::bus::{DuplicateCounts, DuplicateScope, RestoredConsumer, consumer_name};
use nerve_core::{Name, manifest::did_you_mean};
use nerve_registry::{Entry, FunctionRecord, Registry, ScheduleRecord, SinkRecord, SinkState, SourceRecord};
use serde::Serialize;

/// Show a function, source, sink or schedule: settings, files and revision (secret values are never shown)
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve describe github-labels
  nerve describe github-labels --output json")]
pub(crate) struct Describe {
    /// Its name
    name: Name,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Serialize)]
struct Description {
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<Entry<FunctionRecord>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Entry<SourceRecord>>,
    /// Duplicates that the source dropped, by reason; a lower bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_duplicates: Option<DuplicateCounts>,
    /// Results of the function that were dropped as duplicates of an earlier attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    function_duplicates: Option<DuplicateCounts>,
    /// Time and position of the last re-creation of its consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    restored: Option<RestoredConsumer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sink: Option<Entry<SinkRecord>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sink_state: Option<SinkState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Entry<ScheduleRecord>>,
}

impl Describe {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        let name = &self.name;
        let source = registry.source(name).await?;
        let source_duplicates = match &source {
            Some(_) => Some(connection.bus.dropped_by(DuplicateScope::Source, name.as_str()).await?),
            None => None,
        };
        let function = registry.function(name).await?;
        let (function_duplicates, restored) = match &function {
            Some(Entry { record, .. }) => (
                Some(connection.bus.dropped_by(DuplicateScope::Function, name.as_str()).await?),
                connection.bus.restored(&record.stream, &consumer_name(name)).await?,
            ),
            None => (None, None),
        };
        let found = Description {
            function,
            function_duplicates,
            restored,
            source,
            source_duplicates,
            sink: registry.sink(name).await?,
            sink_state: registry.sink_state(name).await?.map(|entry| entry.record),
            schedule: registry.schedule(name).await?,
        };
        let none = found.function.is_none() && found.source.is_none() && found.sink.is_none();
        if none && found.schedule.is_none() {
            return Err(not_deployed(&self.name).into());
        }
        globals.output.show(&display_fields::redacted(&found)?, |_| text(&found))
    }
}

/// Creates the error for an unknown resource.
pub(super) fn not_deployed(name: &Name) -> Failure {
    Failure::new(format!("no function, source, sink or schedule `{name}` is deployed")).next("see `nerve list`")
}

/// Creates the error for an unknown function.
pub(super) async fn no_function(name: &Name, registry: &Registry) -> Failure {
    let known = registry.functions().await.unwrap_or_default();
    let known: Vec<&str> = known.iter().map(|entry| entry.name.as_str()).collect();
    let near = did_you_mean(name.as_str(), &known);
    Failure::new(format!("no function `{name}` is deployed{near}")).next("see `nerve list`")
}

/// Formats the dropped duplicates.
fn duplicates(dropped: Option<&DuplicateCounts>) -> String {
    let by_reason = |(reason, number): (&String, &u64)| format!("{number} by {reason}");
    let counts: Vec<String> = dropped.into_iter().flatten().map(by_reason).collect();
    match counts.is_empty() {
        true => "none dropped".to_owned(),
        false => format!("dropped at least {}", counts.join(", ")),
    }
}

fn text(found: &Description) -> String {
    let function = found.function.as_ref().map(|Entry { name, revision, record }| {
        let mut rows = vec![("function", name.to_string())];
        rows.extend(
            display_fields::redacted_fields(display_fields::of_function(&record.spec))
                .filter(|(label, _)| *label != "stream"),
        );
        rows.push(("stream", record.stream.clone()));
        rows.push(("duplicates", duplicates(found.function_duplicates.as_ref())));
        rows.extend(found.restored.as_ref().map(|restored| {
            let RestoredConsumer { time, from, reason } = restored;
            ("consumer", format!("{reason}: from {from}, {} UTC", output::timestamp(*time)))
        }));
        rows.push(("revision", revision.to_string()));
        rows.push(("deployed", format!("{} UTC", output::timestamp(record.deployed_at))));
        rows.extend(record.artifacts.iter().map(|file| {
            let digest: String = file.sha256.chars().take(12).collect();
            ("file", format!("{} ({} bytes, sha256 {digest}…)", file.name, file.size))
        }));
        output::pairs(rows)
    });
    let source = found.source.as_ref().map(|Entry { name, revision, record }| {
        let mut rows = vec![("source", name.to_string())];
        rows.extend(display_fields::redacted_fields(display_fields::of_source(&record.spec)));
        rows.push(("duplicates", duplicates(found.source_duplicates.as_ref())));
        rows.push(("path", format!("/hooks/{name}")));
        rows.push(("revision", revision.to_string()));
        rows.push(("deployed", format!("{} UTC", output::timestamp(record.deployed_at))));
        output::pairs(rows)
    });
    let sink = found.sink.as_ref().map(|Entry { name, revision, record }| {
        let mut rows = vec![("sink", name.to_string())];
        rows.extend(
            display_fields::redacted_fields(display_fields::of_sink(&record.spec))
                .filter(|(label, _)| *label != "stream"),
        );
        rows.push(("stream", record.stream.clone()));
        rows.push(("state", sink::state_text(&found.sink_state.clone().unwrap_or_default())));
        rows.push(("revision", revision.to_string()));
        rows.push(("deployed", format!("{} UTC", output::timestamp(record.deployed_at))));
        output::pairs(rows)
    });
    let schedule = found.schedule.as_ref().map(|Entry { name, revision, record }| {
        let mut rows = vec![("schedule", name.to_string())];
        rows.extend(display_fields::redacted_fields(display_fields::of_schedule(&record.spec)));
        rows.push(("revision", revision.to_string()));
        rows.push(("deployed", format!("{} UTC", output::timestamp(record.deployed_at))));
        output::pairs(rows)
    });
    function.into_iter().chain(source).chain(sink).chain(schedule).collect::<Vec<_>>().join("\n\n")
}
