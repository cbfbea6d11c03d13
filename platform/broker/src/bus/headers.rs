//! The `Nerve-*` headers of copies: dead letters, redriven dead letters and delayed retries.

use async_nats::HeaderMap;
use nerve_core::Name;

pub(super) const STREAM: &str = "Nerve-Stream";
pub(super) const SEQUENCE: &str = "Nerve-Sequence";
pub(super) const STORED: &str = "Nerve-Stored";
pub(super) const SUBJECT: &str = "Nerve-Subject";
pub(super) const GENERATION: &str = "Nerve-Generation";
/// Present in dead letters only, as are the three that follow.
const FAILED_FUNCTION: &str = "Nerve-Function";
pub(super) const REVISION: &str = "Nerve-Revision";
pub(super) const ATTEMPTS: &str = "Nerve-Attempts";
pub(super) const ERRORS: &str = "Nerve-Errors";
/// Flags a test delivery to a sink; its value is `1`.
pub(super) const SINK_TEST: &str = "Nerve-Trial";

/// Returns whether this is a `Nats-*` control header, which must not be copied.
pub(super) fn is_broker_header(name: &str) -> bool {
    has_prefix(name, "nats-")
}

/// Returns whether only Nerve sets this header.
pub(super) fn is_nerve_header(name: &str) -> bool {
    has_prefix(name, "nerve-")
}

fn has_prefix(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Adds the failure that a dead letter reports.
pub(super) fn insert_failure(headers: &mut HeaderMap, function: (&Name, u64), attempts: u32, errors: &str) {
    let (name, revision) = function;
    headers.insert(FAILED_FUNCTION, name.as_str());
    headers.insert(REVISION, revision.to_string());
    headers.insert(ATTEMPTS, attempts.to_string());
    headers.insert(ERRORS, errors);
}
