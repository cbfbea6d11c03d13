//! A bounded number of places, in which whoever waits for a slow peer gives way to whoever comes.
//!
//! Connections have one such set, requests another. A place waits while its peer has still to send something: a head, a
//! body, the next request; or to read its answer. When all places are taken and one more is wanted, the one that has waited
//! longest is evicted: honest senders wait for milliseconds, so that ten thousand who send a byte at a time push out each
//! other and nobody else. A place that works, for a request that is whole, is never evicted. No address is looked at: behind
//! a proxy all have the same one, and an attacker has many.

use futures::task::AtomicWaker;
use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
};
use tokio::sync::Notify;

/// A set of places; clones are the same one.
#[derive(Clone)]
pub(super) struct Places(Arc<Shared>);

struct Shared {
    /// What the places are of, in metrics.
    of: &'static str,
    capacity: usize,
    taken: Mutex<Taken>,
    /// A place was given back, or waits now. One task at most listens: what accepts connections, or what waits for their
    /// end.
    changed: Notify,
}

#[derive(Default)]
struct Taken {
    working: usize,
    /// By the order in which they began to wait.
    waiting: BTreeMap<u64, Arc<Seat>>,
    next: u64,
}

/// One place, given back when it is dropped.
pub(super) struct Place {
    places: Places,
    seat: Arc<Seat>,
}

/// What a place shares with the set that it is of.
struct Seat {
    /// Where it stands among those that wait, or [`WORKS`]. It is read and written with the set locked.
    turn: AtomicU64,
    /// Whether it is evicted. It is asked several times a request, so it takes no lock.
    evicted: AtomicBool,
    /// Of the one task at most that waits for that.
    waker: AtomicWaker,
}

/// The turn of a place that does not wait.
const WORKS: u64 = u64::MAX;

impl Places {
    /// `capacity` places, of what `of` says.
    pub(super) fn new(of: &'static str, capacity: usize) -> Self {
        Self(Arc::new(Shared { of, capacity, taken: Mutex::default(), changed: Notify::new() }))
    }

    /// A place that waits for its peer; none when all are taken by some that work.
    pub(super) fn try_enter(&self) -> Option<Place> {
        let mut taken = self.lock();
        if taken.count() >= self.0.capacity && !self.evict_from(&mut taken) {
            return None;
        }
        let seat = taken.seat();
        drop(taken);
        Some(Place { places: self.clone(), seat })
    }

    /// A place that waits for its peer, once there is one.
    pub(super) async fn enter(&self) -> Place {
        loop {
            let changed = self.0.changed.notified();
            match self.try_enter() {
                Some(place) => return place,
                None => changed.await,
            }
        }
    }

    /// Evicts whoever has waited longest; false when nobody waits.
    pub(super) fn evict(&self) -> bool {
        self.evict_from(&mut self.lock())
    }

