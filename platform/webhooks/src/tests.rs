//! Test vectors of senders, and invalid deliveries. Tests over every provider: [`providers`].

mod ids;
mod providers;
mod single_providers;

use super::{
    signature::{self},
    *,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use data_encoding::{HEXLOWER, HEXUPPER};
use ed25519_dalek::{Signer, SigningKey};
use hmac::{Hmac, Mac};
use http::{HeaderName, HeaderValue};
use nerve_core::manifest::{Algorithm, CustomScheme, Encoding, KeyForm, Locator, Provider, TimestampUnit};
use sha1::Sha1;
use sha2::Sha256;

const TOLERANCE: Duration = Duration::from_secs(300);
const GITHUB_SECRET: &str = "It's a Secret to Everybody";
const GITHUB_SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SIGNED_AT: i64 = 1_614_265_330;
const STANDARD_BODY: &str = r#"{"test": 2432232314}"#;
const STANDARD: [(&str, &str); 3] = [
    ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
    ("webhook-timestamp", "1614265330"),
    ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
];

fn source(provider: Provider) -> SourceSpec {
    SourceSpec { secrets: vec!["S".into()], tolerance: TOLERANCE, ..SourceSpec::new(provider) }
}

struct Post {
    source: SourceSpec,
    secrets: Vec<Secret>,
    headers: HeaderMap,
    body: Bytes,
    query: Option<String>,
    certificate: Option<Certificate>,
    now: OffsetDateTime,
}

impl Post {
    fn new(provider: Provider, secrets: &[&str], headers: &[(&str, &str)], body: &str) -> Self {
        let mut post = Self {
            source: source(provider),
            secrets: secrets.iter().map(|secret| Secret::new(*secret)).collect(),
            headers: HeaderMap::new(),
            body: Bytes::from(body.to_owned()),
            query: None,
            certificate: None,
            now: OffsetDateTime::from_unix_timestamp(SIGNED_AT).unwrap(),
        };
        for (name, value) in headers {
            post = post.and(name, value);
        }
        post
    }

    fn github(headers: &[(&str, &str)], body: &str) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(GITHUB_SECRET.as_bytes()).unwrap();
        mac.update(body.as_bytes());
        let signature = format!("sha256={}", HEXLOWER.encode(&mac.finalize().into_bytes()));
        Self::new(Provider::Github, &[GITHUB_SECRET], headers, body).and("x-hub-signature-256", &signature)
    }

    fn standard() -> Self {
        Self::new(Provider::StandardWebhooks, &[WHSEC], &STANDARD, STANDARD_BODY)
    }

    fn and(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.remove(name);
        self.and(name, value)
    }

    fn at(mut self, seconds: i64) -> Self {
        self.now = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        self
    }

    fn accept(&self) -> Result<Accepted, Refusal> {
        let (headers, body, query) = (&self.headers, &self.body, self.query.as_deref());
        let delivery = Delivery { headers, body, query, certificate: self.certificate.as_ref(), now: self.now };
        verify(&self.source, &self.secrets, delivery)
    }

    fn events(&self) -> Result<(Vec<VerifiedEvent>, SignedIdentity), Refusal> {
        self.accept().map(|accepted| match accepted {
            Accepted::Events(events, recognition) => (events, recognition),
            handshake @ Accepted::Handshake(_) => panic!("{handshake:?}"),
        })
    }

    fn verify(&self) -> Result<VerifiedEvent, Refusal> {
        self.events().map(|(mut events, _)| {
            assert_eq!(events.len(), 1);
            events.remove(0)
        })
    }

    fn reply(&self) -> Reply {
        match self.accept().unwrap() {
            Accepted::Handshake(reply) => reply,
            events => panic!("{events:?}"),
        }
    }

    fn refused(&self) -> Refusal {
        self.accept().unwrap_err()
    }
}

#[test]
fn github_vector_is_accepted() {
    let post =
        Post::new(Provider::Github, &[GITHUB_SECRET], &[("x-hub-signature-256", GITHUB_SIGNATURE)], "Hello, World!");
    let verified = post.verify().unwrap();
    assert_eq!(verified.id, "dffd6021bb2bd5b0af676290809ec3a53191dd81c7f70a4b28688a362182986f");
    assert_eq!(verified.ty, None);
    assert_eq!(verified.content_type.as_deref(), Some("application/octet-stream"));
}

