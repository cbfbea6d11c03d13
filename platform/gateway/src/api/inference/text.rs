//! JSON strings, which may contain what Unicode forbids.

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};
use serde_json::value::RawValue;
use std::fmt;

const REPLACEMENT: char = '\u{FFFD}';

/// A string whose invalid characters, such as unpaired surrogates, are U+FFFD: a text that was cut within an emoji must not fail the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As bytes, serde_json yields a string with its lone surrogates; as a string, it refuses it.
        deserializer.deserialize_bytes(Bytes)
    }
}

struct Bytes;

impl Visitor<'_> for Bytes {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Text, E> {
        Ok(Text(from_wtf8(bytes)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.to_owned()))
    }
}

fn from_wtf8(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        // A surrogate is three bytes, of which only the first is none that goes on with a character.
        let begins = chunk.invalid().first().is_some_and(|byte| byte & 0xC0 != 0x80);
        text.extend(begins.then_some(REPLACEMENT));
    }
    text
}

/// The kind of a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    String,
    Array,
    Object,
    Number,
    Other,
}

/// The kind of `value`, by its first character.
pub(crate) fn kind(value: &RawValue) -> Kind {
    match value.get().as_bytes().first() {
        Some(b'"') => Kind::String,
        Some(b'[') => Kind::Array,
        Some(b'{') => Kind::Object,
        Some(b'-' | b'0'..=b'9') => Kind::Number,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> String {
        serde_json::from_str::<Text>(json).unwrap().0
    }

    #[test]
    fn strings_are_what_they_say() {
        for json in [r#""""#, r#""plain""#, r#""nul \u0000 in it""#, r#""\ud83d\ude00 é\n\"""#, "\"😀 ü\""] {
            assert_eq!(read(json), serde_json::from_str::<String>(json).unwrap(), "{json}");
        }
    }

    #[test]
    fn each_lone_surrogate_is_one_replacement() {
        assert_eq!(read(r#""a\ud800b""#), "a\u{FFFD}b");
        assert_eq!(read(r#""\udfff""#), "\u{FFFD}");
        assert_eq!(read(r#""\ud800\ud800x\udc00""#), "\u{FFFD}\u{FFFD}x\u{FFFD}");
        assert_eq!(read(r#""\ud800\ud83d\ude00""#), "\u{FFFD}😀");
        assert_eq!(read(r#""\ud83d é""#), "\u{FFFD} é");
    }

    #[test]
    fn what_is_no_string_is_refused() {
        for json in ["1", "null", "{}", "[1]", "[\"a\"]", "true", "\"open", "\"\\u12\""] {
            assert!(serde_json::from_str::<Text>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn lists_of_them_are_read_too() {
        let texts: Vec<Text> = serde_json::from_str(r#"["a", "\ud800"]"#).unwrap();
        assert_eq!(texts, [Text("a".into()), Text("\u{FFFD}".into())]);
        let raw: Vec<&RawValue> = serde_json::from_str(r#"["\ud800", 1, [2], {"a": "\udc00"}, null, -1]"#).unwrap();
        let kinds: Vec<Kind> = raw.into_iter().map(kind).collect();
        assert_eq!(kinds, [Kind::String, Kind::Number, Kind::Array, Kind::Object, Kind::Other, Kind::Number]);
    }
}
