//! Names of functions, sources and models.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of a function or a source: 1 to 63 of `a-z`, `0-9`, `-` and `_`, starting with a letter or digit.
///
/// A name is also a durable consumer's name, a KV key and a token of a subject, so nothing else is let in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A text that is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name: use 1 to 63 of a-z, 0-9, - and _, starting with a letter or digit")]
pub struct InvalidName(String);

impl Name {
    /// Checks `text`; the error repeats it.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let all_known = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if starts_well && all_known && text.len() <= 63 { Ok(Self(text)) } else { Err(InvalidName(text)) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(text)
    }
}

impl std::str::FromStr for Name {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::parse(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a model: 1 to 128 letters, digits, `.`, `-` and `_`, starting with a letter or digit.
///
/// Models keep the names that their makers gave them, such as `all-MiniLM-L6-v2`; a path is no name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// A text that is not a [`ModelName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a model's name: use 1 to 128 letters, digits, `.`, `-` and `_`, starting with a letter or digit")]
pub struct InvalidModelName(String);

impl ModelName {
    /// Checks `text`; the error repeats it.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidModelName> {
        let text = text.into();
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let all_known = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        // A key in KV may neither end with a dot nor have two in a row.
        let dots = text.ends_with('.') || text.contains("..");
        if starts_well && all_known && !dots && text.len() <= 128 {
            Ok(Self(text))
        } else {
            Err(InvalidModelName(text))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ModelName {
    type Error = InvalidModelName;
    fn try_from(text: String) -> Result<Self, InvalidModelName> {
        Self::parse(text)
    }
}

impl std::str::FromStr for ModelName {
    type Err = InvalidModelName;
    fn from_str(text: &str) -> Result<Self, InvalidModelName> {
        Self::parse(text)
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kv_keys_and_consumer_names() {
        for good in ["a", "word-count", "9lives", "a_b"] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a.b", "a b", "ü", &"a".repeat(64)] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_model_keeps_its_makers_name() {
        for good in ["all-MiniLM-L6-v2", "bge-small-en-v1.5", "e5_base", "7b"] {
            assert_eq!(ModelName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "org/model", "./model", ".x", "a..b", "a.", "a b", &"m".repeat(129)] {
            assert!(ModelName::parse(bad).is_err(), "{bad}");
        }
    }
}
