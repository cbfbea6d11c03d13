//! Dead letters: listed, shown, sent back to the function that failed on them, or dropped.

use super::{
    Attempt, Bus, BusError, DEAD, PublishError, REDRIVE_PREFIX, Start, Tail,
    delivery::{dead_headers, event_of},
};
use async_nats::{HeaderMap, jetstream::stream::DirectGetErrorKind};
use nerve_core::{Event, Name, Subject, event::decode_value};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;

/// An event that failed for good, and why.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    /// Its number: its sequence in DEAD.
    pub id: u64,
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
}

impl Bus {
    /// The dead letters that there are, oldest first, `limit` at most.
    pub async fn dead_letters(&self, which: DeadLetters<'_>, limit: usize) -> Result<Vec<DeadLetter>, BusError> {
        let found = self.read(DEAD, vec![which.subject()], Start::First, limit).await?;
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

    /// Sends a dead letter back to its function, as it is deployed now, and to no other. Its tries count anew.
    ///
    /// The copy on its way is acknowledged before the letter goes, so nothing is lost; doing it twice sends it once.
    pub async fn redrive(&self, id: u64) -> Result<DeadLetter, BusError> {
        let (message, time) = self.dead_message(id).await?;
        let letter = letter_of(&message, id, time);
        let what = || format!("redriving dead letter {id}");
        let subject = Subject::parse(format!("{REDRIVE_PREFIX}{}", letter.function));
        let subject = subject.map_err(|error| BusError::refused(what(), error))?;
        let headers = without_failure(message.headers.as_ref());
        match self.publish_message(&subject, headers, message.payload, &format!("redrive:{id}")).await {
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

    async fn dead_message(&self, id: u64) -> Result<(async_nats::Message, OffsetDateTime), BusError> {
        let what = || format!("reading dead letter {id}");
        let stream = self.jetstream.get_stream_no_info(DEAD).await;
        let stream = stream.map_err(|error| BusError::unavailable(what(), error))?;
        let missing = || BusError::NotFound(format!("dead letter {id}"));
        let found = match stream.direct_get(id).await {
            Ok(found) if found.subject.starts_with("dead.") => found,
            Ok(_) => return Err(missing()),
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

/// The headers that the event first came with, and where it first was.
pub(super) fn without_failure(headers: Option<&HeaderMap>) -> HeaderMap {
    let failure = [dead_headers::FUNCTION, dead_headers::REVISION, dead_headers::ATTEMPTS, dead_headers::ERRORS];
    let mut kept = HeaderMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        let added = failure.iter().any(|header| header.eq_ignore_ascii_case(name));
        // A direct get adds where it found the message.
        let of_the_read = ["Nats-Stream", "Nats-Sequence", "Nats-Subject", "Nats-Time-Stamp"].contains(&name);
        if added || of_the_read {
            continue;
        }
        for value in values {
            kept.append(name, value.clone());
        }
    }
    kept
}

fn text_of(headers: Option<&HeaderMap>, name: &str) -> String {
    let value = headers.and_then(|headers| headers.get(name));
    value.map(|value| value.as_str().to_owned()).unwrap_or_default()
}

/// The stream and the sequence that the event of a letter first had.
fn place_of(headers: Option<&HeaderMap>) -> (String, u64) {
    let sequence = text_of(headers, dead_headers::SEQUENCE).parse().unwrap_or_default();
    (text_of(headers, dead_headers::STREAM), sequence)
}

fn letter_of(message: &async_nats::Message, id: u64, time: OffsetDateTime) -> DeadLetter {
    let text = |name: &str| text_of(message.headers.as_ref(), name);
    let number = |name: &str| text(name).parse().unwrap_or_default();
    let function = message.subject.strip_prefix("dead.").unwrap_or_default().to_owned();
    let (stream, sequence) = place_of(message.headers.as_ref());
    let original = async_nats::Message { subject: text(dead_headers::SUBJECT).as_str().into(), ..message.clone() };
    DeadLetter {
        id,
        function,
        revision: number(dead_headers::REVISION),
        time,
        attempts: u32::try_from(number(dead_headers::ATTEMPTS)).unwrap_or_default(),
        errors: serde_json::from_str(&decode_value(&text(dead_headers::ERRORS))).unwrap_or_default(),
        event: event_of(&original, &stream, sequence),
        stream,
        sequence,
    }
}
