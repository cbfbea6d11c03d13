//! Messages, records and bodies, deleted so that the broker overwrites their bytes.
//!
//! A purge, and deleting an object by the client's call, leave the bytes in the broker's files until these are compacted.
//! `delete_message` overwrites them at once (`no_erase` is not set). So everything is deleted by its sequence, but for entries of
//! buckets: their streams refuse that (`deny_delete`, which cannot be taken back), and are purged.

use super::{
    super::{
        ATTEMPTS, Bus, BusError, LOGS, LogRecord, RequestRecord, SinkAttempt, Start,
        requests::STREAM as REQUESTS_STREAM,
        streams::{ANSWERS, BODIES, DEAD, EVENTS, RUNS},
        timers::TIMERS,
    },
    Found,
    ledger::{BodyDigest, Place, Row},
    survey::key,
};
use async_nats::jetstream::{
    object_store::ObjectInfo,
    stream::{DeleteMessageErrorKind, LastRawMessageErrorKind, RawMessageErrorKind, Stream},
};
use data_encoding::{BASE64URL, HEXLOWER};
use futures::{StreamExt, TryStreamExt, stream};
use nerve_core::Identity;
use std::collections::HashSet;
use time::OffsetDateTime;

/// Messages that are deleted at once.
const AT_ONCE: usize = 64;
/// In which order places are emptied.
const ORDER: [(Place, &str); 5] = [
    (Place::Runs, RUNS),
    (Place::Timers, TIMERS),
    (Place::Dead, DEAD),
    (Place::Answers, ANSWERS),
    (Place::Events, EVENTS),
];

/// Records about erased events: their sequences in their streams.
#[derive(Default)]
pub(super) struct Linked {
    /// In LOGS.
    pub(super) logs: Vec<u64>,
    /// In ATTEMPTS.
    pub(super) attempts: Vec<u64>,
    /// In the bucket `requests`.
    pub(super) requests: Vec<BucketEntry>,
}

/// An entry of a bucket, at one revision.
pub(super) struct BucketEntry {
    /// Its subject in the bucket's stream.
    pub(super) subject: String,
    pub(super) revision: u64,
}

impl Linked {
    pub(super) fn is_empty(&self) -> bool {
        self.logs.is_empty() && self.attempts.is_empty() && self.requests.is_empty()
    }
}

/// A body in the Object Store, as it was stored last.
pub(super) struct Object {
    pub(super) digest: BodyDigest,
    /// When it was stored.
    pub(super) stored: OffsetDateTime,
    /// The sequence of its record.
    sequence: u64,
    /// The subject of its chunks.
    chunks: String,
}

fn stream_of(bucket: &str) -> String {
    format!("OBJ_{bucket}")
}

impl Bus {
    /// Finds the records about these events; `ids` are those of their ids that no other event has.
    pub(super) async fn linked(&self, rows: &[Row], ids: &HashSet<Identity>) -> Result<Linked, BusError> {
        let mut linked = Linked::default();
        if rows.is_empty() {
            return Ok(linked);
        }
        let has = |id: &str| ids.contains(&key(id));
        self.each(LOGS, vec!["logs.>".to_owned()], Start::First, |message, sequence, _| {
            let record = serde_json::from_slice::<LogRecord>(&message.payload).ok();
            linked.logs.extend(record.and_then(|record| record.event).filter(|id| has(id)).map(|_| sequence));
            true
        })
        .await?;
        // A sink's attempt says where its event is, so it is known also by an id that others have too.
        let events = rows.iter().filter(|row| row.place == Place::Events);
        let events: HashSet<(u64, Identity)> = events.map(|row| (row.sequence, row.event)).collect();
        self.each(ATTEMPTS, vec!["attempts.>".to_owned()], Start::First, |message, sequence, _| {
            let is_of = |attempt: &SinkAttempt| {
                attempt.stream == EVENTS && events.contains(&(attempt.sequence, key(&attempt.event)))
            };
            let attempt = serde_json::from_slice(&message.payload).ok().filter(is_of);
            linked.attempts.extend(attempt.map(|_| sequence));
            true
        })
        .await?;
        self.each(REQUESTS_STREAM, vec!["$KV.requests.>".to_owned()], Start::First, |message, sequence, _| {
            let record = serde_json::from_slice::<RequestRecord>(&message.payload).ok();
            let entry = |_| BucketEntry { subject: message.subject.to_string(), revision: sequence };
            linked.requests.extend(record.filter(|record| has(&record.id)).map(entry));
            true
        })
        .await?;
        Ok(linked)
    }

