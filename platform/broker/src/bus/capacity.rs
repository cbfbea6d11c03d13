//! The free capacity of EVENTS, which publishers check before they accept an external event.
//!
//! The trimmer ([`super::trim`]) measures the stream and reports; gateways check. Results of functions are stored without a check:
//! an event is acknowledged only once its results are stored, so rejecting them would prevent the stream from draining.

use super::{
    Bus, PublishError,
    buckets::BucketLevel,
    stream_full::{StreamFull, StreamFullReason},
};
use async_nats::jetstream::{
    self, ErrorCode,
    context::{self, PublishErrorKind},
};
use nerve_core::{Event, Subject, subject::EVENTS_PREFIX};
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};

/// Estimated bytes per event besides its data.
const OVERHEAD_BYTES: usize = 512;
/// Time for which a refusal is reused before another check.
const REFUSAL_LIFETIME: Duration = Duration::from_millis(200);
/// Time for which a broker's refusal counts as a full disk, if nothing was stored since.
const DISK_REFUSAL_LIFETIME: Duration = Duration::from_secs(60);
/// Maximum time that a publisher waits for the trimmer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// The known capacity of EVENTS, shared by all connections of a server.
#[derive(Debug)]
pub struct EventsCapacity {
    /// Bytes that may be accepted until the next check.
    room: AtomicI64,
    last: watch::Sender<LastCheck>,
    wanted: Notify,
    /// Whether `disk` reports a full disk: checked for each event.
    disk_is_full: AtomicBool,
    disk: Mutex<DiskState>,
    /// The buckets that are nearly full.
    buckets: Mutex<Vec<BucketLevel>>,
}

/// The state of the broker's disk.
#[derive(Debug, Default)]
struct DiskState {
    /// The result of the last disk check.
    looked: Option<StreamFull>,
    /// The message and the time of the broker's last refusal.
    refused: Option<(StreamFull, Instant)>,
}

/// The result of the last check.
#[derive(Debug, Clone, Default)]
struct LastCheck {
    number: u64,
    at: Option<Instant>,
    full: Option<StreamFull>,
}

impl Default for EventsCapacity {
    /// Unlimited, until a check reports otherwise.
    fn default() -> Self {
        Self {
            room: AtomicI64::new(i64::MAX),
            last: watch::Sender::default(),
            wanted: Notify::default(),
            disk_is_full: AtomicBool::new(false),
            disk: Mutex::default(),
            buckets: Mutex::default(),
        }
    }
}

impl EventsCapacity {
    /// Reports a check: the bytes that may be accepted (`None` if unlimited), and the full stream, if any.
    pub(super) fn report(&self, room: Option<u64>, full: Option<StreamFull>) {
        let room = room.map_or(i64::MAX, |room| i64::try_from(room).unwrap_or(i64::MAX));
        self.room.store(room, Ordering::Relaxed);
        self.last.send_modify(|last| *last = LastCheck { number: last.number + 1, at: Some(Instant::now()), full });
    }

    /// Waits until a publisher requests a check.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Reports a check of the broker's disk.
    pub(super) fn report_disk(&self, full: Option<StreamFull>) {
        self.disk().looked = full;
        self.update_disk();
    }

    /// Records that the broker refused an event for lack of space.
    fn record_refusal(&self, message: String) -> StreamFull {
        let full = StreamFull { max_bytes: None, reason: StreamFullReason::Broker { message } };
        self.disk().refused = Some((full.clone(), Instant::now()));
        self.update_disk();
        full
    }

    /// Records that the broker is connected but acknowledges nothing, as after a failed write.
    pub(super) fn record_missing_ack(&self) {
        self.record_refusal("it does not acknowledge messages; see its log".to_owned());
    }

    /// Records that the broker stored a message.
    pub(super) fn stored(&self) {
        if self.disk_is_full.load(Ordering::Relaxed) && self.disk().refused.take().is_some() {
            self.update_disk();
            tracing::info!("the broker has space again");
        }
    }

    /// The full disk, if it is full.
    pub fn disk_full(&self) -> Option<StreamFull> {
        if !self.disk_is_full.load(Ordering::Relaxed) {
            return None;
        }
        let disk = self.disk();
        // A refusal is meaningless once nobody has tried for a while.
        let refused = disk.refused.as_ref().filter(|(_, at)| at.elapsed() < DISK_REFUSAL_LIFETIME);
        disk.looked.clone().or_else(|| refused.map(|(full, _)| full.clone()))
    }

    fn update_disk(&self) {
        let disk = self.disk();
        self.disk_is_full.store(disk.looked.is_some() || disk.refused.is_some(), Ordering::Relaxed);
    }

