//! Instances, shared fairly by functions.
//!
//! A function may hold [`FACTOR`] times as many instances as are free (dynamic thresholds, as switches share their buffers). So a
//! function alone takes most of them, several that want all share them evenly, and some are always left for one that comes later.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::oneshot;

/// How many instances a function may hold for each that is free.
const FACTOR: usize = 3;

/// The instances of one host.
#[derive(Debug, Clone)]
pub(super) struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    next_id: AtomicU64,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// By function; those that hold none and wait for none are not there.
    functions: BTreeMap<u64, Held>,
}

#[derive(Debug, Default)]
struct Held {
    instances: usize,
    waiting: VecDeque<oneshot::Sender<Slot>>,
}

/// What one function has of the instances.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    id: u64,
}

/// An instance that may live; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    shares: Shares,
    id: u64,
}

impl State {
    /// Whether a function may hold one more.
    fn has_room(&self, id: u64) -> bool {
        let held = self.functions.get(&id).map_or(0, |held| held.instances);
        self.free > 0 && held < self.free.saturating_mul(FACTOR)
    }

    fn take(&mut self, id: u64) {
        self.free = self.free.saturating_sub(1);
        self.functions.entry(id).or_default().instances += 1;
    }

    fn give_back(&mut self, id: u64) {
        self.free += 1;
        if let Some(held) = self.functions.get_mut(&id) {
            held.instances = held.instances.saturating_sub(1);
        }
        self.forget_idle(id);
    }

    fn forget_idle(&mut self, id: u64) {
        if self.functions.get(&id).is_some_and(|held| held.instances == 0 && held.waiting.is_empty()) {
            self.functions.remove(&id);
        }
    }

    /// The next to be given an instance: of the function that holds the fewest.
    fn next(&mut self) -> Option<(u64, oneshot::Sender<Slot>)> {
        let waiting = self.functions.iter().filter(|(_, held)| !held.waiting.is_empty());
        let id = waiting.min_by_key(|(_, held)| held.instances).map(|(id, _)| *id)?;
        if !self.has_room(id) {
            return None;
        }
        let next = self.functions.get_mut(&id)?.waiting.pop_front()?;
        Some((id, next))
    }
}

impl Shares {
    /// So many instances, all of them free.
    pub(super) fn of(instances: usize) -> Self {
        let state = State { free: instances, functions: BTreeMap::new() };
        Self(Arc::new(Inner { state: Mutex::new(state), next_id: AtomicU64::new(0) }))
    }

    /// The share of one more function.
    pub(super) fn share(&self) -> Share {
        Share { shares: self.clone(), id: self.0.next_id.fetch_add(1, Ordering::Relaxed) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands free instances to those that wait. One that has left meanwhile gives its instance back, which calls this again: so it
    /// is dropped only once the state is not locked.
    fn hand_out(&self) {
        loop {
            let mut state = self.lock();
            let Some((id, next)) = state.next() else { return };
            state.take(id);
            drop(state);
            if let Err(slot) = next.send(Slot { shares: self.clone(), id }) {
                // Without a recursion: what it does is done here.
                self.lock().give_back(slot.id);
                std::mem::forget(slot);
            }
        }
    }
}

impl Share {
    /// An instance, once the function may have one more.
    pub(super) async fn acquire(&self) -> Option<Slot> {
        let waiting = {
            let mut state = self.shares.lock();
            let waits = state.functions.get(&self.id).is_some_and(|held| !held.waiting.is_empty());
            if !waits && state.has_room(self.id) {
                state.take(self.id);
                return Some(Slot { shares: self.shares.clone(), id: self.id });
            }
            let (sender, receiver) = oneshot::channel();
            state.functions.entry(self.id).or_default().waiting.push_back(sender);
            receiver
        };
        waiting.await.ok()
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
    use futures::FutureExt;

    /// As many slots as a function gets at once.
    fn take_all(share: &Share) -> Vec<Slot> {
        std::iter::from_fn(|| share.acquire().now_or_never().flatten()).collect()
    }

    #[test]
    fn function_alone_has_most_instances_and_others_find_some() {
        let shares = Shares::of(256);
        let (hog, second, third) = (shares.share(), shares.share(), shares.share());
        let held = take_all(&hog);
        assert_eq!(held.len(), 192);
        let more = take_all(&second);
        assert!((40..=60).contains(&more.len()), "{}", more.len());
        assert!(!take_all(&third).is_empty());
        drop(held);
        assert!(take_all(&second).len() > 60, "what is given back is shared anew");
    }

    #[tokio::test]
    async fn instance_that_is_given_back_goes_to_the_function_that_holds_fewest() {
        let shares = Shares::of(4);
        let (one, other) = (shares.share(), shares.share());
        let mut held = take_all(&one);
        assert_eq!(held.len(), 3);
        let of_other = take_all(&other);
        assert_eq!(of_other.len(), 1);
        let (mut waits, mut gone) = (Box::pin(one.acquire()), Box::pin(one.acquire()));
        assert!((&mut gone).now_or_never().is_none() && (&mut waits).now_or_never().is_none());
        let mut of_others = Box::pin(other.acquire());
        assert!((&mut of_others).now_or_never().is_none());
        drop(held.pop());
        let second = of_others.now_or_never().flatten();
        assert!(second.is_some() && (&mut waits).now_or_never().is_none());
        // One that has left takes nothing with it.
        drop(gone);
        drop((held, of_other, second));
        assert!(waits.await.is_some());
        let state = shares.lock();
        assert_eq!((state.free, state.functions.len()), (4, 0));
    }
}
