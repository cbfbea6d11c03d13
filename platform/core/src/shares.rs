//! Fair shares: what is free of something bounded is shared by those who want it.
//!
//! A holder may have [`FACTOR`] times as many slots as are free (dynamic thresholds, as switches share their buffers). So a holder
//! alone has most of them, several that want all share them evenly, and some are left for one that comes later.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// How many slots a holder may have for each that is free.
const FACTOR: usize = 3;

/// A bounded number of slots; clones are the same ones.
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
    /// Those that have no slot and wait for none are not there.
    holders: BTreeMap<u64, Holder>,
}

#[derive(Debug, Default)]
struct Holder {
    slots: usize,
    waiting: VecDeque<Arc<Waiter>>,
}

/// What one holder has of the slots; clones are the same holder's.
#[derive(Debug, Clone)]
pub struct Share {
    shares: Shares,
    id: u64,
}

/// A slot; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    shares: Shares,
    id: u64,
}

/// One that waits for a slot.
#[derive(Debug, Default)]
struct Waiter(Mutex<Grant>);

#[derive(Debug)]
enum Grant {
    Awaited(Option<Waker>),
    Made(Slot),
    /// Nobody waits for it any more.
    Over,
}

impl Default for Grant {
    fn default() -> Self {
        Self::Awaited(None)
    }
}

/// A slot to come: see [`Share::acquire`].
#[derive(Debug)]
#[must_use = "nothing is acquired until it is awaited"]
pub struct Acquire<'s> {
    share: &'s Share,
    waiter: Option<Arc<Waiter>>,
}

impl State {
    /// Whether a holder may have one more.
    fn has_room(&self, id: u64) -> bool {
        let slots = self.holders.get(&id).map_or(0, |holder| holder.slots);
        self.free > 0 && slots < self.free.saturating_mul(FACTOR)
    }

    fn take(&mut self, id: u64) {
        self.free = self.free.saturating_sub(1);
        self.holders.entry(id).or_default().slots += 1;
    }

    fn give_back(&mut self, id: u64) {
        self.free += 1;
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.slots = holder.slots.saturating_sub(1);
        }
        self.forget_idle(id);
    }

    fn forget_idle(&mut self, id: u64) {
        if self.holders.get(&id).is_some_and(|holder| holder.slots == 0 && holder.waiting.is_empty()) {
            self.holders.remove(&id);
        }
    }

    /// The next to be given a slot: of the holder that has the fewest.
    fn next(&mut self) -> Option<(u64, Arc<Waiter>)> {
        let waiting = self.holders.iter().filter(|(_, holder)| !holder.waiting.is_empty());
        let id = waiting.min_by_key(|(_, holder)| holder.slots).map(|(id, _)| *id)?;
        if !self.has_room(id) {
            return None;
        }
        let next = self.holders.get_mut(&id)?.waiting.pop_front()?;
        Some((id, next))
    }
}

impl Shares {
    /// So many slots, all of them free.
    pub fn of(slots: usize) -> Self {
        let state = State { free: slots, holders: BTreeMap::new() };
        Self(Arc::new(Inner { state: Mutex::new(state), next_id: AtomicU64::new(0) }))
    }

