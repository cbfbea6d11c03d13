//! The commands, one file each.

mod completions;
mod deploy;
mod describe;
mod dlq;
mod invoke;
mod list;
mod logs;
mod publish;
mod remove;
mod secrets;
mod serve;
mod tail;
mod up;

use crate::args::Globals;
use clap::Subcommand;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start everything on this machine: NATS, the gateway and a worker
    Up(up::Up),
    /// Start a gateway: webhooks and the HTTP API
    Gateway(serve::Gateway),
    /// Start a worker: it runs the deployed functions
    Worker(serve::Worker),
    /// Deploy what a nerve.toml describes
    Deploy(deploy::Deploy),
    /// List what is deployed
    List(list::List),
    /// Show one function or source
    Describe(describe::Describe),
    /// Remove a function or source
    Remove(remove::Remove),
    /// Call a function directly and print what it answers
    Invoke(invoke::Invoke),
    /// Publish an event
    Publish(publish::Publish),
    /// Watch events as they come
    Tail(tail::Tail),
    /// Read what functions log
    Logs(logs::Logs),
    /// Events that failed for good: list, show, redrive, drop
    #[command(subcommand)]
    Dlq(dlq::Dlq),
    /// Secrets of functions and sources: set, list, remove
    #[command(subcommand)]
    Secrets(secrets::Secrets),
    /// Print a completion script for a shell
    Completions(completions::Completions),
}

impl Command {
    /// Whether it serves until it is told to stop.
    pub(crate) fn is_server(&self) -> bool {
        matches!(self, Self::Up(_) | Self::Gateway(_) | Self::Worker(_))
    }

    /// Does it.
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Up(up) => up.run(globals).await,
            Self::Gateway(gateway) => gateway.run(globals).await,
            Self::Worker(worker) => worker.run(globals).await,
            Self::Deploy(deploy) => deploy.run(globals).await,
            Self::List(list) => list.run(globals).await,
            Self::Describe(describe) => describe.run(globals).await,
            Self::Remove(remove) => remove.run(globals).await,
            Self::Invoke(invoke) => invoke.run(globals).await,
            Self::Publish(publish) => publish.run(globals).await,
            Self::Tail(tail) => tail.run(globals).await,
            Self::Logs(logs) => logs.run(globals).await,
            Self::Dlq(dlq) => dlq.run(globals).await,
            Self::Secrets(secrets) => secrets.run(globals).await,
            Self::Completions(completions) => completions.run(),
        }
    }
}