#[test]
fn standard_webhooks_vector_is_accepted_also_with_svix_headers() {
    let verified = Post::standard().verify().unwrap();
    assert_eq!(verified.id, "msg_p5jXN8AQM9LWM0D4loKWxJek");
    assert_eq!(verified.ty, None);
    let svix = STANDARD.map(|(name, value)| (name.replace("webhook", "svix"), value));
    let svix: Vec<_> = svix.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let post = Post::new(Provider::Svix, &[WHSEC], &svix, STANDARD_BODY);
    assert_eq!(post.verify().unwrap(), verified);
    let unmarked = WHSEC.trim_start_matches("whsec_");
    assert!(Post::new(Provider::Svix, &[unmarked], &svix, STANDARD_BODY).verify().is_ok());
}

#[test]
fn every_changed_byte_is_refused() {
    for index in 0..STANDARD_BODY.len() {
        let mut post = Post::standard();
        let mut body = STANDARD_BODY.as_bytes().to_vec();
        body[index] ^= 1;
        post.body = Bytes::from(body);
        assert_eq!(post.refused(), Refusal::InvalidSignature, "byte {index}");
    }
    for (index, _) in GITHUB_SIGNATURE.char_indices().skip("sha256=".len()) {
        let mut signature = GITHUB_SIGNATURE.as_bytes().to_vec();
        signature[index] = if signature[index] == b'0' { b'1' } else { b'0' };
        let signature = String::from_utf8(signature).unwrap();
        let post =
            Post::new(Provider::Github, &[GITHUB_SECRET], &[("x-hub-signature-256", &signature)], "Hello, World!");
        assert_eq!(post.refused(), Refusal::InvalidSignature, "character {index}");
    }
    assert_eq!(Post::standard().with("webhook-id", "msg_other").refused(), Refusal::InvalidSignature);
    assert_eq!(Post::standard().with("webhook-timestamp", "1614265331").refused(), Refusal::InvalidSignature);
}

#[test]
fn truncated_or_empty_signature_is_refused() {
    let cut = &GITHUB_SIGNATURE[..GITHUB_SIGNATURE.len() - 2];
    for signature in ["sha256=", cut, &format!("{GITHUB_SIGNATURE}00"), "sha1=757107ea", "757107ea"] {
        let post =
            Post::new(Provider::Github, &[GITHUB_SECRET], &[("x-hub-signature-256", signature)], "Hello, World!");
        assert_eq!(post.refused(), Refusal::InvalidSignature, "{signature}");
    }
}

#[test]
fn missing_and_repeated_headers_are_refused() {
    for (name, value) in STANDARD {
        let mut post = Post::standard();
        post.headers.remove(name);
        assert_eq!(post.refused(), Refusal::Missing(name.to_owned()));
        assert_eq!(Post::standard().with(name, "").refused(), Refusal::Missing(name.to_owned()));
        assert_eq!(Post::standard().and(name, value).refused(), Refusal::Repeated(name.to_owned()));
    }
    let unsigned = Post::new(Provider::Github, &[GITHUB_SECRET], &[], "{}");
    assert_eq!(unsigned.refused(), Refusal::Missing("x-hub-signature-256".into()));
}

#[test]
fn signed_time_must_be_within_the_tolerance() {
    let tolerance = i64::try_from(TOLERANCE.as_secs()).unwrap();
    assert!(Post::standard().at(SIGNED_AT + tolerance).verify().is_ok());
    assert!(Post::standard().at(SIGNED_AT - tolerance).verify().is_ok());
    assert!(matches!(Post::standard().at(SIGNED_AT + tolerance + 1).refused(), Refusal::Expired(_)));
    assert!(matches!(Post::standard().at(SIGNED_AT - tolerance - 1).refused(), Refusal::Future(_)));
    for time in ["soon", "-5", "+1614265330", "1614265330.5", "9".repeat(60).as_str()] {
        assert_eq!(Post::standard().with("webhook-timestamp", time).refused(), Refusal::InvalidTime, "{time}");
    }
}

#[test]
fn any_active_secret_may_have_signed() {
    let mut rotating = Post::standard();
    rotating.secrets.insert(0, Secret::new("whsec_bmV3ZXIta2V5LW5ld2VyLWtleQ=="));
    assert!(rotating.verify().is_ok());
    rotating.secrets.truncate(1);
    assert_eq!(rotating.refused(), Refusal::InvalidSignature);
    rotating.secrets = vec![Secret::new("whsec_!"), Secret::new(WHSEC)];
    assert!(rotating.verify().is_ok(), "an invalid secret does not disable a valid one");
}

