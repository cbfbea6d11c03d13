//! Validated NATS subjects, patterns over them, and the event types that name them.
//!
//! Parsing is the only constructor, so a value of these types is always safe to hand to a server.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The prefix under which every event's subject stands: an event of type `T` is on `events.T`.
pub const EVENTS_PREFIX: &str = "events.";

const MAX_LEN: usize = 255;

/// Why a text is not a subject, a pattern or an event type.
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
    if text.len() > MAX_LEN {
        return fail("it is longer than 255 bytes");
    }
    if text.bytes().any(|b| !(0x21..=0x7e).contains(&b)) {
        return fail("it may hold printable ASCII only, without spaces");
    }
    let mut tokens = text.split('.').peekable();
    while let Some(token) = tokens.next() {
        let last = tokens.peek().is_none();
        match token {
            "" => return fail("a token between the dots is empty"),
            "*" if wildcards => {}
            ">" if wildcards && last => {}
            ">" if wildcards => return fail("`>` may only stand at the end"),
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
            /// Checks `text`; the error says what is wrong with it.
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidSubject> {
                let text = text.into();
                check(&text, $what, $wildcards)?;
                Ok(Self(text))
            }

            /// The text.
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
    /// A subject that one message can be published to: no wildcards.
    Subject, "a subject", false
);
checked_text!(
    /// A subject with NATS wildcards: `*` for one token, `>` for the rest.
    Pattern, "a subject pattern", true
);
checked_text!(
    /// A CloudEvents `type` that can stand in a subject, such as `github.pull_request.opened`.
    EventType, "an event type", false
);

impl EventType {
    /// The subject that events of this type are published to: `events.` and the type.
    pub fn subject(&self) -> Subject {
        Subject([EVENTS_PREFIX, self.0.as_str()].concat())
    }

    /// Whether `pattern` (over types, such as `github.>`) covers this type.
    pub fn matches(&self, pattern: &Pattern) -> bool {
        pattern.covers(&self.0)
    }
}

impl Pattern {
    /// Whether some subject is covered by both.
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

    /// Whether a message on `subject` would be delivered to a subscription on this pattern.
    pub fn covers(&self, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        for wanted in self.0.split('.') {
            match (wanted, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
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
    fn subjects_refuse_what_a_server_would() {
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "ä", &"x".repeat(256)] {
            assert!(Subject::parse(bad).is_err(), "{bad}");
        }
        assert!(Subject::parse("events.github.push").is_ok());
    }

    #[test]
    fn patterns_follow_nats() {
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
    fn an_event_type_names_its_subject() {
        assert_eq!(EventType::parse("github.push").unwrap().subject().as_str(), "events.github.push");
    }
}
