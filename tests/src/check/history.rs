//! What happened in a run, as it was seen from outside, and what is in the streams at its end.

use super::model::{Fault, Function, Moment, Post, Request, Tenant};
use crate::streams::Stored;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;
use time::OffsetDateTime;

/// One fact, and when it began.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Before it was done, so that what came of it is later.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What.
    pub fact: Fact,
}

/// What was sent, called, ordered or broken.
#[derive(Debug, Clone, Serialize)]
pub enum Fact {
    /// An event was sent, and answered.
    Sent {
        /// Its number.
        n: usize,
        /// What it is.
        post: Post,
        /// The status; none if there was no answer.
        status: Option<u16>,
        /// Whether the answer says that it was known.
        duplicate: bool,
    },
    /// A tenant called the API, and was answered.
    Called {
        /// Who.
        tenant: Tenant,
        /// The idempotency key.
        key: u8,
        /// What.
        request: Request,
        /// The status; none if there was no answer in time.
        status: Option<u16>,
        /// The answer.
        body: Value,
    },
    /// A tenant read another tenant's answer or gave feedback on it, or tried to.
    Peeked {
        /// Who.
        tenant: Tenant,
        /// The answer's id.
        id: String,
        /// The status; none if there was no answer in time.
        status: Option<u16>,
    },
    /// A dead letter was there before it was redriven or dropped.
    Letter(Letter),
    /// A dead letter was redriven, as the command says.
    Redriven(Letter),
    /// A function was sent back to its first event.
    Replayed {
        /// Which.
        function: Function,
        /// When it was done. What came meanwhile may come again, too, or not.
        #[serde(with = "time::serde::rfc3339")]
        until: OffsetDateTime,
    },
    /// This version was deployed.
    Deployed(u32),
    /// A function that had nothing to do was removed, and is deployed again.
    Removed(Function),
    /// The stream of a user's own was deleted and made again.
    Remade,
    /// Something broke.
    Broke(Fault, Moment),
    /// The windows passed.
    Waited,
    /// Everything came to rest, or did not.
    Settled(bool),
}

/// A dead letter as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct Letter {
    /// Its number in DEAD.
    pub id: u64,
    /// The event's number; none if its data does not say it.
    pub n: Option<usize>,
    /// When it was written.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
}

/// A run of [`Function::Work`] or [`Function::Own`], as it wrote it down itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Run {
    /// The event's number.
    pub n: usize,
    /// Which run.
    pub run: String,
    /// The version that ran.
    pub version: u32,
    /// When it began, in seconds since 1970.
    pub at: f64,
}

/// What there is when everything has come to rest.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// For how long ids are known.
    pub window: Duration,
    /// The log, and all that was in the user's own stream.
    pub events: Vec<Stored>,
    /// Dead letters, and what was redriven.
    pub dead: Vec<Stored>,
    /// What `nerve dlq list` shows.
    pub letters: Vec<Letter>,
    /// All that listings show, to look for what is in none.
    pub listed: Vec<Value>,
    /// What was dropped as duplicates, as it is counted: the subject of each counter in DROPS, and its number.
    pub dropped: Vec<(String, u64)>,
    /// The runs of the function.
    pub runs: Vec<Run>,
    /// What is not at rest.
    pub restless: Option<String>,
}
