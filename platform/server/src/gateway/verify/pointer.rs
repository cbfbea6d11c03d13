//! Reads one scalar out of a JSON document without building the document.
//!
//! A payload may be 25 MiB; a tree of it would cost many times that, for the sake of one short text.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// Whether `text` is one JSON document.
pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// The text, number or boolean at `pointer` (RFC 6901) as text; none when there is none or it is not JSON.
pub(super) fn scalar(text: &str, pointer: &str) -> Option<String> {
    let tokens: Vec<String> = match pointer.strip_prefix('/') {
        Some(rest) => rest.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect(),
        None if pointer.is_empty() => Vec::new(),
        None => return None,
    };
    Find(&tokens).deserialize(&mut serde_json::Deserializer::from_str(text)).ok().flatten()
}

/// The items of the array at `pointer`; none when there is no array.
pub(super) fn array<'t>(text: &'t str, pointer: &str) -> Option<Vec<&'t RawValue>> {
    let mut here: &RawValue = serde_json::from_str(text).ok()?;
    for token in pointer.split('/').skip(1) {
        let token = token.replace("~1", "/").replace("~0", "~");
        let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(here.get()).ok()?;
        here = members.get(token.as_str()).copied()?;
    }
    serde_json::from_str(here.get()).ok()
}

/// Finds the scalar at these tokens, below where it stands.
#[derive(Clone, Copy)]
struct Find<'t>(&'t [String]);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Find<'_> {
    fn here(self, value: impl fmt::Display) -> Option<String> {
        self.0.is_empty().then(|| value.to_string())
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.here(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.here(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.here(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.here(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(self.here(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let (wanted, below) = split(self.0);
        let mut found = None;
        let mut index = 0_usize;
        loop {
            if wanted.is_some_and(|token| *token == index.to_string()) {
                match items.next_element_seed(Find(below))? {
                    Some(value) => found = value,
                    None => return Ok(found),
                }
            } else if items.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let (wanted, below) = split(self.0);
        let mut found = None;
        while let Some(key) = members.next_key::<std::borrow::Cow<'de, str>>()? {
            if wanted.is_some_and(|token| *token == key) {
                found = members.next_value_seed(Find(below))?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

fn split(tokens: &[String]) -> (Option<&String>, &[String]) {
    tokens.split_first().map_or((None, &[]), |(first, rest)| (Some(first), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_found_where_the_pointer_says() {
        let text = r#"{"a": {"b/c": [1, {"d": "x\ny"}, true, null, -2, 1.5]}, "e": "f", "": 7}"#;
        let cases = [
            ("/e", Some("f")),
            ("/a/b~1c/0", Some("1")),
            ("/a/b~1c/1/d", Some("x\ny")),
            ("/a/b~1c/2", Some("true")),
            ("/a/b~1c/3", None),
            ("/a/b~1c/4", Some("-2")),
            ("/a/b~1c/5", Some("1.5")),
            ("/a/b~1c/6", None),
            ("/", Some("7")),
            ("/a", None),
            ("/e/f", None),
            ("", None),
            ("e", None),
        ];
        for (pointer, expected) in cases {
            assert_eq!(scalar(text, pointer).as_deref(), expected, "{pointer}");
        }
        assert_eq!(scalar("\"x\"", "").as_deref(), Some("x"));
        assert_eq!(scalar("{broken", "/a"), None);
    }

    #[test]
    fn the_items_of_an_array_are_the_senders_bytes() {
        let items = |text, pointer| array(text, pointer).map(|items| items.iter().map(|i| i.get()).collect::<Vec<_>>());
        assert_eq!(items(r#" [ {"a": 1}, 2 ,"x"] "#, ""), Some(vec![r#"{"a": 1}"#, "2", r#""x""#]));
        assert_eq!(items(r#"{"a/b": {"c": [1]}}"#, "/a~1b/c"), Some(vec!["1"]));
        for (text, pointer) in [("{}", ""), ("{}", "/a"), ("[1", ""), (r#"{"a": 1}"#, "/a"), ("[]", "/0")] {
            assert_eq!(items(text, pointer), None, "{text} {pointer}");
        }
    }

    #[test]
    fn deep_nesting_is_no_way_to_overflow_the_stack() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(is_json(&deep));
        assert_eq!(scalar(&deep, "/0/0"), None);
    }
}
