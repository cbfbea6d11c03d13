//! Exponential backoff for restarts of a process.

use std::time::Duration;

const INITIAL_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Uptime after which the backoff is reset.
const STABLE_UPTIME: Duration = Duration::from_secs(30);

/// The waits of one process. Each is twice as long as the previous one, until the process was stable.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// Creates the initial state.
    pub(crate) fn new() -> Self {
        Self { next: INITIAL_WAIT }
    }

    /// Returns the wait before a restart of a process that ran for `ran`.
    pub(crate) fn after(&mut self, ran: Duration) -> Duration {
        let wait = if ran > STABLE_UPTIME { INITIAL_WAIT } else { self.next };
        self.next = (wait * 2).min(MAX_WAIT);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_doubles_up_to_its_maximum_until_the_process_is_stable() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..9).map(|_| backoff.after(Duration::ZERO)).collect();
        assert_eq!((waits[0], waits[1], waits[8]), (INITIAL_WAIT, INITIAL_WAIT * 2, MAX_WAIT));
        assert_eq!(backoff.after(STABLE_UPTIME * 2), INITIAL_WAIT);
        assert_eq!(backoff.after(Duration::ZERO), INITIAL_WAIT * 2);
    }
}
