//! Events and results that an earlier version of Nerve stored under its own ids.
//!
//! Before identities ([`nerve_core::identity`]), the message id of an external event was `source#id`, and that of a result
//! its function, event and index. JetStream cannot compare those with current ids. So for one dedupe window
//! after an upgrade, events are looked up under their old ids as well; and an event that an earlier worker received does
//! not get its existing results again.

use super::error::ResultExt as _;
use super::{Bus, BusError, EVENTS, Published, Start, progress::UPDATED_KEY};
use async_nats::header;
use nerve_core::{
    Event, Identity, Name,
    event::{CAUSATION_ID, decode_value},
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use time::OffsetDateTime;

/// The events of an earlier version within JetStream's dedupe window.
#[derive(Debug, Default)]
pub(super) struct LegacyEvents {
    /// Their sequences by message id digest, and the expiry of the window; `None` if there are none.
    known: Mutex<Option<(OffsetDateTime, HashMap<Identity, u64>)>>,
}

/// The message ids of an earlier worker's results for one event.
#[derive(Debug, Default)]
pub struct LegacyResults {
    ids: HashSet<String>,
}

impl LegacyResults {
    /// Returns whether the result of this index is stored.
    pub fn has(&self, function: &Name, event: &Event, number: usize) -> bool {
        !self.ids.is_empty() && self.ids.contains(&Identity::legacy_result(function, event, number))
    }
}

fn digest(message_id: &str) -> Identity {
    Identity::of_copy("older", message_id)
}

impl Bus {
    /// Loads the events that an earlier version stored within `window`, if this broker was upgraded less than that ago.
    pub async fn load_legacy_events(&self, window: Duration) -> Result<(), BusError> {
        let now = OffsetDateTime::now_utc();
        let Some(updated) = self.updated_at().await?.filter(|updated| now - *updated < window) else { return Ok(()) };
        let mut known = HashMap::new();
        self.for_each_header(
            EVENTS,
            vec!["events.>".to_owned()],
            Start::Time(updated - window),
            |message, sequence, _| {
                let id = message.headers.as_ref().and_then(|headers| headers.get(header::NATS_MESSAGE_ID));
                let old = id.map(|id| decode_value(id.as_str())).filter(|id| id.contains('#'));
                known.extend(old.map(|id| (digest(&id), sequence)));
                true
            },
        )
        .await?;
        if !known.is_empty() {
            tracing::info!(events = known.len(), "deduplicating events of an earlier version of Nerve for {window:?}");
            *self.older.known.lock() = Some((updated + window, known));
        }
        Ok(())
    }

    /// The time of the upgrade from a version without identities, if there was one.
    async fn updated_at(&self) -> Result<Option<OffsetDateTime>, BusError> {
        let what = || "reading when this broker's streams were updated".to_owned();
        let entry = self.places().await?.entry(UPDATED_KEY).await.unavailable(what)?;
        let seconds = entry.and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse().ok());
        Ok(seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()))
    }

    /// The position of an event that an earlier version stored.
    pub(super) fn legacy_publication(&self, event: &Event) -> Option<Published> {
        let mut known = self.older.known.lock();
        let (until, ids) = known.as_ref()?;
        if *until < OffsetDateTime::now_utc() {
            *known = None;
            return None;
        }
        let sequence = *ids.get(&digest(&format!("{}#{}", event.source, event.id)))?;
        Some(Published { sequence, duplicate: true })
    }

    /// The results of an earlier worker for this event.
    pub async fn legacy_results(&self, function: &Name, event: &Event) -> Result<LegacyResults, BusError> {
        let (source, mut found) = (format!("/functions/{function}"), LegacyResults::default());
        let since = event.time.map_or(Start::First, |time| Start::Time(time - Duration::from_secs(60)));
        self.for_each_header(EVENTS, vec!["events.>".to_owned()], since, |message, _, _| {
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

/// The events of an earlier version, shared by all clones of a bus.
pub(super) type SharedLegacyEvents = Arc<LegacyEvents>;
