//! Every provider: what it signs is taken, and nothing that differs from it.

use super::*;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};

const NOW: i64 = 1_760_000_000;
const URL: &str = "https://n.example/hooks/s";
const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:orders";
const CERTIFICATE: &str = include_str!("../../../../../../tests/fixtures/sns/certificate.pem");
const RSA_KEY: &str = include_str!("../../../../../../tests/fixtures/sns/key.pem");
/// What precedes the point in a P-256 public key (SubjectPublicKeyInfo).
const P256_HEAD: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";

fn key_of(provider: &Provider) -> &'static str {
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

/// A delivery of each provider that signs with a secret; the asymmetric ones are signed by keys of this test's.
fn good(provider: &Provider) -> Post {
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

fn discord(body: &str) -> Post {
    let key = SigningKey::from_bytes(&[9; 32]);
    let signature = hex::encode(key.sign(format!("{NOW}{body}").as_bytes()).to_bytes());
    let headers = [("x-signature-ed25519", signature.as_str()), ("x-signature-timestamp", &NOW.to_string())];
    let public = hex::encode(key.verifying_key().to_bytes());
    Post::new(Provider::Discord, &[&public], &headers, body).at(NOW)
}

fn sendgrid(body: &str) -> Post {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let signature = BASE64_STANDARD.encode(key.sign(&random, format!("{NOW}{body}").as_bytes()).unwrap());
    let public = [hex::decode(P256_HEAD).unwrap().as_slice(), key.public_key().as_ref()].concat();
    let headers = [
        ("x-twilio-email-event-webhook-signature", signature.as_str()),
        ("x-twilio-email-event-webhook-timestamp", &NOW.to_string()),
    ];
    Post::new(Provider::Sendgrid, &[&BASE64_STANDARD.encode(public)], &headers, body).at(NOW)
}

fn sns(ty: &str, version: &str, more: &[(&str, &str)]) -> Post {
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
    post.certificate = Certificate::from_pem(CERTIFICATE).map(Certificate::of_all_times);
    post
}

fn all() -> impl Iterator<Item = &'static Provider> {
    Provider::BUILT_IN.iter()
}

