//! The commands, one file per command.

mod access;
#[cfg(feature = "rag")]
mod ask;
mod collections;
mod completions;
mod deploy;
mod describe;
mod dlq;
#[cfg(feature = "rag")]
mod eval;
#[cfg(feature = "rag")]
mod ingest;
mod invoke;
mod join;
mod list;
mod logs;
mod models;
mod nats;
mod new;
mod publish;
mod remove;
mod replay;
mod secrets;
mod serve;
mod sink;
mod source;
mod tail;
mod trace;
mod up;

use crate::{globals::Globals, supervisor::LogStyle};
use clap::Subcommand;

/// The kind of a `nerve` process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    /// Runs a command and exits.
    Command,
    /// Restarts a server process.
    Supervisor,
    /// Runs a server. `Some` log style if it has a supervisor.
    Server(Option<LogStyle>),
}

/// The subcommand.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(up::Up),
    Gateway(serve::Gateway),
    Worker(serve::Worker),
    Join(join::Join),
    New(new::New),
    Deploy(deploy::Deploy),
    List(list::List),
    Describe(describe::Describe),
    Remove(remove::Remove),
    Invoke(invoke::Invoke),
    Publish(publish::Publish),
    #[cfg(feature = "rag")]
    Ingest(ingest::Ingest),
    #[cfg(feature = "rag")]
    Ask(ask::Ask),
    #[cfg(feature = "rag")]
    Eval(eval::Eval),
    Tail(tail::Tail),
    Trace(trace::Trace),
    Logs(logs::Logs),
    Replay(replay::Replay),
    /// Dead-letter queue: list, show, redrive, drop
    #[command(subcommand)]
    Dlq(dlq::Dlq),
    /// Secrets of functions, sources and sinks: set, list, remove, rotate-key
    #[command(subcommand)]
    Secrets(secrets::Secrets),
    /// Outbound webhooks: add, list, test, attempts, redeliver, enable, disable
    #[command(subcommand)]
    Sink(sink::Sink),
    /// Webhook sources: add, list, rotate, test
    #[command(subcommand)]
    Source(source::Source),
    /// Models in the registry, used by name: add, list, remove
    #[command(subcommand)]
    Models(models::Models),
    /// Collections of documents, the tenants of a server: list, show, quota, erase
    #[command(subcommand)]
    Collections(collections::Collections),
    /// Access to the nats-server of `nerve up`: token, list, revoke, rotate
    #[command(subcommand)]
    Access(access::Access),
    /// NATS connection settings for other programs: context
    #[command(subcommand)]
    Nats(nats::Nats),
    Completions(completions::Completions),
}

impl Command {
    /// Returns the kind of process that runs the command.
    pub(crate) fn process(&self) -> Process {
        match self {
            Self::Up(up) => up.process(),
            Self::Gateway(gateway) => gateway.process(),
            Self::Worker(worker) => worker.process(),
            _ => Process::Command,
        }
    }

    /// Runs the command. A permission error of NATS ends a command, but not a server.
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        if self.process() != Process::Command {
            return self.dispatch(globals).await;
        }
        tokio::select! {
            biased;
            done = self.dispatch(globals) => done,
            error = globals.permission_errors.first() => Err(error.into()),
        }
    }

    async fn dispatch(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Up(up) => up.run(globals).await,
            Self::Gateway(gateway) => gateway.run(globals).await,
            Self::Worker(worker) => worker.run(globals).await,
            Self::Join(join) => join.run(globals).await,
            Self::New(new) => new.run(globals),
            Self::Deploy(deploy) => deploy.run(globals).await,
            Self::List(list) => list.run(globals).await,
            Self::Describe(describe) => describe.run(globals).await,
            Self::Remove(remove) => remove.run(globals).await,
            Self::Invoke(invoke) => invoke.run(globals).await,
            Self::Publish(publish) => publish.run(globals).await,
            #[cfg(feature = "rag")]
            Self::Ingest(ingest) => ingest.run(globals).await,
            #[cfg(feature = "rag")]
            Self::Ask(ask) => ask.run(globals).await,
            #[cfg(feature = "rag")]
            Self::Eval(eval) => eval.run(globals).await,
            Self::Tail(tail) => tail.run(globals).await,
            Self::Trace(trace) => trace.run(globals).await,
            Self::Logs(logs) => logs.run(globals).await,
            Self::Replay(replay) => replay.run(globals).await,
            Self::Dlq(dlq) => dlq.run(globals).await,
            Self::Secrets(secrets) => secrets.run(globals).await,
            Self::Sink(sink) => sink.run(globals).await,
            Self::Source(source) => source.run(globals).await,
            Self::Models(models) => models.run(globals).await,
            Self::Collections(collections) => collections.run(globals).await,
            Self::Access(access) => access.run(globals).await,
            Self::Nats(nats) => nats.run(globals),
            Self::Completions(completions) => completions.run(),
        }
    }
}
