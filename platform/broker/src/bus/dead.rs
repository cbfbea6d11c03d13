//! Dead letters: list, show, redrive and drop.

use super::error::ResultExt as _;
use super::{
    Attempt, Bus, BusError, DEAD, PublishError, REDRIVE_PREFIX, Start, Tail, delivery::event_of, headers,
    provenance::Provenance,
};
use async_nats::{HeaderMap, jetstream::stream::DirectGetErrorKind};
use nerve_core::{Event, Generation, Identity, Input, Name, Subject, event::decode_value};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;

/// An event whose attempts are exhausted, with their errors.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    /// Its id: its sequence in DEAD.
    pub id: u64,
    /// Whether it is waiting or being redriven.
    pub state: DeadLetterState,
    /// The function that failed.
    pub function: String,
    /// The function's revision at the last failure.
    pub revision: u64,
    /// The time of the last failure.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The stream of the event.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// Number of attempts.
    pub attempts: u32,
    /// The known errors, one per attempt.
    pub errors: Vec<Attempt>,
    /// The event.
    pub event: Event,
}

/// The state of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadLetterState {
    /// It waits for a redrive or a drop.
    Dead,
    /// It was redriven and is not finished.
    Redriven,
}

/// Selects dead letters.
#[derive(Debug, Clone, Copy)]
pub enum DeadLetterFilter<'a> {
    /// Those of all functions.
    All,
    /// Those of one function.
    Of(&'a Name),
}

impl DeadLetterFilter<'_> {
    fn subject(self) -> String {
        match self {
            Self::All => "dead.*".to_owned(),
            Self::Of(function) => format!("dead.{function}"),
        }
    }

    fn redriven(self) -> String {
        match self {
            Self::All => format!("{REDRIVE_PREFIX}*"),
            Self::Of(function) => format!("{REDRIVE_PREFIX}{function}"),
        }
    }
}

impl Bus {
    /// Reads dead letters, including those being redriven, oldest first, at most `limit`.
    pub async fn dead_letters(&self, which: DeadLetterFilter<'_>, limit: usize) -> Result<Vec<DeadLetter>, BusError> {
        let found = self.read(DEAD, vec![which.subject(), which.redriven()], Start::First, limit).await?;
        Ok(found.iter().map(|(message, id, time)| dead_letter_of(message, *id, *time)).collect())
    }

    /// Follows new dead letters.
    pub async fn tail_dead(&self, start: Start) -> Result<Tail, BusError> {
        self.tail_stream(DEAD, vec![DeadLetterFilter::All.subject()], start).await
    }

    /// Reads one dead letter.
    pub async fn dead_letter(&self, id: u64) -> Result<DeadLetter, BusError> {
        let (message, time) = self.dead_message(id).await?;
        Ok(dead_letter_of(&message, id, time))
    }

    /// Reads the ids of a function's dead letters for any of these events, oldest first. Events are identified by their original
    /// stream and sequence.
    pub async fn dead_letters_about(
        &self,
        function: &Name,
        events: &BTreeSet<(String, u64)>,
    ) -> Result<BTreeMap<(String, u64), Vec<u64>>, BusError> {
        let mut found: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        let look = |message: async_nats::Message, id, _| {
            let place = origin_of(message.headers.as_ref());
            if events.contains(&place) {
                found.entry(place).or_default().push(id);
            }
            true
        };
        self.for_each_header(DEAD, vec![DeadLetterFilter::Of(function).subject()], Start::First, look).await?;
        Ok(found)
    }