#[test]
fn any_of_several_signatures_may_match() {
    let right = STANDARD[2].1;
    let listed = format!("v1,AAAA v2,ZZZZ {right}");
    assert!(Post::standard().with("webhook-signature", &listed).verify().is_ok());
    let endless = format!("{} {right}", vec!["v1,AAAA"; 16].join(" "));
    assert_eq!(Post::standard().with("webhook-signature", &endless).refused(), Refusal::TooManySignatures);
}

fn ed25519_post() -> (Post, String) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let message = format!("{}.{}.{STANDARD_BODY}", STANDARD[0].1, STANDARD[1].1);
    let signature = format!("v1a,{}", BASE64_STANDARD.encode(key.sign(message.as_bytes()).to_bytes()));
    let public = format!("whpk_{}", BASE64_STANDARD.encode(key.verifying_key().to_bytes()));
    let mut post = Post::standard().with("webhook-signature", &signature);
    post.secrets = vec![Secret::new(&public)];
    (post, public)
}

#[test]
fn standard_webhooks_accepts_ed25519() {
    let (mut post, _) = ed25519_post();
    assert!(post.verify().is_ok());
    post.body = Bytes::from_static(b"{}");
    assert_eq!(post.refused(), Refusal::InvalidSignature);
}

#[test]
fn public_key_is_never_an_hmac_key() {
    let (mut post, public) = ed25519_post();
    let key = BASE64_STANDARD.decode(public.trim_start_matches("whpk_")).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("{}.{}.{STANDARD_BODY}", STANDARD[0].1, STANDARD[1].1).as_bytes());
    let forged = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
    post = post.with("webhook-signature", &forged);
    assert_eq!(post.refused(), Refusal::InvalidSignature);
}

#[test]
fn misconfigured_source_reports_the_missing_setting() {
    let with = |secrets: &[&str]| Post::new(Provider::StandardWebhooks, secrets, &STANDARD, STANDARD_BODY).refused();
    assert_eq!(with(&[]), Refusal::Unusable(Unusable::NoSecret));
    assert_eq!(with(&["whsec_!"]), Refusal::Unusable(Unusable::InvalidSecret(InvalidKey::Encoding("base64"))));
    assert_eq!(with(&[""]), Refusal::Unusable(Unusable::InvalidSecret(InvalidKey::Empty)));
    let mut unsigned = Post::standard();
    unsigned.headers.clear();
    unsigned.secrets.clear();
    assert_eq!(unsigned.refused(), Refusal::Unusable(Unusable::NoSecret), "for any delivery");
    let url = custom(|scheme| scheme.signed = "{url}{body}".into());
    let post = Post::new(url, &["6b"], &[("x-signature", "00"), ("x-time", "1614265330"), ("x-id", "1")], "{}");
    assert_eq!(post.refused(), Refusal::Unusable(Unusable::NoPublicUrl));
}

#[test]
fn refusal_shows_no_secret_and_no_signature() {
    let mut post = Post::standard();
    post.body = Bytes::from_static(b"{}");
    let message = post.refused().to_string();
    assert!(!message.contains("v1,") && !message.contains("MfKQ"), "{message}");
}

#[test]
fn github_event_has_type_and_subject() {
    let body = r#"{"action": "opened", "repository": {"full_name": "octo/hello"}}"#;
    let headers = [
        ("x-github-event", "issues"),
        ("x-github-delivery", "d-1"),
        ("content-type", "application/json; charset=utf-8"),
    ];
    let verified = Post::github(&headers, body).verify().unwrap();
    assert_eq!(verified.id, "d-1");
    assert_eq!(verified.ty.as_deref(), Some("issues.opened"));
    assert_eq!(verified.subject.as_deref(), Some("octo/hello"));
    assert_eq!(verified.data, body);
    let push =
        Post::github(&[("x-github-event", "push"), ("content-type", "application/json")], "{}").verify().unwrap();
    assert_eq!(push.ty.as_deref(), Some("push"));
    let nameless = Post::github(&[("content-type", "application/json")], body).verify().unwrap();
    assert_eq!(nameless.ty, None, "an action without an event is no type");
}

