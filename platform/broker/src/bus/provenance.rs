//! Where a delivered message comes from: the message that was stored first, and the generation that it is run for.
//!
//! A copy (a dead letter, a dead letter on its way back, a delayed retry) says it in `Nerve-*` headers. They count only on the
//! streams that Nerve alone writes to; elsewhere they are a sender's own words.

use super::{DEAD, TIMERS};
use async_nats::HeaderMap;
use nerve_core::{Generation, Input, Name, Run};
use std::sync::Arc;
use time::OffsetDateTime;

/// The headers of a copy. Those of a failure are a dead letter's only.
pub(super) mod copy_headers {
    pub(in super::super) const STREAM: &str = "Nerve-Stream";
    pub(in super::super) const SEQUENCE: &str = "Nerve-Sequence";
    pub(in super::super) const STORED: &str = "Nerve-Stored";
    pub(in super::super) const SUBJECT: &str = "Nerve-Subject";
    pub(in super::super) const GENERATION: &str = "Nerve-Generation";
    pub(in super::super) const FUNCTION: &str = "Nerve-Function";
    pub(in super::super) const REVISION: &str = "Nerve-Revision";
    pub(in super::super) const ATTEMPTS: &str = "Nerve-Attempts";
    pub(in super::super) const ERRORS: &str = "Nerve-Errors";
    /// Says that a delivery to a sink is a test; its value is `1`.
    pub(in super::super) const TRIAL: &str = "Nerve-Trial";
}

/// Where a message was stored first, and for which generation it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The identity of the input event.
    pub input: Input,
    /// The generation, which a redrive or a replay increments.
    pub generation: Generation,
    /// The subject that it had there; `None` where it is there still.
    pub(super) subject: Option<String>,
}

impl Provenance {
    /// A message that lies where it was stored first.
    pub(super) fn here(stream: Arc<str>, sequence: u64, stored: OffsetDateTime, generation: Generation) -> Self {
        Self { input: Input::new(stream, sequence, stored), generation, subject: None }
    }

    /// A message that lies where it was stored first, by its input.
    #[doc(hidden)]
    pub fn first(input: Input, generation: Generation) -> Self {
        Self { input, generation, subject: None }
    }

    /// What a copy says of itself; `None` for a message that is no copy.
    ///
    /// A copy that an older Nerve made says neither when its message was stored nor a generation.
    pub(super) fn of_copy(headers: Option<&HeaderMap>) -> Option<Self> {
        let text = |name: &str| headers?.get(name).map(|value| value.as_str());
        let input = Input {
            stream: text(copy_headers::STREAM)?.into(),
            sequence: text(copy_headers::SEQUENCE)?.parse().ok()?,
            stored_ns: text(copy_headers::STORED).and_then(|text| text.parse().ok()).unwrap_or_default(),
        };
        let generation = Generation::parse(text(copy_headers::GENERATION).unwrap_or_default());
        Some(Self { input, generation, subject: text(copy_headers::SUBJECT).map(str::to_owned) })
    }

    /// The run of `function` on it.
    pub fn run<'r>(&'r self, function: &'r Name) -> Run<'r> {
        Run { function, input: &self.input, generation: &self.generation }
    }

    /// The headers of a copy of a message: those that came with it, without what the broker or a sender says about copies, and
    /// with where it comes from. `subject` is the subject that the message has where it lies.
    pub(super) fn copied(&self, headers: Option<&HeaderMap>, subject: &str) -> HeaderMap {
        let mut kept = HeaderMap::new();
        for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
            let text: &str = name.as_ref();
            if is_of_the_broker(text) || has_prefix(text, "nerve-") {
                continue;
            }
            for value in values {
                kept.append(text, value.clone());
            }
        }
        kept.insert(copy_headers::STREAM, self.input.stream.as_ref());
        kept.insert(copy_headers::SEQUENCE, self.input.sequence.to_string());
        kept.insert(copy_headers::STORED, self.input.stored_ns.to_string());
        kept.insert(copy_headers::SUBJECT, self.subject.as_deref().unwrap_or(subject));
        if !self.generation.as_str().is_empty() {
            kept.insert(copy_headers::GENERATION, self.generation.as_str());
        }
        kept
    }
}

/// Whether messages of this stream are copies that Nerve made.
pub(super) fn holds_copies(stream: &str) -> bool {
    stream == DEAD || stream == TIMERS
}

/// Whether a header tells the broker something, which a copy of its message must not tell it again.
pub(super) fn is_of_the_broker(name: &str) -> bool {
    has_prefix(name, "nats-")
}

fn has_prefix(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_says_where_its_message_was_stored_first() {
        let stored = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        let first = Provenance::here("ORDERS".into(), 7, stored, Generation::first());
        let mut sent = HeaderMap::new();
        sent.insert("ce-id", "1");
        sent.insert("Nats-Msg-Id", "x");
        sent.insert("nerve-sequence", "666");
        sent.insert(copy_headers::ERRORS, "[]");
        let copied = first.copied(Some(&sent), "orders.created");
        assert!(copied.get("Nats-Msg-Id").is_none() && copied.get(copy_headers::ERRORS).is_none());
        assert_eq!(copied.get("ce-id").map(|value| value.as_str()), Some("1"));
        let read = Provenance::of_copy(Some(&copied)).unwrap();
        assert_eq!((&read.input, &read.generation), (&first.input, &first.generation));
        assert_eq!(read.subject.as_deref(), Some("orders.created"));

        let again = Provenance { generation: Generation::replayed("r"), ..read };
        let copied = again.copied(Some(&copied), "redrive.f");
        assert_eq!(Provenance::of_copy(Some(&copied)), Some(again));
        assert_eq!(Provenance::of_copy(Some(&sent)), None);
    }
}
