//! Decides which waiting request gets a helper next, and which idle helper is ended for it. Pure: it starts and ends no
//! processes.
//!
//! A request is served by an idle helper of its own tenant, or by a new one if the budget permits. Tenants with the
//! fewest busy helpers are served first, then the least recently served. If a tenant has no helper and the budget is
//! exhausted, the idle helpers of others are ended, including one that has served its own tenant for a full turn. A helper
//! that is larger than the budget runs alone.
//!
//! A busy helper cannot be taken from its tenant before its timeout. So a tenant with a busy helper gets another only if
//! the budget leaves one more of that size: one tenant never holds the whole budget, and the next one starts immediately.

use crate::process::Process;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// Maximum time that a helper serves one tenant while another tenant has none.
const TURN: Duration = Duration::from_millis(500);

/// The identity of a helper, which serves only requests with the same key.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) work: &'static str,
    pub(crate) tenant: String,
    /// A digest of the setup.
    pub(crate) setup: u64,
    /// Its share of the budget, in bytes.
    pub(crate) memory: u64,
    /// Its CPU time, in seconds.
    pub(crate) cpu: u64,
}

/// An idle helper.
pub(crate) struct Idle<P> {
    pub(crate) key: Arc<Key>,
    pub(crate) process: P,
    pub(crate) since: Instant,
}

impl Idle<Process> {
    /// Begins a new turn for a tenant that returns after a pause.
    pub(crate) fn begin_turn_if_rested(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= TURN {
            self.process.turn = now;
        }
    }
}

/// The time when a helper was assigned to its tenant.
pub(crate) trait HasTurn {
    fn turn(&self) -> Instant;
}

impl HasTurn for Process {
    fn turn(&self) -> Instant {
        self.turn
    }
}

struct Waiting<W> {
    key: Arc<Key>,
    waiter: W,
}

/// The next action.
pub(crate) enum Step<P, W> {
    /// Assign this helper to this request.
    Reuse(W, Idle<P>),
    /// Start a helper for this request; its share is reserved.
    Start(W, Arc<Key>),
    /// End this helper, and report it by [`Queue::ended`].
    End(Idle<P>),
}

/// Helpers and requests. `P` is a process, `W` a waiter.
pub(crate) struct Queue<P, W> {
    memory: u64,
    helpers: usize,
    /// The shares of all running helpers, including those being ended.
    used: (u64, usize),
    ending: (u64, usize),
    /// Busy helpers per key.
    busy: HashMap<Arc<Key>, usize>,
    /// Busy helpers per tenant.
    busy_of_tenant: HashMap<String, usize>,
    idle: VecDeque<Idle<P>>,
    waiting: Vec<Waiting<W>>,
    /// When a key was last served, counted in grants. Deleted with its last helper.
    served: HashMap<Arc<Key>, u64>,
    grants: u64,
}

impl<P: HasTurn, W> Queue<P, W> {
    pub(crate) fn new(memory: u64, helpers: usize) -> Self {
        Self {
            memory,
            helpers,
            used: (0, 0),
            ending: (0, 0),
            busy: HashMap::new(),
            busy_of_tenant: HashMap::new(),
            idle: VecDeque::new(),
            waiting: Vec::new(),
            served: HashMap::new(),
            grants: 0,
        }
    }

    pub(crate) fn wait(&mut self, key: Arc<Key>, waiter: W) {
        self.waiting.push(Waiting { key, waiter });
    }

    /// Removes cancelled waiters.
    pub(crate) fn keep_waiting(&mut self, waits: impl Fn(&W) -> bool) {
        self.waiting.retain(|waiting| waits(&waiting.waiter));
    }

    /// A helper has answered and is idle.
    pub(crate) fn returned(&mut self, key: Arc<Key>, process: P, now: Instant) {
        self.rest(&key);
        self.idle.push_back(Idle { key, process, since: now });
    }

    /// A busy helper has ended.
    pub(crate) fn lost(&mut self, key: &Arc<Key>) {
        self.rest(key);
        self.used = (self.used.0.saturating_sub(key.memory), self.used.1.saturating_sub(1));
        self.forget(key);
    }

    /// A helper of [`Step::End`] has ended.
    pub(crate) fn ended(&mut self, key: &Arc<Key>) {
        self.used = (self.used.0.saturating_sub(key.memory), self.used.1.saturating_sub(1));
        self.ending = (self.ending.0.saturating_sub(key.memory), self.ending.1.saturating_sub(1));
        self.forget(key);
    }

