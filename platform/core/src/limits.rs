//! Limits of the numbers and lists that come from outside: an endpoint, a model or a sender may say anything, and it must neither
//! overflow, nor make an event wait for years, nor take many times its own bytes of memory.

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

/// The first `MAX` items of a list, and how many it has. The rest takes no memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted<T, const MAX: usize> {
    /// The first items.
    pub items: Vec<T>,
    /// How many there are.
    pub all: usize,
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Counted<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Limited::<Self, MAX>(PhantomData))
    }
}

/// Reads a map of at most `MAX` members for serde; of two with one name the later one stays.
///
/// # Errors
/// As soon as there are more, and when a member cannot be read.
pub fn map<'de, D, T, const MAX: usize>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_map(Limited::<BTreeMap<String, T>, MAX>(PhantomData))
}

/// Reads a collection up to its limit.
struct Limited<C, const MAX: usize>(PhantomData<C>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Limited<Counted<T, MAX>, MAX> {
    type Value = Counted<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() < MAX {
            let Some(item) = list.next_element()? else { return Ok(Counted { all: items.len(), items }) };
            items.push(item);
        }
        let mut all = MAX;
        while list.next_element::<IgnoredAny>()?.is_some() {
            all += 1;
        }
        Ok(Counted { items, all })
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

    #[test]
    fn list_and_object_from_outside_are_read_up_to_their_limits() {
        #[derive(Deserialize)]
        struct Object(#[serde(deserialize_with = "map::<_, _, 2>")] BTreeMap<String, u8>);
        let list = |text: &str| serde_json::from_str::<Counted<u8, 2>>(text).map(|list| (list.items, list.all)).ok();
        assert_eq!((list("[]"), list("[1,2]")), (Some((vec![], 0)), Some((vec![1, 2], 2))));
        assert_eq!((list("[1,2,{},4]"), list("[1,{}]"), list("{}")), (Some((vec![1, 2], 4)), None, None));
        let object = |text: &str| serde_json::from_str::<Object>(text).map(|object| object.0.len());
        assert_eq!(object(r#"{"a":1,"b":2,"a":3}"#).unwrap(), 2);
        let refused = object(r#"{"a":1,"b":2,"c":3}"#).unwrap_err().to_string();
        assert!(refused.starts_with("it has more than 2 members"), "{refused}");
    }
}
