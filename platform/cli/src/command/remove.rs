//! `nerve remove`

use super::describe::not_deployed;
use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
};
use clap::{Args, ValueEnum};
use nerve_core::Name;
use nerve_server::{bus::BusError, registry::Registry};
use serde_json::json;

/// Remove a function, source, sink or schedule; events that wait for what is removed stay in their stream
#[derive(Debug, Args)]
#[command(after_help = "\
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
        let registry = Connection::open(globals, &self.folder).await?.registry().await?;
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
        if !kind.remove(&registry, name).await? {
            return Err(not_deployed(name).into());
        }
        let kind = kind.name();
        globals.output.show(&json!({"removed": {"kind": kind, "name": name}}), |_| format!("removed {kind} {name}"))
    }
}
