//! How full EVENTS is: what a publisher asks before it accepts an event from outside.
//!
//! The trimmer ([`super::trim`]) looks at the stream and reports; gateways ask. What functions return is stored without asking:
//! an event is acknowledged only once its results are stored, so a log that refused these could never drain.

use super::{
    Bus, PublishError,
    buckets::BucketLevel,
    full::{Full, FullReason},
};
use async_nats::jetstream::{
    self, ErrorCode,
    context::{self, PublishErrorKind},
};
use nerve_core::{Event, Subject, subject::EVENTS_PREFIX};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};

/// Bytes that an event takes besides its data, as an estimate.
const OVERHEAD_BYTES: usize = 512;
/// A refusal counts for so long, until it is worth another look.
const FRESH: Duration = Duration::from_millis(200);
/// How long a refusal of the broker's says that its disk is full, where nothing was stored since.
const REFUSAL_COUNTS: Duration = Duration::from_secs(60);
/// The longest that a publisher waits for the trimmer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// What is known of the room in EVENTS; all connections of one server share it.
#[derive(Debug)]
pub struct Space {
    /// Bytes that may be taken in until the next look.
    room: AtomicI64,
    last: watch::Sender<Look>,
    wanted: Notify,
    /// Whether `disk` says that something is full: it is asked for each event.
    disk_is_full: AtomicBool,
    disk: Mutex<DiskState>,
    /// The buckets that are nearly full.
    buckets: Mutex<Vec<BucketLevel>>,
}

/// What is known of the broker's disk.
#[derive(Debug, Default)]
struct DiskState {
    /// What a look at the disk found.
    looked: Option<Full>,
    /// What the broker said at the last refusal, and when.
    refused: Option<(Full, Instant)>,
}

/// What the last look found.
#[derive(Debug, Clone, Default)]
struct Look {
    number: u64,
    at: Option<Instant>,
    full: Option<Full>,
}

impl Default for Space {
    /// Without a bound, until a look says otherwise.
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

impl Space {
    /// Reports a look: the bytes that may be taken in, or none where nothing bounds them; and what is full, if it is.
    pub(super) fn report(&self, room: Option<u64>, full: Option<Full>) {
        let room = room.map_or(i64::MAX, |room| i64::try_from(room).unwrap_or(i64::MAX));
        self.room.store(room, Ordering::Relaxed);
        self.last.send_modify(|last| *last = Look { number: last.number + 1, at: Some(Instant::now()), full });
    }

    /// Waits until a look is wanted at once.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Reports a look at the disk that the broker writes to.
    pub(super) fn report_disk(&self, full: Option<Full>) {
        self.disk().looked = full;
        self.update_disk();
    }

    /// Takes note that the broker refused an event since it has no room for it.
    fn refused_by_broker(&self, said: String) -> Full {
        let full = Full { max_bytes: None, reason: FullReason::Broker { said } };
        self.disk().refused = Some((full.clone(), Instant::now()));
        self.update_disk();
        full
    }

    /// Takes note that the broker acknowledges nothing although it is connected, as where a write of its has failed.
    pub(super) fn unanswered(&self) {
        self.refused_by_broker("it does not acknowledge what is published; its log says why".to_owned());
    }

    /// Takes note that the broker stored something.
    pub(super) fn stored(&self) {
        if self.disk_is_full.load(Ordering::Relaxed) && self.disk().refused.take().is_some() {
            self.update_disk();
            tracing::info!("the broker has room again");
        }
    }

    /// How the disk is full, if it is.
    pub fn disk_full(&self) -> Option<Full> {
        if !self.disk_is_full.load(Ordering::Relaxed) {
            return None;
        }
        let disk = self.disk();
        // A refusal tells nothing once nobody has tried for a while.
        let refused = disk.refused.as_ref().filter(|(_, at)| at.elapsed() < REFUSAL_COUNTS);
        disk.looked.clone().or_else(|| refused.map(|(full, _)| full.clone()))
    }

    fn update_disk(&self) {
        let disk = self.disk();
        self.disk_is_full.store(disk.looked.is_some() || disk.refused.is_some(), Ordering::Relaxed);
    }

    fn disk(&self) -> std::sync::MutexGuard<'_, DiskState> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports a look at the buckets: those that are nearly full.
    pub(super) fn report_buckets(&self, levels: Vec<BucketLevel>) {
        *self.buckets.lock().unwrap_or_else(PoisonError::into_inner) = levels;
    }

    /// The buckets that are nearly full, as of the last look.
    pub fn buckets(&self) -> Vec<BucketLevel> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What fills EVENTS, as of the last look.
    pub fn full(&self) -> Option<Full> {
        self.last.borrow().full.clone()
    }

