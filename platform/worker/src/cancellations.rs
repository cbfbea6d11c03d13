//! Cancelled answers: their running invocations are stopped, and their later events are skipped.

use super::WorkerShared;
use futures::StreamExt;
use nerve_broker::bus::AnswerSignal;
use nerve_core::{Event, answer};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// The period in which events of a cancelled answer are skipped. They arrive within seconds, or after their last retry.
const CANCELLATION_TTL: Duration = Duration::from_secs(600);
/// Maximum number of remembered cancelled answers.
const MAX_CANCELLED_ANSWERS: usize = 10_000;
/// The wait before a failed subscription is reopened.
const RESUBSCRIBE_INTERVAL: Duration = Duration::from_millis(500);

/// The answers with running invocations, and those cancelled recently.
#[derive(Debug, Clone, Default)]
pub(super) struct Cancellations(Arc<Mutex<CancellationState>>);

#[derive(Debug, Default)]
struct CancellationState {
    /// By answer: its token and the count of invocations that hold it.
    running: HashMap<String, (CancellationToken, usize)>,
    cancelled: HashMap<String, Instant>,
    /// Cancelled answers, oldest first.
    order: VecDeque<String>,
}

/// A running invocation of an answer, with the answer's cancellation token.
pub(super) struct RunningInvocation {
    cancellations: Cancellations,
    id: String,
    pub(super) token: CancellationToken,
}

impl Cancellations {
    /// Whether the event belongs to a cancelled answer.
    pub(super) fn is_cancelled(&self, event: &Event) -> bool {
        let state = self.0.lock();
        !state.cancelled.is_empty() && state.cancelled.contains_key(answer::id_of(event))
    }

    /// Registers an invocation for this event. Its token is cancelled together with the answer.
    pub(super) fn running(&self, event: &Event) -> RunningInvocation {
        let id = answer::id_of(event).to_owned();
        let mut state = self.0.lock();
        let (token, holders) = state.running.entry(id.clone()).or_default();
        *holders += 1;
        RunningInvocation { cancellations: self.clone(), token: token.clone(), id }
    }

    fn cancel(&self, id: String) {
        let mut state = self.0.lock();
        if let Some((token, _)) = state.running.get(&id) {
            token.cancel();
        }
        if state.cancelled.insert(id.clone(), Instant::now()).is_none() {
            state.order.push_back(id);
        }
        while let Some(oldest) = state.order.front().cloned() {
            let old = state.cancelled.get(&oldest).is_none_or(|since| since.elapsed() > CANCELLATION_TTL);
            if !old && state.order.len() <= MAX_CANCELLED_ANSWERS {
                break;
            }
            state.order.pop_front();
            state.cancelled.remove(&oldest);
        }
    }

    /// Stops skipping events of an answer.
    fn resume(&self, id: &str) {
        let mut state = self.0.lock();
        if state.cancelled.remove(id).is_some() {
            state.order.retain(|known| known != id);
        }
    }
}

impl Drop for RunningInvocation {
    fn drop(&mut self) {
        let mut state = self.cancellations.0.lock();
        if let Some((_, holders)) = state.running.get_mut(&self.id) {
            *holders -= 1;
            if *holders == 0 {
                state.running.remove(&self.id);
            }
        }
    }
}

/// Follows cancellation signals until the work stops.
pub(super) async fn follow(shared: WorkerShared) {
    let stop = shared.stops.work.clone();
    while !stop.is_cancelled() {
        match shared.bus.answer_signals().await {
            Ok(mut answer_signals) => {
                while let Some(Some(wish)) = stop.run_until_cancelled(answer_signals.next()).await {
                    tracing::debug!(?wish);
                    match wish {
                        AnswerSignal::Cancelled(id) => shared.cancellations.cancel(id),
                        AnswerSignal::Resumed(id) => shared.cancellations.resume(&id),
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cannot subscribe to cancellations; retrying"),
        }
        stop.run_until_cancelled(tokio::time::sleep(RESUBSCRIBE_INTERVAL)).await;
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
    fn cancellation_stops_running_invocations_and_skips_later_events() {
        let cancellations = Cancellations::default();
        let (first, second) = (cancellations.running(&event("1")), cancellations.running(&event("1")));
        let other = cancellations.running(&event("2"));
        cancellations.cancel("1".to_owned());
        assert!(first.token.is_cancelled() && second.token.is_cancelled() && !other.token.is_cancelled());
        assert!(cancellations.is_cancelled(&event("1")) && !cancellations.is_cancelled(&event("2")));
        drop((first, second, other));
        assert!(cancellations.0.lock().running.is_empty());
        cancellations.resume("1");
        assert!(!cancellations.is_cancelled(&event("1")) && cancellations.0.lock().order.is_empty());
    }

    #[test]
    fn oldest_cancelled_answer_is_forgotten_beyond_the_limit() {
        let cancellations = Cancellations::default();
        for n in 0..MAX_CANCELLED_ANSWERS + 10 {
            cancellations.cancel(n.to_string());
        }
        let known = |state: &CancellationState| (state.cancelled.len(), state.order.len());
        assert_eq!(known(&cancellations.0.lock()), (MAX_CANCELLED_ANSWERS, MAX_CANCELLED_ANSWERS));
        assert!(!cancellations.is_cancelled(&event("0")) && cancellations.is_cancelled(&event("10")));
    }
}