    fn disk(&self) -> parking_lot::MutexGuard<'_, DiskState> {
        self.disk.lock()
    }

    /// Reports a check of the buckets: those that are nearly full.
    pub(super) fn report_buckets(&self, levels: Vec<BucketLevel>) {
        *self.buckets.lock() = levels;
    }

    /// The buckets that are nearly full, as of the last check.
    pub fn buckets(&self) -> Vec<BucketLevel> {
        self.buckets.lock().clone()
    }

    /// The full stream, as of the last check.
    pub fn full(&self) -> Option<StreamFull> {
        self.last.borrow().full.clone()
    }

    /// The error for a refusal by the broker; requests a check by the trimmer.
    fn refused(&self) -> StreamFull {
        self.wanted.notify_one();
        self.full().unwrap_or(StreamFull { max_bytes: None, reason: StreamFullReason::Unknown })
    }

    async fn admit(&self, bytes: usize) -> Result<(), StreamFull> {
        if self.disk_is_full.load(Ordering::Relaxed)
            && let Some(full) = self.disk().looked.clone()
        {
            return Err(full);
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.take(bytes) {
            return Ok(());
        }
        let mut looks = self.last.subscribe();
        let before = looks.borrow_and_update().clone();
        let fresh = before.at.is_some_and(|at| at.elapsed() < REFUSAL_LIFETIME);
        if let Some(full) = before.full.filter(|_| fresh) {
            return Err(full);
        }
        self.wanted.notify_one();
        let looked = looks.wait_for(|look| look.number > before.number);
        // Without a check the broker decides.
        let Ok(Ok(look)) = tokio::time::timeout(CHECK_TIMEOUT, looked).await else { return Ok(()) };
        match look.full.clone() {
            None if self.take(bytes) => Ok(()),
            full => Err(full.unwrap_or(StreamFull { max_bytes: None, reason: StreamFullReason::Unknown })),
        }
    }

    fn take(&self, bytes: i64) -> bool {
        let take = |room: i64| match room {
            i64::MAX => Some(room),
            room => (room > 0).then(|| room.saturating_sub(bytes)),
        };
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Bus {
    /// Checks that EVENTS has capacity for an external event, and waits for a check of the stream if in doubt.
    ///
    /// # Errors
    /// If EVENTS is full: see [`PublishError::full`].
    pub async fn admit(&self, event: &Event) -> Result<(), PublishError> {
        Ok(self.space.admit(event.data.len() + OVERHEAD_BYTES).await?)
    }

    /// The known capacity of EVENTS.
    pub fn space(&self) -> &EventsCapacity {
        &self.space
    }

    /// Converts a failed publish; a full stream is distinguished from an unavailable broker.
    pub(super) fn refusal(&self, subject: &Subject, error: context::PublishError) -> PublishError {
        if error.kind() == PublishErrorKind::TimedOut && self.connected() {
            self.space.record_missing_ack();
        }
        if let Some(message) = lacks_room(&error) {
            return self.space.record_refusal(message).into();
        }
        let full = subject.as_str().starts_with(EVENTS_PREFIX) && is_full(&error);
        if full { self.space.refused().into() } else { PublishError::Unavailable(error.into()) }
    }
}

/// The broker's message about its disk, if that is the reason of a refusal.
fn lacks_room(error: &context::PublishError) -> Option<String> {
    let refused = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>())?;
    let message = refused.to_string();
    let resources = [ErrorCode::INSUFFICIENT_RESOURCES, ErrorCode::STORAGE_RESOURCES_EXCEEDED];
    let disk = ["no space left on device", "insufficient resources", "resource limits exceeded"];
    let lacks = resources.contains(&refused.error_code()) || disk.iter().any(|text| message.contains(text));
    lacks.then_some(message)
}

/// Returns whether the stream has reached its size limit; the code alone can also mean a failing disk.
fn is_full(error: &context::PublishError) -> bool {
    let refused = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>());
    refused.is_some_and(|refused| {
        refused.error_code() == ErrorCode::STREAM_STORE_FAILED && refused.to_string().contains("maximum bytes exceeded")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> StreamFull {
        let reason = StreamFullReason::Held { consumer: "nerve-slow".to_owned(), unfinished: 7, first: 3 };
        StreamFull { max_bytes: Some(1000), reason }
    }

    #[tokio::test]
    async fn full_disk_rejects_events_but_a_refusal_does_not() {
        let space = EventsCapacity::default();
        let disk = StreamFull { max_bytes: None, reason: StreamFullReason::Disk { free: 1, reserve: 2 } };
        space.report_disk(Some(disk.clone()));
        assert_eq!((space.admit(1).await, space.disk_full()), (Err(disk.clone()), Some(disk.clone())));
        assert!(disk.to_string().contains("disk is full") && !disk.redacted().to_string().contains("reserve"));
        space.report_disk(None);
        assert_eq!((space.admit(1).await, space.disk_full()), (Ok(()), None));
        // The next event may find space, so it is tried.
        let refused = space.record_refusal("insufficient resources".to_owned());
        assert_eq!((space.admit(1).await, space.disk_full()), (Ok(()), Some(refused)));
        space.stored();
        assert_eq!(space.disk_full(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn admission_ends_with_the_capacity_and_waits_for_a_check() {
        let space = EventsCapacity::default();
        assert_eq!(space.admit(1 << 30).await, Ok(()), "unlimited");
        space.report(Some(100), None);
        assert_eq!(space.admit(90).await, Ok(()));
        assert_eq!(space.admit(90).await, Ok(()), "the last event may exceed the limit");
        let look = async {
            space.wanted().await;
            space.report(Some(0), Some(held()));
        };
        let (refused, ()) = tokio::join!(space.admit(1), look);
        assert_eq!(refused, Err(held()));
        assert_eq!(space.admit(1).await, Err(held()), "the last check is recent");
        space.report(Some(10), None);
        assert_eq!(space.admit(1).await, Ok(()));
    }
}
