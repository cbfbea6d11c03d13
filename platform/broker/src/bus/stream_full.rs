//! Describes why EVENTS is full.

use super::{EVENTS, FullBucket, PublishError};
use std::fmt;

/// The setting that limits EVENTS.
const LIMIT_KEY: &str = "streams.events_max_bytes";

/// EVENTS accepts no external events: the stream or the broker's disk is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFull {
    /// The limit, if known.
    pub max_bytes: Option<u64>,
    /// The reason why nothing could be trimmed.
    pub reason: StreamFullReason,
}

/// The reason why EVENTS is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamFullReason {
    /// Not known yet.
    Unknown,
    /// The broker's disk has less free space than the reserve.
    Disk {
        /// Free bytes.
        free: u64,
        /// Required free bytes: `streams.disk_reserve`.
        reserve: u64,
    },
    /// The broker rejects events or does not acknowledge them: its disk is full, or its own limit is reached.
    Broker {
        /// The broker's message.
        message: String,
    },
    /// The setting `streams.events_full` is `"refuse"`: nothing is trimmed.
    NeverTrimmed,
    /// A consumer has unfinished events.
    Held {
        /// The consumer's name on the broker.
        consumer: String,
        /// The number of its unfinished events.
        unfinished: u64,
        /// The sequence of the first one.
        first: u64,
    },
}

fn bytes(max_bytes: &Option<u64>) -> String {
    max_bytes.map(|bytes| format!(" to {bytes} bytes")).unwrap_or_default()
}

impl fmt::Display for StreamFullReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => Ok(()),
            Self::Disk { free, reserve } => write!(
                f,
                "the broker's disk is full: {free} bytes are free, and `streams.disk_reserve` requires {reserve}; free space on it"
            ),
            Self::Broker { message } => {
                write!(
                    f,
                    "the broker cannot store events ({message}): free space on its disk, or raise max_file_store of nats-server"
                )
            }
            Self::NeverTrimmed => f.write_str(", and `streams.events_full = \"refuse\"` keeps finished events, too"),
            Self::Held { consumer, unfinished, first } => {
                let (kind, name) = match consumer.strip_prefix("nerve-") {
                    Some(name) => ("", name),
                    None => ("the consumer ", consumer.as_str()),
                };
                write!(f, ", and {kind}`{name}` has {unfinished} unfinished events, the first at {first}")
            }
        }
    }
}

impl fmt::Display for StreamFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            reason @ (StreamFullReason::Disk { .. } | StreamFullReason::Broker { .. }) => reason.fmt(f),
            reason => {
                let bytes = bytes(&self.max_bytes);
                write!(f, "the stream {EVENTS} is full: `{LIMIT_KEY}` limits it{bytes}{reason}")
            }
        }
    }
}

impl std::error::Error for StreamFull {}

impl StreamFull {
    /// The error without details of deployed resources and the machine.
    pub fn redacted(&self) -> RedactedStreamFull<'_> {
        RedactedStreamFull(self)
    }

    /// Returns whether the disk is full, or the broker's share of it.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.reason, StreamFullReason::Disk { .. } | StreamFullReason::Broker { .. })
    }

    /// Returns whether a disk of this machine is full.
    pub fn is_local_disk(&self) -> bool {
        matches!(self.reason, StreamFullReason::Disk { .. })
    }
}

/// A [`StreamFull`] for senders that must not learn what is deployed.
#[derive(Debug)]
pub struct RedactedStreamFull<'f>(&'f StreamFull);

impl fmt::Display for RedactedStreamFull<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_disk_full() {
            true => f.write_str("the broker's disk is full"),
            false => StreamFull { max_bytes: self.0.max_bytes, reason: StreamFullReason::Unknown }.fmt(f),
        }
    }
}

impl PublishError {
    /// The full stream, if that is the cause.
    pub fn full(&self) -> Option<&StreamFull> {
        match self {
            Self::Unavailable(source) => source.downcast_ref(),
            Self::Invalid(_) => None,
        }
    }
}

impl PublishError {
    /// The full bucket, if that is the cause.
    pub fn full_bucket(&self) -> Option<&FullBucket> {
        match self {
            Self::Unavailable(source) => source.downcast_ref(),
            Self::Invalid(_) => None,
        }
    }
}

impl From<StreamFull> for PublishError {
    fn from(full: StreamFull) -> Self {
        Self::Unavailable(Box::new(full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_stream_names_the_setting_and_the_blocking_consumer() {
        let reason = StreamFullReason::Held { consumer: "nerve-slow".to_owned(), unfinished: 7, first: 3 };
        let held = StreamFull { max_bytes: Some(1000), reason };
        assert_eq!(
            held.to_string(),
            "the stream EVENTS is full: `streams.events_max_bytes` limits it to 1000 bytes, and `slow` has \
             7 unfinished events, the first at 3"
        );
        assert!(!held.redacted().to_string().contains("slow"));
        assert_eq!(PublishError::from(held.clone()).full(), Some(&held));
    }
}
