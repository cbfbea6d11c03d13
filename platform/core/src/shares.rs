//! A fair limiter: holders share a fixed number of slots.
//!
//! A holder may have up to [`SLOTS_PER_FREE_SLOT`] times as many slots as are free (the dynamic threshold algorithm of
//! switch buffers). A single holder therefore gets most slots, several greedy holders get equal shares, and some slots
//! stay free for a new holder.

use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// Maximum slots of a holder per free slot.
const SLOTS_PER_FREE_SLOT: usize = 3;

/// A fixed number of slots. Clones share them.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    next_id: AtomicU64,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Holders with a slot or a waiter.
    holders: BTreeMap<u64, Holder>,
}

#[derive(Debug, Default)]
struct Holder {
    slots: usize,
    waiting: VecDeque<Arc<Waiter>>,
}

/// The share of one holder. Clones belong to the same holder.
#[derive(Debug, Clone)]
pub struct Share {
    shares: Shares,
    id: u64,
}

/// A slot, released when dropped.
#[derive(Debug)]
pub struct Slot {
    shares: Shares,
    id: u64,
}

/// A waiter for a slot.
#[derive(Debug, Default)]
struct Waiter(Mutex<Grant>);

#[derive(Debug)]
enum Grant {
    Pending(Option<Waker>),
    Granted(Slot),
    /// The slot was taken, or the waiter was dropped.
    Closed,
}

impl Default for Grant {
    fn default() -> Self {
        Self::Pending(None)
    }
}

/// The future of [`Share::acquire`].
#[derive(Debug)]
#[must_use = "no slot is acquired until the future is awaited"]
pub struct Acquire<'s> {
    share: &'s Share,
    waiter: Option<Arc<Waiter>>,
}

impl State {
    /// Whether a holder may have another slot.
    fn has_capacity(&self, id: u64) -> bool {
        let slots = self.holders.get(&id).map_or(0, |holder| holder.slots);
        self.free > 0 && slots < self.free.saturating_mul(SLOTS_PER_FREE_SLOT)
    }

    fn take(&mut self, id: u64) {
        self.free = self.free.saturating_sub(1);
        self.holders.entry(id).or_default().slots += 1;
    }

    fn release(&mut self, id: u64) {
        self.free += 1;
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.slots = holder.slots.saturating_sub(1);
        }
        self.remove_idle(id);
    }

    fn remove_idle(&mut self, id: u64) {
        if self.holders.get(&id).is_some_and(|holder| holder.slots == 0 && holder.waiting.is_empty()) {
            self.holders.remove(&id);
        }
    }

    /// Returns the next waiter: that of the holder with the fewest slots.
    fn next_waiter(&mut self) -> Option<(u64, Arc<Waiter>)> {
        let waiting = self.holders.iter().filter(|(_, holder)| !holder.waiting.is_empty());
        let id = waiting.min_by_key(|(_, holder)| holder.slots).map(|(id, _)| *id)?;
        if !self.has_capacity(id) {
            return None;
        }
        let next = self.holders.get_mut(&id)?.waiting.pop_front()?;
        Some((id, next))
    }
}

impl Shares {
    /// Creates a limiter with this number of slots.
    pub fn new(slots: usize) -> Self {
        let state = State { free: slots, holders: BTreeMap::new() };
        Self(Arc::new(Inner { state: Mutex::new(state), next_id: AtomicU64::new(0) }))
    }

    /// Creates the share of a new holder.
    pub fn share(&self) -> Share {
        Share { shares: self.clone(), id: self.0.next_id.fetch_add(1, Ordering::Relaxed) }
    }

    /// Grants free slots to waiters.
    fn grant_free_slots(&self) {
        loop {
            let mut state = self.0.state.lock();
            let Some((id, next)) = state.next_waiter() else { return };
            state.take(id);
            drop(state);
            if let Err(slot) = next.grant(Slot { shares: self.clone(), id }) {
                // Releases the slot without the recursion of its `drop`.
                self.0.state.lock().release(slot.id);
                std::mem::forget(slot);
            }
        }
    }
}

