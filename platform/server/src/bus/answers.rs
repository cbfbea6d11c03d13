//! Answers while they are made: their parts in ANSWERS, read in order from anywhere, by any number of readers.

use super::{ANSWERS, Bus, BusError, PublishError, Start, Tail, delivery::event_of};
use async_nats::jetstream::{message::StreamMessage, stream::DirectGetErrorKind};
use futures::{Stream, StreamExt};
use nerve_core::{
    Event, EventType, Subject,
    answer::{self, FAILED, Part},
    event::{CAUSATION_ID, CORRELATION_ID},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// The longest id that stands in a subject as it is.
const LONGEST_ID: usize = 128;
/// Tells every worker that an answer is no longer wanted; the body is its id.
const CANCEL: &str = "nerve.cancel";
/// Type: somebody no longer wants an answer.
const CANCELLED: &str = "control.cancelled";
/// Type: an answer did not come in time.
const TIMEOUT: &str = "control.timeout";

/// One part of an answer, as it stands in ANSWERS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerPart {
    /// Its sequence in ANSWERS, by which a reader goes on.
    pub sequence: u64,
    /// What it is.
    pub part: Part,
    /// The event, with its body.
    pub event: Event,
}

/// How far an answer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerState {
    /// The oldest part that is there: what it was asked with, where the gateway asked.
    pub first: Event,
    /// When that was stored.
    pub opened_at: OffsetDateTime,
    /// The sequence of its newest part in ANSWERS.
    pub last_sequence: u64,
    /// Whether nothing more will come.
    pub ended: bool,
}

/// A reader of one answer.
pub struct AnswerParts {
    tail: Tail,
}

/// Why an answer ends before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nobody wants it any more.
    Cancelled,
    /// It took too long.
    Timeout,
}

/// The subject of an answer. An id that cannot stand in one is there by its digest.
pub(super) fn subject_of(id: &str) -> Result<Subject, PublishError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let token = match (1..=LONGEST_ID).contains(&id.len()) && id.chars().all(plain) {
        true => id.to_owned(),
        false => format!("={}", hex::encode(Sha256::digest(id))),
    };
    Subject::parse(format!("answers.{token}")).map_err(|error| PublishError::Invalid(error.to_string()))
}

impl Bus {
    /// Reads an answer: from its beginning, or past the sequence `after`.
    pub async fn answer(&self, id: &str, after: Option<u64>) -> Result<AnswerParts, BusError> {
        let subject = subject_of(id).map_err(|error| BusError::refused("reading an answer", error))?;
        let start = after.map_or(Start::First, |sequence| Start::Sequence(sequence.saturating_add(1)));
        let tail = self.tail_stream(ANSWERS, vec![subject.as_str().to_owned()], start).await?;
        Ok(AnswerParts { tail })
    }

    /// How far an answer is; none if nobody asked for it, or so long ago that it is gone.
    pub async fn answer_state(&self, id: &str) -> Result<Option<AnswerState>, BusError> {
        let what = || format!("looking for the answer {id}");
        let subject = subject_of(id).map_err(|error| BusError::refused(what(), error))?;
        let stream = self.jetstream.get_stream_no_info(ANSWERS).await;
        let stream = stream.map_err(|error| BusError::unavailable(what(), error))?;
        let (first, last) = futures::join!(
            stream.direct_get_first_for_subject(subject.as_str()),
            stream.direct_get_last_for_subject(subject.as_str())
        );
        let (first, last) = match (first, last) {
            (Ok(first), Ok(last)) => (first, last),
            (Err(error), _) | (_, Err(error)) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
            (Err(error), _) | (_, Err(error)) => return Err(BusError::unavailable(what(), error)),
        };
        let (last_sequence, opened_at) = (last.sequence, first.time);
        let ended = Part::of(&stored_event(last).ty).is_some_and(Part::is_last);
        Ok(Some(AnswerState { first: stored_event(first), opened_at, last_sequence, ended }))
    }

    /// What `source` has emitted of an answer for the event `cause`, oldest first.
    pub(crate) async fn emitted(&self, id: &str, source: &str, cause: &str) -> Result<Vec<Event>, BusError> {
        let what = || format!("reading the answer {id}");
        let subject = subject_of(id).map_err(|error| BusError::refused(what(), error))?;
        let found = self.read(ANSWERS, vec![subject.as_str().to_owned()], Start::First, usize::MAX).await?;
        let events = found.iter().map(|(message, sequence, _)| event_of(message, ANSWERS, *sequence));
        Ok(events.filter(|event| event.source == source && event.extension(CAUSATION_ID) == Some(cause)).collect())
    }