    /// Returns once every place was given back.
    pub(super) async fn emptied(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.lock().count() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn evict_from(&self, taken: &mut Taken) -> bool {
        let Some((_, seat)) = taken.waiting.pop_first() else { return false };
        seat.evicted.store(true, Ordering::Release);
        seat.waker.wake();
        metrics::counter!("nerve_gateway_evicted_total", "of" => self.0.of).increment(1);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn count(&self) -> usize {
        self.working + self.waiting.len()
    }

    fn seat(&mut self) -> Arc<Seat> {
        let (evicted, waker) = (AtomicBool::default(), AtomicWaker::default());
        let seat = Arc::new(Seat { turn: AtomicU64::new(WORKS), evicted, waker });
        self.queue(&seat);
        seat
    }

    /// It waits, behind all others.
    fn queue(&mut self, seat: &Arc<Seat>) {
        seat.turn.store(self.next, Ordering::Relaxed);
        self.waiting.insert(self.next, Arc::clone(seat));
        self.next += 1;
    }

    /// See [`Place::works`].
    fn works(&mut self, seat: &Seat) -> bool {
        match seat.turn.load(Ordering::Relaxed) {
            WORKS => {}
            waited if self.waiting.remove(&waited).is_none() => return false,
            _ => {
                seat.turn.store(WORKS, Ordering::Relaxed);
                self.working += 1;
            }
        }
        true
    }
}

impl Place {
    /// Its peer has sent all that there is to work with. False when it was evicted before.
    pub(super) fn works(&self) -> bool {
        self.places.lock().works(&self.seat)
    }

    /// The same, for whoever finds out; false too once the place was given back without having worked.
    pub(super) fn when_it_works(&self) -> impl FnOnce() -> bool + Send + Unpin + use<> {
        let (places, seat) = (self.places.clone(), Arc::clone(&self.seat));
        move || places.lock().works(&seat)
    }

    /// It waits for its peer from now on, behind all others.
    pub(super) fn waits(&self) {
        let mut taken = self.places.lock();
        match self.seat.turn.load(Ordering::Relaxed) {
            WORKS => taken.working -= 1,
            // Evicted is evicted.
            waited if taken.waiting.remove(&waited).is_none() => return,
            _ => {}
        }
        taken.queue(&self.seat);
        drop(taken);
        self.places.0.changed.notify_one();
    }

    /// Returns when it is evicted.
    pub(super) async fn evicted(&self) {
        poll_fn(|context| {
            // Registered first, so that one that happens in between is not missed.
            self.seat.waker.register(context.waker());
            if self.seat.evicted.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        match self.seat.turn.load(Ordering::Relaxed) {
            WORKS => taken.working -= 1,
            waited => drop(taken.waiting.remove(&waited)),
        }
        drop(taken);
        self.places.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn is_evicted(place: &Place) -> bool {
        place.evicted().now_or_never().is_some()
    }

    #[test]
    fn whoever_has_waited_longest_gives_way() {
        let places = Places::new("test", 3);
        let [a, b, c] = [(); 3].map(|()| places.try_enter().unwrap());
        assert!(a.works(), "it works, and b is the first that waits");
        let d = places.try_enter().unwrap();
        assert_eq!([&a, &b, &c, &d].map(is_evicted), [false, true, false, false]);
        c.waits();
        let e = places.try_enter().unwrap();
        assert_eq!([&a, &c, &d, &e].map(is_evicted), [false, false, true, false], "c is behind d now");
        assert!(!b.works() && !d.works(), "evicted is evicted");
        b.waits();
        assert!(is_evicted(&b));
        drop((b, d));
        assert_eq!(places.lock().count(), 3, "their places had been taken");
    }

    #[tokio::test]
    async fn those_that_work_are_waited_for() {
        let places = Places::new("test", 2);
        let [a, b] = [(); 2].map(|()| places.try_enter().unwrap());
        assert!(a.works() && b.works() && b.works());
        assert!(places.try_enter().is_none() && !places.evict());
        let mut entering = std::pin::pin!(places.enter());
        assert!(futures::poll!(&mut entering).is_pending());
        a.waits();
        let c = entering.await;
        assert!(is_evicted(&a) && !is_evicted(&c));
        drop(a);
        let mut emptied = std::pin::pin!(places.emptied());
        drop(b);
        assert!(futures::poll!(&mut emptied).is_pending());
        drop(c);
        emptied.await;
        assert_eq!(places.lock().count(), 0);
    }

    #[test]
    fn a_flood_of_those_who_wait_keeps_to_the_bound() {
        let places = Places::new("test", 100);
        let flood: Vec<_> = (0..10_000).map(|_| places.try_enter().unwrap()).collect();
        assert_eq!(places.lock().count(), 100);
        assert_eq!(flood.iter().filter(|place| !is_evicted(place)).count(), 100);
        let good = places.try_enter().unwrap();
        assert!(good.works() && !is_evicted(&good));
        drop(flood);
        assert_eq!(places.lock().count(), 1);
    }
}
