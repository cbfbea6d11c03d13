//! Owns the child, and decides who is guilty when it dies.
//!
//! When the process exits, or one event passes its timeout, while several are in flight, nobody knows whose fault
//! it is. Then all of them are suspects: they run one at a time, and only one that fails alone is blamed. New
//! events wait until the suspects are done.

use super::{
    child::{Child, Launch},
    wire::{Answer, Call},
};
use nerve_core::{Emission, Fault, FunctionError, Outcome};
use serde_json::value::RawValue;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// One event to run, and where to say what becomes of it.
pub(super) struct Request {
    pub(super) event: Box<RawValue>,
    pub(super) progress: mpsc::Sender<Progress>,
}

/// What becomes of a request.
pub(super) enum Progress {
    /// It is run again from the start.
    Again,
    /// Publish this.
    Emit(Emission),
    /// It is over.
    Done(Outcome),
}

struct InFlight {
    request: Request,
    deadline: Instant,
    suspect: bool,
}

enum Step {
    Stop,
    Request(Option<Request>),
    Line(Vec<u8>),
    Exited,
    Overdue(u64),
}

pub(super) struct Actor {
    launch: Launch,
    child: Option<Child>,
    intake: mpsc::Receiver<Request>,
    stop: CancellationToken,
    tracker: TaskTracker,
    grace: Duration,
    in_flight: BTreeMap<u64, InFlight>,
    suspects: VecDeque<Request>,
    next_id: u64,
    failures: u32,
}

impl Actor {
    pub(super) fn new(
        launch: Launch,
        child: Child,
        intake: mpsc::Receiver<Request>,
        stop: CancellationToken,
        tracker: TaskTracker,
        grace: Duration,
    ) -> Self {
        let (in_flight, suspects) = (BTreeMap::new(), VecDeque::new());
        Self { launch, child: Some(child), intake, stop, tracker, grace, in_flight, suspects, next_id: 1, failures: 0 }
    }

    pub(super) async fn run(mut self) {
        loop {
            if self.in_flight.is_empty()
                && let Some(request) = self.suspects.pop_front()
            {
                self.start(request, true).await;
                continue;
            }
            match self.step().await {
                Step::Stop | Step::Request(None) => break,
                Step::Request(Some(request)) => self.start(request, false).await,
                Step::Line(line) => self.line(&line).await,
                Step::Exited => self.died(None).await,
                Step::Overdue(id) => self.died(Some(id)).await,
            }
        }
        self.close().await;
    }

    async fn step(&mut self) -> Step {
        let alone = !self.suspects.is_empty() || self.in_flight.values().any(|running| running.suspect);
        let room = !alone && self.in_flight.len() < self.launch.room();
        // All have one timeout, and ids grow: the first is due first.
        let first = self.in_flight.first_key_value();
        let (overdue, deadline) = first.map_or((0, Instant::now()), |(id, running)| (*id, running.deadline));
        let child = &mut self.child;
        let output = async {
            match child {
                Some(child) => child.step().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Step::Stop,
            line = output => line.map_or(Step::Exited, Step::Line),
            () = tokio::time::sleep_until(deadline), if overdue != 0 => Step::Overdue(overdue),
            request = self.intake.recv(), if room => Step::Request(request),
        }
    }

    /// Sends a request to the child, starting one if there is none.
    async fn start(&mut self, request: Request, suspect: bool) {
        while self.child.is_none() {
            let wait = match self.failures {
                0 => Duration::ZERO,
                failures => FIRST_WAIT.saturating_mul(2_u32.saturating_pow(failures - 1)).min(LONGEST_WAIT),
            };
            tokio::select! {
                // Dropping the request tells its caller that it was interrupted.
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let laid_out = self.launch.folder.restore(&self.launch.deployment).await;
            match laid_out.and_then(|()| Child::start(&self.launch, &self.tracker)) {
                Ok(child) => self.child = Some(child),
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    tell(&request, Progress::Done(Err(FunctionError::new(Fault::Crash, error.to_string())))).await;
                    return;
                }
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        if let (Some(child), Ok(mut line)) = (&self.child, serde_json::to_string(&Call { id, event: &request.event })) {
            line.push('\n');
            child.send(line);
        }
        let deadline = Instant::now() + self.launch.deployment.spec.timeout;
        self.in_flight.insert(id, InFlight { request, deadline, suspect });
    }

    async fn line(&mut self, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let answer = match serde_json::from_slice::<Answer>(line) {
            Ok(answer) => answer,
            Err(error) => {
                let start = String::from_utf8_lossy(line.get(..200).unwrap_or(line)).into_owned();
                return self.warn(format!("stdout is for answers; this line is none ({error}): {start}"));
            }
        };
        let Some(running) = self.in_flight.get(&answer.id) else {
            return self.warn(format!("an answer to {}, which is not in flight, is passed over", answer.id));
        };
        if let Some(emitted) = answer.emit {
            match emitted.emission() {
                Ok(emission) => return tell(&running.request, Progress::Emit(emission)).await,
                Err(error) => return self.done(answer.id, Err(error)).await,
            }
        }
        let outcome = match answer.error {
            Some(failure) => Err(failure.into()),
            None => answer.events.unwrap_or_default().into_iter().map(super::wire::Emitted::emission).collect(),
        };
        self.failures = 0;
        self.done(answer.id, outcome).await;
    }

    async fn done(&mut self, id: u64, outcome: Outcome) {
        if let Some(running) = self.in_flight.remove(&id) {
            tell(&running.request, Progress::Done(outcome)).await;
        }
    }

    /// The process exited, or is to be killed because `overdue` is.
    async fn died(&mut self, overdue: Option<u64>) {
        let Some(child) = self.child.take() else { return };
        let (rest, what) = child.end().await;
        for line in rest {
            self.line(&line).await;
        }
        self.failures = self.failures.saturating_add(1);
        let name = self.launch.deployment.name.clone();
        let running = std::mem::take(&mut self.in_flight);
        if running.len() > 1 {
            for (_, running) in running {
                tell(&running.request, Progress::Again).await;
                self.suspects.push_back(running.request);
            }
            return;
        }
        let timeout = self.launch.deployment.spec.timeout;
        for (id, running) in running {
            let error = if overdue == Some(id) {
                let message = format!("`{name}` did not answer within {timeout:?} (`timeout` in nerve.toml): {what}");
                FunctionError::new(Fault::Timeout, message)
            } else {
                FunctionError::new(Fault::Crash, format!("the process of `{name}` ended: {what}"))
            };
            tell(&running.request, Progress::Done(Err(error))).await;
        }
    }

    /// Lets the child finish what it has, for as long as the grace; the rest is interrupted by being dropped. Its folder
    /// ends with it.
    async fn close(mut self) {
        self.intake.close();
        self.suspects.clear();
        if let Some(mut child) = self.child.take() {
            child.finish();
            let until = Instant::now() + self.grace;
            while let Ok(Some(line)) = tokio::time::timeout_at(until, child.step()).await {
                self.line(&line).await;
            }
            let (rest, _) = child.end().await;
            for line in rest {
                self.line(&line).await;
            }
        }
        self.in_flight.clear();
        self.launch.folder.remove().await;
    }

    fn warn(&self, message: String) {
        self.launch.deployment.logs.log(nerve_core::function::LogLevel::Warn, message);
    }
}

/// A caller that is gone does not want to know.
async fn tell(request: &Request, progress: Progress) {
    let _ = request.progress.send(progress).await;
}
