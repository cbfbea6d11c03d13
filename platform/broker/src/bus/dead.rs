//! Dead letters: listed, shown, sent back to the function that failed on them, or dropped.

use super::{
    Attempt, Bus, BusError, DEAD, PublishError, REDRIVE_PREFIX, Start, Tail,
    delivery::event_of,
    provenance::{Provenance, copy_headers},
};
use async_nats::{HeaderMap, jetstream::stream::DirectGetErrorKind};
use nerve_core::{Event, Generation, Identity, Input, Name, Subject, event::decode_value};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;

/// An event whose attempts are exhausted, and why they failed.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    /// Its number: its sequence in DEAD.
    pub id: u64,
    /// Whether it waits for a decision, or is on its way back to its function.
    pub state: DeadLetterState,
    /// The function that failed on it.
    pub function: String,
    /// The revision of the function that failed on it last.
    pub revision: u64,
    /// When it was given up.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The stream that it was in.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// How often it was delivered.
    pub attempts: u32,
    /// What went wrong each time, as far as it is known.
    pub errors: Vec<Attempt>,
    /// The event.
    pub event: Event,
}

/// What is happening to a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadLetterState {
    /// It waits to be redriven or dropped.
    Dead,
    /// It was redriven, and its function has not finished it.
    Redriven,
}

/// Which dead letters.
#[derive(Debug, Clone, Copy)]
pub enum DeadLetters<'a> {
    /// Those of every function.
    All,
    /// Those of one.
    Of(&'a Name),
}

impl DeadLetters<'_> {
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
    /// The dead letters that there are, those on their way back among them, oldest first, `limit` at most.
    pub async fn dead_letters(&self, which: DeadLetters<'_>, limit: usize) -> Result<Vec<DeadLetter>, BusError> {
        let found = self.read(DEAD, vec![which.subject(), which.redriven()], Start::First, limit).await?;
        Ok(found.iter().map(|(message, id, time)| letter_of(message, *id, *time)).collect())
    }

    /// Reads the events that are given up, as they are.
    pub async fn tail_dead(&self, start: Start) -> Result<Tail, BusError> {
        self.tail_stream(DEAD, vec![DeadLetters::All.subject()], start).await
    }

    /// One dead letter.
    pub async fn dead_letter(&self, id: u64) -> Result<DeadLetter, BusError> {
        let (message, time) = self.dead_message(id).await?;
        Ok(letter_of(&message, id, time))
    }

    /// The numbers of a function's dead letters about any of these events, oldest first; an event is named by the stream and
    /// the sequence that it first had.
    pub async fn dead_letters_about(
        &self,
        function: &Name,
        events: &BTreeSet<(String, u64)>,
    ) -> Result<BTreeMap<(String, u64), Vec<u64>>, BusError> {
        let mut found: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        let look = |message: async_nats::Message, id, _| {
            let place = place_of(message.headers.as_ref());
            if events.contains(&place) {
                found.entry(place).or_default().push(id);
            }
            true
        };
        self.each_head(DEAD, vec![DeadLetters::Of(function).subject()], Start::First, look).await?;
        Ok(found)
    }

    /// Sends a dead letter back to its function, as it is deployed now, and to no other. It is run for a generation of its own,
    /// so its attempts count anew and its results are published.
    ///
    /// The copy is acknowledged before the dead letter is deleted, so nothing is lost; redriving it twice sends it once.
    pub async fn redrive(&self, id: u64) -> Result<DeadLetter, BusError> {
        let (message, time) = self.dead_message(id).await?;
        let letter = letter_of(&message, id, time);
        let what = || format!("redriving dead letter {id}");
        if letter.state == DeadLetterState::Redriven {
            let why = format!("it was redriven and waits for {}: `nerve dlq list` shows it", letter.function);
            return Err(BusError::refused(what(), why));
        }
        let subject = Subject::parse(format!("{REDRIVE_PREFIX}{}", letter.function));
        let subject = subject.map_err(|error| BusError::refused(what(), error))?;
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

    /// Deletes a dead letter for good.
    pub async fn drop_dead_letter(&self, id: u64) -> Result<(), BusError> {
        let what = || format!("dropping dead letter {id}");
        let stream = self.jetstream.get_stream_no_info(DEAD).await;
        let stream = stream.map_err(|error| BusError::unavailable(what(), error))?;
        stream.delete_message(id).await.map(drop).map_err(|error| BusError::refused(what(), error))
    }

    /// Whether DEAD has a message at this sequence.
    pub(super) async fn has_dead_letter(&self, id: u64) -> Result<bool, BusError> {
        match self.dead_message(id).await {
            Ok(_) => Ok(true),
            Err(BusError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a redriven message that is done. One that stays, as the broker did not answer, is listed until it expires.
    pub(super) async fn forget_redriven(&self, id: u64) {
        if let Err(error) = self.drop_dead_letter(id).await {
            tracing::debug!(%error, id, "a redriven event is done, and still listed");
        }
    }

    async fn dead_message(&self, id: u64) -> Result<(async_nats::Message, OffsetDateTime), BusError> {
        let what = || format!("reading dead letter {id}");
        let stream = self.jetstream.get_stream_no_info(DEAD).await;
        let stream = stream.map_err(|error| BusError::unavailable(what(), error))?;
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

fn text_of(headers: Option<&HeaderMap>, name: &str) -> String {
    let value = headers.and_then(|headers| headers.get(name));
    value.map(|value| value.as_str().to_owned()).unwrap_or_default()
}

/// The stream and the sequence that the event of a letter first had.
fn place_of(headers: Option<&HeaderMap>) -> (String, u64) {
    let sequence = text_of(headers, copy_headers::SEQUENCE).parse().unwrap_or_default();
    (text_of(headers, copy_headers::STREAM), sequence)
}

fn letter_of(message: &async_nats::Message, id: u64, time: OffsetDateTime) -> DeadLetter {
    let text = |name: &str| text_of(message.headers.as_ref(), name);
    let number = |name: &str| text(name).parse().unwrap_or_default();
    let redriven = message.subject.strip_prefix(REDRIVE_PREFIX);
    let state = if redriven.is_some() { DeadLetterState::Redriven } else { DeadLetterState::Dead };
    let function = redriven.or(message.subject.strip_prefix("dead.")).unwrap_or_default().to_owned();
    let (stream, sequence) = place_of(message.headers.as_ref());
    let original = async_nats::Message { subject: text(copy_headers::SUBJECT).as_str().into(), ..message.clone() };
    DeadLetter {
        id,
        state,
        function,
        revision: number(copy_headers::REVISION),
        time,
        attempts: u32::try_from(number(copy_headers::ATTEMPTS)).unwrap_or_default(),
        errors: serde_json::from_str(&decode_value(&text(copy_headers::ERRORS))).unwrap_or_default(),
        event: event_of(&original, &stream, sequence),
        stream,
        sequence,
    }
}
