//! A limiter of log lines that senders can cause: a line per kind and interval, with the number of suppressed ones.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::LazyLock,
    time::{Duration, Instant},
};

/// Minimum time between two lines of a kind.
const INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of kinds. Lines of further kinds are suppressed.
const MAX_KINDS: usize = 4096;

/// By subject, such as a source, and reason.
type Kinds = HashMap<(String, &'static str), Kind>;

#[derive(Debug)]
struct Kind {
    written: Instant,
    suppressed: u64,
}

/// The number of suppressed lines if a line for this `subject` and `reason` is due; `None` if it is to be suppressed.
///
/// All gateways of a process share the limiter, as they share the log.
pub(crate) fn due(subject: &str, reason: &'static str) -> Option<u64> {
    static KINDS: LazyLock<Mutex<Kinds>> = LazyLock::new(Mutex::default);
    let mut kinds = KINDS.lock();
    due_at(&mut kinds, subject, reason, Instant::now())
}

fn due_at(kinds: &mut Kinds, subject: &str, reason: &'static str, now: Instant) -> Option<u64> {
    if let Some(kind) = kinds.get_mut(&(subject.to_owned(), reason)) {
        if now.duration_since(kind.written) < INTERVAL {
            kind.suppressed += 1;
            return None;
        }
        kind.written = now;
        return Some(std::mem::take(&mut kind.suppressed));
    }
    if kinds.len() >= MAX_KINDS {
        kinds.retain(|_, kind| now.duration_since(kind.written) < INTERVAL);
    }
    if kinds.len() >= MAX_KINDS {
        return None;
    }
    kinds.insert((subject.to_owned(), reason), Kind { written: now, suppressed: 0 });
    Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_due_once_per_interval_and_counts_suppressed_ones() {
        let (mut kinds, start) = (Kinds::new(), Instant::now());
        let mut due = |subject: &str, reason, after| due_at(&mut kinds, subject, reason, start + after);
        assert_eq!(due("a", "secret", Duration::ZERO), Some(0));
        for _ in 0..1000 {
            assert_eq!(due("a", "secret", Duration::from_secs(1)), None);
        }
        assert_eq!((due("a", "other", INTERVAL / 2), due("b", "secret", INTERVAL / 2)), (Some(0), Some(0)));
        assert_eq!((due("a", "secret", INTERVAL), due("a", "secret", INTERVAL)), (Some(1000), None));
    }

    #[test]
    fn kinds_are_limited() {
        let (mut kinds, start) = (Kinds::new(), Instant::now());
        let written = (0..10_000).filter(|n| due_at(&mut kinds, &n.to_string(), "x", start).is_some()).count();
        assert_eq!((written, kinds.len()), (MAX_KINDS, MAX_KINDS));
        assert_eq!(due_at(&mut kinds, "later", "x", start + INTERVAL), Some(0));
    }
}
