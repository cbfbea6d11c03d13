//! Owns the child process and attributes a crash to an event.
//!
//! If the process exits, or one event exceeds its timeout, while several are in flight, the culprit is
//! unknown. Then all of them are suspects: they run one at a time, and only one that fails alone is blamed. New
//! events wait until the suspects are finished. The same applies to an answer that names none of several events in flight.

use super::{
    child::{Child, Launch},
    wire::{Answer, Call, Line, Mistake, Reading},
};
use nerve_core::{Emission, Fault, FunctionError, Outcome, function::LogLevel};
use serde_json::value::RawValue;
use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, RandomState},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// An event to run, and the channel for its progress.
pub(super) struct Request {
    pub(super) event: Box<RawValue>,
    pub(super) progress: mpsc::Sender<Progress>,
}

/// The progress of a request.
pub(super) enum Progress {
    /// It runs again from the start.
    Again,
    /// Publish this output event.
    Emit(Emission),
    /// It is finished.
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
    Line(Line),
    Exited,
    Overdue(u64),
}

/// The reason to end a child.
enum Death {
    Exited,
    Overdue(u64),
    /// It violated the protocol in an answer to one of the events in flight.
    Mistaken(String),
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
    /// The first id given to this child.
    first_id: u64,
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
        // Ids start at a random number, so that an id invented by a function is unlikely to match.
        let next_id = RandomState::new().hash_one(()) >> 32;
        let (child, failures) = (Some(child), 0);
        Self { launch, child, intake, stop, tracker, grace, in_flight, suspects, next_id, first_id: next_id, failures }
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
                Step::Line(line) => {
                    if let Some(mistake) = self.line(&line).await {
                        self.died(Death::Mistaken(mistake)).await;
                    }
                }
                Step::Exited => self.died(Death::Exited).await,
                Step::Overdue(id) => self.died(Death::Overdue(id)).await,
            }
        }
        self.close().await;
    }

    async fn step(&mut self) -> Step {
        let alone = !self.suspects.is_empty() || self.in_flight.values().any(|running| running.suspect);
        let room = !alone && self.in_flight.len() < self.launch.room();
        // All have the same timeout and ids grow, so the first is due first.
        let first = self.in_flight.first_key_value();
        let overdue = first.map(|(id, running)| (*id, running.deadline));
        let (first, deadline) = overdue.unwrap_or((0, Instant::now()));
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
            () = tokio::time::sleep_until(deadline), if overdue.is_some() => Step::Overdue(first),
            request = self.intake.recv(), if room => Step::Request(request),
        }
    }

    /// Sends a request to the child, which is started if necessary.
    async fn start(&mut self, request: Request, suspect: bool) {
        while self.child.is_none() {
            let wait = match self.failures {
                0 => Duration::ZERO,
                failures => FIRST_WAIT.saturating_mul(2_u32.saturating_pow(failures - 1)).min(LONGEST_WAIT),
            };
            tokio::select! {
                // Dropping the request reports it as interrupted.
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let laid_out = self.launch.folder.restore(&self.launch.deployment).await;
            match laid_out.and_then(|()| Child::start(&self.launch, &self.tracker)) {
                Ok(child) => {
                    self.child = Some(child);
                    self.first_id = self.next_id;
                }
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

    /// Handles a line of stdout; returns the mistake in it, if it was made in an answer to one of several events in flight.
    async fn line(&mut self, line: &Line) -> Option<String> {
        let mut unattributed = None;
        for reading in line.read() {
            let mistake = match reading {
                Reading::Text => {
                    self.warn(format!("stdout is for answers; this line is none: {}", line.quote()));
                    continue;
                }
                Reading::Answer(id, answer) if self.in_flight.contains_key(&id) => {
                    self.answer(id, answer).await;
                    continue;
                }
                Reading::Answer(id, _) => Mistake { ids: vec![id], why: format!("no event in flight has the id {id}") },
                Reading::Mistake(mistake) => mistake,
            };
            unattributed = self.mistake(mistake, line).await.or(unattributed);
        }
        unattributed
    }

    async fn answer(&mut self, id: u64, answer: Answer) {
        match (answer, self.in_flight.get(&id)) {
            (Answer::Emit(emission), Some(running)) => tell(&running.request, Progress::Emit(emission)).await,
            (Answer::Done(outcome), _) => {
                self.failures = 0;
                self.done(id, outcome).await;
            }
            (Answer::Emit(_), None) => {}
        }
    }

    /// Fails the events that a malformed line names; returns the message if these are unknown.
    async fn mistake(&mut self, Mistake { mut ids, why }: Mistake, line: &Line) -> Option<String> {
        let quote = line.quote();
        let given = !ids.is_empty() && ids.iter().all(|id| (self.first_id..self.next_id).contains(id));
        ids.retain(|id| self.in_flight.contains_key(id));
        if ids.is_empty() && (given || self.in_flight.is_empty()) {
            self.warn(format!(
                "an answer to no event in flight is dropped with its results ({why}); answer each event once, with all of \
                 its results: {quote}"
            ));
            return None;
        }
        let name = &self.launch.deployment.name;
        let message = format!(
            "`{name}` broke the process protocol: {why}. The line was: {quote}\nWhat a line may hold is in \
             functions/reference/process.md: correct the function, deploy it and redrive the event"
        );
        if ids.is_empty() {
            if self.in_flight.len() > 1 {
                return Some(message);
            }
            ids.extend(self.in_flight.keys());
        }
        for id in ids {
            self.done(id, Err(FunctionError::new(Fault::Invalid, message.clone()))).await;
        }
        None
    }

    async fn done(&mut self, id: u64, outcome: Outcome) {
        if let Some(running) = self.in_flight.remove(&id) {
            tell(&running.request, Progress::Done(outcome)).await;
        }
    }

    /// Ends the process, if it is running, and decides the outcome of the events in flight.
    async fn died(&mut self, death: Death) {
        let Some(mut child) = self.child.take() else { return };
        if matches!(death, Death::Exited) {
            child.await_exit().await;
        }
        let (rest, what) = child.end().await;
        for line in rest {
            // If several events are in flight after this, they are suspects.
            let _ = self.line(&line).await;
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
            let error = match &death {
                Death::Mistaken(mistake) => FunctionError::new(Fault::Invalid, mistake.clone()),
                Death::Overdue(overdue) if *overdue == id => {
                    let message =
                        format!("`{name}` did not answer within {timeout:?} (`timeout` in nerve.toml): {what}");
                    FunctionError::new(Fault::Timeout, message)
                }
                _ => FunctionError::new(Fault::Crash, format!("the process of `{name}` ended: {what}")),
            };
            tell(&running.request, Progress::Done(Err(error))).await;
        }
    }

    /// Lets the child finish its events within the grace period; the rest is interrupted by being dropped. Its folder
    /// is removed with it.
    async fn close(mut self) {
        self.intake.close();
        self.suspects.clear();
        if let Some(mut child) = self.child.take() {
            child.finish();
            let until = Instant::now() + self.grace;
            while let Ok(Some(line)) = tokio::time::timeout_at(until, child.step()).await {
                let _ = self.line(&line).await;
            }
            let (rest, _) = child.end().await;
            for line in rest {
                let _ = self.line(&line).await;
            }
        }
        self.in_flight.clear();
        self.launch.folder.remove().await;
    }

    fn warn(&self, message: String) {
        self.launch.deployment.logs.log(LogLevel::Warn, message);
    }
}

/// A caller that is gone needs no result.
async fn tell(request: &Request, progress: Progress) {
    let _ = request.progress.send(progress).await;
}
