//! Answers while they are made: the types of events that their readers see, and which answer an event belongs to.
//!
//! These events are kept in the stream ANSWERS, on `answers.<id>`. Parts of an answer stand there only; an event that
//! is also a step of the pipeline stands in EVENTS too.

use crate::{Event, EventType, event::CORRELATION_ID};
use serde::{Deserialize, Serialize};

/// Type: an answer was asked for, and may be read from now on.
pub const OPENED: &str = "answer.opened";
/// Type: what was found for the question.
pub const RETRIEVED: &str = "documents.retrieved";
/// Type: the next piece of the answer, `{"text": …}`.
pub const TOKEN: &str = "answer.token";
/// Type: where a piece of the answer is from, `{"source": …, "chunk": …, "text": …}`.
pub const CITATION: &str = "answer.citation";
/// Type: the whole answer. Nothing comes after it.
pub const GENERATED: &str = "answer.generated";
/// Type: there will be no answer, and why, `{"kind": …, "message": …}`. Nothing comes after it.
pub const FAILED: &str = "answer.failed";

/// What an event is to whoever reads an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The answer may be read from here on.
    Opened,
    /// What was found.
    Retrieved,
    /// A piece of the text.
    Token,
    /// Where a piece is from.
    Citation,
    /// The whole answer, and its end.
    Done,
    /// The end without an answer.
    Error,
}

impl Part {
    /// What an event of this type is to whoever reads an answer, if it is a part of one.
    pub fn of(ty: &EventType) -> Option<Self> {
        Some(match ty.as_str() {
            OPENED => Self::Opened,
            RETRIEVED => Self::Retrieved,
            TOKEN => Self::Token,
            CITATION => Self::Citation,
            GENERATED => Self::Done,
            FAILED => Self::Error,
            _ => return None,
        })
    }

    /// Its name among server-sent events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Retrieved => "retrieved",
            Self::Token => "token",
            Self::Citation => "citation",
            Self::Done => "done",
            Self::Error => "error",
        }
    }

    /// Whether nothing comes after it.
    pub fn is_last(self) -> bool {
        matches!(self, Self::Done | Self::Error)
    }

    /// Whether it is a step of the pipeline too, and so stands in the log.
    pub fn is_logged(self) -> bool {
        matches!(self, Self::Retrieved | Self::Done)
    }
}

/// The id of the answer that an event belongs to: its workflow's, or, of the first event of one, its own.
pub fn id_of(event: &Event) -> &str {
    event.extension(CORRELATION_ID).unwrap_or(&event.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_type_and_its_name() {
        let part = |ty: &str| Part::of(&EventType::parse(ty).unwrap());
        let parts = [OPENED, RETRIEVED, TOKEN, CITATION, GENERATED, FAILED].map(|ty| part(ty).unwrap());
        assert_eq!(parts.map(Part::name), ["opened", "retrieved", "token", "citation", "done", "error"]);
        assert_eq!(parts.map(Part::is_last), [false, false, false, false, true, true]);
        assert_eq!(parts.map(Part::is_logged), [false, true, false, false, true, false]);
        assert_eq!(part("answer.evaluated"), None);
    }

    #[test]
    fn an_event_belongs_to_its_workflow_or_begins_one() {
        let event = Event::new("1", "/s", EventType::parse("prompt.received").unwrap());
        assert_eq!(id_of(&event), "1");
        assert_eq!(id_of(&event.with_extension(CORRELATION_ID, "7")), "7");
    }
}
