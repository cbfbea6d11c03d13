//! Reads scalars at JSON pointers without building a document tree.
//!
//! A payload may have 25 MiB, and its tree would take many times that memory for one short value.

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

/// Returns the string, number or boolean at `pointer` (RFC 6901) as text, or `None` if it is missing or the text is not JSON.
pub(super) fn scalar(text: &str, pointer: &str) -> Option<String> {
    scalars(text, &[pointer])?.pop().flatten()
}

/// Returns the scalars at several pointers, in one pass, or `None` if the text cannot be read as one JSON document.
pub(super) fn scalars(text: &str, pointers: &[&str]) -> Option<Vec<Option<String>>> {
    let targets = pointers.iter().enumerate().filter(|(_, pointer)| pointer.is_empty() || pointer.starts_with('/'));
    let targets = targets.map(|(at, pointer)| (at, *pointer)).collect();
    let mut found = vec![None; pointers.len()];
    let mut reader = serde_json::Deserializer::from_str(text);
    ScalarFinder { targets, found: &mut found }.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    Some(found)
}

/// Unescapes a token of a pointer.
fn unescaped(token: &str) -> Cow<'_, str> {
    if token.contains('~') { token.replace("~1", "/").replace("~0", "~").into() } else { token.into() }
}

/// Returns the items of the array at `pointer`, or `None` if it is no array.
pub(super) fn array<'t>(text: &'t str, pointer: &str) -> Option<Vec<&'t RawValue>> {
    let mut here: &RawValue = serde_json::from_str(text).ok()?;
    for token in pointer.split('/').skip(1) {
        let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(here.get()).ok()?;
        here = members.get(&*unescaped(token)).copied()?;
    }
    serde_json::from_str(here.get()).ok()
}

/// A deserializer that finds scalars below the current value.
struct ScalarFinder<'w, 't> {
    /// The index of each requested scalar, and its pointer relative to the current value.
    targets: Vec<(usize, &'t str)>,
    found: &'w mut [Option<String>],
}

impl<'de> DeserializeSeed<'de> for ScalarFinder<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'t> ScalarFinder<'_, 't> {
    /// Stores the current value for the targets at it.
    fn store(self, value: impl fmt::Display) {
        for (at, _) in self.targets.iter().filter(|(_, pointer)| pointer.is_empty()) {
            if let Some(found) = self.found.get_mut(*at) {
                *found = Some(value.to_string());
            }
        }
    }

    /// Returns a finder for the value of `token` if a target is below it. Of duplicate names the last one counts.
    fn below(&mut self, token: &str) -> Option<ScalarFinder<'_, 't>> {
        let below = |pointer: &'t str| {
            let rest = pointer.strip_prefix('/')?;
            let end = rest.find('/').unwrap_or(rest.len());
            let (first, below) = rest.split_at(end);
            (unescaped(first) == token).then_some(below)
        };
        let targets: Vec<_> = self.targets.iter().filter_map(|(at, pointer)| Some((*at, below(pointer)?))).collect();
        for (at, _) in &targets {
            if let Some(found) = self.found.get_mut(*at) {
                *found = None;
            }
        }
        (!targets.is_empty()).then_some(ScalarFinder { targets, found: self.found })
    }
}

/// A member name, copied only if it has escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Visitor<'de> for ScalarFinder<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.store(value);
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.store(value);
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.store(value);
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.store(value);
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.store(value);
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let inside = self.targets.iter().any(|(_, pointer)| !pointer.is_empty());
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
    fn scalars_are_found_at_their_pointers() {
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
        assert_eq!(scalars(text, &pointers).unwrap(), expected, "in one pass");
        assert_eq!(scalar(r#"{"a": 1, "b": {"c": 2}, "a": {}, "b": 3}"#, "/a"), None, "the last duplicate counts");
        assert_eq!(scalar("\"x\"", "").as_deref(), Some("x"));
        assert_eq!(scalar("{broken", "/a"), None);
    }

    #[test]
    fn array_items_keep_the_bytes_of_the_sender() {
        let items = |text, pointer| array(text, pointer).map(|items| items.iter().map(|i| i.get()).collect::<Vec<_>>());
        assert_eq!(items(r#" [ {"a": 1}, 2 ,"x"] "#, ""), Some(vec![r#"{"a": 1}"#, "2", r#""x""#]));
        assert_eq!(items(r#"{"a/b": {"c": [1]}}"#, "/a~1b/c"), Some(vec!["1"]));
        for (text, pointer) in [("{}", ""), ("{}", "/a"), ("[1", ""), (r#"{"a": 1}"#, "/a"), ("[]", "/0")] {
            assert_eq!(items(text, pointer), None, "{text} {pointer}");
        }
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(is_json(&deep));
        assert_eq!(scalar(&deep, "/0/0"), None);
    }
}
