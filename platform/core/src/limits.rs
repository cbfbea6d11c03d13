//! Limits on numbers, lists and maps in external input. Values from an endpoint, a model or a sender must not overflow,
//! delay an event for years, or take many times their size in memory.

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    time::{Duration, SystemTime},
};

/// Maximum wait that an external party can request.
pub const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
/// Maximum accepted count, of tokens for example. The sum of millions of them does not overflow.
pub const MAX_COUNT: usize = 1 << 40;

/// Limits a requested wait to [`MAX_WAIT`].
pub fn clamp_wait(requested: Duration) -> Duration {
    requested.min(MAX_WAIT)
}

/// Parses a `Retry-After` value (RFC 9110, 10.2.3), in seconds or as a date relative to `now`, up to [`MAX_WAIT`].
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that overflows is a long wait, too.
        return Some(value.parse().map_or(MAX_WAIT, |seconds| clamp_wait(Duration::from_secs(seconds))));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(clamp_wait(until.duration_since(now).unwrap_or_default()))
}

/// Deserializes a count, up to [`MAX_COUNT`].
///
/// # Errors
/// If the value is not a non-negative integer.
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let value = u64::deserialize(deserializer)?;
    Ok(usize::try_from(value).map_or(MAX_COUNT, |value| value.min(MAX_COUNT)))
}

/// The first `MAX` items of a list, and its length. Further items take no memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundedList<T, const MAX: usize> {
    /// The first items.
    pub items: Vec<T>,
    /// Length of the whole list.
    pub total: usize,
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedList<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Limited::<Self, MAX>(PhantomData))
    }
}

/// Deserializes a map of at most `MAX` members. The last of duplicate names wins.
///
/// # Errors
/// If the map has more members, or a member is invalid.
pub fn map<'de, D, T, const MAX: usize>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_map(Limited::<BTreeMap<String, T>, MAX>(PhantomData))
}

/// Visitor of a collection with a maximum size.
struct Limited<C, const MAX: usize>(PhantomData<C>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Limited<BoundedList<T, MAX>, MAX> {
    type Value = BoundedList<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() < MAX {
            let Some(item) = list.next_element()? else { return Ok(BoundedList { total: items.len(), items }) };
            items.push(item);
        }
        let mut total = MAX;
        while list.next_element::<IgnoredAny>()?.is_some() {
            total += 1;
        }
        Ok(BoundedList { items, total })
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Limited<BTreeMap<String, T>, MAX> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((name, member)) = members.next_entry()? {
            map.insert(name, member);
            if map.len() > MAX {
                return Err(A::Error::custom(format!("it has more than {MAX} members")));
            }
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_up_to_one_day() {
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
    fn count_is_clamped() {
        #[derive(Deserialize)]
        struct Count(#[serde(deserialize_with = "count")] usize);
        let read = |text: &str| serde_json::from_str::<Count>(text).map(|count| count.0).ok();
        assert_eq!((read("7"), read("18446744073709551615")), (Some(7), Some(MAX_COUNT)));
        assert_eq!((read("-1"), read("\"7\"")), (None, None));
    }

    #[test]
    fn list_and_map_are_read_up_to_their_limits() {
        #[derive(Deserialize)]
        struct Object(#[serde(deserialize_with = "map::<_, _, 2>")] BTreeMap<String, u8>);
        let list =
            |text: &str| serde_json::from_str::<BoundedList<u8, 2>>(text).map(|list| (list.items, list.total)).ok();
        assert_eq!((list("[]"), list("[1,2]")), (Some((vec![], 0)), Some((vec![1, 2], 2))));
        assert_eq!((list("[1,2,{},4]"), list("[1,{}]"), list("{}")), (Some((vec![1, 2], 4)), None, None));
        let object = |text: &str| serde_json::from_str::<Object>(text).map(|object| object.0.len());
        assert_eq!(object(r#"{"a":1,"b":2,"a":3}"#).unwrap(), 2);
        let refused = object(r#"{"a":1,"b":2,"c":3}"#).unwrap_err().to_string();
        assert!(refused.starts_with("it has more than 2 members"), "{refused}");
    }
}