#[test]
fn github_form_field_is_read_as_json() {
    let form = ("content-type", "application/x-www-form-urlencoded");
    let body = "payload=%7B%22action%22%3A+%22opened%22%7D";
    let verified = Post::github(&[form, ("x-github-event", "issues")], body).verify().unwrap();
    assert_eq!(verified.ty.as_deref(), Some("issues.opened"));
    assert_eq!(verified.data, r#"{"action": "opened"}"#);
    assert_eq!(verified.content_type.as_deref(), Some("application/json"));
    let other = Post::github(&[form], "a=1").verify().unwrap();
    assert_eq!((other.data, other.content_type.as_deref()), (Bytes::from_static(b"a=1"), Some(form.1)));
    assert_eq!(Post::github(&[form], "payload=%7B").refused(), Refusal::Malformed);
}

#[test]
fn declared_json_must_be_valid_json() {
    let declared = [("content-type", "application/json")];
    for body in ["{", "", "{} {}", "\u{feff}{}"] {
        assert_eq!(Post::github(&declared, body).refused(), Refusal::Malformed, "{body}");
    }
    let text = Post::github(&[("content-type", "text/plain")], "{").verify().unwrap();
    assert_eq!(text.content_type.as_deref(), Some("text/plain"));
    assert_eq!(Post::github(&[], "{}").verify().unwrap().content_type.as_deref(), Some("application/json"));
    let mut forged = Post::github(&declared, "{}");
    forged.body = Bytes::from_static(b"{");
    assert_eq!(forged.refused(), Refusal::InvalidSignature, "the signature is checked before the body");
}

fn custom(change: impl FnOnce(&mut CustomScheme)) -> Provider {
    let mut scheme = CustomScheme {
        signature: "X-Signature".into(),
        prefix: "v0=".into(),
        signed: "v0:{timestamp}:{id}:{body}".into(),
        algorithm: Algorithm::Sha1,
        encoding: Encoding::Hex,
        key: KeyForm::Hex,
        timestamp: Some("X-Time".into()),
        timestamp_unit: TimestampUnit::Milliseconds,
        id: Some(Locator::Header("X-Id".into())),
        ty: Some(Locator::Pointer("/event/type".into())),
        batch: None,
        challenge: None,
    };
    change(&mut scheme);
    Provider::Custom(Box::new(scheme))
}

fn custom_post(provider: Provider, signed: &str) -> Post {
    let body = r#"{"event": {"type": "made", "id": 7}}"#;
    let mut mac = Hmac::<Sha1>::new_from_slice(b"key!").unwrap();
    mac.update(signed.as_bytes());
    mac.update(body.as_bytes());
    let signature = format!("v0={}", HEXUPPER.encode(&mac.finalize().into_bytes()));
    let headers = [("x-time", "1614265330500"), ("x-id", "i-1"), ("x-signature", &signature)];
    Post::new(provider, &["6b657921"], &headers, body)
}

#[test]
fn custom_scheme_uses_all_its_fields() {
    let post = custom_post(custom(|_| {}), "v0:1614265330500:i-1:");
    let verified = post.verify().unwrap();
    assert_eq!((verified.id.as_str(), verified.ty.as_deref()), ("i-1", Some("made")));
    assert!(matches!(post.at(SIGNED_AT + 302).refused(), Refusal::Expired(_)));
}

#[test]
fn custom_scheme_may_sign_the_url_and_an_id_in_the_body() {
    let provider = custom(|scheme| {
        scheme.signed = "{url}|{id}|{body}".into();
        scheme.id = Some(Locator::Pointer("/event/id".into()));
    });
    let mut post = custom_post(provider, "https://n.example/hooks/x|7|");
    post.source.public_url = Some("https://n.example/hooks/x".into());
    assert_eq!(post.verify().unwrap().id, "7");
    post.source.public_url = Some("https://n.example/hooks/y".into());
    assert_eq!(post.refused(), Refusal::InvalidSignature);
}

#[test]
fn unverified_source_accepts_anything_but_invalid_json() {
    let mut post = Post::standard();
    post.source.verify = Verify::None;
    post.secrets.clear();
    post.headers.clear();
    let verified = post.verify().unwrap();
    assert_eq!(verified.id.len(), 64);
    for unsound in [HeaderValue::from_str(&"x".repeat(256)).unwrap(), HeaderValue::from_static("a\tb")] {
        post.headers.insert("webhook-id", unsound);
        let nameless = post.verify().unwrap();
        assert!(nameless.id.len() == 64 && nameless.id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", nameless.id);
    }
    let mut broken = post.and("content-type", "application/json");
    broken.body = Bytes::from_static(b"{");
    assert_eq!(broken.refused(), Refusal::Malformed);
}
