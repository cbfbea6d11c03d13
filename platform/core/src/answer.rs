//! Event types of a streamed answer, and the answer that an event belongs to.
//!
//! These events are stored in the stream ANSWERS, on `answers.<id>`. An event that is also a step of the pipeline is
//! stored in EVENTS too.

use crate::{Event, EventType, event::CORRELATION_ID};
use serde::{Deserialize, Serialize};

/// Type: the answer was requested and can be read from now on.
pub const OPENED: &str = "answer.opened";
/// Type: the documents retrieved for the question.
pub const RETRIEVED: &str = "documents.retrieved";
/// Type: the next text of the answer, `{"text": …}`.
pub const TOKEN: &str = "answer.token";
/// Type: the source of a passage of the answer, `{"source": …, "chunk": …, "text": …}`.
pub const CITATION: &str = "answer.citation";
/// Type: the whole answer. The last event.
pub const GENERATED: &str = "answer.generated";
/// Type: the answer failed, `{"kind": …, "message": …}`. The last event.
pub const FAILED: &str = "answer.failed";

/// The role of an event in a streamed answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The answer can be read from now on.
    Opened,
    /// The retrieved documents.
    Retrieved,
    /// The next text.
    Token,
    /// The source of a passage.
    Citation,
    /// The whole answer, which ends the stream.
    Done,
    /// A failure, which ends the stream.
    Error,
}

impl Part {
    /// The part that events of this type are; `None` for types outside answers.
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

    /// Name of the server-sent event.
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

    /// Whether this part ends the answer.
    pub fn is_last(self) -> bool {
        matches!(self, Self::Done | Self::Error)
    }

    /// Whether this part is also a step of the pipeline, and so is stored in EVENTS.
    pub fn is_logged(self) -> bool {
        matches!(self, Self::Retrieved | Self::Done)
    }
}

/// The id of the answer that an event belongs to: its correlation id, or its own id for the first event of a workflow.
pub fn id_of(event: &Event) -> &str {
    event.extension(CORRELATION_ID).unwrap_or(&event.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_a_type_and_a_name() {
        let part = |ty: &str| Part::of(&EventType::parse(ty).unwrap());
        let parts = [OPENED, RETRIEVED, TOKEN, CITATION, GENERATED, FAILED].map(|ty| part(ty).unwrap());
        assert_eq!(parts.map(Part::name), ["opened", "retrieved", "token", "citation", "done", "error"]);
        assert_eq!(parts.map(Part::is_last), [false, false, false, false, true, true]);
        assert_eq!(parts.map(Part::is_logged), [false, true, false, false, true, false]);
        assert_eq!(part("answer.evaluated"), None);
    }

    #[test]
    fn event_without_correlation_id_starts_an_answer() {
        let event = Event::new("1", "/s", EventType::parse("prompt.received").unwrap());
        assert_eq!(id_of(&event), "1");
        assert_eq!(id_of(&event.with_extension(CORRELATION_ID, "7")), "7");
    }
}