    /// What the broker's refusal says; the trimmer is called.
    fn refused(&self) -> Full {
        self.wanted.notify_one();
        self.full().unwrap_or(Full { max_bytes: None, reason: FullReason::Unknown })
    }

    async fn admit(&self, bytes: usize) -> Result<(), Full> {
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
        let fresh = before.at.is_some_and(|at| at.elapsed() < FRESH);
        if let Some(full) = before.full.filter(|_| fresh) {
            return Err(full);
        }
        self.wanted.notify_one();
        let looked = looks.wait_for(|look| look.number > before.number);
        // Without a look the broker has the last word.
        let Ok(Ok(look)) = tokio::time::timeout(LOOK_TIMEOUT, looked).await else { return Ok(()) };
        match look.full.clone() {
            None if self.take(bytes) => Ok(()),
            full => Err(full.unwrap_or(Full { max_bytes: None, reason: FullReason::Unknown })),
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
    /// Whether EVENTS has room for an event from outside; waits for a look at the stream where that is in doubt.
    ///
    /// # Errors
    /// EVENTS is full: [`PublishError::full`] says of what.
    pub async fn admit(&self, event: &Event) -> Result<(), PublishError> {
        Ok(self.space.admit(event.data.len() + OVERHEAD_BYTES).await?)
    }

    /// What is known of the room in EVENTS.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// What a refused publish is to its caller; EVENTS that is full is told from a broker that is away.
    pub(super) fn refusal(&self, subject: &Subject, error: context::PublishError) -> PublishError {
        if error.kind() == PublishErrorKind::TimedOut && self.connected() {
            self.space.unanswered();
        }
        if let Some(said) = lacks_room(&error) {
            return self.space.refused_by_broker(said).into();
        }
        let full = subject.as_str().starts_with(EVENTS_PREFIX) && is_full(&error);
        if full { self.space.refused().into() } else { PublishError::Unavailable(error.into()) }
    }
}

/// What the broker says of its disk, where that is why it refuses something.
fn lacks_room(error: &context::PublishError) -> Option<String> {
    let refused = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>())?;
    let said = refused.to_string();
    let resources = [ErrorCode::INSUFFICIENT_RESOURCES, ErrorCode::STORAGE_RESOURCES_EXCEEDED];
    let disk = ["no space left on device", "insufficient resources", "resource limits exceeded"];
    let lacks = resources.contains(&refused.error_code()) || disk.iter().any(|text| said.contains(text));
    lacks.then_some(said)
}

/// Whether the stream refuses it because of its bound in bytes; the code alone also stands for a disk that fails.
fn is_full(error: &context::PublishError) -> bool {
    let refused = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>());
    refused.is_some_and(|refused| {
        refused.error_code() == ErrorCode::STREAM_STORE_FAILED && refused.to_string().contains("maximum bytes exceeded")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Full {
        let reason = FullReason::Held { consumer: "nerve-slow".to_owned(), unfinished: 7, first: 3 };
        Full { max_bytes: Some(1000), reason }
    }

    #[tokio::test]
    async fn full_disk_refuses_events_and_the_brokers_word_only_tells_of_it() {
        let space = Space::default();
        let disk = Full { max_bytes: None, reason: FullReason::Disk { free: 1, reserve: 2 } };
        space.report_disk(Some(disk.clone()));
        assert_eq!((space.admit(1).await, space.disk_full()), (Err(disk.clone()), Some(disk.clone())));
        assert!(disk.to_string().contains("disk is full") && !disk.for_strangers().to_string().contains("reserve"));
        space.report_disk(None);
        assert_eq!((space.admit(1).await, space.disk_full()), (Ok(()), None));
        // The next event may find room, so it is tried.
        let refused = space.refused_by_broker("insufficient resources".to_owned());
        assert_eq!((space.admit(1).await, space.disk_full()), (Ok(()), Some(refused)));
        space.stored();
        assert_eq!(space.disk_full(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn admission_ends_with_the_room_and_waits_for_a_look() {
        let space = Space::default();
        assert_eq!(space.admit(1 << 30).await, Ok(()), "nothing bounds it");
        space.report(Some(100), None);
        assert_eq!(space.admit(90).await, Ok(()));
        assert_eq!(space.admit(90).await, Ok(()), "the last one may go over");
        let look = async {
            space.wanted().await;
            space.report(Some(0), Some(held()));
        };
        let (refused, ()) = tokio::join!(space.admit(1), look);
        assert_eq!(refused, Err(held()));
        assert_eq!(space.admit(1).await, Err(held()), "it was looked a moment ago");
        space.report(Some(10), None);
        assert_eq!(space.admit(1).await, Ok(()));
    }
}
