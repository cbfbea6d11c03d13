//! Tests over every provider: a signed delivery is accepted, and any changed one is refused.

use super::*;
use data_encoding::HEXLOWER;
use nerve_core::manifest::Dedupe;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};

pub(super) const NOW: i64 = 1_760_000_000;
const URL: &str = "https://n.example/hooks/s";
const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:orders";
pub(super) const CERTIFICATE: &str = include_str!("../../../../tests/fixtures/sns/certificate.pem");
const RSA_KEY: &str = include_str!("../../../../tests/fixtures/sns/key.pem");
/// The bytes before the point in a P-256 public key (SubjectPublicKeyInfo).
const P256_PREFIX: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";

pub(super) fn key_of(provider: &Provider) -> &'static str {
    match provider {
        Provider::StandardWebhooks | Provider::Svix | Provider::Gitlab => WHSEC,
        _ => "a secret of this test",
    }
}

fn spec(provider: &Provider) -> SourceSpec {
    SourceSpec {
        secrets: vec!["S".into()],
        public_url: Some(URL.into()),
        topics: vec![TOPIC.into()],
        ..SourceSpec::new(provider.clone())
    }
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

/// Returns a valid delivery of a provider. Asymmetric signatures use keys of this test.
pub(super) fn good(provider: &Provider) -> Post {
    let source = spec(provider);
    let post = |secrets: Vec<Secret>, headers, body, query| Post {
        source: source.clone(),
        secrets,
        headers,
        body,
        query,
        certificate: None,
        now: at(NOW),
    };
    match provider {
        Provider::Discord => discord(r#"{"id":"1","type":2}"#),
        Provider::Sendgrid => {
            sendgrid(r#"[{"sg_event_id":"e-1","event":"open"},{"sg_event_id":"e-2","event":"click"}]"#)
        }
        Provider::Sns => sns("Notification", "2", &[("Message", "a\nb"), ("Subject", "s")]),
        _ => {
            let secrets = vec![Secret::new(key_of(provider))];
            let Sample { headers, body, query } = Sample::sign(&source, &secrets, ("id-1", "test"), at(NOW)).unwrap();
            post(secrets, headers, body, query)
        }
    }
}

pub(super) fn discord(body: &str) -> Post {
    let key = SigningKey::from_bytes(&[9; 32]);
    let signature = HEXLOWER.encode(&key.sign(format!("{NOW}{body}").as_bytes()).to_bytes());
    let headers = [("x-signature-ed25519", signature.as_str()), ("x-signature-timestamp", &NOW.to_string())];
    let public = HEXLOWER.encode(&key.verifying_key().to_bytes());
    Post::new(Provider::Discord, &[&public], &headers, body).at(NOW)
}

pub(super) fn sendgrid(body: &str) -> Post {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let signature = BASE64_STANDARD.encode(key.sign(&random, format!("{NOW}{body}").as_bytes()).unwrap());
    let public = [HEXLOWER.decode(P256_PREFIX.as_bytes()).unwrap().as_slice(), key.public_key().as_ref()].concat();
    let headers = [
        ("x-twilio-email-event-webhook-signature", signature.as_str()),
        ("x-twilio-email-event-webhook-timestamp", &NOW.to_string()),
    ];
    Post::new(Provider::Sendgrid, &[&BASE64_STANDARD.encode(public)], &headers, body).at(NOW)
}

pub(super) fn sns(ty: &str, version: &str, more: &[(&str, &str)]) -> Post {
    let mut members = std::collections::BTreeMap::from([
        ("MessageId", "m-1"),
        ("Timestamp", "2025-10-09T08:53:20.123Z"),
        ("TopicArn", TOPIC),
        ("Type", ty),
    ]);
    members.extend(more.iter().copied());
    let signed: String = members.iter().map(|(name, value)| format!("{name}\n{value}\n")).collect();
    let key = RsaKeyPair::from_pkcs8(&signature::from_pem(RSA_KEY, "PRIVATE KEY").unwrap()).unwrap();
    let mut bytes = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut bytes).unwrap();
    let encoded = BASE64_STANDARD.encode(bytes);
    members.extend([
        ("Signature", encoded.as_str()),
        ("SignatureVersion", version),
        ("SigningCertURL", "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem"),
    ]);
    let body = serde_json::to_string(&members).unwrap();
    let mut post = Post::new(Provider::Sns, &[], &[("content-type", "text/plain; charset=UTF-8")], &body).at(NOW);
    post.source = spec(&Provider::Sns);
    // The fixture's certificate is younger than the vectors.
    post.certificate = Certificate::from_pem(CERTIFICATE).map(Certificate::valid_at_any_time);
    post
}

fn all() -> impl Iterator<Item = &'static Provider> {
    Provider::BUILT_IN.iter()
}

/// Returns the required headers of a delivery.
fn required_headers(provider: &Provider) -> Vec<String> {
    let mut names = Vec::new();
    for signature_scheme in Scheme::of(provider).signature_schemes.iter().flatten().take(1) {
        let locations = [Some(signature_scheme.signature), signature_scheme.timestamp.map(|(location, _)| location)];
        for location in locations.into_iter().flatten() {
            match location {
                ValueLocation::Header(name) | ValueLocation::HeaderParameter(name, _) => names.push(name.to_owned()),
                ValueLocation::NumberedHeaders(start) => names.push(format!("{start}1")),
                ValueLocation::Pointer(_) => {}
            }
        }
        if signature_scheme.signed.contains("{id}") {
            names.extend(Scheme::of(provider).id[0].and_then(|location| match location {
                ValueLocation::Header(name) => Some(name.to_owned()),
                _ => None,
            }));
        }
    }
    names
}

fn signs_body(provider: &Provider) -> bool {
    !matches!(provider, Provider::Mailgun | Provider::Cloudevents)
}

#[test]
fn signed_delivery_of_every_provider_is_accepted() {
    for provider in all() {
        let (events, _) = good(provider).events().unwrap_or_else(|error| panic!("{}: {error}", provider.name()));
        assert!(!events.is_empty(), "{}", provider.name());
        let unnamed = matches!(provider, Provider::Twilio);
        assert_eq!(events[0].ty.is_none(), unnamed, "{}: {events:?}", provider.name());
        assert_eq!(events[0].content_type.as_deref(), Some("application/json"), "{}", provider.name());
    }
}

#[test]
fn changed_body_is_refused() {
    for provider in all().filter(|provider| signs_body(provider)) {
        let length = good(provider).body.len();
        for index in (0..length).step_by(length / 24 + 1) {
            let mut post = good(provider);
            let mut body = post.body.to_vec();
            body[index] ^= 1;
            let signer = certificate_url(&post.source, delivery(&post));
            post.body = Bytes::from(body);
            // SNS does not sign the certificate's URL: another URL is another certificate, or none.
            let elsewhere = certificate_url(&post.source, delivery(&post)) != signer;
            assert!(elsewhere || post.accept().is_err(), "{}: byte {index}", provider.name());
        }
    }
}

#[test]
fn expired_and_future_deliveries_are_refused() {
    for provider in all() {
        let tolerance = i64::try_from(provider.tolerance().as_secs()).unwrap();
        let timed = Scheme::of(provider).signature_schemes.iter().flatten().next().unwrap().timestamp.is_some();
        for apart in [tolerance + 2, -tolerance - 2] {
            let refused = good(provider).at(NOW + apart).accept().err();
            match timed {
                true if apart > 0 => {
                    assert!(matches!(refused, Some(Refusal::Expired(_))), "{}: {refused:?}", provider.name())
                }
                true => assert!(matches!(refused, Some(Refusal::Future(_))), "{}: {refused:?}", provider.name()),
                false => assert_eq!(refused, None, "{}", provider.name()),
            }
        }
        assert!(good(provider).at(NOW + tolerance / 2).accept().is_ok(), "{}", provider.name());
    }
}

#[test]
fn wrong_secret_is_refused_and_one_of_several_suffices() {
    for provider in all().filter(|provider| **provider != Provider::Sns) {
        let mut post = good(provider);
        let right = post.secrets.clone();
        let other = match provider {
            Provider::StandardWebhooks | Provider::Svix | Provider::Gitlab => {
                "whsec_bmV3ZXIta2V5LW5ld2VyLWtleQ==".to_owned()
            }
            Provider::Discord => HEXLOWER.encode(&SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes()),
            Provider::Sendgrid => sendgrid("[]").secrets[0].expose().to_owned(),
            _ => "another secret".to_owned(),
        };
        post.secrets = vec![Secret::new(&other)];
        assert_eq!(post.refused(), Refusal::InvalidSignature, "{}", provider.name());
        post.secrets.extend(right);
        assert!(post.accept().is_ok(), "{}", provider.name());
    }
}

#[test]
fn missing_or_repeated_header_is_refused() {
    for provider in all() {
        for name in required_headers(provider) {
            let mut post = good(provider);
            let value = post.headers.remove(name.as_str()).unwrap_or_else(|| panic!("{}: {name}", provider.name()));
            assert!(matches!(post.refused(), Refusal::Missing(_)), "{}: {name}", provider.name());
            post.headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.clone());
            assert!(post.accept().is_ok(), "{}: {name}", provider.name());
            post.headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            assert!(matches!(post.refused(), Refusal::Repeated(_)), "{}: {name}", provider.name());
        }
    }
}

