//! Admission control: limits connections, and requests. When a limit is reached, the slot that has been idle longest is evicted.
//!
//! A slot is idle while its peer has to send something (a head, a body, the next request) or to read its response, and active while
//! a complete request is processed. Honest clients are idle for milliseconds, so ten thousand clients that send a byte at a time evict
//! only each other. Active slots are never evicted. Addresses do not count: behind a proxy all clients have the same one, and an
//! attacker has many.

use futures::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
};
use tokio::sync::Notify;

/// A limiter; clones share its slots.
#[derive(Clone)]
pub(crate) struct SlotLimiter(Arc<Shared>);

struct Shared {
    /// What is limited, as a label of metrics.
    of: &'static str,
    capacity: usize,
    slots: Mutex<Slots>,
    /// A slot was released or became idle. At most one task waits: that which accepts connections, or the drain at shutdown.
    changed: Notify,
}

#[derive(Default)]
struct Slots {
    active: usize,
    /// By the order in which they became idle.
    idle: BTreeMap<u64, Arc<SlotState>>,
    next: u64,
}

/// A slot, released when it is dropped.
pub(crate) struct Slot {
    limiter: SlotLimiter,
    state: Arc<SlotState>,
}

/// What a slot shares with its limiter.
struct SlotState {
    /// Its key among the idle slots, or [`ACTIVE`]. Read and written while the limiter is locked.
    idle_key: AtomicU64,
    /// Whether it was evicted. Read several times per request, so without a lock.
    evicted: AtomicBool,
    /// Of the only task that waits for the eviction.
    waker: AtomicWaker,
}

/// The key of a slot that is not idle.
const ACTIVE: u64 = u64::MAX;

impl SlotLimiter {
    /// A limiter with `capacity` slots; `of` labels its metrics.
    pub(crate) fn new(of: &'static str, capacity: usize) -> Self {
        Self(Arc::new(Shared { of, capacity, slots: Mutex::default(), changed: Notify::new() }))
    }

    /// An idle slot, if need be in place of an evicted one; `None` if all slots are active.
    pub(crate) fn try_acquire(&self) -> Option<Slot> {
        let mut slots = self.lock();
        if slots.count() >= self.0.capacity && !self.evict_from(&mut slots) {
            return None;
        }
        let state = slots.add();
        drop(slots);
        Some(Slot { limiter: self.clone(), state })
    }

    /// Waits for an idle slot.
    pub(crate) async fn acquire(&self) -> Slot {
        loop {
            let changed = self.0.changed.notified();
            match self.try_acquire() {
                Some(slot) => return slot,
                None => changed.await,
            }
        }
    }

    /// Evicts the slot that has been idle longest; `false` if none is idle.
    pub(crate) fn evict(&self) -> bool {
        self.evict_from(&mut self.lock())
    }

    /// Waits until every slot is released.
    pub(crate) async fn drained(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.lock().count() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn evict_from(&self, slots: &mut Slots) -> bool {
        let Some((_, state)) = slots.idle.pop_first() else { return false };
        state.evicted.store(true, Ordering::Release);
        state.waker.wake();
        metrics::counter!("nerve_gateway_evicted_total", "of" => self.0.of).increment(1);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.slots.lock()
    }
}

impl Slots {
    fn count(&self) -> usize {
        self.active + self.idle.len()
    }

    fn add(&mut self) -> Arc<SlotState> {
        let (evicted, waker) = (AtomicBool::default(), AtomicWaker::default());
        let state = Arc::new(SlotState { idle_key: AtomicU64::new(ACTIVE), evicted, waker });
        self.append_idle(&state);
        state
    }

    fn append_idle(&mut self, state: &Arc<SlotState>) {
        state.idle_key.store(self.next, Ordering::Relaxed);
        self.idle.insert(self.next, Arc::clone(state));
        self.next += 1;
    }

