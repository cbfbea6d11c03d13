//! Reads one scalar out of a JSON document without building the document.
//!
//! A payload may be 25 MiB; a tree of it would cost many times that, for the sake of one short text.

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// Whether `text` is one JSON document.
pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// The text, number or boolean at `pointer` (RFC 6901) as text; none when there is none or it is not JSON.
pub(super) fn scalar(text: &str, pointer: &str) -> Option<String> {
    scalars(text, &[pointer])?.pop().flatten()
}

/// The same for several pointers, in one reading; none when it is not one JSON document that can be read so.
pub(super) fn scalars(text: &str, pointers: &[&str]) -> Option<Vec<Option<String>>> {
    let wanted = pointers.iter().enumerate().filter(|(_, pointer)| pointer.is_empty() || pointer.starts_with('/'));
    let wanted = wanted.map(|(at, pointer)| (at, *pointer)).collect();
    let mut found = vec![None; pointers.len()];
    let mut reader = serde_json::Deserializer::from_str(text);
    Find { wanted, found: &mut found }.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    Some(found)
}

/// What a token stands for.
fn unescaped(token: &str) -> Cow<'_, str> {
    if token.contains('~') { token.replace("~1", "/").replace("~0", "~").into() } else { token.into() }
}

/// The items of the array at `pointer`; none when there is no array.
pub(super) fn array<'t>(text: &'t str, pointer: &str) -> Option<Vec<&'t RawValue>> {
    let mut here: &RawValue = serde_json::from_str(text).ok()?;
    for token in pointer.split('/').skip(1) {
        let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(here.get()).ok()?;
        here = members.get(&*unescaped(token)).copied()?;
    }
    serde_json::from_str(here.get()).ok()
}

/// Finds scalars, below where it stands.
struct Find<'w, 't> {
    /// Which is wanted, and its pointer from here on.
    wanted: Vec<(usize, &'t str)>,
    found: &'w mut [Option<String>],
}

impl<'de> DeserializeSeed<'de> for Find<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'t> Find<'_, 't> {
    /// What is here was wanted.
    fn here(self, value: impl fmt::Display) {
        for (at, _) in self.wanted.iter().filter(|(_, pointer)| pointer.is_empty()) {
            if let Some(found) = self.found.get_mut(*at) {
                *found = Some(value.to_string());
            }
        }
    }

    /// What is wanted of the value of `token`; of two such values the last counts.
    fn below(&mut self, token: &str) -> Option<Find<'_, 't>> {
        let below = |pointer: &'t str| {
            let rest = pointer.strip_prefix('/')?;
            let end = rest.find('/').unwrap_or(rest.len());
            let (first, below) = rest.split_at(end);
            (unescaped(first) == token).then_some(below)
        };
        let wanted: Vec<_> = self.wanted.iter().filter_map(|(at, pointer)| Some((*at, below(pointer)?))).collect();
        for (at, _) in &wanted {
            if let Some(found) = self.found.get_mut(*at) {
                *found = None;
            }
        }
        (!wanted.is_empty()).then_some(Find { wanted, found: self.found })
    }
}

/// A name, copied only where it is escaped.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Visitor<'de> for Find<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.here(value);
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.here(value);
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.here(value);
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.here(value);
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.here(value);
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let inside = self.wanted.iter().any(|(_, pointer)| !pointer.is_empty());
        let mut index = 0_usize;
        loop {
            let more = match inside.then(|| index.to_string()).and_then(|index| self.below(&index)) {
                Some(below) => items.next_element_seed(below)?.is_some(),
                None => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        while let Some(Key(key)) = members.next_key()? {
            match self.below(&key) {
                Some(below) => members.next_value_seed(below)?,
                None => members.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(())
    }
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
        let pointers = cases.map(|(pointer, _)| pointer);
        let expected = cases.map(|(_, expected)| expected.map(str::to_owned));
        assert_eq!(scalars(text, &pointers).unwrap(), expected, "all at once");
        assert_eq!(scalar(r#"{"a": 1, "b": {"c": 2}, "a": {}, "b": 3}"#, "/a"), None, "the last of a name counts");
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
