//! What a person reads when a command fails: the thing, its cause, the next step.

use crate::server::ServerError;
use crate::{connection::next_step, escape::escaped, output::Format};
use clap::error::ErrorKind;
use nerve_broker::bus::{BusError, PublishError};
use serde_json::json;
use std::{borrow::Cow, fmt, io, process::ExitCode};

/// The exit code of a command that failed.
const FAILED: u8 = 1;
/// The exit code of a command that was called wrongly.
const BAD_USAGE: u8 = 2;
/// The most bytes of what failed, and of why, that are shown.
const MAX_BYTES: usize = 6 << 10;

/// A failed command, told in three parts.
#[derive(Debug)]
pub(crate) struct Failure {
    thing: String,
    cause: Option<anyhow::Error>,
    next: Option<String>,
    code: u8,
    /// Whether another process has written it.
    is_told: bool,
}

impl Failure {
    /// A failure of `thing`, such as "cannot read nerve.toml".
    pub(crate) fn new(thing: impl Into<String>) -> Self {
        Self { thing: thing.into(), cause: None, next: None, code: FAILED, is_told: false }
    }

    /// A wrong call: exit code 2.
    pub(crate) fn usage(thing: impl Into<String>) -> Self {
        Self { code: BAD_USAGE, ..Self::new(thing) }
    }

    /// A failure of another process, which has said why and ended with `code`.
    pub(crate) fn told(thing: impl Into<String>, code: u8) -> Self {
        Self { code, is_told: true, ..Self::new(thing) }
    }

    /// Why it failed.
    pub(crate) fn because(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Why it failed, in words.
    pub(crate) fn cause(self, cause: impl fmt::Display) -> Self {
        self.because(anyhow::Error::msg(cause.to_string()))
    }

    /// What to do next.
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

/// Writes `error` to stderr and says with which code to exit.
pub(crate) fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    // Whoever read our output has had enough, as in `nerve tail | head`.
    if error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)) {
        return ExitCode::SUCCESS;
    }
    let failure = error.downcast_ref::<Failure>();
    if let Some(failure) = failure.filter(|failure| failure.is_told) {
        return ExitCode::from(failure.code);
    }
    let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
    let cause = Some(join(&causes)).filter(|cause| !cause.is_empty());
    let next = failure.and_then(|failure| failure.next.as_deref().map(Cow::Borrowed)).or_else(|| next_of(error));
    write(&error.to_string(), cause.as_deref(), next.as_deref(), format);
    ExitCode::from(failure.map_or(FAILED, |failure| failure.code))
}

/// What helps against an error of the broker's, which comes from anywhere.
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
    let away = error.chain().any(|cause| {
        let of_server = match cause.downcast_ref() {
            Some(ServerError::Bus(error)) => Some(error),
            _ => None,
        };
        matches!(of_server.or_else(|| cause.downcast_ref()), Some(BusError::Unavailable { .. }))
            || matches!(cause.downcast_ref(), Some(error @ PublishError::Unavailable(_)) if error.full().is_none())
    });
    let next = "check that NATS runs with JetStream, and that `nerve up`, a gateway or a worker has started on it once";
    away.then_some(Cow::Borrowed(next))
}

/// Answers what clap says about a call: help on stdout, or a mistake on stderr.
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

/// Writes what clap says. A mistake quotes the call, so it is escaped, and has no colours of clap's.
#[expect(clippy::print_stderr, reason = "this is where errors are printed")]
fn print_usage(error: &clap::Error) {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A closed stdout is no reason to fail over a help text.
            let _ = error.print();
        }
        _ => eprint!("{}", escaped(&error.to_string())),
    }
}

/// At most the first [`MAX_BYTES`] of a text, which may quote what somebody else has written, and how much is left out.
fn cut(text: &str) -> Cow<'_, str> {
    let end = text.floor_char_boundary(MAX_BYTES);
    match text.len().saturating_sub(end) {
        0 => Cow::Borrowed(text),
        left => Cow::Owned(format!("{}… ({left} more bytes)", text.get(..end).unwrap_or_default())),
    }
}

/// The chain of causes in one line; a cause that the one before already repeats is left out.
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
    let (thing, cause) = (cut(thing), cause.map(cut));
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
    fn causes_are_told_once() {
        let causes = ["a: b".to_owned(), "b".to_owned(), "c".to_owned()];
        assert_eq!(join(&causes), "a: b: c");
        assert_eq!(join(&[]), "");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let long = "é".repeat(MAX_BYTES);
        assert_eq!(cut(&long), format!("{}… ({MAX_BYTES} more bytes)", "é".repeat(MAX_BYTES / 2)));
        assert_eq!(cut("é"), "é");
    }

    #[test]
    fn a_failure_keeps_its_parts_through_anyhow() {
        let inner = anyhow::anyhow!("refused").context("connecting");
        let error = anyhow::Error::from(Failure::usage("no NATS").because(inner).next("start it"));
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!((failure.code, failure.next.as_deref()), (BAD_USAGE, Some("start it")));
        assert_eq!(error.chain().map(ToString::to_string).collect::<Vec<_>>(), ["no NATS", "connecting", "refused"]);
    }
}
