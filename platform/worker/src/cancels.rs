//! Answers that nobody wants any more: what works on one is stopped, and what comes for one is passed over.

use super::Shared;
use futures::StreamExt;
use nerve_broker::bus::AnswerSignal;
use nerve_core::{Event, answer};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How long a cancelled answer is known: its events come within seconds, or after their last retry.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The most cancelled answers that are known.
const MOST: usize = 10_000;
/// The wait before a broken subscription is made again.
const REOPEN: Duration = Duration::from_millis(500);

/// The workflows that are running here, and those that were cancelled lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Cancels(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// By answer: its token, and how many invocations hold it.
    running: HashMap<String, (CancellationToken, usize)>,
    cancelled: HashMap<String, Instant>,
    /// In the order in which they were cancelled.
    order: VecDeque<String>,
}

/// An invocation's hold on its answer's token.
pub(super) struct Running {
    cancels: Cancels,
    id: String,
    pub(super) token: CancellationToken,
}

impl Cancels {
    /// Whether the event is for an answer that nobody wants.
    pub(super) fn is_cancelled(&self, event: &Event) -> bool {
        let state = self.lock();
        !state.cancelled.is_empty() && state.cancelled.contains_key(answer::id_of(event))
    }

    /// What stops work on this event when its answer is cancelled.
    pub(super) fn running(&self, event: &Event) -> Running {
        let id = answer::id_of(event).to_owned();
        let mut state = self.lock();
        let (token, holders) = state.running.entry(id.clone()).or_default();
        *holders += 1;
        Running { cancels: self.clone(), token: token.clone(), id }
    }

    fn cancel(&self, id: String) {
        let mut state = self.lock();
        if let Some((token, _)) = state.running.get(&id) {
            token.cancel();
        }
        if state.cancelled.insert(id.clone(), Instant::now()).is_none() {
            state.order.push_back(id);
        }
        while let Some(oldest) = state.order.front().cloned() {
            let old = state.cancelled.get(&oldest).is_none_or(|since| since.elapsed() > REMEMBERED);
            if !old && state.order.len() <= MOST {
                break;
            }
            state.order.pop_front();
            state.cancelled.remove(&oldest);
        }
    }

    /// Takes events of an answer again.
    fn resume(&self, id: &str) {
        let mut state = self.lock();
        if state.cancelled.remove(id).is_some() {
            state.order.retain(|known| known != id);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.cancels.lock();
        if let Some((_, holders)) = state.running.get_mut(&self.id) {
            *holders -= 1;
            if *holders == 0 {
                state.running.remove(&self.id);
            }
        }
    }
}

/// Hears of cancelled answers until the work stops.
pub(super) async fn follow(shared: Shared) {
    let stop = shared.stops.work.clone();
    while !stop.is_cancelled() {
        match shared.bus.answer_signals().await {
            Ok(mut answer_signals) => {
                while let Some(Some(wish)) = stop.run_until_cancelled(answer_signals.next()).await {
                    tracing::debug!(?wish);
                    match wish {
                        AnswerSignal::Cancelled(id) => shared.cancels.cancel(id),
                        AnswerSignal::Resumed(id) => shared.cancels.resume(&id),
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cancelled answers are not heard of"),
        }
        stop.run_until_cancelled(tokio::time::sleep(REOPEN)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;

    fn event(id: &str) -> Event {
        Event::new(id, "/s", EventType::parse("a").unwrap())
    }

    #[test]
    fn what_runs_is_stopped_and_what_comes_is_passed_over() {
        let cancels = Cancels::default();
        let (first, second) = (cancels.running(&event("1")), cancels.running(&event("1")));
        let other = cancels.running(&event("2"));
        cancels.cancel("1".to_owned());
        assert!(first.token.is_cancelled() && second.token.is_cancelled() && !other.token.is_cancelled());
        assert!(cancels.is_cancelled(&event("1")) && !cancels.is_cancelled(&event("2")));
        drop((first, second, other));
        assert!(cancels.lock().running.is_empty());
        cancels.resume("1");
        assert!(!cancels.is_cancelled(&event("1")) && cancels.lock().order.is_empty());
    }

    #[test]
    fn only_so_many_are_known() {
        let cancels = Cancels::default();
        for n in 0..MOST + 10 {
            cancels.cancel(n.to_string());
        }
        let known = |state: &State| (state.cancelled.len(), state.order.len());
        assert_eq!(known(&cancels.lock()), (MOST, MOST));
        assert!(!cancels.is_cancelled(&event("0")) && cancels.is_cancelled(&event("10")));
    }
}
