//! Reads `[source.NAME]`.

use super::{
    Algorithm, CustomScheme, Dedupe, Encoding, Ids, KeyForm, Locator, Provider, SourceSpec, TimestampUnit, Verify,
    limits,
    reader::{Reader, Section, did_you_mean},
    values::{parse_secret_name, parse_size, parse_url},
};
use std::time::Duration;

const KEYS: &[&str] = &[
    "provider",
    "secrets",
    "tolerance",
    "public_url",
    "verify",
    "dedupe",
    "ids",
    "verify_token",
    "topics",
    "spool",
    "rate",
    "concurrency",
    "allow",
    "max_body",
];
const SCHEME_KEYS: &[&str] = &[
    "signature",
    "prefix",
    "signed",
    "algorithm",
    "encoding",
    "key",
    "timestamp",
    "timestamp_unit",
    "id",
    "type",
    "batch",
    "challenge",
];
const MAX_TOLERANCE: Duration = Duration::from_secs(24 * 3600);

pub(super) fn read(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<SourceSpec> {
    let custom = table.get("provider").and_then(|value| value.get_ref().as_str()) == Some("custom");
    if custom {
        reader.check_keys(table, &[KEYS, SCHEME_KEYS].concat(), &[]);
    } else {
        reject_scheme_keys(reader, table);
    }
    let provider = read_provider(reader, table);
    let mut spec = SourceSpec::new(provider.clone().unwrap_or(Provider::Github));
    spec.verify = reader.parsed(table, "verify", parse_verify).unwrap_or_default();
    spec.secrets = reader.list(table, "secrets", parse_secret_name).unwrap_or_default();
    spec.public_url = reader.parsed(table, "public_url", parse_url);
    spec.dedupe = reader.parsed(table, "dedupe", parse_dedupe);
    spec.ids = reader.parsed(table, "ids", parse_ids);
    spec.verify_token = reader.parsed(table, "verify_token", parse_secret_name);
    spec.topics = reader.list(table, "topics", parse_topic).unwrap_or_default();
    spec.spool = reader.boolean(table, "spool").unwrap_or_default();
    if let Some(tolerance) = reader.duration(table, "tolerance", MAX_TOLERANCE) {
        spec.tolerance = tolerance;
    }
    read_limits(reader, table, &mut spec);
    spec.provider = provider?;
    check_provider_keys(reader, table, &spec);
    Some(spec)
}

/// Reads the limits on the sender.
fn read_limits(reader: &mut Reader<'_>, table: &Section<'_, '_>, spec: &mut SourceSpec) {
    spec.rate = reader.parsed(table, "rate", str::parse);
    let concurrency = reader.number(table, "concurrency", 1..=limits::MAX_SOURCE_CONCURRENCY);
    spec.concurrency = concurrency.and_then(|number| usize::try_from(number).ok());
    if table.get("allow").is_some_and(|value| value.get_ref().as_array().is_some_and(|items| items.is_empty())) {
        reader.report_key(
            table,
            "allow",
            "an empty list rejects all senders: add networks such as \"192.0.2.0/24\", or remove it",
        );
    }
    spec.allow = reader.list(table, "allow", str::parse).unwrap_or_default();
    spec.max_body = reader.parsed(table, "max_body", |text| match parse_size(text) {
        Ok(0) => Err("must be at least \"1B\"".to_owned()),
        read => read,
    });
}

/// Checks the keys that depend on the provider.
fn check_provider_keys(reader: &mut Reader<'_>, table: &Section<'_, '_>, spec: &SourceSpec) {
    let checked = spec.verify == Verify::Signature;
    let (sns, meta) = (spec.provider == Provider::Sns, spec.provider == Provider::Meta);
    if checked && !sns && spec.secrets.is_empty() && table.get("secrets").is_none_or(|value| value.get_ref().is_array())
    {
        let message = "a secret is required: add one (nerve secrets set NAME), or use verify = \"none\" to accept \
                       unsigned deliveries";
        reader.report_key(table, "secrets", message);
    }
    if checked && sns && spec.topics.is_empty() && table.get("topics").is_none() {
        reader.report_key(
            table,
            "topics",
            "missing: add the ARNs of the topics, because AWS signs the messages of all topics",
        );
    }
    if sns && !spec.secrets.is_empty() {
        reader.report_key(
            table,
            "secrets",
            "not supported with provider = \"sns\", which is verified by the AWS certificate and `topics`",
        );
    }
    if !sns && !spec.topics.is_empty() {
        reader.report_key(table, "topics", "supported only with provider = \"sns\"");
    }
    if !meta && spec.verify_token.is_some() {
        reader.report_key(table, "verify_token", "supported only with provider = \"meta\"");
    }
    if let Provider::Custom(scheme) = &spec.provider {
        check_template(reader, table, scheme);
    }
}

fn reject_scheme_keys(reader: &mut Reader<'_>, table: &Section<'_, '_>) {
    for key in SCHEME_KEYS.iter().filter(|key| table.get(key).is_some()) {
        reader.report_key(
            table,
            key,
            "supported only with provider = \"custom\": other providers have a built-in scheme",
        );
    }
    let known: Vec<&str> =
        KEYS.iter().copied().chain(SCHEME_KEYS.iter().copied().filter(|k| table.get(k).is_some())).collect();
    reader.check_keys(table, &known, &[]);
}

fn read_provider(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<Provider> {
    let known: Vec<&str> = Provider::BUILT_IN.iter().map(Provider::name).chain(["custom"]).collect();
    let Some(name) = reader.string(table, "provider") else {
        if table.get("provider").is_none() {
            reader.report_key(table, "provider", format!("missing: expected one of {}", known.join(", ")));
        }
        return None;
    };
    if name == "custom" {
        return read_scheme(reader, table).map(|scheme| Provider::Custom(Box::new(scheme)));
    }
    let provider = Provider::built_in(&name);
    if provider.is_none() {
        reader.report_key(table, "provider", format!("`{name}` is not a provider{}", did_you_mean(&name, &known)));
    }
    provider
}

fn read_scheme(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<CustomScheme> {
    let verified = table.get("verify").and_then(|value| value.get_ref().as_str()) != Some("none");
    let algorithm = reader.parsed(table, "algorithm", parse_algorithm);
    let token = algorithm == Some(Algorithm::Token);
    let required: &[&str] = if token { &["signature"] } else { &["signature", "signed", "algorithm", "encoding"] };
    if verified {
        for key in required.iter().filter(|key| table.get(key).is_none()) {
            reader.report_key(table, key, "missing: provider = \"custom\" requires it");
        }
    }
    for key in ["signed", "encoding"].iter().filter(|key| token && table.get(key).is_some()) {
        reader.report_key(table, key, "not supported with algorithm = \"token\", which sends the secret itself");
    }
    Some(CustomScheme {
        signature: reader.parsed(table, "signature", parse_signature).unwrap_or_default(),
        prefix: reader.string(table, "prefix").unwrap_or_default(),
        signed: reader.string(table, "signed").unwrap_or_default(),
        algorithm: algorithm.unwrap_or(Algorithm::Sha256),
        encoding: reader.parsed(table, "encoding", parse_encoding).unwrap_or(Encoding::Hex),
        key: reader.parsed(table, "key", parse_key_form).unwrap_or_default(),
        timestamp: reader.parsed(table, "timestamp", parse_timestamp_location),
        timestamp_unit: reader.parsed(table, "timestamp_unit", parse_unit).unwrap_or_default(),
        id: reader.parsed(table, "id", parse_locator),
        ty: reader.parsed(table, "type", parse_locator),
        batch: reader.parsed(table, "batch", parse_batch),
        challenge: reader.parsed(table, "challenge", parse_pointer),
    })
}

/// Checks that the signed payload covers the body and that the keys of its placeholders are set.
fn check_template(reader: &mut Reader<'_>, table: &Section<'_, '_>, scheme: &CustomScheme) {
    if scheme.signed.is_empty() {
        return;
    }
    let mut rest = scheme.signed.as_str();
    while let Some((_, tail)) = rest.split_once('{') {
        let Some((name, after)) = tail.split_once('}') else { break };
        let problem = match name {
            "body" => None,
            "timestamp" if scheme.timestamp.is_none() => Some("{timestamp} requires timestamp = \"HEADER\""),
            "id" if !matches!(scheme.id, Some(Locator::Header(_))) => Some("{id} requires id = \"HEADER\""),
            "timestamp" | "id" | "url" | "method" | "form" => None,
            _ => Some("only the placeholders {body}, {timestamp}, {id}, {url}, {method} and {form} are supported"),
        };
        if let Some(problem) = problem {
            reader.report_key(table, "signed", problem);
        }
        rest = after;
    }
    if !scheme.signed.contains("{body}") && !scheme.signed.contains("{form}") {
        reader.report_key(table, "signed", "must cover {body}, or a body could be modified in transit");
    }
}

fn parse_header(text: &str) -> Result<String, String> {
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if good { Ok(text.to_ascii_lowercase()) } else { Err(format!("`{text}` is not a header name")) }
}

fn parse_pointer(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(format!("`{text}` is not a JSON pointer such as /id")) }
}

fn parse_locator(text: &str) -> Result<Locator, String> {
    if text.starts_with('/') {
        return Ok(Locator::Pointer(text.to_owned()));
    }
    let header = parse_header(text);
    header.map(Locator::Header).map_err(|_| format!("`{text}` is neither a header name nor a JSON pointer such as /id"))
}

fn parse_signature(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    match text.strip_suffix('*') {
        Some(start) => parse_header(start).map(|start| format!("{start}*")),
        None => parse_header(text),
    }
}

fn parse_timestamp_location(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    match text.split_once(':') {
        Some((header, part)) if !part.is_empty() => parse_header(header).map(|header| format!("{header}:{part}")),
        _ => parse_header(text),
    }
}

fn parse_batch(text: &str) -> Result<String, String> {
    if text == "." {
        return Ok(text.to_owned());
    }
    parse_pointer(text)
        .map_err(|_| format!("`{text}` is neither a JSON pointer such as /events nor \".\", the body itself"))
}

fn parse_topic(text: &str) -> Result<String, String> {
    let arn = text.starts_with("arn:") && text.split(':').count() == 6 && !text.contains(char::is_whitespace);
    if arn {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a topic ARN such as arn:aws:sns:eu-west-1:123:name"))
    }
}

fn parse_verify(text: &str) -> Result<Verify, String> {
    match text {
        "signature" => Ok(Verify::Signature),
        "none" => Ok(Verify::None),
        other => Err(format!("`{other}` is not supported: use \"signature\" or \"none\"")),
    }
}

fn parse_dedupe(text: &str) -> Result<Dedupe, String> {
    match text {
        "none" => Ok(Dedupe::None),
        "id" => Ok(Dedupe::Id),
        "signed" => Ok(Dedupe::Signed),
        other => Err(format!("`{other}` is not supported: use \"none\", \"id\" or \"signed\"")),
    }
}

fn parse_ids(text: &str) -> Result<Ids, String> {
    match text {
        "unique" => Ok(Ids::Unique),
        "reused" => Ok(Ids::Reused),
        other => Err(format!("`{other}` is not supported: use \"unique\" or \"reused\"")),
    }
}

const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("sha1", Algorithm::Sha1),
    ("sha256", Algorithm::Sha256),
    ("sha512", Algorithm::Sha512),
    ("ed25519", Algorithm::Ed25519),
    ("ecdsa-p256", Algorithm::EcdsaP256),
    ("rsa-sha256", Algorithm::RsaSha256),
    ("token", Algorithm::Token),
];

fn parse_algorithm(text: &str) -> Result<Algorithm, String> {
    let algorithm = ALGORITHMS.iter().find(|(name, _)| *name == text).map(|(_, algorithm)| *algorithm);
    algorithm.ok_or_else(|| unsupported(text, &ALGORITHMS.iter().map(|(name, _)| *name).collect::<Vec<_>>()))
}

fn parse_encoding(text: &str) -> Result<Encoding, String> {
    match text {
        "hex" => Ok(Encoding::Hex),
        "base64" => Ok(Encoding::Base64),
        other => Err(unsupported(other, &["hex", "base64"])),
    }
}

fn parse_key_form(text: &str) -> Result<KeyForm, String> {
    match text {
        "text" => Ok(KeyForm::Text),
        "hex" => Ok(KeyForm::Hex),
        "base64" => Ok(KeyForm::Base64),
        other => Err(unsupported(other, &["text", "hex", "base64"])),
    }
}

fn parse_unit(text: &str) -> Result<TimestampUnit, String> {
    match text {
        "s" => Ok(TimestampUnit::Seconds),
        "ms" => Ok(TimestampUnit::Milliseconds),
        "rfc3339" => Ok(TimestampUnit::Rfc3339),
        other => Err(unsupported(other, &["s", "ms", "rfc3339"])),
    }
}

fn unsupported(value: &str, known: &[&str]) -> String {
    format!("`{value}` is not supported{}", did_you_mean(value, known))
}
