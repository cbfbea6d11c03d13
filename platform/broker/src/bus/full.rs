//! EVENTS that is full: what fills it, in words.

use super::{EVENTS, FullBucket, PublishError};
use std::fmt;

/// The setting that bounds EVENTS.
const BOUND: &str = "streams.events_max_bytes";

/// EVENTS takes nothing more from outside: what is there fills it, or the broker's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full {
    /// The bound, where it is known.
    pub max_bytes: Option<u64>,
    /// Why nothing could be trimmed.
    pub reason: FullReason,
}

/// What fills EVENTS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FullReason {
    /// Nothing is known yet.
    Unknown,
    /// The disk that the broker writes to has less free bytes than are to be kept free.
    Disk {
        /// Bytes that are free.
        free: u64,
        /// Bytes that are to be: `streams.disk_reserve`.
        reserve: u64,
    },
    /// The broker refuses events, or acknowledges none: its disk is full, or its own limit is reached.
    Broker {
        /// What it says.
        said: String,
    },
    /// The setting `streams.events_full` is `"refuse"`: all is kept.
    NeverTrimmed,
    /// A consumer has not finished events of it.
    Held {
        /// The consumer's name on the broker.
        consumer: String,
        /// How many events it has not finished.
        unfinished: u64,
        /// The sequence of the first of them.
        first: u64,
    },
}

fn bytes(max_bytes: &Option<u64>) -> String {
    max_bytes.map(|bytes| format!(" at {bytes} bytes")).unwrap_or_default()
}

impl fmt::Display for FullReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => Ok(()),
            Self::Disk { free, reserve } => write!(
                f,
                "the broker's disk is full: {free} bytes are free, and `streams.disk_reserve` keeps {reserve}; make room on it"
            ),
            Self::Broker { said } => {
                write!(
                    f,
                    "the broker stores nothing ({said}): make room on its disk, or raise max_file_store of nats-server"
                )
            }
            Self::NeverTrimmed => f.write_str(", and `streams.events_full = \"refuse\"` keeps what was processed, too"),
            Self::Held { consumer, unfinished, first } => {
                let (kind, name) = match consumer.strip_prefix("nerve-") {
                    Some(name) => ("", name),
                    None => ("the consumer ", consumer.as_str()),
                };
                write!(f, ", and {kind}`{name}` has not finished {unfinished} events of it, the first at {first}")
            }
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            reason @ (FullReason::Disk { .. } | FullReason::Broker { .. }) => reason.fmt(f),
            reason => {
                let bytes = bytes(&self.max_bytes);
                write!(f, "the stream {EVENTS} is full: `{BOUND}` bounds it{bytes}{reason}")
            }
        }
    }
}

impl std::error::Error for Full {}

impl Full {
    /// The same for senders who may not know what is deployed, nor what the machine is like.
    pub fn for_strangers(&self) -> StrangersFull<'_> {
        StrangersFull(self)
    }

    /// Whether it is the disk that is full, or all that the broker may take of it.
    pub fn is_of_disk(&self) -> bool {
        matches!(self.reason, FullReason::Disk { .. } | FullReason::Broker { .. })
    }

    /// Whether it is a disk of this machine.
    pub fn is_here(&self) -> bool {
        matches!(self.reason, FullReason::Disk { .. })
    }
}

/// What strangers are told of an EVENTS that is full.
#[derive(Debug)]
pub struct StrangersFull<'f>(&'f Full);

impl fmt::Display for StrangersFull<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_of_disk() {
            true => f.write_str("the broker's disk is full"),
            false => Full { max_bytes: self.0.max_bytes, reason: FullReason::Unknown }.fmt(f),
        }
    }
}

impl PublishError {
    /// What is full, where that is why the event was not stored.
    pub fn full(&self) -> Option<&Full> {
        match self {
            Self::Unavailable(source) => source.downcast_ref(),
            Self::Invalid(_) => None,
        }
    }
}

impl PublishError {
    /// The bucket that is full, where that is why the event was not stored.
    pub fn full_bucket(&self) -> Option<&FullBucket> {
        match self {
            Self::Unavailable(source) => source.downcast_ref(),
            Self::Invalid(_) => None,
        }
    }
}

impl From<Full> for PublishError {
    fn from(full: Full) -> Self {
        Self::Unavailable(Box::new(full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_the_setting_and_what_holds_the_events() {
        let reason = FullReason::Held { consumer: "nerve-slow".to_owned(), unfinished: 7, first: 3 };
        let held = Full { max_bytes: Some(1000), reason };
        assert_eq!(
            held.to_string(),
            "the stream EVENTS is full: `streams.events_max_bytes` bounds it at 1000 bytes, and `slow` has not finished \
             7 events of it, the first at 3"
        );
        assert!(!held.for_strangers().to_string().contains("slow"));
        assert_eq!(PublishError::from(held.clone()).full(), Some(&held));
    }
}