    /// Removes the helpers that have been idle since before `then`, to be ended.
    pub(crate) fn expire(&mut self, then: Instant) -> Vec<Idle<P>> {
        let mut expired = Vec::new();
        while self.idle.front().is_some_and(|idle| idle.since <= then) {
            expired.extend(self.pop_idle());
        }
        expired
    }

    pub(crate) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// The next action; `None` if nothing can be done now.
    pub(crate) fn step(&mut self, now: Instant) -> Option<Step<P, W>> {
        let mut order: Vec<(usize, u64, usize)> = Vec::with_capacity(self.waiting.len());
        for (index, waiting) in self.waiting.iter().enumerate() {
            let served = self.served.get(&waiting.key).copied().unwrap_or_default();
            order.push((self.at_work(&waiting.key), served, index));
        }
        order.sort_unstable();
        let (mut starving, mut first) = (false, None);
        for (busy, _, index) in order {
            let Some(key) = self.waiting.get(index).map(|waiting| waiting.key.clone()) else { continue };
            let usable = |idle: &Idle<P>| {
                idle.key == key && !(starving && now.saturating_duration_since(idle.process.turn()) >= TURN)
            };
            let leaves_room = busy == 0 || self.leaves_room_beside(&key);
            if let Some(at) = self.idle.iter().rposition(usable).filter(|_| leaves_room) {
                let idle = self.idle.remove(at)?;
                return Some(Step::Reuse(self.grant(index, &key), idle));
            }
            if !leaves_room {
                continue;
            }
            if !starving && self.fits(key.memory, (0, 0)) {
                self.used = (self.used.0.saturating_add(key.memory), self.used.1.saturating_add(1));
                return Some(Step::Start(self.grant(index, &key), key));
            }
            first.get_or_insert(key);
            starving |= busy == 0;
        }
        // No capacity: the helper that has been idle longest is ended, unless enough are ending already.
        let first = first.filter(|first| !self.fits(first.memory, self.ending))?;
        let idle = self.pop_idle()?;
        tracing::trace!(ended = idle.key.work, wanted = first.work, "an idle helper makes room");
        Some(Step::End(idle))
    }

    fn pop_idle(&mut self) -> Option<Idle<P>> {
        let idle = self.idle.pop_front()?;
        self.ending = (self.ending.0.saturating_add(idle.key.memory), self.ending.1.saturating_add(1));
        Some(idle)
    }

    fn grant(&mut self, index: usize, key: &Arc<Key>) -> W {
        *self.busy.entry(key.clone()).or_default() += 1;
        *self.busy_of_tenant.entry(key.tenant.clone()).or_default() += 1;
        self.grants += 1;
        self.served.insert(key.clone(), self.grants);
        self.waiting.remove(index).waiter
    }

    fn at_work(&self, key: &Arc<Key>) -> usize {
        self.busy_of_tenant.get(&key.tenant).copied().unwrap_or_default()
    }

    /// Returns whether another tenant could start a helper of this size besides all busy ones and one more. Idle helpers can be ended.
    fn leaves_room_beside(&self, key: &Arc<Key>) -> bool {
        let memory_of =
            |(key, count): (&Arc<Key>, &usize)| key.memory.saturating_mul(u64::try_from(*count).unwrap_or(u64::MAX));
        let memory: u64 = self.busy.iter().map(memory_of).sum();
        let helpers: usize = self.busy.values().sum();
        memory.saturating_add(key.memory.saturating_mul(2)) <= self.memory && helpers + 2 <= self.helpers
    }

    fn fits(&self, memory: u64, freed: (u64, usize)) -> bool {
        let used = (self.used.0.saturating_sub(freed.0), self.used.1.saturating_sub(freed.1));
        let is_alone = used.1 == 0;
        used.1 < self.helpers && (is_alone || used.0.saturating_add(memory) <= self.memory)
    }

