//! `nerve remove`

use super::describe::not_deployed;
use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
};
use clap::{Args, ValueEnum};
use nerve_broker::bus::{Bus, BusError, Unfinished, consumer_name};
use nerve_core::Name;
use nerve_registry::Registry;
use serde_json::json;

/// Remove a function, source, sink or schedule; what it has not finished is not tried again, and it says how much that is
#[derive(Debug, Args)]
#[command(after_help = "\
Events stay in their stream, but nothing is left of how far a function or sink was: one that is deployed again begins with what
comes then. `nerve replay` gives a function the older events too. Where EVENTS is bounded in bytes, events that no other function
has to finish may be deleted for room.

Examples:
  nerve remove github-labels
  nerve remove github --kind source")]
pub(crate) struct Remove {
    /// Its name
    name: Name,
    /// Which, where several have the name
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The function
    Function,
    /// The source
    Source,
    /// The sink
    Sink,
    /// The schedule
    Schedule,
}

impl Kind {
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

    /// What its consumer has not finished.
    async fn unfinished(self, registry: &Registry, bus: &Bus, name: &Name) -> Result<Option<Unfinished>, BusError> {
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
        for kind in Kind::ALL.into_iter().filter(|kind| self.kind.is_none_or(|wanted| wanted == *kind)) {
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
                    .next(format!("say which: nerve remove {name} --kind {first}, or --kind {second}"))
                    .into());
            }
        };
        let unfinished = kind.unfinished(&registry, &connection.bus, name).await?;
        let delayed = match kind {
            Kind::Function | Kind::Sink => connection.bus.delayed(name).await?,
            Kind::Source | Kind::Schedule => 0,
        };
        if !kind.remove(&registry, name).await? {
            return Err(not_deployed(name).into());
        }
        let removed =
            json!({"removed": {"kind": kind.name(), "name": name}, "unfinished": unfinished, "delayed": delayed});
        globals.output.show(&removed, |_| text(kind, name, (unfinished, delayed)))
    }
}

fn text(kind: Kind, name: &Name, (unfinished, delayed): (Option<Unfinished>, u64)) -> String {
    let mut removed = format!("removed {} {name}", kind.name());
    if delayed > 0 {
        removed += &format!("\n  {delayed} events waited for another attempt: nothing tries them again");
    }
    let Some(Unfinished { messages, from }) = unfinished else { return removed };
    let next = match kind {
        Kind::Function => format!("after a deploy, `nerve replay {name} --since {from}` gives it these again"),
        _ => "a sink that is added again begins with what comes then".to_owned(),
    };
    format!(
        "{removed}\n  it had not finished {messages} events, the first at sequence {from}: nothing tries them again\n  {next}"
    )
}
