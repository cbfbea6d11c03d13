//! Reads `[sink.NAME]`.

use super::{
    SinkBody, SinkSpec, limits,
    reader::{Reader, Section, did_you_mean},
    sink::{default_sink_secret, referenced_secrets},
    values::{parse_secret_name, parse_stream, parse_url, read_count, read_retry},
};
use crate::{Name, Pattern, RetryPolicy};
use std::{collections::BTreeMap, time::Duration};

const KEYS: &[&str] = &[
    "url",
    "on",
    "stream",
    "secrets",
    "format",
    "template",
    "content_type",
    "headers",
    "timeout",
    "concurrency",
    "rate",
    "retry",
    "order",
    "allow",
    "disable_after",
];
const PLANNED: &[&str] = &["order_by"];
const FORMATS: &[&str] = &["standard", "cloudevents", "data"];
/// Headers that Nerve or its HTTP client sets.
const RESERVED_HEADERS: &[&str] = &[
    "host",
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
];
/// Recommended by Standard Webhooks.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_TIMEOUT: Duration = Duration::from_secs(300);
const DEFAULT_DISABLE_AFTER: Duration = Duration::from_secs(5 * 24 * 3600);
const MAX_DISABLE_AFTER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The schedule recommended by Standard Webhooks: eight attempts over more than a day.
fn default_retry() -> RetryPolicy {
    let waits = [5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 10 * 3600];
    RetryPolicy { attempts: 8, backoff: waits.map(Duration::from_secs).to_vec() }
}

pub(super) fn read(reader: &mut Reader<'_>, name: &Name, table: &Section<'_, '_>) -> Option<SinkSpec> {
    reader.check_keys(table, KEYS, PLANNED);
    for (key, example) in [("url", "\"https://…\""), ("on", "[\"events.answer.generated\"]")] {
        let empty = table.get(key).is_none_or(|value| value.get_ref().as_array().is_some_and(|items| items.is_empty()));
        if empty {
            reader.report_key(table, key, format!("missing: add {key} = {example}"));
        }
    }
    let url = reader.parsed(table, "url", parse_sink_url);
    let on = reader.list(table, "on", |text| Pattern::parse(text));
    let secrets = reader.list(table, "secrets", parse_secret_name).filter(|names| !names.is_empty());
    Some(SinkSpec {
        stream: reader.parsed(table, "stream", parse_stream),
        secrets: secrets.unwrap_or_else(|| vec![default_sink_secret(name)]),
        body: read_body(reader, table),
        headers: read_headers(reader, table),
        timeout: reader.duration(table, "timeout", MAX_TIMEOUT).unwrap_or(DEFAULT_TIMEOUT),
        concurrency: read_count(reader, table, "concurrency", limits::DEFAULT_CONCURRENCY, limits::MAX_CONCURRENCY),
        rate: reader.parsed(table, "rate", str::parse),
        retry: read_retry(reader, table, default_retry()),
        order: reader.boolean(table, "order").unwrap_or_default(),
        allow: reader.list(table, "allow", str::parse).unwrap_or_default(),
        disable_after: reader.duration(table, "disable_after", MAX_DISABLE_AFTER).unwrap_or(DEFAULT_DISABLE_AFTER),
        url: url?,
        on: on?,
    })
}

fn parse_sink_url(text: &str) -> Result<String, String> {
    let url = parse_url(text)?;
    let authority = url.split("://").nth(1).and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    if authority.contains('@') {
        return Err(
            "it contains a user or a password, which logs and lists would show: use headers = { Authorization = \
                    \"Basic ${NAME}\" } with a secret of that name"
                .to_owned(),
        );
    }
    Ok(url)
}

fn read_body(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> SinkBody {
    let format = reader.parsed(table, "format", |text| match text {
        "standard" => Ok(SinkBody::Standard),
        "cloudevents" => Ok(SinkBody::CloudEvents),
        "data" => Ok(SinkBody::Data),
        other => Err(format!("`{other}` is not a format{}", did_you_mean(other, FORMATS))),
    });
    let template = reader.string(table, "template");
    let content_type = reader.parsed(table, "content_type", parse_header_value);
    match template {
        Some(text) => {
            if table.get("format").is_some() {
                reader.report_key(
                    table,
                    "format",
                    "`format` and `template` are mutually exclusive: remove one of the two",
                );
            }
            let content_type = content_type.unwrap_or_else(|| "application/json".to_owned());
            SinkBody::Template { text, content_type }
        }
        None => {
            if table.get("content_type").is_some() {
                reader.report_key(
                    table,
                    "content_type",
                    "supported only with `template`: other formats define their content type",
                );
            }
            format.unwrap_or_default()
        }
    }
}

fn read_headers(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> BTreeMap<String, String> {
    let Some(headers) = reader.table(table, "headers") else { return BTreeMap::new() };
    let names: Vec<String> = headers.table.keys().map(|key| key.get_ref().to_string()).collect();
    let mut values = BTreeMap::new();
    for name in names {
        let Some(value) = reader.parsed(&headers, &name, parse_header_value) else { continue };
        let lower = name.to_ascii_lowercase();
        let token = !lower.is_empty() && lower.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !token {
            reader.report_key(&headers, &name, "not a header name");
        } else if RESERVED_HEADERS.contains(&lower.as_str()) || lower.starts_with("webhook-") {
            reader.report_key(&headers, &name, "reserved for Nerve: remove it");
        } else {
            values.insert(lower, value);
        }
    }
    values
}

fn parse_header_value(text: &str) -> Result<String, String> {
    if !text.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
        return Err("only printable ASCII is allowed in a header value".to_owned());
    }
    for name in referenced_secrets(text) {
        parse_secret_name(name)?;
    }
    Ok(text.to_owned())
}
