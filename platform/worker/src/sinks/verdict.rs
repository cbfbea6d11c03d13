//! The verdict after a post, as a pure function of its result, the attempt and the retry policy.

use nerve_core::RetryPolicy;
use std::time::Duration;

/// The status of an endpoint that has been removed permanently.
const STATUS_GONE: u16 = 410;

/// The result of a post: the response, or the reason why none arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PostResult {
    /// `None` without a response.
    pub(super) status: Option<u16>,
    /// The requested wait (`Retry-After`).
    pub(super) retry_after: Option<Duration>,
    /// `None` for a complete 2xx response.
    pub(super) error: Option<String>,
    /// Whether the error is a timeout.
    pub(super) timed_out: bool,
    /// The first bytes of the response body.
    pub(super) body: String,
}

impl PostResult {
    /// Whether the endpoint accepted the event.
    pub(super) fn is_success(&self) -> bool {
        self.error.is_none() && self.status.is_some_and(|status| (200..300).contains(&status))
    }

    /// Whether the endpoint has been removed permanently (410 Gone).
    pub(super) fn is_gone(&self) -> bool {
        self.status == Some(STATUS_GONE)
    }
}

/// The next step for an event after a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The endpoint accepted it.
    Delivered,
    /// Post it again after this wait.
    RetryAfter(Duration),
    /// Move it to the dead letters.
    DeadLetter,
}

/// Decides the next step after the `attempt`-th post (from 1). Every status except 2xx is retried, as an endpoint may return any
/// status during a deployment or a key rotation. `jitter` spreads a wait.
pub(super) fn decide(
    result: &PostResult,
    attempt: u32,
    policy: &RetryPolicy,
    jitter: impl Fn(Duration) -> Duration,
) -> Verdict {
    if result.is_success() {
        return Verdict::Delivered;
    }
    if attempt >= policy.attempts {
        return Verdict::DeadLetter;
    }
    let scheduled = jitter(policy.wait_after(attempt));
    Verdict::RetryAfter(scheduled.max(result.retry_after.map(jitter).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::Manifest;

    fn answered(status: u16) -> PostResult {
        let error = (!(200..300).contains(&status)).then(|| "no".to_owned());
        PostResult { status: Some(status), retry_after: None, error, timed_out: false, body: String::new() }
    }

    fn silent() -> PostResult {
        PostResult { status: None, error: Some("refused".into()), ..answered(200) }
    }

    fn default_policy() -> RetryPolicy {
        let manifest = Manifest::parse("[sink.crm]\nurl = \"https://crm.example\"\non = [\"events.>\"]").unwrap();
        manifest.sinks.into_values().next().unwrap().retry
    }

    /// A day of failures in virtual time: each wait is added to a clock that starts at zero.
    #[test]
    fn default_policy_posts_on_the_documented_schedule() {
        let (policy, mut clock, mut posts) = (default_policy(), Duration::ZERO, Vec::new());
        for attempt in 1.. {
            posts.push(clock.as_secs());
            match decide(&answered(500), attempt, &policy, |wait| wait) {
                Verdict::RetryAfter(wait) => clock += wait,
                Verdict::DeadLetter => break,
                Verdict::Delivered => panic!("a 500 is not delivered"),
            }
        }
        let (m, h) = (60, 3600);
        let waits = [5, 5 * m, 30 * m, 2 * h, 5 * h, 10 * h, 10 * h];
        let expected: Vec<u64> = (0..=waits.len()).map(|count| waits.iter().take(count).sum()).collect();
        assert_eq!(posts, expected);
    }

    #[test]
    fn verdict_depends_on_status_attempt_and_requested_wait() {
        let policy = RetryPolicy { attempts: 3, backoff: vec![Duration::from_secs(10), Duration::from_secs(20)] };
        let retry = |seconds| Verdict::RetryAfter(Duration::from_secs(seconds));
        let asking =
            |status, seconds| PostResult { retry_after: Some(Duration::from_secs(seconds)), ..answered(status) };
        let broken = PostResult { error: Some("incomplete".into()), ..answered(200) };
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
    fn jitter_never_shortens_the_requested_wait() {
        let policy = RetryPolicy { attempts: 2, backoff: vec![Duration::from_secs(10)] };
        let asking = PostResult { retry_after: Some(Duration::from_secs(100)), ..answered(429) };
        let more = |wait: Duration| wait + wait / 10;
        assert_eq!(decide(&asking, 1, &policy, more), Verdict::RetryAfter(Duration::from_secs(110)));
        assert_eq!(decide(&answered(500), 1, &policy, more), Verdict::RetryAfter(Duration::from_secs(11)));
    }
}