    /// See [`Slot::activate`].
    fn activate(&mut self, state: &SlotState) -> bool {
        match state.idle_key.load(Ordering::Relaxed) {
            ACTIVE => {}
            key if self.idle.remove(&key).is_none() => return false,
            _ => {
                state.idle_key.store(ACTIVE, Ordering::Relaxed);
                self.active += 1;
            }
        }
        true
    }
}

impl Slot {
    /// Marks the slot as active. Returns `false` if it was evicted before.
    pub(crate) fn activate(&self) -> bool {
        self.limiter.lock().activate(&self.state)
    }

    /// [`activate`](Self::activate) as a function of its own. It also returns `false` if the slot was released while idle.
    pub(crate) fn activation(&self) -> impl FnOnce() -> bool + Send + Unpin + use<> {
        let (limiter, state) = (self.limiter.clone(), Arc::clone(&self.state));
        move || limiter.lock().activate(&state)
    }

    /// Marks the slot as idle from now on.
    pub(crate) fn set_idle(&self) {
        let mut slots = self.limiter.lock();
        match self.state.idle_key.load(Ordering::Relaxed) {
            ACTIVE => slots.active -= 1,
            // An evicted slot stays evicted.
            key if slots.idle.remove(&key).is_none() => return,
            _ => {}
        }
        slots.append_idle(&self.state);
        drop(slots);
        self.limiter.0.changed.notify_one();
    }

    /// Waits until the slot is evicted.
    pub(crate) async fn evicted(&self) {
        poll_fn(|context| {
            // Registered before the check, so that an eviction in between is not missed.
            self.state.waker.register(context.waker());
            if self.state.evicted.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.limiter.lock();
        match self.state.idle_key.load(Ordering::Relaxed) {
            ACTIVE => slots.active -= 1,
            key => drop(slots.idle.remove(&key)),
        }
        drop(slots);
        self.limiter.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn is_evicted(slot: &Slot) -> bool {
        slot.evicted().now_or_never().is_some()
    }

    #[test]
    fn slot_idle_longest_is_evicted() {
        let limiter = SlotLimiter::new("test", 3);
        let [a, b, c] = [(); 3].map(|()| limiter.try_acquire().unwrap());
        assert!(a.activate(), "a is active, and b has been idle longest");
        let d = limiter.try_acquire().unwrap();
        assert_eq!([&a, &b, &c, &d].map(is_evicted), [false, true, false, false]);
        c.set_idle();
        let e = limiter.try_acquire().unwrap();
        assert_eq!([&a, &c, &d, &e].map(is_evicted), [false, false, true, false], "c became idle after d");
        assert!(!b.activate() && !d.activate(), "evicted slots stay evicted");
        b.set_idle();
        assert!(is_evicted(&b));
        drop((b, d));
        assert_eq!(limiter.lock().count(), 3, "evicted slots no longer count");
    }

    #[tokio::test]
    async fn active_slots_are_not_evicted() {
        let limiter = SlotLimiter::new("test", 2);
        let [a, b] = [(); 2].map(|()| limiter.try_acquire().unwrap());
        assert!(a.activate() && b.activate() && b.activate());
        assert!(limiter.try_acquire().is_none() && !limiter.evict());
        let mut acquiring = std::pin::pin!(limiter.acquire());
        assert!(futures::poll!(&mut acquiring).is_pending());
        a.set_idle();
        let c = acquiring.await;
        assert!(is_evicted(&a) && !is_evicted(&c));
        drop(a);
        let mut drained = std::pin::pin!(limiter.drained());
        drop(b);
        assert!(futures::poll!(&mut drained).is_pending());
        drop(c);
        drained.await;
        assert_eq!(limiter.lock().count(), 0);
    }

    #[test]
    fn flood_of_idle_slots_stays_within_the_limit() {
        let limiter = SlotLimiter::new("test", 100);
        let flood: Vec<_> = (0..10_000).map(|_| limiter.try_acquire().unwrap()).collect();
        assert_eq!(limiter.lock().count(), 100);
        assert_eq!(flood.iter().filter(|slot| !is_evicted(slot)).count(), 100);
        let good = limiter.try_acquire().unwrap();
        assert!(good.activate() && !is_evicted(&good));
        drop(flood);
        assert_eq!(limiter.lock().count(), 1);
    }
}
