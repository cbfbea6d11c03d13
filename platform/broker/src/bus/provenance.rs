//! The origin of a delivered message: its first stored position, and its generation.
//!
//! Copies (dead letters, redriven dead letters, delayed retries) carry it in `Nerve-*` headers. These count only on the
//! streams that Nerve alone writes to; elsewhere any sender could set them.

use super::{DEAD, TIMERS, headers};
use async_nats::HeaderMap;
use nerve_core::{Generation, Input, Name, Run};
use std::sync::Arc;
use time::OffsetDateTime;

/// The first stored position of a message, and its generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The identity of the input event.
    pub input: Input,
    /// The generation, which a redrive or a replay increments.
    pub generation: Generation,
    /// The original subject; `None` if the message is still there.
    pub(super) subject: Option<String>,
}

impl Provenance {
    /// The provenance of a message at its original position.
    pub(super) fn here(stream: Arc<str>, sequence: u64, stored: OffsetDateTime, generation: Generation) -> Self {
        Self { input: Input::new(stream, sequence, stored), generation, subject: None }
    }

    /// The provenance of a message at its original position, by its input.
    #[doc(hidden)]
    pub fn first(input: Input, generation: Generation) -> Self {
        Self { input, generation, subject: None }
    }

    /// The provenance in a copy's headers; `None` for a message that is not a copy.
    ///
    /// Copies of an earlier version of Nerve lack the storage time and the generation.
    pub(super) fn of_copy(headers: Option<&HeaderMap>) -> Option<Self> {
        let text = |name: &str| headers?.get(name).map(|value| value.as_str());
        let input = Input {
            stream: text(headers::STREAM)?.into(),
            sequence: text(headers::SEQUENCE)?.parse().ok()?,
            stored_ns: text(headers::STORED).and_then(|text| text.parse().ok()).unwrap_or_default(),
        };
        let generation = Generation::parse(text(headers::GENERATION).unwrap_or_default());
        Some(Self { input, generation, subject: text(headers::SUBJECT).map(str::to_owned) })
    }

    /// The run of `function` on this input.
    pub fn run<'r>(&'r self, function: &'r Name) -> Run<'r> {
        Run { function, input: &self.input, generation: &self.generation }
    }

    /// The headers of a copy of a message: the original headers, without control headers and headers about copies,
    /// plus the provenance. `subject` is the message's current subject.
    pub(super) fn copied(&self, headers: Option<&HeaderMap>, subject: &str) -> HeaderMap {
        let mut kept = HeaderMap::new();
        for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
            let text: &str = name.as_ref();
            if headers::is_broker_header(text) || headers::is_nerve_header(text) {
                continue;
            }
            for value in values {
                kept.append(text, value.clone());
            }
        }
        kept.insert(headers::STREAM, self.input.stream.as_ref());
        kept.insert(headers::SEQUENCE, self.input.sequence.to_string());
        kept.insert(headers::STORED, self.input.stored_ns.to_string());
        kept.insert(headers::SUBJECT, self.subject.as_deref().unwrap_or(subject));
        if !self.generation.as_str().is_empty() {
            kept.insert(headers::GENERATION, self.generation.as_str());
        }
        kept
    }
}

/// Returns whether the messages of this stream are copies made by Nerve.
pub(super) fn holds_copies(stream: &str) -> bool {
    stream == DEAD || stream == TIMERS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_names_the_original_position_of_its_message() {
        let stored = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        let first = Provenance::here("ORDERS".into(), 7, stored, Generation::first());
        let mut sent = HeaderMap::new();
        sent.insert("ce-id", "1");
        sent.insert("Nats-Msg-Id", "x");
        sent.insert("nerve-sequence", "666");
        sent.insert(headers::ERRORS, "[]");
        let copied = first.copied(Some(&sent), "orders.created");
        assert!(copied.get("Nats-Msg-Id").is_none() && copied.get(headers::ERRORS).is_none());
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
