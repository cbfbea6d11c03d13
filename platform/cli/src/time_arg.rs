//! Times and stream positions as command-line arguments.

use nerve_broker::bus::Start;
use std::{str::FromStr, time::Duration};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A position in a stream: `first`, `new`, a sequence, a time (RFC 3339), or an age (`10m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// The oldest message.
    First,
    /// New messages only.
    New,
    /// A sequence in the stream.
    Sequence(u64),
    /// A time, absolute or relative.
    Since(Since),
}

/// A time (RFC 3339), or an age (`10m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// A time, absolute or relative.
    At(OffsetDateTime),
    /// An age.
    Ago(Duration),
}

impl FromStr for Position {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "first" => Ok(Self::First),
            "new" => Ok(Self::New),
            digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map(Self::Sequence).map_err(|_| "the sequence is out of range")
            }
            other => other.parse().map(Self::Since).map_err(
                |_: &str| "use `first`, `new`, a sequence, a time such as 2026-01-31T12:00:00Z, or an age such as 10m",
            ),
        }
    }
}

impl FromStr for Since {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self::At(time));
        }
        let age = humantime::parse_duration(text);
        age.map(Self::Ago).map_err(|_| "use a time such as 2026-01-31T12:00:00Z, or an age such as 10m")
    }
}

impl Since {
    /// Returns the start position at this time.
    pub(crate) fn start(self) -> Start {
        match self {
            Self::At(time) => Start::Time(time),
            Self::Ago(age) => {
                let age = time::Duration::try_from(age).unwrap_or(time::Duration::MAX);
                // An age beyond the calendar selects all messages.
                OffsetDateTime::now_utc().checked_sub(age).map_or(Start::First, Start::Time)
            }
        }
    }
}

impl Position {
    /// Returns the start position.
    pub(crate) fn start(self) -> Start {
        match self {
            Self::First => Start::First,
            Self::New => Start::New,
            Self::Sequence(sequence) => Start::Sequence(sequence),
            Self::Since(since) => since.start(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_parsed() {
        let at = time::macros::datetime!(2026-01-31 12:00 UTC);
        let read = |text: &str| text.parse::<Position>();
        assert_eq!(read("first"), Ok(Position::First));
        assert_eq!(read("17"), Ok(Position::Sequence(17)));
        assert_eq!(read("2026-01-31T12:00:00Z"), Ok(Position::Since(Since::At(at))));
        assert_eq!(read("10m"), Ok(Position::Since(Since::Ago(Duration::from_secs(600)))));
        for bad in ["", "yesterday", "99999999999999999999", "-1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn age_beyond_the_calendar_selects_all_messages() {
        assert_eq!(Since::Ago(Duration::MAX).start(), Start::First);
        assert!(matches!(Since::Ago(Duration::from_secs(1)).start(), Start::Time(_)));
    }
}
