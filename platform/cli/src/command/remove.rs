//! `nerve remove`

use super::describe::not_deployed;
use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
};
use clap::{Args, ValueEnum};
use nerve_core::Name;
use serde_json::json;

/// Remove a function or source; events that wait for a removed function stay in their stream
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve remove github-labels
  nerve remove github --kind source")]
pub(crate) struct Remove {
    /// The function's or source's name
    name: Name,
    /// Which of the two, where both have the name
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
}

impl Remove {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let name = &self.name;
        let registry = Connection::open(globals, &self.folder).await?.registry().await?;
        let wanted = |kind| self.kind.is_none_or(|wanted| wanted == kind);
        let function = wanted(Kind::Function) && registry.function(name).await?.is_some();
        let source = wanted(Kind::Source) && registry.source(name).await?.is_some();
        let (kind, removed) = match (function, source) {
            (true, true) => {
                return Err(Failure::usage(format!("both a function and a source are named `{name}`"))
                    .next(format!("say which: nerve remove {name} --kind function, or --kind source"))
                    .into());
            }
            (true, false) => ("function", registry.remove_function(name).await?),
            (false, true) => ("source", registry.remove_source(name).await?),
            (false, false) => ("", false),
        };
        if !removed {
            return Err(not_deployed(name).into());
        }
        globals.output.show(&json!({"removed": {"kind": kind, "name": name}}), |_| format!("removed {kind} {name}"))
    }
}
