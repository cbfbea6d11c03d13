//! Answers in progress: their parts in ANSWERS, read in order from any position, by any number of readers.

use super::error::ResultExt as _;
use super::{ANSWERS, Bus, BusError, PublishError, Start, Tail, delivery::event_of};
use async_nats::jetstream::{message::StreamMessage, stream::DirectGetErrorKind};
use data_encoding::HEXLOWER;
use futures::{Stream, StreamExt};
use nerve_core::{
    Event, Subject,
    answer::{self, Part},
    event::{CAUSATION_ID, CORRELATION_ID},
};
use nerve_events::{
    EventData,
    answers::{AnswerFailed, AnswerOpened, FailureKind},
    control::{ControlCancelled, ControlTimeout},
    documents::DEFAULT_COLLECTION,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// Maximum length of an id that is used in a subject unchanged.
const MAX_SUBJECT_ID_BYTES: usize = 128;
/// Tells every worker that an answer was cancelled; the body is its id.
const CANCEL_SUBJECT: &str = "nerve.cancel";
/// Tells every worker that an answer is resumed; the body is its id.
const RESUME_SUBJECT: &str = "nerve.resume";
/// Grace period for the resume signal to reach all workers, which may be on other servers of a cluster.
const RESUME_DELAY: std::time::Duration = std::time::Duration::from_millis(250);

/// A part of an answer, as stored in ANSWERS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerPart {
    /// Its sequence in ANSWERS, at which a reader can continue.
    pub sequence: u64,
    /// Its kind.
    pub part: Part,
    /// The event, with its body.
    pub event: Event,
}

/// The state of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerState {
    /// The oldest stored part; it contains the question if the gateway asked it.
    pub first: Event,
    /// The storage time of that part.
    pub opened_at: OffsetDateTime,
    /// The sequence of its newest part in ANSWERS.
    pub last_sequence: u64,
    /// Whether it is complete.
    pub ended: bool,
    /// Whether it ended with an error.
    pub failed: bool,
}

/// A reader of one answer.
pub struct AnswerParts {
    tail: Tail,
}

/// The reason why an answer ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// It was cancelled.
    Cancelled,
    /// It timed out.
    Timeout,
}

/// A cancellation or resumption of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerSignal {
    /// It was cancelled.
    Cancelled(String),
    /// It is retried.
    Resumed(String),
}

/// The failure of an answer.
pub struct AnswerFailure<'f> {
    /// The function that failed.
    pub function: &'f str,
    /// Its last error.
    pub message: &'f str,
    /// Whether its last attempt timed out.
    pub timeout: bool,
}

/// The subject of an answer. An id that is not valid in a subject is represented by its digest.
pub(super) fn subject_of(id: &str) -> Result<Subject, PublishError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let token = match (1..=MAX_SUBJECT_ID_BYTES).contains(&id.len()) && id.chars().all(plain) {
        true => id.to_owned(),
        false => format!("={}", HEXLOWER.encode(&Sha256::digest(id))),
    };
    Subject::parse(format!("answers.{token}")).map_err(|error| PublishError::Invalid(error.to_string()))
}

impl Bus {
    /// Reads an answer from its beginning, or after the sequence `after`.
    pub async fn answer(&self, id: &str, after: Option<u64>) -> Result<AnswerParts, BusError> {
        let subject = subject_of(id).refused("reading an answer")?;
        let start = after.map_or(Start::First, |sequence| Start::Sequence(sequence.saturating_add(1)));
        let tail = self.tail_stream(ANSWERS, vec![subject.as_str().to_owned()], start).await?;
        Ok(AnswerParts { tail })
    }

