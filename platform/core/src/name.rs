//! Names of functions, sources, sinks, schedules and models.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of a function, source, sink or schedule: 1 to 63 of `a-z`, `0-9`, `-` and `_`, starting with a letter or
/// digit.
///
/// A name is also a durable consumer name, a KV key and a subject token, so no other characters are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// An invalid [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name: use 1 to 63 of a-z, 0-9, - and _, starting with a letter or digit")]
pub struct InvalidName(String);

impl Name {
    /// Parses a name.
    ///
    /// # Errors
    /// If `text` is not a valid name.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        let valid_start = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let valid_characters =
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if valid_start && valid_characters && text.len() <= 63 { Ok(Self(text)) } else { Err(InvalidName(text)) }
    }

    /// Returns the name as text.
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
/// Models keep their published names, such as `all-MiniLM-L6-v2`. A path is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// An invalid [`ModelName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a model name: use 1 to 128 letters, digits, `.`, `-` and `_`, starting with a letter or digit")]
pub struct InvalidModelName(String);

impl ModelName {
    /// Parses a name.
    ///
    /// # Errors
    /// If `text` is not a valid name.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidModelName> {
        let text = text.into();
        let valid_start = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let valid_characters = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        // A KV key must not end with a dot or contain two in a row.
        let dots = text.ends_with('.') || text.contains("..");
        if valid_start && valid_characters && !dots && text.len() <= 128 {
            Ok(Self(text))
        } else {
            Err(InvalidModelName(text))
        }
    }

    /// Returns the name as text.
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
    fn name_is_a_valid_kv_key_and_consumer_name() {
        for good in ["a", "word-count", "9lives", "a_b"] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a.b", "a b", "ü", &"a".repeat(64)] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn model_name_allows_published_names() {
        for good in ["all-MiniLM-L6-v2", "bge-small-en-v1.5", "e5_base", "7b"] {
            assert_eq!(ModelName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "org/model", "./model", ".x", "a..b", "a.", "a b", &"m".repeat(129)] {
            assert!(ModelName::parse(bad).is_err(), "{bad}");
        }
    }
}