    /// Ends an answer that is not done: its readers are told, and workers stop what they do for it. An answer that is
    /// done stays so, as its readers have left by then.
    pub async fn end_answer(&self, id: &str, ending: Ending) -> Result<(), PublishError> {
        let (ty, message) = match ending {
            Ending::Cancelled => (CANCELLED, "the answer was cancelled"),
            Ending::Timeout => (TIMEOUT, "the answer took too long; `nerve trace` and `nerve logs` show where it is"),
        };
        let kind = ty.trim_start_matches("control.");
        let failed = json!({"kind": kind, "message": message});
        self.publish(&control(id, FAILED, &failed)?).await?;
        self.publish(&control(id, ty, &json!({"answer": id}))?).await?;
        let sent = self.client.publish(CANCEL, id.to_owned().into()).await;
        sent.map_err(|error| PublishError::Unavailable(error.into()))
    }

    /// Tells the readers of an answer that there will be none.
    pub(crate) async fn fail_answer(&self, id: &str, function: &str, message: &str) -> Result<(), PublishError> {
        let data = json!({"kind": "failed", "function": function, "message": message});
        self.publish(&control(id, FAILED, &data)?).await.map(drop)
    }

    /// The ids of answers that are no longer wanted, as they become so.
    pub(crate) async fn cancellations(&self) -> Result<impl Stream<Item = String> + use<>, BusError> {
        let subscribed = self.client.subscribe(CANCEL).await;
        let messages = subscribed.map_err(|error| BusError::unavailable("hearing of cancelled answers", error))?;
        Ok(messages.map(|message| String::from_utf8_lossy(&message.payload).into_owned()))
    }
}

fn stored_event(message: StreamMessage) -> Event {
    let sequence = message.sequence;
    let message = async_nats::Message {
        subject: message.subject,
        reply: None,
        length: message.payload.len(),
        payload: message.payload,
        headers: Some(message.headers),
        status: None,
        description: None,
    };
    event_of(&message, ANSWERS, sequence)
}

/// An event about an answer, which by its id is published once.
fn control(id: &str, ty: &str, data: &serde_json::Value) -> Result<Event, PublishError> {
    let ty = EventType::parse(ty).map_err(|error| PublishError::Invalid(error.to_string()))?;
    let event = Event::new(format!("{id}#{ty}"), "/nerve/answers", ty);
    let mut event =
        event.with_extension(CORRELATION_ID, id).with_data("application/json", data.to_string().into_bytes());
    event.time = Some(OffsetDateTime::now_utc());
    Ok(event)
}

/// Where an event goes besides the log, and whether it goes to the log at all.
pub(super) fn place_of(event: &Event) -> Result<Option<(Subject, bool)>, PublishError> {
    let Some(part) = Part::of(&event.ty) else { return Ok(None) };
    Ok(Some((subject_of(answer::id_of(event))?, part.is_logged())))
}

impl AnswerParts {
    /// The first and last sequence that were asked for and are gone, if any; told once.
    pub fn take_gap(&mut self) -> Option<(u64, u64)> {
        self.tail.take_gap()
    }

    /// The next part; waits for it for ever. Dropping the future loses nothing.
    pub async fn next(&mut self) -> AnswerPart {
        loop {
            let tailed = self.tail.next().await;
            let mut event = tailed.event;
            let Some(part) = Part::of(&event.ty) else { continue };
            if let Err(error) = self.tail.bus().restore_body(&mut event).await {
                tracing::warn!(%error, id = event.id, "a part of an answer has lost its body");
            }
            return AnswerPart { sequence: tailed.sequence, part, event };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_a_subject_of_its_own() {
        let subject = |id: &str| subject_of(id).unwrap().to_string();
        assert_eq!(subject("0198-a_B"), "answers.0198-a_B");
        let odd = ["a.b", "a b", "*", ">", "", "ü", &"x".repeat(200)].map(subject);
        assert!(odd.iter().all(|subject| subject.starts_with("answers.=") && subject.len() == 73));
        assert_eq!(odd.iter().collect::<std::collections::BTreeSet<_>>().len(), odd.len());
    }
}
