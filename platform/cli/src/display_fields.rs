//! Specs as labeled fields, for `describe` and for the comparison of a deploy plan.

use nerve_core::{
    FunctionSpec, ScheduleSpec, SinkSpec, SourceSpec,
    manifest::{Batch, Locator, Provider, RuntimeSpec, SinkBody, Verify},
    redact,
};
use serde::Serialize;
use serde_json::Value;
use std::{borrow::Cow, time::Duration};

/// Labels and values in display order, without unset values.
pub(crate) type DisplayFields = Vec<(&'static str, String)>;

/// Masks credentials in URLs.
pub(crate) fn redacted_fields(fields: DisplayFields) -> impl Iterator<Item = (&'static str, String)> {
    fields.into_iter().map(|(label, value)| (label, redact::urls(&value).into_owned()))
}

/// Serializes a document with masked credentials in URLs.
///
/// # Errors
/// If it cannot be serialized as JSON.
pub(crate) fn redacted(document: &impl Serialize) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(document)?;
    redact_strings(&mut value);
    Ok(value)
}

fn redact_strings(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(redacted) = redact::urls(text) {
                *text = redacted;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(redact_strings),
        Value::Object(fields) => fields.values_mut().for_each(redact_strings),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Fields of a function.
pub(crate) fn of_function(spec: &FunctionSpec) -> DisplayFields {
    let mut fields = vec![("runtime", spec.run.runtime().to_owned())];
    match &spec.run {
        RuntimeSpec::Wasm { source } => fields.push(("source", source.clone())),
        RuntimeSpec::Process { command, source } => {
            fields.push(("command", command.join(" ")));
            fields.extend(source.iter().map(|source| ("source", source.clone())));
        }
        RuntimeSpec::Http { url } => fields.push(("url", url.clone())),
        RuntimeSpec::Builtin { function, model, with } => {
            fields.push(("use", function.clone()));
            fields.extend(model.iter().map(|model| ("model", model.clone())));
            if !with.is_empty() {
                fields.push(("with", serde_json::Value::Object(with.clone()).to_string()));
            }
        }
    }
    let backoff: Vec<String> = spec.retry.backoff.iter().map(|&wait| duration(wait)).collect();
    fields.extend([
        ("on", list(&spec.on)),
        ("stream", spec.stream.clone().unwrap_or_default()),
        ("emits", list(&spec.emits)),
        ("concurrency", spec.concurrency.to_string()),
        ("batch", batch(spec.batch)),
        ("timeout", duration(spec.timeout)),
        ("memory", bytes(spec.memory)),
        ("attempts", spec.retry.attempts.to_string()),
        ("backoff", backoff.join(", ")),
        ("env", spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")),
        ("secrets", spec.secrets.join(", ")),
        ("tool", spec.tool.as_ref().and_then(|tool| serde_json::to_string(tool).ok()).unwrap_or_default()),
    ]);
    fields.retain(|(_, value)| !value.is_empty());
    fields
}

/// Fields of a webhook source.
pub(crate) fn of_source(spec: &SourceSpec) -> DisplayFields {
    let mut fields = vec![
        ("provider", spec.provider.name().to_owned()),
        ("secrets", spec.secrets.join(", ")),
        ("tolerance", duration(spec.tolerance)),
        ("public_url", spec.public_url.clone().unwrap_or_default()),
    ];
    fields.extend([
        ("dedupe", spec.dedupe().name().to_owned()),
        ("ids", spec.ids().name().to_owned()),
        ("verify_token", spec.verify_token.clone().unwrap_or_default()),
        ("topics", spec.topics.join(", ")),
        ("spool", if spec.spool { "true".to_owned() } else { String::new() }),
        ("rate", spec.rate.map(|rate| rate.to_string()).unwrap_or_default()),
        ("concurrency", spec.concurrency.map(|slots| slots.to_string()).unwrap_or_default()),
        ("allow", list(&spec.allow)),
        ("max_body", spec.max_body.map(bytes).unwrap_or_default()),
    ]);
    if spec.verify == Verify::None {
        fields.push(("verify", "none".to_owned()));
    }
    if let Provider::Custom(scheme) = &spec.provider {
        fields.extend([
            ("signature", scheme.signature.clone()),
            ("prefix", scheme.prefix.clone()),
            ("signed", scheme.signed.clone()),
            ("algorithm", format!("{:?}", scheme.algorithm).to_lowercase()),
            ("encoding", format!("{:?}", scheme.encoding).to_lowercase()),
            ("key", format!("{:?}", scheme.key).to_lowercase()),
            ("timestamp", scheme.timestamp.clone().unwrap_or_default()),
            ("timestamp_unit", format!("{:?}", scheme.timestamp_unit).to_lowercase()),
            ("id", scheme.id.as_ref().map(locator).unwrap_or_default()),
            ("type", scheme.ty.as_ref().map(locator).unwrap_or_default()),
            ("batch", scheme.batch.clone().unwrap_or_default()),
            ("challenge", scheme.challenge.clone().unwrap_or_default()),
        ]);
    }
    fields.retain(|(_, value)| !value.is_empty());
    fields
}

/// Fields of a sink.
pub(crate) fn of_sink(spec: &SinkSpec) -> DisplayFields {
    let backoff: Vec<String> = spec.retry.backoff.iter().map(|&wait| duration(wait)).collect();
    let headers: Vec<String> = spec.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let mut fields = vec![
        ("url", spec.url.clone()),
        ("on", list(&spec.on)),
        ("stream", spec.stream.clone().unwrap_or_default()),
        ("secrets", spec.secrets.join(", ")),
        ("format", spec.body.name().to_owned()),
    ];
    if let SinkBody::Template { text, content_type } = &spec.body {
        fields.extend([("template", text.clone()), ("content_type", content_type.clone())]);
    }
    fields.extend([
        ("headers", headers.join(", ")),
        ("timeout", duration(spec.timeout)),
        ("concurrency", spec.concurrency.to_string()),
        ("rate", spec.rate.map(|rate| rate.to_string()).unwrap_or_default()),
        ("attempts", spec.retry.attempts.to_string()),
        ("backoff", backoff.join(", ")),
        ("order", if spec.order { "true".to_owned() } else { String::new() }),
        ("allow", list(&spec.allow)),
        ("disable_after", duration(spec.disable_after)),
    ]);
    fields.retain(|(_, value)| !value.is_empty());
    fields
}

/// Fields of a schedule.
pub(crate) fn of_schedule(spec: &ScheduleSpec) -> DisplayFields {
    let mut fields = vec![
        ("cron", spec.cron.clone()),
        ("timezone", spec.timezone.clone().unwrap_or_default()),
        ("emit", spec.emit.to_string()),
        ("data", spec.data.as_ref().map(ToString::to_string).unwrap_or_default()),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    fields
}

fn batch(batch: Batch) -> String {
    let wait = if batch.wait.is_zero() { String::new() } else { format!(" within {}", duration(batch.wait)) };
    format!("{}{wait}", batch.size)
}

fn locator(locator: &Locator) -> String {
    match locator {
        Locator::Header(name) => format!("header {name}"),
        Locator::Pointer(pointer) => format!("pointer {pointer}"),
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Formats a duration as in a manifest.
pub(crate) fn duration(value: Duration) -> String {
    humantime::format_duration(value).to_string().replace(' ', "")
}

/// Formats a size as in a manifest, in the largest exact unit.
pub(crate) fn bytes(value: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let whole = units.iter().find(|(_, shift)| value > 0 && value.trailing_zeros() >= *shift);
    whole.map_or_else(|| format!("{value}B"), |(unit, shift)| format!("{}{unit}", value >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::Manifest;

    #[test]
    fn function_fields_match_the_manifest() {
        let text = "[function.a]\nruntime = \"process\"\ncommand = [\"python3\", \"a.py\"]\non = [\"events.>\"]\n\
                    timeout = \"90s\"\nmemory = \"64MiB\"\nenv = { LANG = \"en\" }\n";
        let manifest = Manifest::parse(text).unwrap();
        let fields = of_function(manifest.functions.values().next().unwrap());
        let value = |label: &str| fields.iter().find(|(l, _)| *l == label).map(|(_, value)| value.as_str());
        assert_eq!(value("command"), Some("python3 a.py"));
        assert_eq!(value("timeout"), Some("1m30s"));
        assert_eq!(value("memory"), Some("64MiB"));
        assert_eq!(value("env"), Some("LANG=en"));
        assert_eq!(value("backoff"), Some("1s, 5s, 30s, 2m"));
        assert_eq!(value("emits"), None);
    }

    #[test]
    fn credentials_in_urls_are_masked() {
        let text = "[function.a]\nruntime = \"http\"\nurl = \"http://ada:hunter2@h/\"\non = [\"events.>\"]\n";
        let manifest = Manifest::parse(text).unwrap();
        let spec = manifest.functions.values().next().unwrap();
        let fields: Vec<_> = redacted_fields(of_function(spec)).collect();
        assert!(fields.contains(&("url", "http://***@h/".to_owned())), "{fields:?}");
        let json = redacted(spec).unwrap().to_string();
        assert!(json.contains("http://***@h/") && !json.contains("hunter2"), "{json}");
    }

    #[test]
    fn size_is_exact() {
        assert_eq!([bytes(1 << 30), bytes(3 << 19), bytes(0), bytes(1000)], ["1GiB", "1536KiB", "0B", "1000B"]);
    }
}