    /// Sends a dead letter back to its function only, in the deployed revision. It runs in a new generation,
    /// so its attempts restart and its results are published.
    ///
    /// The copy is acknowledged before the dead letter is deleted, so nothing is lost; redriving it twice sends it once.
    pub async fn redrive(&self, id: u64) -> Result<DeadLetter, BusError> {
        let (message, time) = self.dead_message(id).await?;
        let letter = dead_letter_of(&message, id, time);
        let what = || format!("redriving dead letter {id}");
        if letter.state == DeadLetterState::Redriven {
            let why = format!("it was redriven already and waits for {} (see `nerve dlq list`)", letter.function);
            return Err(BusError::refused(what(), why));
        }
        let subject = Subject::parse(format!("{REDRIVE_PREFIX}{}", letter.function));
        let subject = subject.refused(what)?;
        let dead = Input::new(DEAD, id, time);
        let original = Provenance::of_copy(message.headers.as_ref());
        let original = original.unwrap_or_else(|| Provenance::here(DEAD.into(), id, time, Generation::first()));
        let provenance = Provenance { generation: Generation::redriven(&dead), ..original };
        let headers = provenance.copied(message.headers.as_ref(), &message.subject);
        match self.publish_message(&subject, headers, message.payload, Identity::of_redrive(&dead)).await {
            Ok(_) => self.drop_dead_letter(id).await.map(|()| letter),
            Err(PublishError::Invalid(why)) => Err(BusError::refused(what(), why)),
            Err(PublishError::Unavailable(source)) => Err(BusError::unavailable(what(), source)),
        }
    }

    /// Deletes a dead letter permanently.
    pub async fn drop_dead_letter(&self, id: u64) -> Result<(), BusError> {
        let what = || format!("dropping dead letter {id}");
        let stream = self.jetstream.get_stream_no_info(DEAD).await.unavailable(what)?;
        stream.delete_message(id).await.map(drop).refused(what)
    }

    /// Returns whether DEAD has a message at this sequence.
    pub(super) async fn has_dead_letter(&self, id: u64) -> Result<bool, BusError> {
        match self.dead_message(id).await {
            Ok(_) => Ok(true),
            Err(BusError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a finished redrive. If the broker does not respond, the message stays listed until it expires.
    pub(super) async fn delete_redriven(&self, id: u64) {
        if let Err(error) = self.drop_dead_letter(id).await {
            tracing::debug!(%error, id, "cannot delete a finished redrive; it stays listed");
        }
    }

    async fn dead_message(&self, id: u64) -> Result<(async_nats::Message, OffsetDateTime), BusError> {
        let what = || format!("reading dead letter {id}");
        let stream = self.jetstream.get_stream_no_info(DEAD).await.unavailable(what)?;
        let missing = || BusError::NotFound(format!("dead letter {id}"));
        let found = match stream.direct_get(id).await {
            Ok(found) => found,
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(BusError::unavailable(what(), error)),
        };
        let time = found.time;
        let message = async_nats::Message {
            subject: found.subject,
            reply: None,
            length: found.payload.len(),
            payload: found.payload,
            headers: Some(found.headers),
            status: None,
            description: None,
        };
        Ok((message, time))
    }
}

fn header_text(headers: Option<&HeaderMap>, name: &str) -> String {
    let value = headers.and_then(|headers| headers.get(name));
    value.map(|value| value.as_str().to_owned()).unwrap_or_default()
}

/// The original stream and sequence of a dead letter's event.
fn origin_of(headers: Option<&HeaderMap>) -> (String, u64) {
    let sequence = header_text(headers, headers::SEQUENCE).parse().unwrap_or_default();
    (header_text(headers, headers::STREAM), sequence)
}

fn dead_letter_of(message: &async_nats::Message, id: u64, time: OffsetDateTime) -> DeadLetter {
    let text = |name: &str| header_text(message.headers.as_ref(), name);
    let number = |name: &str| text(name).parse().unwrap_or_default();
    let redriven = message.subject.strip_prefix(REDRIVE_PREFIX);
    let state = if redriven.is_some() { DeadLetterState::Redriven } else { DeadLetterState::Dead };
    let function = redriven.or(message.subject.strip_prefix("dead.")).unwrap_or_default().to_owned();
    let (stream, sequence) = origin_of(message.headers.as_ref());
    let original = async_nats::Message { subject: text(headers::SUBJECT).as_str().into(), ..message.clone() };
    DeadLetter {
        id,
        state,
        function,
        revision: number(headers::REVISION),
        time,
        attempts: u32::try_from(number(headers::ATTEMPTS)).unwrap_or_default(),
        errors: serde_json::from_str(&decode_value(&text(headers::ERRORS))).unwrap_or_default(),
        event: event_of(&original, &stream, sequence),
        stream,
        sequence,
    }
}