    /// The state of an answer; `None` if it does not exist or has expired.
    pub async fn answer_state(&self, id: &str) -> Result<Option<AnswerState>, BusError> {
        let what = || format!("finding the answer {id}");
        let subject = subject_of(id).refused(what)?;
        let stream = self.jetstream.get_stream_no_info(ANSWERS).await.unavailable(what)?;
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

    /// The events that `source` has emitted in an answer for the event `cause`, oldest first.
    pub async fn emitted(&self, id: &str, source: &str, cause: &str) -> Result<Vec<Event>, BusError> {
        let what = || format!("reading the answer {id}");
        let subject = subject_of(id).refused(what)?;
        let found = self.read(ANSWERS, vec![subject.as_str().to_owned()], Start::First, usize::MAX).await?;
        let events = found.iter().map(|(message, sequence, _)| event_of(message, ANSWERS, *sequence));
        Ok(events.filter(|event| event.source == source && event.extension(CAUSATION_ID) == Some(cause)).collect())
    }

    /// Ends an unfinished answer: informs its readers, and stops the workers. No-op for a finished one,
    /// whose readers have left.
    pub async fn end_answer(&self, id: &str, ending: EndReason) -> Result<(), PublishError> {
        let (kind, message) = match ending {
            EndReason::Cancelled => (FailureKind::Cancelled, "the answer was cancelled"),
            EndReason::Timeout => {
                (FailureKind::Timeout, "the answer took too long; `nerve trace` and `nerve logs` show where it is")
            }
        };
        let Some(position) = self.unfinished_position(id).await? else { return Ok(()) };
        let failed = AnswerFailed { kind, message: message.to_owned(), function: None };
        let answer = id.to_owned();
        let ended = match ending {
            EndReason::Cancelled => control(id, position, &ControlCancelled { answer })?,
            EndReason::Timeout => control(id, position, &ControlTimeout { answer, function: None })?,
        };
        self.publish_own(&control(id, position, &failed)?).await?;
        self.publish_own(&ended).await?;
        let sent = self.client.publish(CANCEL_SUBJECT, id.to_owned().into()).await;
        sent.map_err(|error| PublishError::Unavailable(error.into()))
    }

    /// Informs the readers of an answer that it failed.
    pub async fn fail_answer(&self, id: &str, failure: AnswerFailure<'_>) -> Result<(), PublishError> {
        let AnswerFailure { function, message, timeout } = failure;
        let kind = if timeout { FailureKind::Timeout } else { FailureKind::Failed };
        let Some(position) = self.unfinished_position(id).await? else { return Ok(()) };
        let (message, function) = (message.to_owned(), Some(function.to_owned()));
        let failed = AnswerFailed { kind, message, function: function.clone() };
        self.publish_own(&control(id, position, &failed)?).await?;
        if timeout {
            self.publish_own(&control(id, position, &ControlTimeout { answer: id.to_owned(), function })?).await?;
        }
        Ok(())
    }

    /// The position of an unfinished answer. Concurrent reports at one position are stored once, also after a retry.
    async fn unfinished_position(&self, id: &str) -> Result<Option<u64>, PublishError> {
        let state = self.answer_state(id).await.map_err(|error| PublishError::Unavailable(error.into()))?;
        Ok(state.map_or(Some(0), |state| (!state.ended).then_some(state.last_sequence)))
    }

    /// Reopens a failed answer for the event `request`: its parts are kept, its end is deleted,
    /// and workers process its events again.
    pub async fn reopen_answer(&self, id: &str, request: &str) -> Result<(), BusError> {
        let what = || format!("opening the answer {id} again");
        let failed = self.answer_state(id).await?.filter(|state| state.failed);
        if let Some(state) = failed {
            let mut opened = state.first;
            opened.id = format!("{id}#{}#{request}", answer::OPENED);
            opened.ty = AnswerOpened::event_type();
            let collection = collection_of(&opened);
            opened.data = serde_json::to_vec(&AnswerOpened { collection }).refused(what)?.into();
            self.publish_own(&opened).await.unavailable(what)?;
            let stream = self.jetstream.get_stream_no_info(ANSWERS).await.unavailable(what)?;
            // Deleted already if the request was delivered twice.
            stream.delete_message(state.last_sequence).await.ok();
        }
        self.client.publish(RESUME_SUBJECT, id.to_owned().into()).await.unavailable(what)?;
        self.flush().await?;
        tokio::time::sleep(RESUME_DELAY).await;
        Ok(())
    }

    /// The time when an answer was last opened or reopened.
    pub async fn opened_at(&self, id: &str) -> Result<Option<OffsetDateTime>, BusError> {
        let subject = subject_of(id).refused("reading an answer")?;
        let parts = self.read(ANSWERS, vec![subject.as_str().to_owned()], Start::First, usize::MAX).await?;
        let opened = |part: &&(async_nats::Message, u64, OffsetDateTime)| {
            event_of(&part.0, ANSWERS, part.1).ty.as_str() == answer::OPENED
        };
        Ok(parts.iter().rev().find(opened).map(|(_, _, time)| *time))
    }

    /// Subscribes to cancellations and resumptions of answers.
    pub async fn answer_signals(&self) -> Result<impl Stream<Item = AnswerSignal> + use<>, BusError> {
        let subscribe = async |subject: &'static str| {
            self.client.subscribe(subject).await.unavailable("subscribing to cancellations")
        };
        let text = |message: async_nats::Message| String::from_utf8_lossy(&message.payload).into_owned();
        let cancelled = subscribe(CANCEL_SUBJECT).await?.map(move |message| AnswerSignal::Cancelled(text(message)));
        let resumed = subscribe(RESUME_SUBJECT).await?.map(move |message| AnswerSignal::Resumed(text(message)));
        Ok(futures::stream::select(cancelled, resumed))
    }
}