    /// Deletes messages and the records about them, the log last.
    pub(super) async fn remove(&self, found: &Found) -> Result<(), BusError> {
        for (stream, sequences) in [(LOGS, &found.linked.logs), (ATTEMPTS, &found.linked.attempts)] {
            self.delete(stream, sequences.iter().copied()).await?;
        }
        self.purge_entries(REQUESTS_STREAM, &found.linked.requests).await?;
        for (place, stream) in ORDER {
            // What names the collection connects the rest: as long as it is there, an erasure that was cut off can be completed.
            for naming in [false, true] {
                self.delete(stream, found.sequences(place, naming)).await?;
            }
        }
        Ok(())
    }

    /// Deletes messages of a stream; one that is gone already is deleted.
    pub(super) async fn delete(&self, name: &str, sequences: impl Iterator<Item = u64>) -> Result<(), BusError> {
        let mut sequences = sequences.peekable();
        if sequences.peek().is_none() {
            return Ok(());
        }
        let stream = self.erasable(name).await?;
        let stream = &stream;
        let deleting = stream::iter(sequences).map(|sequence| delete(stream, name, sequence));
        deleting.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Removes entries of a bucket, and leaves those that were written since.
    pub(super) async fn purge_entries(&self, name: &str, entries: &[BucketEntry]) -> Result<(), BusError> {
        if entries.is_empty() {
            return Ok(());
        }
        let stream = self.erasable(name).await?;
        for BucketEntry { subject, revision } in entries {
            let purged = stream.purge().filter(subject.as_str()).sequence(revision.saturating_add(1)).await;
            purged.map_err(|error| BusError::unavailable(format!("erasing {subject}"), error))?;
        }
        Ok(())
    }

    async fn erasable(&self, name: &str) -> Result<Stream<()>, BusError> {
        let stream = self.jetstream.get_stream_no_info(name).await;
        stream.map_err(|error| BusError::unavailable(format!("erasing from {name}"), error))
    }

    /// The records of these bodies, as far as they are there.
    pub(super) async fn objects(&self, digests: Vec<BodyDigest>) -> Result<Vec<Object>, BusError> {
        let mut objects = Vec::new();
        if digests.is_empty() {
            return Ok(objects);
        }
        let store = self.erasable(&stream_of(BODIES)).await?;
        for digest in digests {
            let name = HEXLOWER.encode(&digest);
            let what = || format!("looking for the body {name}");
            let subject = format!("$O.{BODIES}.M.{}", BASE64URL.encode(name.as_bytes()));
            let record = match store.get_last_raw_message_by_subject(&subject).await {
                Ok(record) => record,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => continue,
                Err(error) => return Err(BusError::unavailable(what(), error)),
            };
            let info: ObjectInfo =
                serde_json::from_slice(&record.payload).map_err(|error| BusError::refused(what(), error))?;
            let chunks = format!("$O.{BODIES}.C.{}", info.nuid);
            objects.push(Object { digest, stored: record.time, sequence: record.sequence, chunks });
        }
        Ok(objects)
    }

    /// Deletes a body as it was stored then; one that was stored again since stays.
    pub(super) async fn remove_object(&self, object: &Object) -> Result<(), BusError> {
        let stream = stream_of(BODIES);
        let mut chunks = Vec::new();
        self.each_head(&stream, vec![object.chunks.clone()], Start::First, |_, sequence, _| {
            chunks.push(sequence);
            true
        })
        .await?;
        // The record first: without it nobody looks for the chunks.
        self.delete(&stream, std::iter::once(object.sequence).chain(chunks)).await
    }
}

async fn delete(stream: &Stream<()>, name: &str, sequence: u64) -> Result<(), BusError> {
    let what = || format!("erasing message {sequence} of {name}");
    let Err(error) = stream.delete_message(sequence).await else { return Ok(()) };
    if !matches!(error.kind(), DeleteMessageErrorKind::JetStream(_)) {
        return Err(BusError::unavailable(what(), error));
    }
    match stream.get_raw_message(sequence).await {
        Err(missing) if missing.kind() == RawMessageErrorKind::NoMessageFound => Ok(()),
        _ => Err(BusError::refused(what(), error)),
    }
}
