//! Limits of the numbers that come from outside: an endpoint, a model or a sender may say anything, and sums of it must neither
//! overflow nor make an event wait for years.

use serde::{Deserialize, Deserializer};
use std::time::{Duration, SystemTime};

/// The longest wait that anything outside may ask for.
pub const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
/// The largest count that is believed, of tokens for example. Millions of them can be added up.
pub const MAX_COUNT: usize = 1 << 40;

/// A wait that something outside asked for, as far as it is granted.
pub fn wait(asked: Duration) -> Duration {
    asked.min(MAX_WAIT)
}

/// Reads the value of `Retry-After` (RFC 9110, 10.2.3): seconds, or a date, of which `now` is left; [`MAX_WAIT`] at most.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number holds are a long wait, too.
        return Some(value.parse().map_or(MAX_WAIT, |seconds| wait(Duration::from_secs(seconds))));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(wait(until.duration_since(now).unwrap_or_default()))
}

/// Reads a count for serde, [`MAX_COUNT`] at most.
///
/// # Errors
/// When the value is no count.
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let told = u64::deserialize(deserializer)?;
    Ok(usize::try_from(told).map_or(MAX_COUNT, |told| told.min(MAX_COUNT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_a_day_at_most() {
        let now = httpdate::parse_http_date("Tue, 24 Nov 2026 12:00:00 GMT").unwrap();
        let read = |text| retry_after(text, now).map(|wait| wait.as_secs());
        assert_eq!((read("120"), read(" 0 ")), (Some(120), Some(0)));
        assert_eq!(read("Tue, 24 Nov 2026 12:01:30 GMT"), Some(90));
        assert_eq!(read("Tue, 24 Nov 2026 11:00:00 GMT"), Some(0));
        for long in ["99999999", "18446744073709551615", "99999999999999999999999", "Mon, 24 Nov 2036 12:00:00 GMT"] {
            assert_eq!(read(long), Some(86_400), "{long}");
        }
        assert_eq!((read("soon"), read("-1"), read("")), (None, None, None));
    }

    #[test]
    fn count_from_outside_cannot_overflow_a_sum() {
        #[derive(Deserialize)]
        struct Told(#[serde(deserialize_with = "count")] usize);
        let read = |text: &str| serde_json::from_str::<Told>(text).map(|told| told.0).ok();
        assert_eq!((read("7"), read("18446744073709551615")), (Some(7), Some(MAX_COUNT)));
        assert_eq!((read("-1"), read("\"7\"")), (None, None));
    }
}
