//! Values that several tables of a manifest share.

use super::{
    limits,
    reader::{Reader, Section, parse_duration},
};
use crate::{EventType, RetryPolicy, redact};

/// Parses an `http://` or `https://` URL.
pub(super) fn parse_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !text.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err(format!("`{}` is not an http:// or https:// URL", redact::urls(text))),
    }
}

/// Parses the name of a stream.
pub(super) fn parse_stream(text: &str) -> Result<String, String> {
    let good = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if good { Ok(text.to_owned()) } else { Err(format!("`{text}` is not a stream name: use letters, digits, - and _")) }
}

/// Parses an event type. A subject gets an error of its own, because the two are easily confused.
pub(super) fn parse_emitted_type(text: &str) -> Result<EventType, String> {
    if let Some(ty) = text.strip_prefix("events.") {
        return Err(format!("an event type is expected, not a subject: use `{ty}`"));
    }
    EventType::parse(text).map_err(|error| error.to_string())
}

/// Parses the name of a secret, which is also the name of an environment variable.
pub(super) fn parse_secret_name(text: &str) -> Result<String, String> {
    let valid_start = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if valid_start && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a secret name: use letters, digits and _, as in OPENAI_API_KEY"))
    }
}

/// Reads a count from 1 to `max`.
pub(super) fn read_count(
    reader: &mut Reader<'_>,
    table: &Section<'_, '_>,
    key: &str,
    default: usize,
    max: usize,
) -> usize {
    let number = reader.number(table, key, 1..=u64::try_from(max).unwrap_or(u64::MAX));
    number.and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
}

/// Parses a size such as `64MiB`, in bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>();
    size.map(|size| size.0).map_err(|_| format!("`{text}` is not a size: use a number and a unit, such as \"64MiB\""))
}

/// Reads `retry`.
pub(super) fn read_retry(reader: &mut Reader<'_>, table: &Section<'_, '_>, default: RetryPolicy) -> RetryPolicy {
    let Some(retry) = reader.table(table, "retry") else { return default };
    reader.check_keys(&retry, &["attempts", "backoff"], &[]);
    let attempts = reader.number(&retry, "attempts", 1..=u64::from(limits::MAX_ATTEMPTS));
    RetryPolicy {
        attempts: attempts.and_then(|n| u32::try_from(n).ok()).unwrap_or(default.attempts),
        backoff: reader
            .list(&retry, "backoff", |text| parse_duration(text, limits::MAX_BACKOFF))
            .unwrap_or(default.backoff),
    }
}