#[test]
fn unsigned_id_is_reported_as_unsigned() {
    for provider in all() {
        let counting = || {
            let mut post = good(provider);
            post.source.dedupe = Some(Dedupe::Signed);
            post
        };
        let (events, identity) = counting().events().unwrap();
        let Some(ValueLocation::Header(name)) = Scheme::of(provider).id[0] else {
            assert!(identity.id_is_signed, "{}", provider.name());
            continue;
        };
        let mut fresh = counting();
        fresh.headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("fresh"));
        match fresh.events() {
            Ok((again, same)) => {
                assert!(!identity.id_is_signed, "{}", provider.name());
                assert!(identity.signed_sha256.is_some(), "{}", provider.name());
                assert_eq!(same.signed_sha256, identity.signed_sha256, "{}", provider.name());
                assert_ne!(again[0].id, events[0].id, "{}", provider.name());
            }
            Err(refusal) => {
                assert!(identity.id_is_signed, "{}", provider.name());
                assert_eq!(refusal, Refusal::InvalidSignature, "{}", provider.name());
            }
        }
    }
}

pub(super) fn delivery(post: &Post) -> Delivery<'_> {
    Delivery {
        headers: &post.headers,
        body: &post.body,
        query: None,
        certificate: post.certificate.as_ref(),
        now: post.now,
    }
}

