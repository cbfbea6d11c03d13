//! Deletes messages, records and bodies so that the broker overwrites their bytes.
//!
//! A purge, or the client's deletion of an object, leaves the bytes in the broker's files until compaction.
//! `delete_message` overwrites them immediately (`no_erase` is not set). So everything is deleted by sequence, except entries of
//! buckets: their streams forbid that (`deny_delete`, which is permanent), and are purged.

use super::super::error::ResultExt as _;
use super::{
    super::{
        ATTEMPTS, Bus, BusError, LOGS, LogRecord, RequestRecord, SinkAttempt, Start,
        idempotency::STREAM as REQUESTS_STREAM,
        streams::{ANSWERS, BODIES, DEAD, EVENTS, RUNS, TIMERS},
    },
    ErasureBatch,
    ledger::{BodyDigest, Location, MessageRecord},
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

/// Messages deleted concurrently.
const MAX_CONCURRENT_DELETES: usize = 64;
/// The order in which locations are deleted.
const DELETION_ORDER: [(Location, &str); 5] = [
    (Location::Runs, RUNS),
    (Location::Timers, TIMERS),
    (Location::Dead, DEAD),
    (Location::Answers, ANSWERS),
    (Location::Events, EVENTS),
];

/// Records about erased events: their sequences per stream.
#[derive(Default)]
pub(super) struct LinkedRecords {
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

impl LinkedRecords {
    pub(super) fn is_empty(&self) -> bool {
        self.logs.is_empty() && self.attempts.is_empty() && self.requests.is_empty()
    }
}

/// A body in the Object Store, in its latest version.
pub(super) struct Object {
    pub(super) digest: BodyDigest,
    /// The time of storage.
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
    /// Finds the records about these events; `ids` are the event ids that no other event has.
    pub(super) async fn linked(
        &self,
        rows: &[MessageRecord],
        ids: &HashSet<Identity>,
    ) -> Result<LinkedRecords, BusError> {
        let mut linked = LinkedRecords::default();
        if rows.is_empty() {
            return Ok(linked);
        }
        let has = |id: &str| ids.contains(&key(id));
        self.for_each(LOGS, vec!["logs.>".to_owned()], Start::First, |message, sequence, _| {
            let record = serde_json::from_slice::<LogRecord>(&message.payload).ok();
            linked.logs.extend(record.and_then(|record| record.event).filter(|id| has(id)).map(|_| sequence));
            true
        })
        .await?;
        // A sink attempt names the event's position, so it is found even if others share its id.
        let events = rows.iter().filter(|row| row.place == Location::Events);
        let events: HashSet<(u64, Identity)> = events.map(|row| (row.sequence, row.event)).collect();
        self.for_each(ATTEMPTS, vec!["attempts.>".to_owned()], Start::First, |message, sequence, _| {
            let is_of = |attempt: &SinkAttempt| {
                attempt.stream == EVENTS && events.contains(&(attempt.sequence, key(&attempt.event)))
            };
            let attempt = serde_json::from_slice(&message.payload).ok().filter(is_of);
            linked.attempts.extend(attempt.map(|_| sequence));
            true
        })
        .await?;
        self.for_each(REQUESTS_STREAM, vec!["$KV.requests.>".to_owned()], Start::First, |message, sequence, _| {
            let record = serde_json::from_slice::<RequestRecord>(&message.payload).ok();
            let entry = |_| BucketEntry { subject: message.subject.to_string(), revision: sequence };
            linked.requests.extend(record.filter(|record| has(&record.id)).map(entry));
            true
        })
        .await?;
        Ok(linked)
    }

    /// Deletes messages and the records about them, the log last.
    pub(super) async fn remove(&self, found: &ErasureBatch) -> Result<(), BusError> {
        for (stream, sequences) in [(LOGS, &found.linked.logs), (ATTEMPTS, &found.linked.attempts)] {
            self.delete(stream, sequences.iter().copied()).await?;
        }
        self.purge_entries(REQUESTS_STREAM, &found.linked.requests).await?;
        for (place, stream) in DELETION_ORDER {
            // The messages that name the collection connect the rest: while they exist, an aborted erasure can be completed.
            for naming in [false, true] {
                self.delete(stream, found.sequences(place, naming)).await?;
            }
        }
        Ok(())
    }

    /// Deletes messages of a stream. A missing message counts as deleted.
    pub(super) async fn delete(&self, name: &str, sequences: impl Iterator<Item = u64>) -> Result<(), BusError> {
        let mut sequences = sequences.peekable();
        if sequences.peek().is_none() {
            return Ok(());
        }
        let stream = self.erasable(name).await?;
        let stream = &stream;
        let deleting = stream::iter(sequences).map(|sequence| delete(stream, name, sequence));
        deleting.buffer_unordered(MAX_CONCURRENT_DELETES).try_collect().await
    }

    /// Deletes entries of a bucket, except those that were updated since.
    pub(super) async fn purge_entries(&self, name: &str, entries: &[BucketEntry]) -> Result<(), BusError> {
        if entries.is_empty() {
            return Ok(());
        }
        let stream = self.erasable(name).await?;
        for BucketEntry { subject, revision } in entries {
            stream
                .purge()
                .filter(subject.as_str())
                .sequence(revision.saturating_add(1))
                .await
                .unavailable(|| format!("erasing {subject}"))?;
        }
        Ok(())
    }

    async fn erasable(&self, name: &str) -> Result<Stream<()>, BusError> {
        self.jetstream.get_stream_no_info(name).await.unavailable(|| format!("erasing from {name}"))
    }

    /// Finds the existing records of these bodies.
    pub(super) async fn objects(&self, digests: Vec<BodyDigest>) -> Result<Vec<Object>, BusError> {
        let mut objects = Vec::new();
        if digests.is_empty() {
            return Ok(objects);
        }
        let store = self.erasable(&stream_of(BODIES)).await?;
        for digest in digests {
            let name = HEXLOWER.encode(&digest);
            let what = || format!("finding the body {name}");
            let subject = format!("$O.{BODIES}.M.{}", BASE64URL.encode(name.as_bytes()));
            let record = match store.get_last_raw_message_by_subject(&subject).await {
                Ok(record) => record,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => continue,
                Err(error) => return Err(BusError::unavailable(what(), error)),
            };
            let info: ObjectInfo = serde_json::from_slice(&record.payload).refused(what)?;
            let chunks = format!("$O.{BODIES}.C.{}", info.nuid);
            objects.push(Object { digest, stored: record.time, sequence: record.sequence, chunks });
        }
        Ok(objects)
    }

    /// Deletes this version of a body, and keeps a newer one.
    pub(super) async fn remove_object(&self, object: &Object) -> Result<(), BusError> {
        let stream = stream_of(BODIES);
        let mut chunks = Vec::new();
        self.for_each_header(&stream, vec![object.chunks.clone()], Start::First, |_, sequence, _| {
            chunks.push(sequence);
            true
        })
        .await?;
        // The record first: nobody reads the chunks without it.
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
