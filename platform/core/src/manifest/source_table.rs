//! `[source.NAME]`

use super::{
    Algorithm, CustomScheme, Encoding, KeyForm, Locator, Provider, SourceSpec, TimestampUnit, Verify,
    function_table::{parse_secret_name, parse_url},
    read::{Reader, Section, did_you_mean},
};
use std::time::Duration;

const KEYS: &[&str] = &["provider", "secrets", "tolerance", "public_url", "verify"];
const SCHEME_KEYS: &[&str] =
    &["signature", "prefix", "signed", "algorithm", "encoding", "key", "timestamp", "timestamp_unit", "id", "type"];
const PROVIDERS: &[&str] = &["github", "standard-webhooks", "svix", "custom"];
const PLANNED_PROVIDERS: &[&str] = &[
    "gitlab",
    "stripe",
    "slack",
    "shopify",
    "twilio",
    "discord",
    "linear",
    "pagerduty",
    "zendesk",
    "square",
    "meta",
    "sendgrid",
    "paddle",
    "hubspot",
    "intercom",
    "typeform",
    "calendly",
    "mailgun",
    "zoom",
    "notion",
    "sentry",
    "jira",
    "docusign",
    "sns",
    "cloudevents",
];
/// As Standard Webhooks recommends.
const TOLERANCE: Duration = Duration::from_secs(300);
const TOLERANCE_MAX: Duration = Duration::from_secs(24 * 3600);

pub(super) fn read(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<SourceSpec> {
    let custom = table.get("provider").and_then(|value| value.get_ref().as_str()) == Some("custom");
    if custom {
        reader.check_keys(table, &[KEYS, SCHEME_KEYS].concat(), &[]);
    } else {
        refuse_scheme_keys(reader, table);
    }
    let provider = read_provider(reader, table);
    let verify = reader.parsed(table, "verify", |text| match text {
        "signature" => Ok(Verify::Signature),
        "none" => Ok(Verify::None),
        other => Err(format!("`{other}` must be \"signature\" or \"none\"")),
    });
    let secrets = reader.list(table, "secrets", parse_secret_name).unwrap_or_default();
    let verify = verify.unwrap_or_default();
    if verify == Verify::Signature && secrets.is_empty() && !custom_keys_missing(table) {
        let message = "a source without a secret is refused: name one (nerve secrets set NAME), or say verify = \"none\" \
                       if anybody may post";
        reader.fault(table, "secrets", message);
    }
    let public_url = reader.parsed(table, "public_url", parse_url);
    if let Some(Provider::Custom(scheme)) = &provider {
        check_template(reader, table, scheme, public_url.is_some());
    }
    Some(SourceSpec {
        provider: provider?,
        secrets,
        tolerance: reader.duration(table, "tolerance", TOLERANCE_MAX).unwrap_or(TOLERANCE),
        public_url,
        verify,
    })
}

/// A table that does not even say its provider gets that one message, not a row of them.
fn custom_keys_missing(table: &Section<'_, '_>) -> bool {
    table.get("provider").is_none()
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
    let Some(name) = reader.string(table, "provider") else {
        if table.get("provider").is_none() {
            reader.fault(table, "provider", format!("it is missing: it may be one of {}", PROVIDERS.join(", ")));
        }
        return None;
    };
    match name.as_str() {
        "github" => Some(Provider::Github),
        "standard-webhooks" => Some(Provider::StandardWebhooks),
        "svix" => Some(Provider::Svix),
        "custom" => read_scheme(reader, table).map(Provider::Custom),
        planned if PLANNED_PROVIDERS.contains(&planned) => {
            let message = format!(
                "`{planned}` is not yet supported by this version of Nerve: describe it with provider = \"custom\", \
                 if its scheme allows"
            );
            reader.fault(table, "provider", message);
            None
        }
        other => {
            let message = format!("`{other}` is not a provider{}", did_you_mean(other, PROVIDERS));
            reader.fault(table, "provider", message);
            None
        }
    }
}

fn read_scheme(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<CustomScheme> {
    let verified = table.get("verify").and_then(|value| value.get_ref().as_str()) != Some("none");
    if verified {
        for key in ["signature", "signed", "algorithm", "encoding"].iter().filter(|key| table.get(key).is_none()) {
            reader.fault(table, key, "it is missing: provider = \"custom\" needs it");
        }
    }
    let scheme = CustomScheme {
        signature: reader.parsed(table, "signature", parse_header).unwrap_or_default(),
        prefix: reader.string(table, "prefix").unwrap_or_default(),
        signed: reader.string(table, "signed").unwrap_or_default(),
        algorithm: reader.parsed(table, "algorithm", parse_algorithm).unwrap_or(Algorithm::Sha256),
        encoding: reader.parsed(table, "encoding", parse_encoding).unwrap_or(Encoding::Hex),
        key: reader.parsed(table, "key", parse_key_form).unwrap_or_default(),
        timestamp: reader.parsed(table, "timestamp", parse_header),
        timestamp_unit: reader.parsed(table, "timestamp_unit", parse_unit).unwrap_or_default(),
        id: reader.parsed(table, "id", parse_locator),
        ty: reader.parsed(table, "type", parse_locator),
    };
    Some(scheme)
}

/// What is signed must cover the body, and everything it names must be declared.
fn check_template(reader: &mut Reader<'_>, table: &Section<'_, '_>, scheme: &CustomScheme, has_url: bool) {
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
            "url" if !has_url => Some("{url} needs public_url, the URL as the sender knows it"),
            "timestamp" | "id" | "url" => None,
            _ => Some("it may hold {body}, {timestamp}, {id} and {url} only"),
        };
        if let Some(problem) = problem {
            reader.fault(table, "signed", problem);
        }
        rest = after;
    }
    if !scheme.signed.contains("{body}") {
        reader.fault(table, "signed", "it must cover {body}, else a body could be changed on its way");
    }
}

fn parse_header(text: &str) -> Result<String, String> {
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if good { Ok(text.to_ascii_lowercase()) } else { Err(format!("`{text}` is not a header's name")) }
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

fn parse_algorithm(text: &str) -> Result<Algorithm, String> {
    match text {
        "sha1" => Ok(Algorithm::Sha1),
        "sha256" => Ok(Algorithm::Sha256),
        "sha512" => Ok(Algorithm::Sha512),
        "ed25519" => Ok(Algorithm::Ed25519),
        other => Err(choice(other, &["sha1", "sha256", "sha512", "ed25519"])),
    }
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
        other => Err(choice(other, &["s", "ms"])),
    }
}

fn choice(wrong: &str, known: &[&str]) -> String {
    format!("`{wrong}` is not known{}", did_you_mean(wrong, known))
}