/// The collection of an answer, from its first part.
fn collection_of(first: &Event) -> String {
    let data: serde_json::Value = serde_json::from_slice(&first.data).unwrap_or_default();
    data.get("collection").and_then(serde_json::Value::as_str).unwrap_or(DEFAULT_COLLECTION).to_owned()
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

/// An event about an answer, whose id makes it unique at this position.
fn control<T: EventData + Serialize>(id: &str, position: u64, data: &T) -> Result<Event, PublishError> {
    let data = serde_json::to_vec(data).map_err(|error| PublishError::Invalid(error.to_string()))?;
    let event = Event::new(format!("{id}#{}#{position}", T::TYPE), "/nerve/answers", T::event_type());
    let mut event = event.with_extension(CORRELATION_ID, id).with_data("application/json", data);
    event.time = Some(OffsetDateTime::now_utc());
    Ok(event)
}

/// The subject in ANSWERS of an event that is a part of an answer.
pub(super) fn answer_subject(event: &Event) -> Result<Option<Subject>, PublishError> {
    Part::of(&event.ty).map(|_| subject_of(answer::id_of(event))).transpose()
}

/// Returns whether an event goes to the log: all do, except parts of an answer that are not steps of the pipeline.
pub(super) fn is_logged(event: &Event) -> bool {
    Part::of(&event.ty).is_none_or(Part::is_logged)
}

impl AnswerParts {
    /// The first and last requested sequence that are no longer stored, if any; reported once.
    pub fn take_gap(&mut self) -> Option<(u64, u64)> {
        self.tail.take_gap()
    }

    /// Waits for the next part. Cancel-safe.
    pub async fn next(&mut self) -> AnswerPart {
        loop {
            let tailed = self.tail.next().await;
            let mut event = tailed.event;
            let Some(part) = Part::of(&event.ty) else { continue };
            if let Err(error) = self.tail.bus().restore_body(&mut event).await {
                tracing::warn!(%error, id = event.id, "the body of an answer part is missing");
            }
            return AnswerPart { sequence: tailed.sequence, part, event };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_its_own_subject() {
        let subject = |id: &str| subject_of(id).unwrap().to_string();
        assert_eq!(subject("0198-a_B"), "answers.0198-a_B");
        let odd = ["a.b", "a b", "*", ">", "", "ü", &"x".repeat(200)].map(subject);
        assert!(odd.iter().all(|subject| subject.starts_with("answers.=") && subject.len() == 73));
        assert_eq!(odd.iter().collect::<std::collections::BTreeSet<_>>().len(), odd.len());
    }
}
