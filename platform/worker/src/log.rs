//! Log lines of functions, sent to LOGS: rate-limited, and never blocking the function.

use super::WorkerShared;
use nerve_broker::bus::LogRecord;
use nerve_config::WorkerConfig;
use nerve_core::{
    Name,
    function::{LogLevel, LogSink},
};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

/// Maximum queued lines of one function.
const MAX_QUEUED_LINES: usize = 1024;
/// Maximum bytes of a line.
const MAX_LINE_BYTES: usize = 16 * 1024;
/// The period of the limits.
const BUDGET_PERIOD: Duration = Duration::from_secs(1);

/// Creates a record with the current time.
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

/// The log budget of each function, which its revisions share.
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
        let mut budgets = self.by_function.lock();
        let budget = || Arc::new(Budget::new(self.lines, self.bytes));
        Arc::clone(budgets.entry(function.clone()).or_insert_with(budget))
    }
}

/// The log budget of one function per second, and the lines dropped since the last summary.
#[derive(Debug)]
struct Budget {
    lines: u32,
    bytes: usize,
    state: Mutex<BudgetState>,
    /// Notified when a line is dropped.
    overrun: Notify,
}

#[derive(Debug)]
struct BudgetState {
    second: Instant,
    lines: u32,
    bytes: usize,
    dropped: DroppedLines,
}

/// Counts of dropped lines and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct DroppedLines {
    lines: u64,
    bytes: u64,
}

impl Budget {
    fn new(lines: u32, bytes: usize) -> Self {
        let state = BudgetState { second: Instant::now(), lines: 0, bytes: 0, dropped: DroppedLines::default() };
        Self { lines, bytes, state: Mutex::new(state), overrun: Notify::new() }
    }

    /// Whether the remaining budget of this second covers a line of this size. Counts the line as logged or dropped.
    fn take(&self, bytes: usize) -> bool {
        let mut state = self.state.lock();
        if state.second.elapsed() >= BUDGET_PERIOD {
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
        let mut state = self.state.lock();
        state.dropped.lines += 1;
        state.dropped.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        drop(state);
        self.overrun.notify_one();
    }

    /// Returns a summary of the dropped lines, if any, and resets their counts.
    fn summary(&self) -> Option<String> {
        let DroppedLines { lines, bytes } = std::mem::take(&mut self.state.lock().dropped);
        let (max_lines, max_bytes) = (self.lines, self.bytes);
        (lines > 0).then(|| {
            format!(
                "{lines} lines ({bytes} bytes) were dropped: the limits per function and second are \
                 worker.log_lines ({max_lines}) and worker.log_bytes ({max_bytes})"
            )
        })
    }
}

/// Writes a record of the worker about a function, within the function's budget.
pub(super) async fn write(shared: &WorkerShared, record: &LogRecord) {
    let of_attempts = record.attempts.iter().map(|attempt| attempt.error.message.len()).sum::<usize>();
    if shared.log_budgets.of(&record.function).take(record.message.len() + of_attempts) {
        shared.bus.log(record).await;
    }
}

/// Creates the log sink of one loaded function. Its task ends when the function is dropped.
pub(super) fn sink(shared: &WorkerShared, function: &Name) -> LogSink {
    let (sender, lines) = mpsc::channel::<LogRecord>(MAX_QUEUED_LINES);
    let budget = shared.log_budgets.of(function);
    shared.tasks.spawn(send(shared.bus.clone(), function.clone(), lines, Arc::clone(&budget)));
    let function = function.clone();
    LogSink::new(move |line| {
        let bytes = line.message.len().min(MAX_LINE_BYTES);
        // The budget is checked first, so that a dropped line is not copied.
        if budget.take(bytes) && sender.try_send(record(&function, line.level, line.message)).is_err() {
            budget.dropped(bytes);
        }
    })
}

/// Sends lines until their function is dropped, and at most once per second a summary of dropped ones.
async fn send(bus: nerve_broker::bus::Bus, function: Name, mut lines: mpsc::Receiver<LogRecord>, budget: Arc<Budget>) {
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(line) => bus.log(&line).await,
                None => break,
            },
            () = budget.overrun.notified(), if due.is_none() => due = Some(Instant::now() + BUDGET_PERIOD),
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

/// Truncates a text to `max_bytes`, at a character boundary, and appends an ellipsis.
pub(super) fn truncate(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        let mut end = max_bytes;
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
    fn long_line_is_truncated_between_characters() {
        let cut = truncate("ü".repeat(MAX_LINE_BYTES), MAX_LINE_BYTES);
        assert!(cut.len() <= MAX_LINE_BYTES + "…".len() && cut.ends_with('…'));
        assert_eq!(truncate("short".into(), MAX_LINE_BYTES), "short");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_beyond_the_budget_of_a_second_are_dropped_and_counted() {
        let budget = Budget::new(3, 100);
        assert!(budget.take(10) && budget.take(90) && !budget.take(1), "bytes");
        assert_eq!(budget.state.lock().dropped, DroppedLines { lines: 1, bytes: 1 });
        tokio::time::advance(BUDGET_PERIOD).await;
        assert!(budget.take(1) && budget.take(1) && budget.take(1) && !budget.take(1), "lines");
        assert!(budget.summary().is_some_and(|summary| summary.starts_with("2 lines (2 bytes) were dropped")));
        assert_eq!(budget.summary(), None);
    }
}
