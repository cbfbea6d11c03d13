//! Moments as a command line gives them.

use nerve_broker::bus::Start;
use std::{str::FromStr, time::Duration};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Where in a stream to begin: `first`, `new`, a sequence, a time (RFC 3339), or how long ago (`10m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// The oldest there is.
    First,
    /// What comes from now on.
    New,
    /// A place in the stream.
    Sequence(u64),
    /// A moment.
    Since(Since),
}

/// A moment: a time (RFC 3339), or how long ago (`10m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// A time.
    At(OffsetDateTime),
    /// This long before now.
    Ago(Duration),
}

impl FromStr for Position {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "first" => Ok(Self::First),
            "new" => Ok(Self::New),
            digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map(Self::Sequence).map_err(|_| "that is larger than any sequence")
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
    /// The start at this moment.
    pub(crate) fn start(self) -> Start {
        match self {
            Self::At(time) => Start::Time(time),
            Self::Ago(age) => {
                let age = time::Duration::try_from(age).unwrap_or(time::Duration::MAX);
                // An age from before the calendar is every age.
                OffsetDateTime::now_utc().checked_sub(age).map_or(Start::First, Start::Time)
            }
        }
    }
}

impl Position {
    /// The start that this says.
    pub(crate) fn start(self) -> Start {
        match self {
            Self::First => Start::First,
            Self::New => Start::New,
            Self::Sequence(sequence) => Start::Sequence(sequence),
            Self::Since(since) => since.start(),
        }
    }
}

/// A time for people: to the second, in UTC.
pub(crate) fn shown(time: OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    time.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_else(|_| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read() {
        let at = time::macros::datetime!(2026-01-31 12:00 UTC);
        let read = |text: &str| text.parse::<Position>();
        assert_eq!(read("first"), Ok(Position::First));
        assert_eq!(read("17"), Ok(Position::Sequence(17)));
        assert_eq!(read("2026-01-31T12:00:00Z"), Ok(Position::Since(Since::At(at))));
        assert_eq!(read("10m"), Ok(Position::Since(Since::Ago(Duration::from_secs(600)))));
        for bad in ["", "yesterday", "99999999999999999999", "-1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(shown(at), "2026-01-31 12:00:00");
    }

    #[test]
    fn an_age_beyond_the_calendar_is_the_beginning() {
        assert_eq!(Since::Ago(Duration::MAX).start(), Start::First);
        assert!(matches!(Since::Ago(Duration::from_secs(1)).start(), Start::Time(_)));
    }
}
