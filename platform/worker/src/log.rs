//! What functions say, on its way to LOGS: bounded, and never in the way of the work.

use super::Shared;
use nerve_broker::bus::LogRecord;
use nerve_config::WorkerConfig;
use nerve_core::{
    Name,
    function::{LogLevel, LogSink},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

/// Lines of one function that may wait to be sent.
const CAPACITY: usize = 1024;
/// The longest line, in bytes.
const MAX_LINE_BYTES: usize = 16 * 1024;
/// What the bounds are for.
const SECOND: Duration = Duration::from_secs(1);

/// A record of this moment.
pub(super) fn record(function: &Name, level: LogLevel, message: String) -> LogRecord {
    LogRecord {
        time: OffsetDateTime::now_utc(),
        function: function.clone(),
        level,
        message: truncate(message, MAX_LINE_BYTES),
        event: None,
        attempts: Vec::new(),
    }
}

/// What each function may log; its revisions share it.
#[derive(Debug, Clone)]
pub(super) struct Budgets {
    lines: u32,
    bytes: usize,
    by_function: Arc<Mutex<HashMap<Name, Arc<Budget>>>>,
}

impl Budgets {
    pub(super) fn new(config: &WorkerConfig) -> Self {
        Self { lines: config.log_lines, bytes: config.log_bytes, by_function: Arc::default() }
    }

    fn of(&self, function: &Name) -> Arc<Budget> {
        let mut budgets = self.by_function.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = || Arc::new(Budget::new(self.lines, self.bytes));
        Arc::clone(budgets.entry(function.clone()).or_insert_with(budget))
    }
}

/// What one function may log in a second, and what it has dropped since that was said last.
#[derive(Debug)]
struct Budget {
    lines: u32,
    bytes: usize,
    state: Mutex<BudgetState>,
    /// Told when a line is dropped.
    overrun: Notify,
}

#[derive(Debug)]
struct BudgetState {
    second: Instant,
    lines: u32,
    bytes: usize,
    dropped: Dropped,
}

/// Lines that are in no log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Dropped {
    lines: u64,
    bytes: u64,
}

impl Budget {
    fn new(lines: u32, bytes: usize) -> Self {
        let state = BudgetState { second: Instant::now(), lines: 0, bytes: 0, dropped: Dropped::default() };
        Self { lines, bytes, state: Mutex::new(state), overrun: Notify::new() }
    }

    /// Whether a line of so many bytes is within what is left of this second; it is counted in any case.
    fn take(&self, bytes: usize) -> bool {
        let mut state = self.lock();
        if state.second.elapsed() >= SECOND {
            (state.second, state.lines, state.bytes) = (Instant::now(), 0, 0);
        }
        let fits = state.lines < self.lines && state.bytes.saturating_add(bytes) <= self.bytes;
        if fits {
            state.lines += 1;
            state.bytes += bytes;
        }
        drop(state);
        if !fits {
            self.dropped(bytes);
        }
        fits
    }

    fn dropped(&self, bytes: usize) {
        let mut state = self.lock();
        state.dropped.lines += 1;
        state.dropped.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        drop(state);
        self.overrun.notify_one();
    }

    /// What is to be said of dropped lines, if any were.
    fn summary(&self) -> Option<String> {
        let Dropped { lines, bytes } = std::mem::take(&mut self.lock().dropped);
        let (most, most_bytes) = (self.lines, self.bytes);
        (lines > 0).then(|| {
            format!(
                "{lines} lines ({bytes} bytes) were dropped: a function may log worker.log_lines ({most}) and \
                 worker.log_bytes ({most_bytes}) in a second"
            )
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a record of the worker's own about a function, within the function's budget.
pub(super) async fn write(shared: &Shared, record: &LogRecord) {
    let of_attempts = record.attempts.iter().map(|attempt| attempt.error.message.len()).sum::<usize>();
    if shared.log_budgets.of(&record.function).take(record.message.len() + of_attempts) {
        shared.bus.log(record).await;
    }
}

/// A sink for one loaded function; its task ends when the function is gone.
pub(super) fn sink(shared: &Shared, function: &Name) -> LogSink {
    let (sender, lines) = mpsc::channel::<LogRecord>(CAPACITY);
    let budget = shared.log_budgets.of(function);
    shared.tasks.spawn(send(shared.bus.clone(), function.clone(), lines, Arc::clone(&budget)));
    let function = function.clone();
    LogSink::new(move |line| {
        let bytes = line.message.len().min(MAX_LINE_BYTES);
        // The cheapest first: a line that is dropped is not copied.
        if budget.take(bytes) && sender.try_send(record(&function, line.level, line.message)).is_err() {
            budget.dropped(bytes);
        }
    })
}

/// Sends lines until their function is gone, and says once a second at most how many were dropped.
async fn send(bus: nerve_broker::bus::Bus, function: Name, mut lines: mpsc::Receiver<LogRecord>, budget: Arc<Budget>) {
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(line) => bus.log(&line).await,
                None => break,
            },
            () = budget.overrun.notified(), if due.is_none() => due = Some(Instant::now() + SECOND),
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                if let Some(summary) = budget.summary() {
                    bus.log(&record(&function, LogLevel::Warn, summary)).await;
                }
            }
        }
    }
    if let Some(summary) = budget.summary() {
        bus.log(&record(&function, LogLevel::Warn, summary)).await;
    }
}

/// Cuts a text at `longest` bytes, at a character's boundary.
pub(super) fn truncate(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let mut end = longest;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_between_characters() {
        let cut = truncate("ü".repeat(MAX_LINE_BYTES), MAX_LINE_BYTES);
        assert!(cut.len() <= MAX_LINE_BYTES + "…".len() && cut.ends_with('…'));
        assert_eq!(truncate("short".into(), MAX_LINE_BYTES), "short");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_and_bytes_of_a_second_are_bounded_and_the_rest_is_counted() {
        let budget = Budget::new(3, 100);
        assert!(budget.take(10) && budget.take(90) && !budget.take(1), "bytes");
        assert_eq!(budget.lock().dropped, Dropped { lines: 1, bytes: 1 });
        tokio::time::advance(SECOND).await;
        assert!(budget.take(1) && budget.take(1) && budget.take(1) && !budget.take(1), "lines");
        assert!(budget.summary().is_some_and(|said| said.starts_with("2 lines (2 bytes) were dropped")));
        assert_eq!(budget.summary(), None);
    }
}
