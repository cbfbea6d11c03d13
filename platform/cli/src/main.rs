//! `nerve`: runs the platform, deploys to it and operates it.
//!
//! # Layout
//! - [`args`]: the command line; [`globals`]: options of every command; [`command`]: one file per command.
//! - [`settings`], [`endpoint`], [`connection`]: the settings, the address of NATS, and the connection to it.
//! - [`membership`]: the membership of this machine in the NATS of another one.
//! - [`supervisor`]: restarts a server process. [`broker`]: the nats-server of `nerve up`. [`backoff`]: restart delays
//!   of both. [`sandbox`]: helper processes of a server. [`open_files`], [`lock`], [`signals`]: system resources of a
//!   server.
//! - [`artifacts`], [`model`], [`builtin`]: the files that a deploy uploads. [`display_fields`], [`plan`]: the
//!   comparison with the deployed state. [`graph`]: warnings about cycles and duplicates.
//! - [`onnx`]: the bundled models and the library of ONNX Runtime. [`hosts`]: the runtimes and models of a server.
//!   [`features`]: what a build without a Cargo feature does instead.
//! - [`event_args`], [`time_arg`]: events and times as command-line arguments.
//! - [`output`], [`failure`]: results and errors; [`log_fields`]: fields of log lines; [`escape`]: escapes terminal control characters in them.
//!
//! # Flow
//! `main` parses the arguments, starts logging and runs the command. This is the only crate that depends on both the
//! server, which uses NATS, and the runtimes, which run functions.
#![cfg_attr(
    not(feature = "rag"),
    allow(dead_code, reason = "other features use it; a build with all of them is checked")
)]

mod args;
mod artifacts;
mod backoff;
mod broker;
mod builtin;
mod command;
mod connection;
mod display_fields;
mod endpoint;
mod escape;
mod event_args;
mod failure;
mod features;
mod files;
mod globals;
mod graph;
mod hosts;
mod lock;
mod log_fields;
mod membership;
mod model;
mod onnx;
mod open_files;
mod output;
mod plan;
mod sandbox;
mod server;
mod settings;
mod signals;
mod supervisor;
mod time_arg;

use clap::Parser;
use command::Process;
use std::{io::IsTerminal, process::ExitCode, time::Duration};
use supervisor::LogStyle;
use tracing_subscriber::EnvFilter;

/// Events cause many small allocations that another thread frees, for which the system allocator is slow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Shutdown timeout of work on other threads.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// Kinds of helper processes of this binary.
const HELPERS: &[nerve_sandbox::Work] = &[
    #[cfg(feature = "rag")]
    nerve_rag::READER,
    #[cfg(feature = "wasm")]
    nerve_runtime::COMPILER,
    #[cfg(feature = "onnx")]
    nerve_inference::MODEL_PROBE,
    #[cfg(feature = "onnx")]
    nerve_inference::CHAT_TEMPLATES,
    nerve_worker::SINK_TEMPLATES,
    nerve_sandbox::PROBE,
];

fn main() -> ExitCode {
    #[cfg(feature = "onnx")]
    disable_telemetry();
    if let Some(exit_code) = nerve_sandbox::serve(std::env::args_os(), HELPERS) {
        return exit_code;
    }
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == nerve_runtime::SHIM) {
        return nerve_runtime::run_shim(arguments);
    }
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::report_usage(&error, args::requests_json(std::env::args_os())),
    };
    let process = cli.command.process();
    if process == Process::Supervisor {
        supervisor::exec_with_less_memory();
    }
    if process != Process::Command {
        isolate_process();
    }
    start_logging(process);
    // A supervisor must be small, and its children are tied to the thread that starts them.
    let mut runtime = match process {
        Process::Supervisor => tokio::runtime::Builder::new_current_thread(),
        Process::Command | Process::Server(_) => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&error.into(), cli.globals.output),
    };
    let result = runtime.block_on(cli.command.run(&cli.globals));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error, cli.globals.output),
    }
}

/// Disables the telemetry of ONNX Runtime in this process and its children.
#[cfg(feature = "onnx")]
#[allow(unsafe_code)]
#[expect(clippy::disallowed_methods, reason = "a library reads it from the environment only")]
fn disable_telemetry() {
    let (name, value) = nerve_inference::NO_TELEMETRY;
    // SAFETY: `main` calls this first, while the process has one thread, so no other thread reads the environment.
    unsafe { std::env::set_var(name, value) };
}

/// Protects files and memory of a server from other users and from the processes that it runs.
fn isolate_process() {
    use nix::sys::{
        prctl,
        stat::{Mode, umask},
    };
    umask(Mode::from_bits_truncate(0o077));
    // Other processes of this user can then read neither its environment in /proc nor its memory. A child becomes
    // dumpable again when it executes a program.
    if let Err(error) = prctl::set_dumpable(false) {
        tracing::debug!(%error, "cannot protect the memory of this process from other processes of this user");
    }
}

/// Starts logging to stderr, because stdout is for results. `NERVE_LOG`, or else `RUST_LOG`, sets the filter.
fn start_logging(process: Process) {
    let configured = ["NERVE_LOG", "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok());
    // The NATS client logs each connection attempt; `nerve_broker` logs once.
    let default = match process {
        Process::Command => "warn,async_nats=off,nerve_broker::violations=off",
        Process::Supervisor | Process::Server(_) => "info,async_nats=off",
    };
    let has_colors = match process {
        Process::Server(Some(style)) => style == LogStyle::Color,
        _ => std::io::stderr().is_terminal(),
    };
    let filter = EnvFilter::builder().parse_lossy(configured.as_deref().unwrap_or(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(log_fields::LogFields)
        .with_writer(move || escape::LogWriter::new(has_colors))
        .with_ansi(has_colors)
        .with_target(false)
        .init();
}
