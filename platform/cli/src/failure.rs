//! The error report of a command: the failure, its cause and the next step.

use crate::server::ServerError;
use crate::{connection::next_step, escape::escaped, output::Format};
use clap::error::ErrorKind;
use nerve_broker::bus::{BusError, PublishError};
use serde_json::json;
use std::{borrow::Cow, fmt, io, process::ExitCode};

/// Exit code of a failed command.
const FAILED: u8 = 1;
/// Exit code of a usage error.
const BAD_USAGE: u8 = 2;
/// Maximum bytes shown of the failure and of its cause.
const MAX_BYTES: usize = 6 << 10;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    thing: String,
    cause: Option<anyhow::Error>,
    next: Option<String>,
    code: u8,
    /// Whether another process has already reported it.
    is_reported: bool,
}

impl Failure {
    /// Creates a failure, such as "cannot read nerve.toml".
    pub(crate) fn new(thing: impl Into<String>) -> Self {
        Self { thing: thing.into(), cause: None, next: None, code: FAILED, is_reported: false }
    }

    /// Creates a usage error: exit code 2.
    pub(crate) fn usage(thing: impl Into<String>) -> Self {
        Self { code: BAD_USAGE, ..Self::new(thing) }
    }

    /// Creates a failure that another process has already reported before it exited with `code`.
    pub(crate) fn reported(thing: impl Into<String>, code: u8) -> Self {
        Self { code, is_reported: true, ..Self::new(thing) }
    }

    /// Sets the cause.
    pub(crate) fn because(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Sets the cause to a text.
    pub(crate) fn cause(self, cause: impl fmt::Display) -> Self {
        self.because(anyhow::Error::msg(cause.to_string()))
    }

    /// Sets the next step.
    pub(crate) fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.thing)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(AsRef::as_ref)
    }
}

/// Writes `error` to stderr and returns the exit code.
pub(crate) fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    // The reader of the output has exited, as in `nerve tail | head`.
    if error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)) {
        return ExitCode::SUCCESS;
    }
    let failure = error.downcast_ref::<Failure>();
    if let Some(failure) = failure.filter(|failure| failure.is_reported) {
        return ExitCode::from(failure.code);
    }
    let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
    let cause = Some(join(&causes)).filter(|cause| !cause.is_empty());
    let next = failure.and_then(|failure| failure.next.as_deref().map(Cow::Borrowed)).or_else(|| next_of(error));
    write(&error.to_string(), cause.as_deref(), next.as_deref(), format);
    ExitCode::from(failure.map_or(FAILED, |failure| failure.code))
}

/// Returns the next step for a broker error anywhere in the chain.
fn next_of(error: &anyhow::Error) -> Option<Cow<'static, str>> {
    let connecting = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(ServerError::Bus(BusError::Connect(error))) => Some(error),
        _ => match cause.downcast_ref() {
            Some(BusError::Connect(error)) => Some(error),
            _ => None,
        },
    });
    if let Some(error) = connecting {
        return Some(next_step(error));
    }
    let is_unavailable = error.chain().any(|cause| {
        let of_server = match cause.downcast_ref() {
            Some(ServerError::Bus(error)) => Some(error),
            _ => None,
        };
        matches!(of_server.or_else(|| cause.downcast_ref()), Some(BusError::Unavailable { .. }))
            || matches!(cause.downcast_ref(), Some(error @ PublishError::Unavailable(_)) if error.full().is_none())
    });
    let next =
        "check that NATS runs with JetStream, and that `nerve up`, a gateway or a worker has been started on it once";
    is_unavailable.then_some(Cow::Borrowed(next))
}

/// Reports a result of clap: help on stdout, or a usage error on stderr.
pub(crate) fn report_usage(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        let text = error.to_string();
        let thing = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        write(thing, None, Some("see `nerve --help`"), Format::Json);
    } else {
        print_usage(error);
    }
    ExitCode::from(if error.use_stderr() { BAD_USAGE } else { 0 })
}

/// Prints a message of clap. A usage error quotes the command line, so it is escaped and loses clap's colors.
#[expect(clippy::print_stderr, reason = "this is where errors are printed")]
fn print_usage(error: &clap::Error) {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A closed stdout is not an error for a help text.
            let _ = error.print();
        }
        _ => eprint!("{}", escaped(&error.to_string())),
    }
}

/// Truncates a text, which may quote external input, to [`MAX_BYTES`].
fn truncate(text: &str) -> Cow<'_, str> {
    let end = text.floor_char_boundary(MAX_BYTES);
    match text.len().saturating_sub(end) {
        0 => Cow::Borrowed(text),
        left => Cow::Owned(format!("{}… ({left} more bytes)", text.get(..end).unwrap_or_default())),
    }
}

/// Joins the chain of causes in one line, without causes that the previous one already contains.
fn join(causes: &[String]) -> String {
    let mut joined = String::new();
    for cause in causes {
        if joined.is_empty() {
            joined.clone_from(cause);
        } else if !joined.contains(cause.as_str()) {
            joined = format!("{joined}: {cause}");
        }
    }
    joined
}

#[expect(clippy::print_stderr, reason = "this is where errors are printed")]
fn write(thing: &str, cause: Option<&str>, next: Option<&str>, format: Format) {
    let (thing, cause) = (truncate(thing), cause.map(truncate));
    if format == Format::Json {
        let error = json!({"error": {"message": thing, "cause": cause, "next": next}});
        eprintln!("{}", escaped(&error.to_string()));
        return;
    }
    eprintln!("error: {}", escaped(&thing));
    if let Some(cause) = cause {
        eprintln!("  cause: {}", escaped(&cause).replace('\n', "\n         "));
    }
    if let Some(next) = next {
        eprintln!("  next:  {}", escaped(next).replace('\n', "\n         "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_causes_are_omitted() {
        let causes = ["a: b".to_owned(), "b".to_owned(), "c".to_owned()];
        assert_eq!(join(&causes), "a: b: c");
        assert_eq!(join(&[]), "");
    }

    #[test]
    fn long_text_is_truncated_between_characters() {
        let long = "é".repeat(MAX_BYTES);
        assert_eq!(truncate(&long), format!("{}… ({MAX_BYTES} more bytes)", "é".repeat(MAX_BYTES / 2)));
        assert_eq!(truncate("é"), "é");
    }

    #[test]
    fn failure_keeps_its_parts_in_anyhow() {
        let inner = anyhow::anyhow!("refused").context("connecting");
        let error = anyhow::Error::from(Failure::usage("no NATS").because(inner).next("start it"));
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!((failure.code, failure.next.as_deref()), (BAD_USAGE, Some("start it")));
        assert_eq!(error.chain().map(ToString::to_string).collect::<Vec<_>>(), ["no NATS", "connecting", "refused"]);
    }
}
