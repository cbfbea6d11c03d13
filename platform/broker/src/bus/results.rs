//! The results of one run: stored as a set, and found again.
//!
//! EVENTS is the commit. Every set holds a message with the id of the result of index 0, so the first set that is stored keeps any
//! other of its run out. Of an empty set that is a message without a body, on a subject that no function can take. What belongs to
//! an answer is copied to ANSWERS after the commit; a reader sees nothing that another run could replace.

use super::{
    Bus, BusError, EVENTS, PublishError, Published, SetOutcome, Sets, Start, answers, delivery::event_of,
    sets::SetMessage, streams::EMPTY_PREFIX,
};
use async_nats::{HeaderMap, header};
use bytes::Bytes;
use nerve_core::{Event, Identity, Name, Run, Subject, answer::Part, subject::EVENTS_PREFIX};
use nerve_events as event_types;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// How much earlier than its input a result may seem to be stored: clocks of a cluster's servers differ.
const SKEW: Duration = Duration::from_secs(60);
/// Results that are remembered of the log for looking them up.
const MAX_REMEMBERED: usize = 1 << 20;

/// A result, with the identity under which it is published.
#[derive(Debug, Clone)]
pub struct RunResult {
    /// The identity, which decides whether it is a duplicate.
    pub id: Identity,
    /// The event to publish.
    pub event: Event,
}

impl Bus {
    /// Publishes the results of `run`, all or none; a set that was published before stands instead, also an empty one.
    ///
    /// # Errors
    /// [`PublishError::Unavailable`] where it is not known whether they are stored: publish them again.
    pub async fn publish_results(
        &self,
        sets: &Sets,
        run: Run<'_>,
        results: &[RunResult],
    ) -> Result<SetOutcome, PublishError> {
        for result in results {
            event_types::check(&result.event).map_err(PublishError::Invalid)?;
        }
        let logged: Vec<_> = results.iter().filter(|result| answers::is_logged(&result.event)).collect();
        let outcome = match logged.as_slice() {
            [] => {
                let subject = empty_subject(run.function);
                let subject = Subject::parse(subject).map_err(|error| PublishError::Invalid(error.to_string()))?;
                outcome_of(self.publish_message(&subject, HeaderMap::new(), Bytes::new(), run.result(0)).await?)
            }
            [only] => {
                let (headers, body) = self.to_message(&only.event).await?;
                outcome_of(self.publish_message(&only.event.ty.subject(), headers, body, only.id).await?)
            }
            several => {
                let mut messages = Vec::with_capacity(several.len());
                for RunResult { id, event } in several.iter().copied() {
                    let (mut headers, body) = self.to_message(event).await?;
                    headers.insert(header::NATS_MESSAGE_ID, id.to_string());
                    messages.push(SetMessage { subject: String::from(event.ty.subject()).into(), headers, body });
                }
                sets.publish(messages).await?
            }
        };
        if outcome == SetOutcome::Stored {
            for RunResult { id, event } in results.iter().filter(|result| Part::of(&result.event.ty).is_some()) {
                // Boxed: most events are no part of an answer, and this future is moved for each of them.
                Box::pin(self.copy_to_answer(event, *id)).await?;
            }
        }
        Ok(outcome)
    }

    /// Publishes a part of an answer to its answer; any other event nowhere.
    pub async fn copy_to_answer(&self, event: &Event, id: Identity) -> Result<(), PublishError> {
        let Some(subject) = answers::answer_subject(event)? else { return Ok(()) };
        let (headers, body) = self.to_message(event).await?;
        self.publish_message(&subject, headers, body, id).await.map(drop)
    }

