//! What functions say, on its way to LOGS: bounded, and never in the way of the work.

use super::Shared;
use crate::bus::LogRecord;
use nerve_core::{
    Name,
    function::{LogLevel, LogSink},
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use time::OffsetDateTime;
use tokio::sync::mpsc;

/// Lines of one function that may wait to be sent.
const CAPACITY: usize = 1024;

/// The longest line, in bytes.
const LONGEST: usize = 16 * 1024;

/// A record of this moment.
pub(super) fn record(function: &Name, level: LogLevel, message: String) -> LogRecord {
    LogRecord {
        time: OffsetDateTime::now_utc(),
        function: function.clone(),
        level,
        message: truncate(message, LONGEST),
        event: None,
        attempts: Vec::new(),
    }
}

/// A sink for one loaded function; its task ends when the function is gone.
pub(super) fn sink(shared: &Shared, function: &Name) -> LogSink {
    let (sender, mut lines) = mpsc::channel::<LogRecord>(CAPACITY);
    let dropped = Arc::new(AtomicU64::new(0));
    let (bus, name, lost) = (shared.bus.clone(), function.clone(), dropped.clone());
    shared.tasks.spawn(async move {
        while let Some(line) = lines.recv().await {
            bus.log(&line).await;
            let missing = lost.swap(0, Ordering::Relaxed);
            if missing > 0 {
                let message = format!("{missing} lines were dropped: they came faster than they could be stored");
                bus.log(&record(&name, LogLevel::Warn, message)).await;
            }
        }
    });
    let function = function.clone();
    LogSink::new(move |line| {
        if sender.try_send(record(&function, line.level, line.message)).is_err() {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
    })
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
        let cut = truncate("ü".repeat(LONGEST), LONGEST);
        assert!(cut.len() <= LONGEST + "…".len() && cut.ends_with('…'));
        assert_eq!(truncate("short".into(), LONGEST), "short");
    }
}
