//! Answers that wait for a model, and its thread, which writes a few of them by turns, a token each.
//!
//! A reader that leaves takes its answer out of the line, or ends it before its next token. When a step panics, that
//! answer alone has failed: the model is loaded again, and the others go on.

use super::{answer::Answer, decoder::Engine};
use crate::engine::{self, MakeEngine};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};
use tokio_util::task::TaskTracker;

/// Answers that are written at the same time.
const TOGETHER: usize = 4;

/// What waits for one model.
pub(super) struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Answer>,
    closed: bool,
}

impl Line {
    /// Starts the model's thread, and waits until it has its engine.
    pub(super) fn start(name: &str, tasks: &TaskTracker, make: Arc<MakeEngine<Engine>>) -> Result<Arc<Self>, String> {
        let line = Arc::new(Self { state: Mutex::default(), changed: Condvar::new() });
        let (ready, made) = mpsc::channel();
        let (writer, token) = (Writer { line: line.clone(), make, name: name.to_owned() }, tasks.token());
        let spawned = thread::Builder::new().name("onnx-writer".to_owned()).spawn(move || {
            writer.run(&ready);
            drop(token);
        });
        spawned.map_err(|error| format!("a thread for the model cannot be started: {error}"))?;
        made.recv().map_err(|_| "the model's thread ended while it was loaded".to_owned())??;
        Ok(line)
    }

    pub(super) fn push(&self, answer: Answer) {
        let mut state = self.lock();
        state.waiting.retain(|waiting| !waiting.is_left());
        state.waiting.push_back(answer);
        drop(state);
        self.changed.notify_one();
    }

    /// Ends the thread; what waits is dropped, and its readers are told.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Adds to those that are written while there is room, and waits for one where there is none; `false` once the
    /// model is being closed.
    fn fill(&self, written: &mut VecDeque<Answer>) -> bool {
        let mut state = self.lock();
        loop {
            if state.closed {
                return false;
            }
            while written.len() < TOGETHER
                && let Some(answer) = state.waiting.pop_front()
            {
                written.push_back(answer);
            }
            if !written.is_empty() {
                return true;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sleeps, but not past the model's end; whether it is closed.
    fn sleep_unless_closed(&self, wait: Duration) -> bool {
        let slept = self.changed.wait_timeout_while(self.lock(), wait, |state| !state.closed);
        slept.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The model's thread.
struct Writer {
    line: Arc<Line>,
    make: Arc<MakeEngine<Engine>>,
    name: String,
}

impl Writer {
    fn run(self, ready: &mpsc::Sender<Result<(), String>>) {
        let mut engine = match engine::make(&*self.make) {
            Ok(engine) => engine,
            Err(error) => return drop(ready.send(Err(error))),
        };
        drop(ready.send(Ok(())));
        let steps = metrics::counter!("nerve_onnx_steps_total", "model" => self.name.clone());
        let mut written = VecDeque::new();
        while self.line.fill(&mut written) {
            let Some(mut answer) = written.pop_front() else { continue };
            if answer.is_left() {
                continue;
            }
            steps.increment(1);
            match catch_unwind(AssertUnwindSafe(|| answer.step(&mut engine))) {
                Ok(true) => {}
                Ok(false) => written.push_back(answer),
                Err(_) => {
                    tracing::error!(model = self.name, "an answer panicked: the model is loaded again");
                    answer.fail("the model's thread panicked; the log has the message".to_owned());
                    let sleep = |wait| self.line.sleep_unless_closed(wait);
                    let Some(remade) = engine::remake(&self.name, &*self.make, sleep) else { return };
                    engine = remade;
                }
            }
        }
    }
}