    /// Copies what a committed set holds of an answer to that answer; a worker may have died before it did.
    pub async fn copy_committed(&self, run: Run<'_>, first: u64) -> Result<(), BusError> {
        let what = || format!("reading the results of {}", run.function);
        let stream = self.stream(EVENTS, what).await?;
        for index in 0..super::sets::MAX_MESSAGES {
            let sequence = first + u64::try_from(index).unwrap_or(u64::MAX);
            let Ok(stored) = stream.get_raw_message(sequence).await else { return Ok(()) };
            let id = run.result(index);
            let found = stored.headers.get(header::NATS_MESSAGE_ID).map(|value| value.as_str().to_owned());
            // A set is stored without anything in between, and an empty one has no event.
            if found != Some(id.to_string()) || !stored.subject.starts_with(EVENTS_PREFIX) {
                return Ok(());
            }
            let message = async_nats::Message {
                subject: stored.subject,
                reply: None,
                length: stored.payload.len(),
                payload: stored.payload,
                headers: Some(stored.headers),
                status: None,
                description: None,
            };
            let mut event = event_of(&message, EVENTS, sequence);
            if answers::answer_subject(&event).is_ok_and(|subject| subject.is_none()) {
                continue;
            }
            self.restore_body(&mut event).await.map_err(|error| BusError::unavailable(what(), error))?;
            self.copy_to_answer(&event, id).await.map_err(|error| BusError::unavailable(what(), error))?;
        }
        Ok(())
    }
}

/// The results of one function in the log, read as far as it was needed.
///
/// JetStream knows ids for the dedupe window only. A delivery whose earlier attempt may be older is looked up here before it is run.
#[derive(Debug, Default)]
pub struct CommittedResults {
    /// From when on the log was read.
    since: Option<OffsetDateTime>,
    /// When the last reading of it began.
    read: Option<Instant>,
    /// The sequence to go on from.
    next: u64,
    /// The sequence of each result.
    sequences: HashMap<Identity, u64>,
}

impl CommittedResults {
    /// The sequence of the first result of a run, if one was stored before `asked`.
    ///
    /// The results of all versions of the function are read, whatever types they have. Lookups that waited for one that began after
    /// they were asked for share it.
    pub async fn find(&mut self, bus: &Bus, run: Run<'_>, asked: Instant) -> Result<Option<u64>, BusError> {
        let stored = run.input.stored();
        if self.since.is_none_or(|since| stored < since) || self.sequences.len() > MAX_REMEMBERED {
            *self = Self { since: Some(stored), ..Self::default() };
        }
        if self.read.is_none_or(|read| read < asked) {
            self.read_on(bus, run, stored).await?;
        }
        Ok(self.sequences.get(&run.result(0)).copied())
    }

    async fn read_on(&mut self, bus: &Bus, run: Run<'_>, stored: OffsetDateTime) -> Result<(), BusError> {
        let began = Instant::now();
        let start = match self.next {
            0 => Start::Time(stored - SKEW),
            next => Start::Sequence(next),
        };
        let (source, empty) = (source_of(run.function), empty_subject(run.function));
        let subjects = vec![format!("{EVENTS_PREFIX}>"), empty.clone()];
        bus.each_head(EVENTS, subjects, start, |message, sequence, _| {
            self.next = sequence + 1;
            let header = |name| message.headers.as_ref().and_then(|headers| headers.get(name));
            if (message.subject.as_str() == empty || header("ce-source").is_some_and(|found| found.as_str() == source))
                && let Some(id) = header("Nats-Msg-Id").and_then(|id| Identity::parse(id.as_str()))
            {
                self.sequences.insert(id, sequence);
            }
            true
        })
        .await?;
        self.read = Some(began);
        Ok(())
    }
}

/// The subject of the empty sets of a function.
fn empty_subject(function: &Name) -> String {
    format!("{EMPTY_PREFIX}{function}")
}

fn outcome_of(published: Published) -> SetOutcome {
    if published.duplicate { SetOutcome::Duplicate } else { SetOutcome::Stored }
}

/// The `source` of a function's events.
fn source_of(function: &Name) -> String {
    format!("/functions/{function}")
}
