//! Answers while they are made: their parts in ANSWERS, read in order from anywhere, by any number of readers.

use super::{ANSWERS, Bus, BusError, PublishError, Start, Tail, delivery::event_of};
use async_nats::jetstream::{message::StreamMessage, stream::DirectGetErrorKind};
use data_encoding::HEXLOWER;
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
/// Tells every worker that an answer is wanted after all; the body is its id.
const RESUME: &str = "nerve.resume";
/// How long workers are given to hear that before its events come: they may be on other servers of a cluster.
const HEARD: std::time::Duration = std::time::Duration::from_millis(250);
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
    /// Whether it ended without an answer.
    pub failed: bool,
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

/// Whether an answer is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Not any more.
    Cancelled(String),
    /// It is tried again.
    Resumed(String),
}

/// Why there will be no answer.
pub struct Failure<'f> {
    /// The function that gave up.
    pub function: &'f str,
    /// What it said last.
    pub message: &'f str,
    /// Whether it took too long at its last attempt.
    pub timeout: bool,
}

/// The subject of an answer. An id that cannot stand in one is there by its digest.
pub(super) fn subject_of(id: &str) -> Result<Subject, PublishError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let token = match (1..=LONGEST_ID).contains(&id.len()) && id.chars().all(plain) {
        true => id.to_owned(),
        false => format!("={}", HEXLOWER.encode(&Sha256::digest(id))),
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
        let last = Part::of(&stored_event(last).ty);
        let (ended, failed) = (last.is_some_and(Part::is_last), last == Some(Part::Error));
        Ok(Some(AnswerState { first: stored_event(first), opened_at, last_sequence, ended, failed }))
    }

    /// What `source` has emitted of an answer for the event `cause`, oldest first.
    pub async fn emitted(&self, id: &str, source: &str, cause: &str) -> Result<Vec<Event>, BusError> {
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
        let Some(place) = self.open_end(id).await? else { return Ok(()) };
        let failed = json!({"kind": kind, "message": message});
        self.publish_own(&control(id, FAILED, place, &failed)?).await?;
        self.publish_own(&control(id, ty, place, &json!({"answer": id}))?).await?;
        let sent = self.client.publish(CANCEL, id.to_owned().into()).await;
        sent.map_err(|error| PublishError::Unavailable(error.into()))
    }

    /// Tells the readers of an answer that there will be none.
    pub async fn fail_answer(&self, id: &str, failure: Failure<'_>) -> Result<(), PublishError> {
        let Failure { function, message, timeout } = failure;
        let kind = if timeout { "timeout" } else { "failed" };
        let Some(place) = self.open_end(id).await? else { return Ok(()) };
        let data = json!({"kind": kind, "function": function, "message": message});
        self.publish_own(&control(id, FAILED, place, &data)?).await?;
        if timeout {
            self.publish_own(&control(id, TIMEOUT, place, &json!({"answer": id, "function": function}))?).await?;
        }
        Ok(())
    }

    /// Where an answer is that has not ended: what several say of it there is said once, and after another try again.
    async fn open_end(&self, id: &str) -> Result<Option<u64>, PublishError> {
        let state = self.answer_state(id).await.map_err(|error| PublishError::Unavailable(error.into()))?;
        Ok(state.map_or(Some(0), |state| (!state.ended).then_some(state.last_sequence)))
    }

    /// Opens an answer again that ended without one, for the event `request`: what was made of it stays, its end goes,
    /// and workers take its events again.
    pub async fn reopen_answer(&self, id: &str, request: &str) -> Result<(), BusError> {
        let what = || format!("opening the answer {id} again");
        let failed = self.answer_state(id).await?.filter(|state| state.failed);
        if let Some(state) = failed {
            let mut opened = state.first;
            opened.id = format!("{id}#{}#{request}", answer::OPENED);
            opened.ty = EventType::parse(answer::OPENED).map_err(|error| BusError::refused(what(), error))?;
            let collection = collection_of(&opened);
            opened.data = json!({ "collection": collection }).to_string().into_bytes().into();
            self.publish_own(&opened).await.map_err(|error| BusError::unavailable(what(), error))?;
            let stream = self.jetstream.get_stream_no_info(ANSWERS).await;
            let stream = stream.map_err(|error| BusError::unavailable(what(), error))?;
            // Gone already, where the request came twice.
            stream.delete_message(state.last_sequence).await.ok();
        }
        let told = self.client.publish(RESUME, id.to_owned().into()).await;
        told.map_err(|error| BusError::unavailable(what(), error))?;
        self.flush().await?;
        tokio::time::sleep(HEARD).await;
        Ok(())
    }

    /// When an answer was opened last: once, or again for another try.
    pub async fn opened_at(&self, id: &str) -> Result<Option<OffsetDateTime>, BusError> {
        let subject = subject_of(id).map_err(|error| BusError::refused("reading an answer", error))?;
        let parts = self.read(ANSWERS, vec![subject.as_str().to_owned()], Start::First, usize::MAX).await?;
        let opened = |part: &&(async_nats::Message, u64, OffsetDateTime)| {
            event_of(&part.0, ANSWERS, part.1).ty.as_str() == answer::OPENED
        };
        Ok(parts.iter().rev().find(opened).map(|(_, _, time)| *time))
    }

    /// Answers that are no longer wanted, or wanted again, as they become so.
    pub async fn wishes(&self) -> Result<impl Stream<Item = Wish> + use<>, BusError> {
        let hear = async |subject: &'static str| {
            let subscribed = self.client.subscribe(subject).await;
            subscribed.map_err(|error| BusError::unavailable("hearing of cancelled answers", error))
        };
        let text = |message: async_nats::Message| String::from_utf8_lossy(&message.payload).into_owned();
        let cancelled = hear(CANCEL).await?.map(move |message| Wish::Cancelled(text(message)));
        let resumed = hear(RESUME).await?.map(move |message| Wish::Resumed(text(message)));
        Ok(futures::stream::select(cancelled, resumed))
    }
}

/// The collection that an answer is about, as its first part says.
fn collection_of(first: &Event) -> String {
    let data: serde_json::Value = serde_json::from_slice(&first.data).unwrap_or_default();
    data.get("collection").and_then(serde_json::Value::as_str).unwrap_or("default").to_owned()
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

/// An event about an answer, which by its id is published once at this place of it.
fn control(id: &str, ty: &str, place: u64, data: &serde_json::Value) -> Result<Event, PublishError> {
    let ty = EventType::parse(ty).map_err(|error| PublishError::Invalid(error.to_string()))?;
    let event = Event::new(format!("{id}#{ty}#{place}"), "/nerve/answers", ty);
    let mut event =
        event.with_extension(CORRELATION_ID, id).with_data("application/json", data.to_string().into_bytes());
    event.time = Some(OffsetDateTime::now_utc());
    Ok(event)
}

/// The subject in ANSWERS of an event that is a part of an answer.
pub(super) fn answer_subject(event: &Event) -> Result<Option<Subject>, PublishError> {
    Part::of(&event.ty).map(|_| subject_of(answer::id_of(event))).transpose()
}

/// Whether an event goes to the log: all do, but for the parts of an answer that are no steps of the pipeline.
pub(super) fn is_logged(event: &Event) -> bool {
    Part::of(&event.ty).is_none_or(Part::is_logged)
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