impl Waiter {
    /// Grants a slot. Returns the slot if the waiter was dropped.
    fn grant(&self, slot: Slot) -> Result<(), Slot> {
        let mut grant = self.0.lock();
        let waker = match &mut *grant {
            Grant::Closed | Grant::Granted(_) => return Err(slot),
            Grant::Pending(waker) => waker.take(),
        };
        *grant = Grant::Granted(slot);
        drop(grant);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl Share {
    /// Waits until the holder may have another slot. Dropping the future cancels the wait.
    pub fn acquire(&self) -> Acquire<'_> {
        Acquire { share: self, waiter: None }
    }

    /// Returns a slot if the holder may have another one now and has no waiter.
    pub fn try_acquire(&self) -> Option<Slot> {
        let mut state = self.shares.0.state.lock();
        let waits = state.holders.get(&self.id).is_some_and(|holder| !holder.waiting.is_empty());
        if waits || !state.has_capacity(self.id) {
            return None;
        }
        state.take(self.id);
        Some(self.slot())
    }

    /// Whether the holder may have another slot now.
    pub fn has_capacity(&self) -> bool {
        self.shares.0.state.lock().has_capacity(self.id)
    }

    fn slot(&self) -> Slot {
        Slot { shares: self.shares.clone(), id: self.id }
    }
}

impl Future for Acquire<'_> {
    type Output = Slot;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Slot> {
        let Some(waiter) = self.waiter.clone() else {
            if let Some(slot) = self.share.try_acquire() {
                return Poll::Ready(slot);
            }
            let waiter = Arc::new(Waiter(Mutex::new(Grant::Pending(Some(context.waker().clone())))));
            let share = self.share;
            share.shares.0.state.lock().holders.entry(share.id).or_default().waiting.push_back(waiter.clone());
            self.waiter = Some(waiter);
            // A slot may have been released in between.
            share.shares.grant_free_slots();
            return self.poll(context);
        };
        let mut grant = waiter.0.lock();
        match std::mem::replace(&mut *grant, Grant::Closed) {
            Grant::Granted(slot) => Poll::Ready(slot),
            Grant::Pending(_) | Grant::Closed => {
                *grant = Grant::Pending(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let granted = self.waiter.take().map(|waiter| std::mem::replace(&mut *waiter.0.lock(), Grant::Closed));
        // A slot that was granted too late is released here, without holding the lock.
        drop(granted);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shares.0.state.lock().release(self.id);
        self.shares.grant_free_slots();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    /// Acquires slots until the holder gets no more.
    fn take_all(share: &Share) -> Vec<Slot> {
        std::iter::from_fn(|| share.try_acquire()).collect()
    }

    fn poll(acquire: Pin<&mut Acquire<'_>>) -> Option<Slot> {
        match acquire.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(slot) => Some(slot),
            Poll::Pending => None,
        }
    }

    #[test]
    fn single_holder_gets_most_slots_and_leaves_some() {
        let shares = Shares::new(256);
        let (hog, second, third) = (shares.share(), shares.share(), shares.share());
        let held = take_all(&hog);
        assert_eq!((held.len(), hog.has_capacity(), second.has_capacity()), (192, false, true));
        let more = take_all(&second);
        assert!((40..=60).contains(&more.len()), "{}", more.len());
        assert!(!take_all(&third).is_empty());
        drop(held);
        assert!(take_all(&second).len() > 60, "released slots are shared again");
    }

    #[test]
    fn released_slot_goes_to_the_holder_with_the_fewest() {
        let shares = Shares::new(4);
        let (one, other) = (shares.share(), shares.share());
        let mut held = take_all(&one);
        assert_eq!(held.len(), 3);
        let of_other = take_all(&other);
        assert_eq!(of_other.len(), 1);
        let (mut dropped, mut waits) = (Box::pin(one.acquire()), pin!(one.acquire()));
        assert!(poll(dropped.as_mut()).is_none() && poll(waits.as_mut()).is_none());
        let mut of_others = pin!(other.acquire());
        assert!(poll(of_others.as_mut()).is_none() && other.try_acquire().is_none());
        drop(held.pop());
        let second = poll(of_others.as_mut());
        assert!(second.is_some() && poll(waits.as_mut()).is_none());
        // A dropped waiter takes no slot.
        drop(dropped);
        drop((held, of_other, second));
        assert!(poll(waits.as_mut()).is_some());
        let state = shares.0.state.lock();
        assert_eq!((state.free, state.holders.len()), (4, 0));
    }

    #[test]
    fn slot_granted_to_a_dropped_waiter_is_passed_on() {
        let shares = Shares::new(1);
        let (one, other) = (shares.share(), shares.share());
        let held = one.try_acquire().unwrap();
        let (mut leaves, mut stays) = (Box::pin(one.acquire()), pin!(other.acquire()));
        assert!(poll(leaves.as_mut()).is_none() && poll(stays.as_mut()).is_none());
        drop(held);
        drop(leaves);
        assert!(poll(stays.as_mut()).is_some());
    }
}