    /// The share of one more holder.
    pub fn share(&self) -> Share {
        Share { shares: self.clone(), id: self.0.next_id.fetch_add(1, Ordering::Relaxed) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands free slots to those that wait.
    fn hand_out(&self) {
        loop {
            let mut state = self.lock();
            let Some((id, next)) = state.next() else { return };
            state.take(id);
            drop(state);
            if let Err(slot) = next.grant(Slot { shares: self.clone(), id }) {
                // Without a recursion: what its drop does is done here.
                self.lock().give_back(slot.id);
                std::mem::forget(slot);
            }
        }
    }
}

impl Waiter {
    fn lock(&self) -> MutexGuard<'_, Grant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it a slot, or that back if nobody waits for it any more.
    fn grant(&self, slot: Slot) -> Result<(), Slot> {
        let mut grant = self.lock();
        let waker = match &mut *grant {
            Grant::Over | Grant::Made(_) => return Err(slot),
            Grant::Awaited(waker) => waker.take(),
        };
        *grant = Grant::Made(slot);
        drop(grant);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl Share {
    /// A slot, once the holder may have one more. Dropping the future gives up the wait.
    pub fn acquire(&self) -> Acquire<'_> {
        Acquire { share: self, waiter: None }
    }

    /// A slot, if the holder may have one more now and does not wait for any.
    pub fn try_acquire(&self) -> Option<Slot> {
        let mut state = self.shares.lock();
        let waits = state.holders.get(&self.id).is_some_and(|holder| !holder.waiting.is_empty());
        if waits || !state.has_room(self.id) {
            return None;
        }
        state.take(self.id);
        Some(self.slot())
    }

    /// Whether the holder may have one more now.
    pub fn has_room(&self) -> bool {
        self.shares.lock().has_room(self.id)
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
            let waiter = Arc::new(Waiter(Mutex::new(Grant::Awaited(Some(context.waker().clone())))));
            let share = self.share;
            share.shares.lock().holders.entry(share.id).or_default().waiting.push_back(waiter.clone());
            self.waiter = Some(waiter);
            // A slot may have been given back in between.
            share.shares.hand_out();
            return self.poll(context);
        };
        let mut grant = waiter.lock();
        match std::mem::replace(&mut *grant, Grant::Over) {
            Grant::Made(slot) => Poll::Ready(slot),
            Grant::Awaited(_) | Grant::Over => {
                *grant = Grant::Awaited(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let granted = self.waiter.take().map(|waiter| std::mem::replace(&mut *waiter.lock(), Grant::Over));
        // A slot that came too late is given back here, with nothing locked.
        drop(granted);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shares.lock().give_back(self.id);
        self.shares.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    /// As many slots as a holder gets at once.
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
    fn holder_alone_has_most_slots_and_others_find_some() {
        let shares = Shares::of(256);
        let (hog, second, third) = (shares.share(), shares.share(), shares.share());
        let held = take_all(&hog);
        assert_eq!((held.len(), hog.has_room(), second.has_room()), (192, false, true));
        let more = take_all(&second);
        assert!((40..=60).contains(&more.len()), "{}", more.len());
        assert!(!take_all(&third).is_empty());
        drop(held);
        assert!(take_all(&second).len() > 60, "what is given back is shared anew");
    }

    #[test]
    fn slot_that_is_given_back_goes_to_the_holder_that_has_fewest() {
        let shares = Shares::of(4);
        let (one, other) = (shares.share(), shares.share());
        let mut held = take_all(&one);
        assert_eq!(held.len(), 3);
        let of_other = take_all(&other);
        assert_eq!(of_other.len(), 1);
        let (mut gone, mut waits) = (Box::pin(one.acquire()), pin!(one.acquire()));
        assert!(poll(gone.as_mut()).is_none() && poll(waits.as_mut()).is_none());
        let mut of_others = pin!(other.acquire());
        assert!(poll(of_others.as_mut()).is_none() && other.try_acquire().is_none());
        drop(held.pop());
        let second = poll(of_others.as_mut());
        assert!(second.is_some() && poll(waits.as_mut()).is_none());
        // One that has left takes nothing with it.
        drop(gone);
        drop((held, of_other, second));
        assert!(poll(waits.as_mut()).is_some());
        let state = shares.lock();
        assert_eq!((state.free, state.holders.len()), (4, 0));
    }

    #[test]
    fn slot_of_a_wait_that_is_given_up_goes_on() {
        let shares = Shares::of(1);
        let (one, other) = (shares.share(), shares.share());
        let held = one.try_acquire().unwrap();
        let (mut leaves, mut stays) = (Box::pin(one.acquire()), pin!(other.acquire()));
        assert!(poll(leaves.as_mut()).is_none() && poll(stays.as_mut()).is_none());
        drop(held);
        drop(leaves);
        assert!(poll(stays.as_mut()).is_some());
    }
}