    fn rest(&mut self, key: &Arc<Key>) {
        if let Some(count) = self.busy.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.busy.remove(key);
            }
        }
        if let Some(count) = self.busy_of_tenant.get_mut(&key.tenant) {
            *count -= 1;
            if *count == 0 {
                self.busy_of_tenant.remove(&key.tenant);
            }
        }
    }

    fn forget(&mut self, key: &Arc<Key>) {
        let held = self.busy.contains_key(key) || self.idle.iter().any(|idle| idle.key == *key);
        if !held && !self.waiting.iter().any(|waiting| waiting.key == *key) {
            self.served.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Started(Instant);

    impl HasTurn for Started {
        fn turn(&self) -> Instant {
            self.0
        }
    }

    fn key(tenant: &str, memory: u64) -> Arc<Key> {
        Arc::new(Key { work: "test", tenant: tenant.to_owned(), setup: 0, memory, cpu: 1 })
    }

    fn step(queue: &mut Queue<Started, u32>, now: Instant) -> String {
        match queue.step(now) {
            Some(Step::Reuse(waiter, _)) => format!("reuse {waiter}"),
            Some(Step::Start(waiter, _)) => format!("start {waiter}"),
            Some(Step::End(idle)) => format!("end {}", idle.key.tenant),
            None => "wait".to_owned(),
        }
    }

    #[test]
    fn helper_serves_its_own_tenant_within_the_budget() {
        let now = Instant::now();
        let mut queue = Queue::new(10, 9);
        let (a, b) = (key("a", 6), key("b", 6));
        queue.wait(a.clone(), 1);
        queue.wait(a.clone(), 2);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["start 1", "wait"]);
        queue.returned(a.clone(), Started(now), now);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["reuse 2", "wait"]);
        queue.returned(a.clone(), Started(now), now);
        queue.wait(b.clone(), 3);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["end a", "wait"]);
        queue.ended(&a);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["start 3", "wait"]);
        queue.lost(&b);
        assert_eq!((queue.used, queue.ending), ((0, 0), (0, 0)));
        assert!(queue.served.is_empty() && queue.busy.is_empty());
    }

    #[test]
    fn tenant_without_a_helper_waits_no_longer_than_a_turn() {
        let now = Instant::now();
        let mut queue = Queue::new(10, 1);
        let (a, b) = (key("a", 1), key("b", 1));
        for waiter in 0..3 {
            queue.wait(a.clone(), waiter);
        }
        queue.wait(b.clone(), 9);
        assert_eq!(step(&mut queue, now), "start 0");
        queue.returned(a.clone(), Started(now), now);
        assert_eq!(step(&mut queue, now), "reuse 1", "its turn continues");
        let later = now + TURN;
        queue.returned(a.clone(), Started(now), later);
        assert_eq!([step(&mut queue, later), step(&mut queue, later)], ["end a", "wait"]);
        queue.ended(&a);
        assert_eq!(step(&mut queue, later), "start 9");
    }

    #[test]
    fn helper_that_is_larger_than_the_budget_runs_alone() {
        let now = Instant::now();
        let mut queue = Queue::new(10, 9);
        let (a, b, large) = (key("a", 4), key("b", 4), key("large", 50));
        queue.wait(a.clone(), 1);
        queue.wait(b.clone(), 2);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["start 1", "start 2"]);
        queue.wait(large.clone(), 3);
        queue.wait(key("c", 1), 4);
        assert_eq!(step(&mut queue, now), "wait", "a later request does not start before it");
        queue.returned(a.clone(), Started(now), now);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["end a", "wait"]);
        queue.ended(&a);
        queue.lost(&b);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["start 3", "wait"]);
        queue.lost(&large);
        assert_eq!(step(&mut queue, now), "start 4");
    }

    #[test]
    fn tenant_never_holds_all_helpers_at_work() {
        let now = Instant::now();
        let mut queue = Queue::new(10, 9);
        let (a, b, c) = (key("a", 3), key("b", 3), key("c", 3));
        for waiter in 0..9 {
            queue.wait(a.clone(), waiter);
        }
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["start 0", "start 1"]);
        assert_eq!(step(&mut queue, now), "wait", "one share is left for another tenant");
        queue.wait(b.clone(), 20);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["start 20", "wait"]);
        // A returned helper goes to the tenant without one.
        queue.wait(c.clone(), 30);
        queue.returned(a.clone(), Started(now), now);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["end a", "wait"]);
        queue.ended(&a);
        assert_eq!([step(&mut queue, now), step(&mut queue, now)], ["start 30", "wait"]);
    }

    #[test]
    fn idle_helpers_expire() {
        let now = Instant::now();
        let mut queue: Queue<Started, u32> = Queue::new(10, 2);
        let a = key("a", 1);
        queue.wait(a.clone(), 1);
        step(&mut queue, now);
        queue.returned(a.clone(), Started(now), now + TURN);
        assert!(queue.expire(now).is_empty() && queue.has_idle());
        assert_eq!(queue.expire(now + TURN).len(), 1);
        queue.ended(&a);
        assert!(!queue.has_idle() && queue.used == (0, 0));
    }
}