/// The headers without which a delivery is none.
fn needed(provider: &Provider) -> Vec<String> {
    let mut names = Vec::new();
    for kind in Scheme::of(provider).kinds.iter().flatten().take(1) {
        let places = [Some(kind.signature), kind.timestamp.map(|(place, _)| place)];
        for place in places.into_iter().flatten() {
            match place {
                Place::Header(name) | Place::Part(name, _) => names.push(name.to_owned()),
                Place::Numbered(start) => names.push(format!("{start}1")),
                Place::Pointer(_) => {}
            }
        }
        if kind.signed.contains("{id}") {
            names.extend(Scheme::of(provider).id[0].and_then(|place| match place {
                Place::Header(name) => Some(name.to_owned()),
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
fn what_a_provider_signs_is_taken() {
    for provider in all() {
        let (events, _) = good(provider).events().unwrap_or_else(|error| panic!("{}: {error}", provider.name()));
        assert!(!events.is_empty(), "{}", provider.name());
        let unnamed = matches!(provider, Provider::Twilio);
        assert_eq!(events[0].ty.is_none(), unnamed, "{}: {events:?}", provider.name());
        assert_eq!(events[0].content_type.as_deref(), Some("application/json"), "{}", provider.name());
    }
}

#[test]
fn a_changed_body_is_refused() {
    for provider in all().filter(|provider| signs_body(provider)) {
        let length = good(provider).body.len();
        for index in (0..length).step_by(length / 24 + 1) {
            let mut post = good(provider);
            let mut body = post.body.to_vec();
            body[index] ^= 1;
            let signer = certificate_url(&post.source, delivery(&post));
            post.body = Bytes::from(body);
            // SNS does not sign where its certificate is: another address is another certificate, or none.
            let elsewhere = certificate_url(&post.source, delivery(&post)) != signer;
            assert!(elsewhere || post.accept().is_err(), "{}: byte {index}", provider.name());
        }
    }
}

#[test]
fn old_and_future_deliveries_are_refused() {
    for provider in all() {
        let tolerance = i64::try_from(provider.tolerance().as_secs()).unwrap();
        let timed = Scheme::of(provider).kinds.iter().flatten().next().unwrap().timestamp.is_some();
        for apart in [tolerance + 2, -tolerance - 2] {
            let refused = good(provider).at(NOW + apart).accept().err();
            match timed {
                true if apart > 0 => {
                    assert!(matches!(refused, Some(Refusal::Old(_))), "{}: {refused:?}", provider.name())
                }
                true => assert!(matches!(refused, Some(Refusal::Future(_))), "{}: {refused:?}", provider.name()),
                false => assert_eq!(refused, None, "{}", provider.name()),
            }
        }
        assert!(good(provider).at(NOW + tolerance / 2).accept().is_ok(), "{}", provider.name());
    }
}

#[test]
fn another_secret_is_refused_and_one_of_several_is_enough() {
    for provider in all().filter(|provider| **provider != Provider::Sns) {
        let mut post = good(provider);
        let right = post.secrets.clone();
        let other = match provider {
            Provider::StandardWebhooks | Provider::Svix | Provider::Gitlab => {
                "whsec_bmV3ZXIta2V5LW5ld2VyLWtleQ==".to_owned()
            }
            Provider::Discord => hex::encode(SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes()),
            Provider::Sendgrid => sendgrid("[]").secrets[0].expose().to_owned(),
            _ => "another secret".to_owned(),
        };
        post.secrets = vec![Secret::new(&other)];
        assert_eq!(post.refused(), Refusal::Wrong, "{}", provider.name());
        post.secrets.extend(right);
        assert!(post.accept().is_ok(), "{}", provider.name());
    }
}

#[test]
fn a_missing_and_a_repeated_header_are_refused() {
    for provider in all() {
        for name in needed(provider) {
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
fn an_id_that_is_not_signed_can_be_told_from_one_that_is() {
    for provider in all() {
        let (events, identity) = good(provider).events().unwrap();
        let Some(Place::Header(name)) = Scheme::of(provider).id[0] else {
            assert!(identity.id_is_signed, "{}", provider.name());
            continue;
        };
        let mut fresh = good(provider);
        fresh.headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("fresh"));
        match fresh.events() {
            Ok((again, same)) => {
                assert!(!identity.id_is_signed, "{}", provider.name());
                assert_eq!(same.signed_sha256, identity.signed_sha256, "{}", provider.name());
                assert_ne!(again[0].id, events[0].id, "{}", provider.name());
            }
            Err(refusal) => {
                assert!(identity.id_is_signed, "{}", provider.name());
                assert_eq!(refusal, Refusal::Wrong, "{}", provider.name());
            }
        }
    }
}

#[test]
fn stripes_slacks_and_twilios_own_vectors() {
    let body = r#"{"id":"evt_test_webhook","object":"event"}"#;
    let stripe = "t=1700000000,v1=d95c6b7477fbd7e9f90b1b0ef5f9c7ac25abca5382460e0d988c2b2a5b71b990";
    let post = Post::new(Provider::Stripe, &["whsec_test_secret"], &[("stripe-signature", stripe)], body);
    assert_eq!(post.at(1_700_000_000).verify().unwrap().id.as_deref(), Some("evt_test_webhook"));

    let body = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=\
                foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2F\
                hooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.\
                47445629121.803a0bc887a14d10d2c447fce8b6703c";
    let slack = [
        ("x-slack-signature", "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"),
        ("x-slack-request-timestamp", "1531420618"),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    assert!(
        Post::new(Provider::Slack, &["8f742231b10e8888abcd99yyyzzz85a5"], &slack, body)
            .at(1_531_420_618)
            .verify()
            .is_ok()
    );

    let body = "Digits=1234&CallSid=CA1234567890ABCDE&Caller=%2B14158675309&To=%2B18005551212&From=%2B14158675309";
    let twilio =
        [("x-twilio-signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8="), ("content-type", "application/x-www-form-urlencoded")];
    let mut post = Post::new(Provider::Twilio, &["12345"], &twilio, body);
    post.source.public_url = Some("https://mycompany.com/myapp.php?foo=1&bar=2".into());
    assert!(post.verify().is_ok());
    post.source.public_url = Some("https://mycompany.com:443/myapp.php?foo=1&bar=2".into());
    assert!(post.verify().is_ok(), "the standard port may be said or not");
    post.source.public_url = Some("https://mycompany.com:8443/myapp.php?foo=1&bar=3".into());
    assert_eq!(post.refused(), Refusal::Wrong);
}

#[test]
fn a_body_that_twilio_signs_by_its_digest_must_have_it() {
    let mut post = good(&Provider::Twilio);
    post.query = None;
    assert_eq!(post.refused(), Refusal::Wrong);
    let mut twice = good(&Provider::Twilio);
    twice.query = twice.query.map(|query| format!("{query}&{query}"));
    assert_eq!(twice.refused(), Refusal::Wrong);
}

#[test]
fn gitlab_signs_or_sends_its_token_and_neither_passes_for_the_other() {
    let token = |header: &str, secrets: &[&str]| {
        Post::new(Provider::Gitlab, secrets, &[("x-gitlab-token", header), ("x-gitlab-event", "Push Hook")], "{}")
    };
    assert_eq!(token("a token", &["a token"]).verify().unwrap().ty.as_deref(), Some("Push Hook"));
    assert_eq!(token("another", &["a token"]).refused(), Refusal::Wrong);
    assert!(matches!(token(WHSEC, &[WHSEC]).refused(), Refusal::Missing(_)), "a signing token is never sent");
    assert!(token("a token", &[WHSEC, "a token"]).verify().is_ok(), "both while one replaces the other");
}

#[test]
fn docusign_signs_once_a_key_in_numbered_headers() {
    let mut post = good(&Provider::Docusign);
    let right = post.headers.remove("x-docusign-signature-1").unwrap();
    post.headers.insert("x-docusign-signature-1", HeaderValue::from_static("AAAA"));
    post.headers.insert("x-docusign-signature-2", right.clone());
    assert!(post.verify().is_ok());
    post.headers.insert("x-docusign-signature-x", right);
    post.headers.remove("x-docusign-signature-2");
    assert_eq!(post.refused(), Refusal::Wrong);
}

#[test]
fn each_item_of_an_array_is_an_event() {
    let (events, identity) = good(&Provider::Sendgrid).events().unwrap();
    let told: Vec<_> =
        events.iter().map(|e| (e.id.as_deref().unwrap(), e.ty.as_deref().unwrap(), &e.data[..])).collect();
    let first = br#"{"sg_event_id":"e-1","event":"open"}"#;
    assert_eq!(told[0], ("e-1", "open", &first[..]));
    assert_eq!((told[1].0, told[1].1, told.len()), ("e-2", "click", 2));
    assert!(identity.id_is_signed);
    assert_eq!(sendgrid("[]").events().unwrap().0.len(), 0);
    assert_eq!(sendgrid("{}").events().unwrap().0.len(), 1, "what is no array is one event");
    let many = format!("[{}]", vec!["1"; items::MAX + 1].join(","));
    assert_eq!(sendgrid(&many).refused(), Refusal::TooManyItems);
    let nameless = sendgrid("[1, 2, 1]").events().unwrap().0;
    assert_eq!((nameless[0].signed_sha256 == nameless[2].signed_sha256, nameless[0].id.clone()), (true, None));
}

fn signed(provider: Provider, body: &str) -> Post {
    let mut post = good(&provider);
    let kind = Scheme::of(&provider).kinds[0].unwrap();
    let text = format!("v0:{NOW}:{body}");
    let mut mac = Hmac::<Sha256>::new_from_slice(key_of(&provider).as_bytes()).unwrap();
    mac.update(text.as_bytes());
    let Place::Header(name) = kind.signature else { panic!("{kind:?}") };
    let signature = format!("{}{}", kind.mark, hex::encode(mac.finalize().into_bytes()));
    post.headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), signature.parse().unwrap());
    post.body = Bytes::from(body.to_owned());
    post
}

#[test]
fn senders_that_ask_are_answered() {
    let slack = signed(Provider::Slack, r#"{"type":"url_verification","challenge":"3eZbrw"}"#);
    assert_eq!(slack.asked(), Reply::Json(r#"{"challenge":"3eZbrw"}"#.into()));
    let mut forged = slack;
    forged.secrets = vec![Secret::new("other")];
    assert_eq!(forged.refused(), Refusal::Wrong, "only the sender itself is answered");
    let event = signed(Provider::Slack, r#"{"type":"event_callback","challenge":"x","event":{"type":"message"}}"#);
    assert_eq!(event.verify().unwrap().ty.as_deref(), Some("message"));

    assert_eq!(discord(r#"{"id":"1","type":1}"#).asked(), Reply::Json(r#"{"type":1}"#.into()));
    assert_eq!(discord(r#"{"type":0}"#).asked(), Reply::Nothing);
    let event = discord(r#"{"type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}"#);
    assert_eq!(event.verify().unwrap().ty.as_deref(), Some("APPLICATION_AUTHORIZED"));

    let zoom = signed(
        Provider::Zoom,
        r#"{"event":"endpoint.url_validation","payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"}}"#,
    );
    let Reply::Json(answer) = zoom.asked() else { panic!("an answer") };
    let mut mac = Hmac::<Sha256>::new_from_slice(key_of(&Provider::Zoom).as_bytes()).unwrap();
    mac.update(b"qgg8vlvZRS6UYooatFL8Aw");
    assert!(answer.contains(&hex::encode(mac.finalize().into_bytes())), "{answer}");
}

#[test]
fn notion_brings_its_secret_while_there_is_none() {
    let body = r#"{"verification_token":"secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl"}"#;
    let mut post = Post::new(Provider::Notion, &[], &[("content-type", "application/json")], body);
    assert!(matches!(post.refused(), Refusal::Brings(token) if token.expose().starts_with("secret_tMrl")));
    post.secrets = vec![Secret::new("secret_known")];
    assert!(matches!(post.refused(), Refusal::Missing(_)), "not once there is one");
    post.secrets.clear();
    post.body = Bytes::from_static(br#"{"verification_token":"a\nb"}"#);
    assert_eq!(post.refused(), Refusal::Unusable(Unusable::NoSecret));
}

#[test]
fn sns_is_heard_by_topic_certificate_and_version() {
    let post = sns("Notification", "2", &[("Message", "hello")]);
    let verified = post.verify().unwrap();
    assert_eq!((verified.id.as_deref(), verified.ty.as_deref()), (Some("m-1"), Some("Notification")));
    assert!(certificate_url(&post.source, delivery(&post)).unwrap().unwrap().ends_with("-1.pem"));

    let mut foreign = sns("Notification", "2", &[("Message", "hello")]);
    foreign.source.topics = vec!["arn:aws:sns:eu-west-1:123456789012:others".into()];
    assert_eq!(foreign.refused(), Refusal::Topic);
    assert_eq!(certificate_url(&foreign.source, delivery(&foreign)), Err(Refusal::Topic));
    let mut bare = sns("Notification", "2", &[("Message", "hello")]);
    bare.certificate = None;
    assert_eq!(bare.refused(), Refusal::Certificate);
    bare.certificate = Certificate::from_pem(CERTIFICATE);
    assert_eq!(bare.refused(), Refusal::Certificate, "it is not valid yet");
    assert_eq!(sns("Notification", "1", &[("Message", "hello")]).refused(), Refusal::Wrong, "another version's digest");
    assert_eq!(sns("Notification", "3", &[("Message", "hello")]).refused(), Refusal::Wrong);
    let mut evil = sns("Notification", "2", &[("Message", "hello")]);
    evil.body =
        String::from_utf8(evil.body.to_vec()).unwrap().replace("sns.eu-west-1.amazonaws.com", "evil.example").into();
    assert_eq!(certificate_url(&evil.source, delivery(&evil)), Err(Refusal::Certificate));

    let url = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=t";
    let confirm = [("Message", "You have chosen"), ("SubscribeURL", url), ("Token", "t")];
    assert_eq!(sns("SubscriptionConfirmation", "2", &confirm).asked(), Reply::Confirm(url.into()));
    let elsewhere = [("Message", "m"), ("SubscribeURL", "https://evil.example/"), ("Token", "t")];
    assert_eq!(sns("SubscriptionConfirmation", "2", &elsewhere).refused(), Refusal::Wrong);
}

fn delivery(post: &Post) -> Delivery<'_> {
    Delivery {
        headers: &post.headers,
        body: &post.body,
        query: None,
        certificate: post.certificate.as_ref(),
        now: post.now,
    }
}

#[test]
fn no_request_brings_a_provider_to_panic() {
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
