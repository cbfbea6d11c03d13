//! Validated NATS subjects, subject patterns and event types.
//!
//! Parsing is the only constructor, so a value of these types is always valid for a NATS server.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Prefix of the subjects of events: an event of type `T` is published to `events.T`.
pub const EVENTS_PREFIX: &str = "events.";

const MAX_BYTES: usize = 255;

/// An invalid subject, pattern or event type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {why}")]
pub struct InvalidSubject {
    text: String,
    what: &'static str,
    why: &'static str,
}

fn check(text: &str, what: &'static str, wildcards: bool) -> Result<(), InvalidSubject> {
    let fail = |why| Err(InvalidSubject { text: text.chars().take(80).collect(), what, why });
    if text.is_empty() {
        return fail("it is empty");
    }
    if text.len() > MAX_BYTES {
        return fail("it is longer than 255 bytes");
    }
    if text.bytes().any(|b| !(0x21..=0x7e).contains(&b)) {
        return fail("only printable ASCII without spaces is allowed");
    }
    let mut tokens = text.split('.').peekable();
    while let Some(token) = tokens.next() {
        let last = tokens.peek().is_none();
        match token {
            "" => return fail("a token between the dots is empty"),
            "*" if wildcards => {}
            ">" if wildcards && last => {}
            ">" if wildcards => return fail("`>` is allowed only as the last token"),
            _ if token.contains(['*', '>']) && wildcards => return fail("a wildcard must be a whole token"),
            _ if token.contains(['*', '>']) => return fail("wildcards are not allowed here"),
            _ => {}
        }
    }
    Ok(())
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $wildcards:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses `text`.
            ///
            /// # Errors
            /// If `text` is invalid.
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidSubject> {
                let text = text.into();
                check(&text, $what, $wildcards)?;
                Ok(Self(text))
            }

            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidSubject;
            fn try_from(text: String) -> Result<Self, InvalidSubject> {
                Self::parse(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidSubject;
            fn from_str(text: &str) -> Result<Self, InvalidSubject> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_text!(
    /// A subject without wildcards, for publishing.
    Subject, "a subject", false
);
checked_text!(
    /// A subject pattern with NATS wildcards: `*` for one token, `>` for the rest.
    Pattern, "a subject pattern", true
);
checked_text!(
    /// A CloudEvents `type` that is valid in a subject, such as `github.pull_request.opened`.
    EventType, "an event type", false
);

impl EventType {
    /// The subject of events of this type: `events.` and the type.
    pub fn subject(&self) -> Subject {
        Subject([EVENTS_PREFIX, self.0.as_str()].concat())
    }

    /// Whether `pattern` (over types, such as `github.>`) covers this type.
    pub fn matches(&self, pattern: &Pattern) -> bool {
        pattern.covers(&self.0)
    }
}

impl Pattern {
    /// Whether both patterns cover a common subject.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.0.split('.'), other.0.split('.'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(one), Some(two)) if one == "*" || two == "*" || one == two => {}
                _ => return false,
            }
        }
    }

    /// Whether a subscription to this pattern receives messages on `subject`.
    pub fn covers(&self, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        for expected in self.0.split('.') {
            match (expected, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (expected, Some(token)) if expected == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_subject_is_rejected() {
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "ä", &"x".repeat(256)] {
            assert!(Subject::parse(bad).is_err(), "{bad}");
        }
        assert!(Subject::parse("events.github.push").is_ok());
    }

    #[test]
    fn pattern_matches_as_in_nats() {
        let cases = [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("*.c", "b.c", true),
            (">", "x", true),
        ];
        for (pattern, subject, expected) in cases {
            assert_eq!(Pattern::parse(pattern).unwrap().covers(subject), expected, "{pattern} {subject}");
        }
        for bad in ["a.>.b", "a*", "a.b>"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn event_type_has_a_subject() {
        assert_eq!(EventType::parse("github.push").unwrap().subject().as_str(), "events.github.push");
    }
}
