//! How long to wait before a process that has died is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
/// A process that ran for so long did not fail at its start.
const STEADY: Duration = Duration::from_secs(30);

/// The waits of one process: each twice as long as the one before, until it has run for a while.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The waits of a process that has not died yet.
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The wait after the process has died, having run for `ran`.
    pub(crate) fn after(&mut self, ran: Duration) -> Duration {
        let wait = if ran > STEADY { FIRST } else { self.next };
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_doubles_up_to_its_bound_until_the_process_has_run_for_long() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..9).map(|_| backoff.after(Duration::ZERO)).collect();
        assert_eq!((waits[0], waits[1], waits[8]), (FIRST, FIRST * 2, LONGEST));
        assert_eq!(backoff.after(STEADY * 2), FIRST);
        assert_eq!(backoff.after(Duration::ZERO), FIRST * 2);
    }
}
