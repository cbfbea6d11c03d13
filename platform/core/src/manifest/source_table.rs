//! `[source.NAME]`

use super::{
    Algorithm, CustomScheme, Dedupe, Encoding, Ids, KeyForm, Locator, Provider, SourceSpec, TimestampUnit, Verify,
    function_table::{parse_secret_name, parse_size, parse_url},
    limits,
    read::{Reader, Section, did_you_mean},
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
const TOLERANCE_MAX: Duration = Duration::from_secs(24 * 3600);

pub(super) fn read(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<SourceSpec> {
    let custom = table.get("provider").and_then(|value| value.get_ref().as_str()) == Some("custom");
    if custom {
        reader.check_keys(table, &[KEYS, SCHEME_KEYS].concat(), &[]);
    } else {
        refuse_scheme_keys(reader, table);
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
    if let Some(tolerance) = reader.duration(table, "tolerance", TOLERANCE_MAX) {
        spec.tolerance = tolerance;
    }
    read_bounds(reader, table, &mut spec);
    spec.provider = provider?;
    check_together(reader, table, &spec);
    Some(spec)
}

/// Who may post, and how much.
fn read_bounds(reader: &mut Reader<'_>, table: &Section<'_, '_>, spec: &mut SourceSpec) {
    spec.rate = reader.parsed(table, "rate", str::parse);
    let concurrency = reader.number(table, "concurrency", 1..=limits::SOURCE_CONCURRENCY);
    spec.concurrency = concurrency.and_then(|number| usize::try_from(number).ok());
    if table.get("allow").is_some_and(|value| value.get_ref().as_array().is_some_and(|items| items.is_empty())) {
        reader.fault(table, "allow", "it lets nobody in: name networks such as \"192.0.2.0/24\", or remove it");
    }
    spec.allow = reader.list(table, "allow", str::parse).unwrap_or_default();
    spec.max_body = reader.parsed(table, "max_body", |text| match parse_size(text) {
        Ok(0) => Err("it takes no body at all: give it at least \"1B\"".to_owned()),
        read => read,
    });
}

/// What a provider needs beside its name.
fn check_together(reader: &mut Reader<'_>, table: &Section<'_, '_>, spec: &SourceSpec) {
    let checked = spec.verify == Verify::Signature;
    let (sns, meta) = (spec.provider == Provider::Sns, spec.provider == Provider::Meta);
    if checked && !sns && spec.secrets.is_empty() && table.get("secrets").is_none_or(|value| value.get_ref().is_array())
    {
        let message = "a source without a secret is refused: name one (nerve secrets set NAME), or say verify = \"none\" \
                       if anybody may post";
        reader.fault(table, "secrets", message);
    }
    if checked && sns && spec.topics.is_empty() && table.get("topics").is_none() {
        reader.fault(
            table,
            "topics",
            "it is missing: name the topics' ARNs, since AWS signs for whoever makes a topic",
        );
    }
    if sns && !spec.secrets.is_empty() {
        reader.fault(
            table,
            "secrets",
            "provider = \"sns\" takes none: it is verified by AWS' certificate and `topics`",
        );
    }
    if !sns && !spec.topics.is_empty() {
        reader.fault(table, "topics", "only provider = \"sns\" takes it");
    }
    if !meta && spec.verify_token.is_some() {
        reader.fault(table, "verify_token", "only provider = \"meta\" takes it");
    }
    if let Provider::Custom(scheme) = &spec.provider {
        check_template(reader, table, scheme);
    }
}

fn refuse_scheme_keys(reader: &mut Reader<'_>, table: &Section<'_, '_>) {
    for key in SCHEME_KEYS.iter().filter(|key| table.get(key).is_some()) {
        reader.fault(table, key, "only provider = \"custom\" takes it: the provider's own scheme is built in");
    }
    let known: Vec<&str> =
        KEYS.iter().copied().chain(SCHEME_KEYS.iter().copied().filter(|k| table.get(k).is_some())).collect();
    reader.check_keys(table, &known, &[]);
}

fn read_provider(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<Provider> {
    let known: Vec<&str> = Provider::BUILT_IN.iter().map(Provider::name).chain(["custom"]).collect();
    let Some(name) = reader.string(table, "provider") else {
        if table.get("provider").is_none() {
            reader.fault(table, "provider", format!("it is missing: it may be one of {}", known.join(", ")));
        }
        return None;
    };
    if name == "custom" {
        return read_scheme(reader, table).map(|scheme| Provider::Custom(Box::new(scheme)));
    }
    let provider = Provider::built_in(&name);
    if provider.is_none() {
        reader.fault(table, "provider", format!("`{name}` is not a provider{}", did_you_mean(&name, &known)));
    }
    provider
}

fn read_scheme(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<CustomScheme> {
    let verified = table.get("verify").and_then(|value| value.get_ref().as_str()) != Some("none");
    let algorithm = reader.parsed(table, "algorithm", parse_algorithm);
    let token = algorithm == Some(Algorithm::Token);
    let needed: &[&str] = if token { &["signature"] } else { &["signature", "signed", "algorithm", "encoding"] };
    if verified {
        for key in needed.iter().filter(|key| table.get(key).is_none()) {
            reader.fault(table, key, "it is missing: provider = \"custom\" needs it");
        }
    }
    for key in ["signed", "encoding"].iter().filter(|key| token && table.get(key).is_some()) {
        reader.fault(table, key, "algorithm = \"token\" takes none: the secret itself is sent");
    }
    Some(CustomScheme {
        signature: reader.parsed(table, "signature", parse_signature).unwrap_or_default(),
        prefix: reader.string(table, "prefix").unwrap_or_default(),
        signed: reader.string(table, "signed").unwrap_or_default(),
        algorithm: algorithm.unwrap_or(Algorithm::Sha256),
        encoding: reader.parsed(table, "encoding", parse_encoding).unwrap_or(Encoding::Hex),
        key: reader.parsed(table, "key", parse_key_form).unwrap_or_default(),
        timestamp: reader.parsed(table, "timestamp", parse_time_place),
        timestamp_unit: reader.parsed(table, "timestamp_unit", parse_unit).unwrap_or_default(),
        id: reader.parsed(table, "id", parse_locator),
        ty: reader.parsed(table, "type", parse_locator),
        batch: reader.parsed(table, "batch", parse_batch),
        challenge: reader.parsed(table, "challenge", parse_pointer),
    })
}

/// What is signed must cover the body, and everything it names must be declared.
fn check_template(reader: &mut Reader<'_>, table: &Section<'_, '_>, scheme: &CustomScheme) {
    if scheme.signed.is_empty() {
        return;
    }
    let mut rest = scheme.signed.as_str();
    while let Some((_, tail)) = rest.split_once('{') {
        let Some((name, after)) = tail.split_once('}') else { break };
        let problem = match name {
            "body" => None,
            "timestamp" if scheme.timestamp.is_none() => Some("{timestamp} needs timestamp = \"HEADER\""),
            "id" if !matches!(scheme.id, Some(Locator::Header(_))) => Some("{id} needs id = \"HEADER\""),
            "timestamp" | "id" | "url" | "method" | "form" => None,
            _ => Some("it may hold {body}, {timestamp}, {id}, {url}, {method} and {form} only"),
        };
        if let Some(problem) = problem {
            reader.fault(table, "signed", problem);
        }
        rest = after;
    }
    if !scheme.signed.contains("{body}") && !scheme.signed.contains("{form}") {
        reader.fault(table, "signed", "it must cover {body}, else a body could be changed on its way");
    }
}

fn parse_header(text: &str) -> Result<String, String> {
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if good { Ok(text.to_ascii_lowercase()) } else { Err(format!("`{text}` is not a header's name")) }
}

fn parse_pointer(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(format!("`{text}` is not a JSON pointer such as /id")) }
}

fn parse_locator(text: &str) -> Result<Locator, String> {
    if text.starts_with('/') {
        return Ok(Locator::Pointer(text.to_owned()));
    }
    let header = parse_header(text);
    header
        .map(Locator::Header)
        .map_err(|_| format!("`{text}` is neither a header's name nor a JSON pointer such as /id"))
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

fn parse_time_place(text: &str) -> Result<String, String> {
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
        Err(format!("`{text}` is not a topic's ARN such as arn:aws:sns:eu-west-1:123:name"))
    }
}

fn parse_verify(text: &str) -> Result<Verify, String> {
    match text {
        "signature" => Ok(Verify::Signature),
        "none" => Ok(Verify::None),
        other => Err(format!("`{other}` must be \"signature\" or \"none\"")),
    }
}

fn parse_dedupe(text: &str) -> Result<Dedupe, String> {
    match text {
        "none" => Ok(Dedupe::None),
        "id" => Ok(Dedupe::Id),
        "signed" => Ok(Dedupe::Signed),
        other => Err(format!("`{other}` must be \"none\", \"id\" or \"signed\"")),
    }
}

fn parse_ids(text: &str) -> Result<Ids, String> {
    match text {
        "unique" => Ok(Ids::Unique),
        "reused" => Ok(Ids::Reused),
        other => Err(format!("`{other}` must be \"unique\" or \"reused\"")),
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
    let found = ALGORITHMS.iter().find(|(name, _)| *name == text).map(|(_, algorithm)| *algorithm);
    found.ok_or_else(|| choice(text, &ALGORITHMS.iter().map(|(name, _)| *name).collect::<Vec<_>>()))
}

fn parse_encoding(text: &str) -> Result<Encoding, String> {
    match text {
        "hex" => Ok(Encoding::Hex),
        "base64" => Ok(Encoding::Base64),
        other => Err(choice(other, &["hex", "base64"])),
    }
}

fn parse_key_form(text: &str) -> Result<KeyForm, String> {
    match text {
        "text" => Ok(KeyForm::Text),
        "hex" => Ok(KeyForm::Hex),
        "base64" => Ok(KeyForm::Base64),
        other => Err(choice(other, &["text", "hex", "base64"])),
    }
}

fn parse_unit(text: &str) -> Result<TimestampUnit, String> {
    match text {
        "s" => Ok(TimestampUnit::Seconds),
        "ms" => Ok(TimestampUnit::Milliseconds),
        "rfc3339" => Ok(TimestampUnit::Rfc3339),
        other => Err(choice(other, &["s", "ms", "rfc3339"])),
    }
}

fn choice(wrong: &str, known: &[&str]) -> String {
    format!("`{wrong}` is not known{}", did_you_mean(wrong, known))
}
