//! `nerve remove`

use super::describe::not_deployed;
use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
};
use clap::{Args, ValueEnum};
use nerve_broker::bus::{Bus, BusError, UnfinishedMessages, consumer_name};
use nerve_core::Name;
use nerve_registry::Registry;
use serde_json::json;

/// Remove a function, source, sink or schedule; reports its pending events, which are not retried
#[derive(Debug, Args)]
#[command(after_help = "\
Pending events stay in the stream, but the position of a function or sink is deleted: when it is deployed again, it starts
with new events. `nerve replay` delivers older events to a function. If EVENTS has a byte limit, events that no other
function needs may be deleted.

Examples:
  nerve remove github-labels
  nerve remove github --kind source")]
pub(crate) struct Remove {
    /// Name of the resource
    name: Name,
    /// Kind of the resource, if several have the name
    #[arg(long, value_enum)]
    kind: Option<ResourceKind>,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ResourceKind {
    /// The function
    Function,
    /// The source
    Source,
    /// The sink
    Sink,
    /// The schedule
    Schedule,
}

impl ResourceKind {
    const ALL: [Self; 4] = [Self::Function, Self::Source, Self::Sink, Self::Schedule];

    fn name(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Source => "source",
            Self::Sink => "sink",
            Self::Schedule => "schedule",
        }
    }

    async fn is_deployed(self, registry: &Registry, name: &Name) -> Result<bool, BusError> {
        Ok(match self {
            Self::Function => registry.function(name).await?.is_some(),
            Self::Source => registry.source(name).await?.is_some(),
            Self::Sink => registry.sink(name).await?.is_some(),
            Self::Schedule => registry.schedule(name).await?.is_some(),
        })
    }

    /// Returns the unfinished messages of its consumer.
    async fn unfinished(
        self,
        registry: &Registry,
        bus: &Bus,
        name: &Name,
    ) -> Result<Option<UnfinishedMessages>, BusError> {
        let stream = match self {
            Self::Function => registry.function(name).await?.map(|entry| entry.record.stream),
            Self::Sink => registry.sink(name).await?.map(|entry| entry.record.stream),
            Self::Source | Self::Schedule => None,
        };
        match stream {
            Some(stream) => bus.unfinished(&stream, &consumer_name(name)).await,
            None => Ok(None),
        }
    }

    async fn remove(self, registry: &Registry, name: &Name) -> Result<bool, BusError> {
        match self {
            Self::Function => registry.remove_function(name).await,
            Self::Source => registry.remove_source(name).await,
            Self::Sink => registry.remove_sink(name).await,
            Self::Schedule => registry.remove_schedule(name).await,
        }
    }
}

impl Remove {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let name = &self.name;
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        let mut found = Vec::new();
        for kind in ResourceKind::ALL.into_iter().filter(|kind| self.kind.is_none_or(|requested| requested == *kind)) {
            if kind.is_deployed(&registry, name).await? {
                found.push(kind);
            }
        }
        let kind = match found.as_slice() {
            [] => return Err(not_deployed(name).into()),
            [only] => *only,
            [first, second, ..] => {
                let (first, second) = (first.name(), second.name());
                return Err(Failure::usage(format!("both a {first} and a {second} are named `{name}`"))
                    .next(format!("use nerve remove {name} --kind {first}, or --kind {second}"))
                    .into());
            }
        };
        let unfinished = kind.unfinished(&registry, &connection.bus, name).await?;
        let delayed = match kind {
            ResourceKind::Function | ResourceKind::Sink => connection.bus.delayed(name).await?,
            ResourceKind::Source | ResourceKind::Schedule => 0,
        };
        if !kind.remove(&registry, name).await? {
            return Err(not_deployed(name).into());
        }
        let removed =
            json!({"removed": {"kind": kind.name(), "name": name}, "unfinished": unfinished, "delayed": delayed});
        globals.output.show(&removed, |_| text(kind, name, (unfinished, delayed)))
    }
}

fn text(kind: ResourceKind, name: &Name, (unfinished, delayed): (Option<UnfinishedMessages>, u64)) -> String {
    let mut removed = format!("removed {} {name}", kind.name());
    if delayed > 0 {
        removed += &format!("\n  {delayed} events were waiting for a retry, which is canceled");
    }
    let Some(UnfinishedMessages { messages, from }) = unfinished else { return removed };
    let next = match kind {
        ResourceKind::Function => format!("after a deploy, `nerve replay {name} --since {from}` delivers them again"),
        _ => "a sink that is added again starts with new events".to_owned(),
    };
    format!(
        "{removed}\n  {messages} events are unfinished, the first at sequence {from}: they are not retried\n  {next}"
    )
}
