//! `nerve`: runs the platform, deploys to it and operates it.
//!
//! # Layout
//! - [`args`]: the command line as a whole; [`command`]: one file a command.
//! - [`settings`], [`endpoint`], [`connection`]: the settings, where NATS is, and the way to it.
//! - [`joined`]: the NATS that this machine has joined, where that is another machine's.
//! - [`supervisor`]: keeps a server process running. [`broker`]: the nats-server of `nerve up`. [`backoff`]: when either is started
//!   again. [`sandbox`]: helper processes of a server. [`limits`], [`lock`], [`signals`]: what a server needs of the system.
//! - [`artifacts`], [`model`], [`builtin`]: what a deploy sends. [`fields`], [`plan`]: how it compares with what is
//!   there. [`graph`]: what leads to what.
//! - [`onnx`]: where the models and the library of ONNX Runtime are that come with this installation.
//! - [`payload`], [`moment`]: events and times as a command line gives them.
//! - [`output`], [`failure`]: what a person or a program reads; [`escape`]: what of it must not steer a terminal.
//!
//! # Flow
//! `main` reads the arguments, starts logging and hands over to the command. This is the only crate that knows
//! both the server, which speaks NATS, and the runtimes, which run guests.

mod args;
mod artifacts;
mod backoff;
mod broker;
mod builtin;
mod command;
mod connection;
mod endpoint;
mod escape;
mod failure;
mod fields;
mod files;
mod graph;
mod joined;
mod limits;
mod lock;
mod model;
mod moment;
mod onnx;
mod output;
mod payload;
mod plan;
mod sandbox;
mod server;
mod settings;
mod signals;
mod supervisor;

use clap::Parser;
use command::Process;
use std::{io::IsTerminal, process::ExitCode, time::Duration};
use supervisor::LogStyle;
use tracing_subscriber::EnvFilter;

/// Events are many small allocations that one thread makes and another frees, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long work on other threads may take to notice the end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What helper processes of this binary do.
const WORKS: [nerve_sandbox::Work; 6] = [
    nerve_rag::READER,
    nerve_runtime::COMPILER,
    nerve_inference::TRIAL,
    nerve_inference::CHAT_TEMPLATES,
    nerve_worker::SINK_TEMPLATES,
    nerve_sandbox::PROBE,
];

fn main() -> ExitCode {
    disable_telemetry();
    if let Some(ended) = nerve_sandbox::serve(std::env::args_os(), &WORKS) {
        return ended;
    }
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == nerve_runtime::SHIM) {
        return nerve_runtime::run_shim(arguments);
    }
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::report_usage(&error, args::asks_for_json(std::env::args_os())),
    };
    let process = cli.command.process();
    if process == Process::Supervisor {
        supervisor::save_memory();
    }
    if process != Process::Command {
        keep_private();
    }
    start_logging(process);
    // A supervisor is to be small, and its children are tied to the thread that starts them.
    let mut runtime = match process {
        Process::Supervisor => tokio::runtime::Builder::new_current_thread(),
        Process::Command | Process::Server(_) => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&error.into(), cli.globals.output),
    };
    let result = runtime.block_on(cli.command.run(&cli.globals));
    runtime.shutdown_timeout(LAST_WORDS);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error, cli.globals.output),
    }
}

/// Keeps ONNX Runtime from sending its publisher what runs here, in this process and in those that it starts.
#[allow(unsafe_code)]
#[expect(clippy::disallowed_methods, reason = "a library reads it from the environment only")]
fn disable_telemetry() {
    let (name, value) = nerve_inference::NO_TELEMETRY;
    // SAFETY: `main` does this first, while the process has one thread, so nothing reads the environment meanwhile.
    unsafe { std::env::set_var(name, value) };
}

/// Keeps what a server writes, and what it holds in memory, from other users and from the processes that it runs.
fn keep_private() {
    use nix::sys::{
        prctl,
        stat::{Mode, umask},
    };
    umask(Mode::from_bits_truncate(0o077));
    // Other processes of this user may then read neither its environment in /proc nor its memory. A child is dumpable again
    // once it runs a program of its own.
    if let Err(error) = prctl::set_dumpable(false) {
        tracing::debug!(%error, "processes of this user may read the memory of this one");
    }
}

/// Logs go to stderr: stdout is for results. `NERVE_LOG`, else `RUST_LOG`, says what is logged.
fn start_logging(process: Process) {
    let wanted = ["NERVE_LOG", "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok());
    // What the client of NATS says at each attempt, `nerve_broker` says once.
    let usual = match process {
        Process::Command => "warn,async_nats=off,nerve_broker::violations=off",
        Process::Supervisor | Process::Server(_) => "info,async_nats=off",
    };
    let has_colours = match process {
        Process::Server(Some(style)) => style == LogStyle::Colour,
        _ => std::io::stderr().is_terminal(),
    };
    let filter = EnvFilter::builder().parse_lossy(wanted.as_deref().unwrap_or(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || escape::LogWriter::new(has_colours))
        .with_ansi(has_colours)
        .with_target(false)
        .init();
}
