//! Reports the events of a NATS client, in the log and through watch channels.

use crate::{Violation, connection::Waiting};
use async_nats::{Event, ServerError};
use nerve_core::{Secret, redact};
use parking_lot::Mutex;
use std::borrow::Cow;
use tokio::sync::watch;

/// Words in nats-server's messages about credentials that it no longer accepts.
const REFUSALS: [&str; 3] = ["authorization", "authentication", "revoked"];
/// Minimum length of a masked secret. A shorter one is part of many words.
const MIN_MASKED_BYTES: usize = 4;

/// The number of connections established so far, starting at 1.
pub(crate) type Reconnects = watch::Receiver<u64>;
/// The last operation that the server refused.
pub(crate) type Violations = watch::Receiver<Option<Violation>>;

/// Reports the events of one client.
pub(crate) struct Reporter {
    connected: watch::Sender<u64>,
    violated: watch::Sender<Option<Violation>>,
    waiting: Mutex<Waiting>,
    redaction: Redaction,
}

impl Reporter {
    /// A reporter for a client that connects with these secrets.
    pub(crate) fn new(secrets: Vec<Secret>) -> (Self, Reconnects, Violations) {
        let ((connected, reconnects), (violated, violations)) = (watch::channel(0), watch::channel(None));
        let reporter = Self { connected, violated, waiting: Mutex::default(), redaction: Redaction::new(secrets) };
        (reporter, reconnects, violations)
    }

    pub(crate) fn report(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.connected.send_modify(|count| *count += 1);
                *self.waiting.lock() = Waiting::default();
                if *self.connected.borrow() > 1 {
                    tracing::info!("reconnected to NATS");
                }
            }
            Event::Disconnected => tracing::warn!("connection to NATS lost; reconnecting"),
            Event::ClientError(error) => {
                let error = error.to_string();
                let error = self.redaction.apply(&error);
                // One event per reconnect attempt.
                if !self.is_due() {
                    return;
                }
                match is_refusal(&error) {
                    true => {
                        tracing::error!(%error, "NATS refuses the credentials of this server: they were revoked or replaced")
                    }
                    false => tracing::warn!(%error, "NATS is not reachable yet; reconnecting"),
                }
            }
            Event::ServerError(error) => self.report_refusal(error),
            other => tracing::debug!(event = %other, "NATS"),
        }
    }

    fn report_refusal(&self, error: &ServerError) {
        let text = error.to_string();
        let error = self.redaction.apply(&text);
        if let Some(violation) = Violation::parse(&error) {
            self.violated.send_replace(Some(violation));
            if self.is_due() {
                // A command reports it itself.
                tracing::warn!(target: "nerve_broker::violations", %error, "NATS refuses what this client sent");
            }
        } else if is_refusal(&error) {
            tracing::error!(%error, "NATS refuses the credentials of this server: they were revoked or replaced");
        } else if self.is_due() {
            tracing::warn!(%error, "NATS refuses what this client sent");
        }
    }

    fn is_due(&self) -> bool {
        self.waiting.lock().is_due()
    }
}

/// Returns whether nats-server's message rejects the credentials.
pub(crate) fn is_refusal(said: &str) -> bool {
    let said = said.to_lowercase();
    REFUSALS.iter().any(|word| said.contains(word))
}

/// Masks secrets in messages of a server, which may repeat them.
pub(crate) struct Redaction(Vec<Secret>);

impl Redaction {
    pub(crate) fn new(mut secrets: Vec<Secret>) -> Self {
        secrets.retain(|secret| secret.expose().len() >= MIN_MASKED_BYTES);
        Self(secrets)
    }

    pub(crate) fn changes(&self, text: &str) -> bool {
        matches!(self.apply(text), Cow::Owned(_))
    }

    pub(crate) fn apply<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.0.iter().fold(redact::urls(text), |text, secret| match text.contains(secret.expose()) {
            true => Cow::Owned(text.replace(secret.expose(), "***")),
            false => text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_in_a_server_message_is_masked() {
        let redaction = Redaction::new(vec![Secret::new("hunter2"), Secret::new("a")]);
        assert_eq!(redaction.apply("no hunter2 at nats://ada:x@h"), "no *** at nats://***@h");
        assert!(!redaction.changes("a plain text"));
    }

    #[test]
    fn reporter_keeps_violations_and_counts_reconnects() {
        let (reporter, reconnects, violations) = Reporter::new(Vec::new());
        reporter.report(&Event::Connected);
        reporter.report(&Event::ServerError(ServerError::Other("Stale Connection".to_owned())));
        assert_eq!((*reconnects.borrow(), violations.borrow().clone()), (1, None));
        let said = "Permissions Violation for Publish to \"a.b\"".to_owned();
        reporter.report(&Event::ServerError(ServerError::Other(said)));
        assert_eq!(violations.borrow().as_ref().map(|violation| violation.subject.as_str()), Some("a.b"));
    }
}
