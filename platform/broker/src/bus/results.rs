//! Stores the results of a run as one set, and finds them again.
//!
//! EVENTS is the commit. Every set contains a message with the id of result 0, so the first stored set rejects any
//! other set of its run. An empty set stores a message without a body, on a subject that no function can subscribe to. Parts of
//! an answer are copied to ANSWERS after the commit, so a reader sees nothing that another run could replace.

use super::error::ResultExt as _;
use super::{
    Bus, BusError, EVENTS, PublishError, Published, ResultSetOutcome, ResultSetPublisher, Start, answers,
    atomic_batch::SetMessage, delivery::event_of, streams::EMPTY_PREFIX,
};
use async_nats::{HeaderMap, header};
use bytes::Bytes;
use nerve_core::{Event, Identity, Name, Run, Subject, answer::Part, subject::EVENTS_PREFIX};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// Maximum clock difference between the servers of a cluster.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Maximum results cached for lookups.
const MAX_CACHED_RESULTS: usize = 1 << 20;

/// A result with its identity.
#[derive(Debug, Clone)]
pub struct RunResult {
    /// The identity, which decides whether it is a duplicate.
    pub id: Identity,
    /// The event.
    pub event: Event,
}

impl Bus {
    /// Publishes the results of `run`, all or none; an earlier set of the same run takes precedence, even an empty one.
    ///
    /// # Errors
    /// [`PublishError::Unavailable`] if it is unknown whether they are stored: publish them again.
    pub async fn publish_results(
        &self,
        sets: &ResultSetPublisher,
        run: Run<'_>,
        results: &[RunResult],
    ) -> Result<ResultSetOutcome, PublishError> {
        for result in results {
            nerve_events::check(&result.event).map_err(PublishError::Invalid)?;
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
        if outcome == ResultSetOutcome::Stored {
            for RunResult { id, event } in results.iter().filter(|result| Part::of(&result.event.ty).is_some()) {
                // Boxed: most events are not part of an answer, and this future is moved for each of them.
                Box::pin(self.copy_to_answer(event, *id)).await?;
            }
        }
        Ok(outcome)
    }

    /// Publishes a part of an answer to its answer. No-op for other events.
    pub async fn copy_to_answer(&self, event: &Event, id: Identity) -> Result<(), PublishError> {
        let Some(subject) = answers::answer_subject(event)? else { return Ok(()) };
        let (headers, body) = self.to_message(event).await?;
        self.publish_message(&subject, headers, body, id).await.map(drop)
    }

    /// Copies the answer parts of a committed set to their answer; a worker may have crashed before it did.
    pub async fn copy_committed(&self, run: Run<'_>, first: u64) -> Result<(), BusError> {
        let what = || format!("reading the results of {}", run.function);
        let stream = self.stream(EVENTS, what).await?;
        for index in 0..super::atomic_batch::MAX_MESSAGES {
            let sequence = first + u64::try_from(index).unwrap_or(u64::MAX);
            let Ok(stored) = stream.get_raw_message(sequence).await else { return Ok(()) };
            let id = run.result(index);
            let found = stored.headers.get(header::NATS_MESSAGE_ID).map(|value| value.as_str().to_owned());
            // A set is stored contiguously, and an empty one has no event.
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
            self.restore_body(&mut event).await.unavailable(what)?;
            self.copy_to_answer(&event, id).await.unavailable(what)?;
        }
        Ok(())
    }
}

/// The results of one function in the log, read incrementally.
///
/// JetStream knows ids within the dedupe window only. A delivery with a possibly older attempt is looked up here before it runs.
#[derive(Debug, Default)]
pub struct CommittedResults {
    /// The start of the range read.
    since: Option<OffsetDateTime>,
    /// The start time of the last read.
    read: Option<Instant>,
    /// The sequence at which to continue.
    next: u64,
    /// The sequence of each result.
    sequences: HashMap<Identity, u64>,
}

impl CommittedResults {
    /// The sequence of the first result of a run, if one was stored before `asked`.
    ///
    /// Results of all versions of the function are read, of any type. Lookups requested before a read began
    /// share it.
    pub async fn find(&mut self, bus: &Bus, run: Run<'_>, asked: Instant) -> Result<Option<u64>, BusError> {
        let stored = run.input.stored();
        if self.since.is_none_or(|since| stored < since) || self.sequences.len() > MAX_CACHED_RESULTS {
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
            0 => Start::Time(stored - MAX_CLOCK_SKEW),
            next => Start::Sequence(next),
        };
        let (source, empty) = (source_of(run.function), empty_subject(run.function));
        let subjects = vec![format!("{EVENTS_PREFIX}>"), empty.clone()];
        bus.for_each_header(EVENTS, subjects, start, |message, sequence, _| {
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

/// The subject of a function's empty sets.
fn empty_subject(function: &Name) -> String {
    format!("{EMPTY_PREFIX}{function}")
}

fn outcome_of(published: Published) -> ResultSetOutcome {
    if published.duplicate { ResultSetOutcome::Duplicate } else { ResultSetOutcome::Stored }
}

/// The `source` of a function's events.
fn source_of(function: &Name) -> String {
    format!("/functions/{function}")
}