#[test]
fn no_request_causes_a_panic() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % u64::try_from(below.max(1)).unwrap()).unwrap()
    };
    for provider in all() {
        for _ in 0..200 {
            let mut post = good(provider);
            let mut body = post.body.to_vec();
            for _ in 0..next(4) {
                let index = next(body.len());
                match next(3) {
                    0 => body.truncate(index),
                    1 => body.insert(index.min(body.len()), u8::try_from(next(256)).unwrap()),
                    _ if index < body.len() => body[index] = u8::try_from(next(256)).unwrap(),
                    _ => {}
                }
            }
            post.body = Bytes::from(body);
            let names: Vec<_> = post.headers.keys().cloned().collect();
            if next(2) == 0 && !names.is_empty() {
                let name = names[next(names.len())].clone();
                let mut value = post.headers[&name].as_bytes().to_vec();
                let index = next(value.len());
                match next(3) {
                    0 => value.truncate(index),
                    1 => value = b"t=,v1=,;;== ts=1;h1=\xff".to_vec(),
                    _ if index < value.len() => value[index] = b"=,; \xff0a"[next(7)],
                    _ => {}
                }
                post.headers.insert(name, HeaderValue::from_bytes(&value).unwrap());
            }
            let _ = certificate_url(&post.source, delivery(&post));
            let _ = post.accept();
        }
    }
}
