//! What an older Nerve left on the broker under ids of its own.
//!
//! Before identities ([`nerve_core::identity`]), an event from outside had the message id `source#id`, and a result one of its
//! function, its event and its number. JetStream cannot compare those with the ids of today. So for as long as its dedupe window
//! lasts after an update, events are also looked for under their old ids; and an event that an older worker was given is not
//! given results that it has already.

use super::{Bus, BusError, EVENTS, Published, Start, place::UPDATED};
use async_nats::header;
use nerve_core::{
    Event, Identity, Name,
    event::{CAUSATION_ID, decode_value},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;

/// The events of an older Nerve that JetStream itself would still know.
#[derive(Debug, Default)]
pub(super) struct OlderEvents {
    /// Their sequences, by a digest of their message ids, and until when they count; none on a broker without any.
    known: Mutex<Option<(OffsetDateTime, HashMap<Identity, u64>)>>,
}

/// What the results of one event are called in the log that an older worker stored.
#[derive(Debug, Default)]
pub struct OlderResults {
    ids: HashSet<String>,
}

impl OlderResults {
    /// Whether the emission of this number is stored.
    pub fn has(&self, function: &Name, event: &Event, number: usize) -> bool {
        !self.ids.is_empty() && self.ids.contains(&Identity::legacy_result(function, event, number))
    }
}

fn digest(message_id: &str) -> Identity {
    Identity::of_copy("older", message_id)
}

impl Bus {
    /// Reads which events an older Nerve stored within `window`, if the streams were its own until less than that ago.
    pub async fn read_older_events(&self, window: Duration) -> Result<(), BusError> {
        let now = OffsetDateTime::now_utc();
        let Some(updated) = self.updated_at().await?.filter(|updated| now - *updated < window) else { return Ok(()) };
        let mut known = HashMap::new();
        self.each_head(EVENTS, vec!["events.>".to_owned()], Start::Time(updated - window), |message, sequence, _| {
            let id = message.headers.as_ref().and_then(|headers| headers.get(header::NATS_MESSAGE_ID));
            let old = id.map(|id| decode_value(id.as_str())).filter(|id| id.contains('#'));
            known.extend(old.map(|id| (digest(&id), sequence)));
            true
        })
        .await?;
        if !known.is_empty() {
            tracing::info!(events = known.len(), "events of an older Nerve count as duplicates for {window:?}");
            *self.older.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((updated + window, known));
        }
        Ok(())
    }

    /// When a Nerve with identities first served this broker, if an older one had served it before.
    async fn updated_at(&self) -> Result<Option<OffsetDateTime>, BusError> {
        let what = || "reading when this broker's streams were updated".to_owned();
        let entry = self.places().await?.entry(UPDATED).await;
        let entry = entry.map_err(|error| BusError::unavailable(what(), error))?;
        let seconds = entry.and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse().ok());
        Ok(seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()))
    }

    /// Where an older Nerve stored this event.
    pub(super) fn stored_by_older(&self, event: &Event) -> Option<Published> {
        let mut known = self.older.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, ids) = known.as_ref()?;
        if *until < OffsetDateTime::now_utc() {
            *known = None;
            return None;
        }
        let sequence = *ids.get(&digest(&format!("{}#{}", event.source, event.id)))?;
        Some(Published { sequence, duplicate: true })
    }

    /// What an older worker stored of a function's results for this event.
    pub async fn older_results(&self, function: &Name, event: &Event) -> Result<OlderResults, BusError> {
        let (source, mut found) = (format!("/functions/{function}"), OlderResults::default());
        let since = event.time.map_or(Start::First, |time| Start::Time(time - Duration::from_secs(60)));
        self.each_head(EVENTS, vec!["events.>".to_owned()], since, |message, _, _| {
            let text = |name: &str| {
                let value = message.headers.as_ref().and_then(|headers| headers.get(name));
                value.map(|value| decode_value(value.as_str()))
            };
            let caused = text(&format!("ce-{CAUSATION_ID}")).as_deref() == Some(event.id.as_str());
            if caused && text("ce-source").as_deref() == Some(source.as_str()) {
                found.ids.extend(text("ce-id"));
            }
            true
        })
        .await?;
        Ok(found)
    }
}

/// The events of an older Nerve, as all clones of a bus share them.
pub(super) type Older = Arc<OlderEvents>;
