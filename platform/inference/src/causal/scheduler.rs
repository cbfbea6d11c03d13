//! The scheduler of a model's generations: one thread interleaves a few of them, one token each.
//!
//! A dropped stream removes its generation from the queue, or ends it before its next token. A panic in a step fails
//! only that generation: the model is reloaded and the others continue.

use super::{decoder::StepEngine, generation::Generation};
use crate::engine::{self, EngineFactory};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};
use tokio_util::task::TaskTracker;

/// Maximum number of interleaved generations.
const MAX_INTERLEAVED: usize = 4;

/// Queue of a model's generations.
pub(super) struct Scheduler {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Generation>,
    closed: bool,
}

impl Scheduler {
    /// Starts the model's thread and waits until it has created its engine.
    ///
    /// # Errors
    /// If the engine cannot be created.
    pub(super) fn start(
        name: &str,
        tasks: &TaskTracker,
        factory: Arc<EngineFactory<StepEngine>>,
    ) -> Result<Arc<Self>, String> {
        let scheduler = Arc::new(Self { state: Mutex::default(), changed: Condvar::new() });
        let (ready, created) = mpsc::channel();
        let (scheduler_thread, token) =
            (SchedulerThread { scheduler: scheduler.clone(), factory, name: name.to_owned() }, tasks.token());
        let spawned = thread::Builder::new().name("onnx-writer".to_owned()).spawn(move || {
            scheduler_thread.run(&ready);
            drop(token);
        });
        spawned.map_err(|error| format!("cannot start a thread for the model: {error}"))?;
        created.recv().map_err(|_| "the model's thread ended during loading".to_owned())??;
        Ok(scheduler)
    }

    pub(super) fn push(&self, generation: Generation) {
        let mut state = self.state.lock();
        state.waiting.retain(|waiting| !waiting.is_cancelled());
        state.waiting.push_back(generation);
        drop(state);
        self.changed.notify_one();
    }

    /// Ends the thread; queued generations fail.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Adds queued generations up to the limit, and waits if there are none. Returns `false` once the model is
    /// closing.
    fn fill(&self, active: &mut VecDeque<Generation>) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return false;
            }
            while active.len() < MAX_INTERLEAVED
                && let Some(generation) = state.waiting.pop_front()
            {
                active.push_back(generation);
            }
            if !active.is_empty() {
                return true;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Sleeps until the delay ends or the model is closing. Returns whether it is closing.
    fn sleep_unless_closed(&self, wait: Duration) -> bool {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| !state.closed, wait);
        state.closed
    }
}

/// The model's thread.
struct SchedulerThread {
    scheduler: Arc<Scheduler>,
    factory: Arc<EngineFactory<StepEngine>>,
    name: String,
}

impl SchedulerThread {
    fn run(self, ready: &mpsc::Sender<Result<(), String>>) {
        let mut engine = match engine::create(&*self.factory) {
            Ok(engine) => engine,
            Err(error) => return drop(ready.send(Err(error))),
        };
        drop(ready.send(Ok(())));
        let steps = metrics::counter!("nerve_onnx_steps_total", "model" => self.name.clone());
        let mut active = VecDeque::new();
        while self.scheduler.fill(&mut active) {
            let Some(mut generation) = active.pop_front() else { continue };
            if generation.is_cancelled() {
                continue;
            }
            steps.increment(1);
            match catch_unwind(AssertUnwindSafe(|| generation.step(&mut engine))) {
                Ok(true) => {}
                Ok(false) => active.push_back(generation),
                Err(_) => {
                    tracing::error!(model = self.name, "a generation panicked; reloading the model");
                    generation.fail("the model's thread panicked; see the log".to_owned());
                    let sleep = |wait| self.scheduler.sleep_unless_closed(wait);
                    let Some(recreated) = engine::recreate(&self.name, &*self.factory, sleep) else { return };
                    engine = recreated;
                }
            }
        }
    }
}
