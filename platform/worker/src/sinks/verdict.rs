//! What becomes of an event after a post, as one pure function of answer, attempt and policy.

use nerve_core::RetryPolicy;
use std::time::Duration;

/// The status that says that an endpoint is no more.
const GONE: u16 = 410;

/// What an endpoint said, or why it said nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// None without an answer.
    pub(super) status: Option<u16>,
    /// The wait that it asked for.
    pub(super) retry_after: Option<Duration>,
    /// What went wrong; none where it went well.
    pub(super) error: Option<String>,
    /// Whether that was the time.
    pub(super) timed_out: bool,
    /// Its first bytes.
    pub(super) body: String,
}

impl Answer {
    /// Whether the endpoint has the event.
    pub(super) fn is_good(&self) -> bool {
        self.error.is_none() && self.status.is_some_and(|status| (200..300).contains(&status))
    }

    /// Whether the endpoint says that it is no more.
    pub(super) fn is_gone(&self) -> bool {
        self.status == Some(GONE)
    }
}

/// What becomes of the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The endpoint has it.
    Delivered,
    /// It is posted again after this long.
    RetryAfter(Duration),
    /// It is given up.
    DeadLetter,
}

/// Decides what becomes of an event whose `attempt`-th post (from 1) was answered so. All but 2xx is tried again: an
/// endpoint that is being deployed, or whose key is being changed, answers anything. `jitter` spreads a wait.
pub(super) fn decide(
    answer: &Answer,
    attempt: u32,
    policy: &RetryPolicy,
    jitter: impl Fn(Duration) -> Duration,
) -> Verdict {
    if answer.is_good() {
        return Verdict::Delivered;
    }
    if attempt >= policy.attempts {
        return Verdict::DeadLetter;
    }
    let scheduled = jitter(policy.wait_after(attempt));
    Verdict::RetryAfter(scheduled.max(answer.retry_after.map(jitter).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::Manifest;

    fn answered(status: u16) -> Answer {
        let error = (!(200..300).contains(&status)).then(|| "no".to_owned());
        Answer { status: Some(status), retry_after: None, error, timed_out: false, body: String::new() }
    }

    fn silent() -> Answer {
        Answer { status: None, error: Some("refused".into()), ..answered(200) }
    }

    fn default_policy() -> RetryPolicy {
        let manifest = Manifest::parse("[sink.crm]\nurl = \"https://crm.example\"\non = [\"events.>\"]").unwrap();
        manifest.sinks.into_values().next().unwrap().retry
    }

    /// A day of failures in virtual time: each wait is added to a clock that starts at zero.
    #[test]
    fn the_whole_schedule() {
        let (policy, mut clock, mut posts) = (default_policy(), Duration::ZERO, Vec::new());
        for attempt in 1.. {
            posts.push(clock.as_secs());
            match decide(&answered(500), attempt, &policy, |wait| wait) {
                Verdict::RetryAfter(wait) => clock += wait,
                Verdict::DeadLetter => break,
                Verdict::Delivered => panic!("a 500 is no delivery"),
            }
        }
        let (m, h) = (60, 3600);
        let waits = [5, 5 * m, 30 * m, 2 * h, 5 * h, 10 * h, 10 * h];
        let expected: Vec<u64> = (0..=waits.len()).map(|count| waits.iter().take(count).sum()).collect();
        assert_eq!(posts, expected);
    }

    #[test]
    fn the_verdict_table() {
        let policy = RetryPolicy { attempts: 3, backoff: vec![Duration::from_secs(10), Duration::from_secs(20)] };
        let retry = |seconds| Verdict::RetryAfter(Duration::from_secs(seconds));
        let asking = |status, seconds| Answer { retry_after: Some(Duration::from_secs(seconds)), ..answered(status) };
        let broken = Answer { error: Some("it ended in the middle".into()), ..answered(200) };
        let table = [
            (answered(200), 1, Verdict::Delivered),
            (answered(204), 3, Verdict::Delivered),
            (broken, 1, retry(10)),
            (answered(302), 1, retry(10)),
            (answered(400), 1, retry(10)),
            (answered(410), 2, retry(20)),
            (answered(500), 2, retry(20)),
            (answered(500), 3, Verdict::DeadLetter),
            (silent(), 1, retry(10)),
            (silent(), 4, Verdict::DeadLetter),
            (asking(429, 60), 1, retry(60)),
            (asking(503, 1), 1, retry(10)),
            (asking(429, 60), 3, Verdict::DeadLetter),
        ];
        for (answer, attempt, expected) in table {
            assert_eq!(decide(&answer, attempt, &policy, |wait| wait), expected, "{answer:?} at {attempt}");
        }
    }

    #[test]
    fn jitter_never_makes_a_wait_shorter_than_was_asked_for() {
        let policy = RetryPolicy { attempts: 2, backoff: vec![Duration::from_secs(10)] };
        let asking = Answer { retry_after: Some(Duration::from_secs(100)), ..answered(429) };
        let more = |wait: Duration| wait + wait / 10;
        assert_eq!(decide(&asking, 1, &policy, more), Verdict::RetryAfter(Duration::from_secs(110)));
        assert_eq!(decide(&answered(500), 1, &policy, more), Verdict::RetryAfter(Duration::from_secs(11)));
    }
}
