//! Tests of single providers.

use super::{
    providers::{CERTIFICATE, NOW, delivery, discord, good, key_of, sendgrid, sns},
    *,
};
use data_encoding::HEXLOWER;

#[test]
fn stripe_slack_and_twilio_vectors_are_accepted() {
    let body = r#"{"id":"evt_test_webhook","object":"event"}"#;
    let stripe = "t=1700000000,v1=d95c6b7477fbd7e9f90b1b0ef5f9c7ac25abca5382460e0d988c2b2a5b71b990";
    let post = Post::new(Provider::Stripe, &["whsec_test_secret"], &[("stripe-signature", stripe)], body);
    assert_eq!(post.at(1_700_000_000).verify().unwrap().id, "evt_test_webhook");

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
    assert!(post.verify().is_ok(), "the standard port is optional");
    post.source.public_url = Some("https://mycompany.com:8443/myapp.php?foo=1&bar=3".into());
    assert_eq!(post.refused(), Refusal::InvalidSignature);
}

#[test]
fn twilio_body_must_match_its_digest() {
    let mut post = good(&Provider::Twilio);
    post.query = None;
    assert_eq!(post.refused(), Refusal::InvalidSignature);
    let mut twice = good(&Provider::Twilio);
    twice.query = twice.query.map(|query| format!("{query}&{query}"));
    assert_eq!(twice.refused(), Refusal::InvalidSignature);
}

#[test]
fn gitlab_token_and_signing_secret_are_not_interchangeable() {
    let token = |header: &str, secrets: &[&str]| {
        Post::new(Provider::Gitlab, secrets, &[("x-gitlab-token", header), ("x-gitlab-event", "Push Hook")], "{}")
    };
    assert_eq!(token("a token", &["a token"]).verify().unwrap().ty.as_deref(), Some("Push Hook"));
    assert_eq!(token("another", &["a token"]).refused(), Refusal::InvalidSignature);
    assert!(matches!(token(WHSEC, &[WHSEC]).refused(), Refusal::Missing(_)), "a signing token is never sent");
    assert!(token("a token", &[WHSEC, "a token"]).verify().is_ok(), "both are accepted during a rotation");
}

#[test]
fn docusign_signature_may_be_in_any_numbered_header() {
    let mut post = good(&Provider::Docusign);
    let right = post.headers.remove("x-docusign-signature-1").unwrap();
    post.headers.insert("x-docusign-signature-1", HeaderValue::from_static("AAAA"));
    post.headers.insert("x-docusign-signature-2", right.clone());
    assert!(post.verify().is_ok());
    post.headers.insert("x-docusign-signature-x", right);
    post.headers.remove("x-docusign-signature-2");
    assert_eq!(post.refused(), Refusal::InvalidSignature);
}

#[test]
fn each_array_item_is_an_event() {
    let (events, identity) = good(&Provider::Sendgrid).events().unwrap();
    let parts: Vec<_> = events.iter().map(|e| (e.id.as_str(), e.ty.as_deref().unwrap(), &e.data[..])).collect();
    let first = br#"{"sg_event_id":"e-1","event":"open"}"#;
    assert_eq!(parts[0], ("e-1", "open", &first[..]));
    assert_eq!((parts[1].0, parts[1].1, parts.len()), ("e-2", "click", 2));
    assert!(identity.id_is_signed);
    assert_eq!(sendgrid("[]").events().unwrap().0.len(), 0);
    assert_eq!(sendgrid("{}").events().unwrap().0.len(), 1, "a body that is no array is one event");
    let many = format!("[{}]", vec!["1"; items::MAX_ITEMS + 1].join(","));
    assert_eq!(sendgrid(&many).refused(), Refusal::TooManyItems);
    let nameless = sendgrid("[1, 2, 1]").events().unwrap().0;
    assert!(nameless[0].id == nameless[2].id && nameless[0].id != nameless[1].id && nameless[0].id.len() == 64);
}

fn signed(provider: Provider, body: &str) -> Post {
    let mut post = good(&provider);
    let signature_scheme = Scheme::of(&provider).signature_schemes[0].unwrap();
    let text = format!("v0:{NOW}:{body}");
    let mut mac = Hmac::<Sha256>::new_from_slice(key_of(&provider).as_bytes()).unwrap();
    mac.update(text.as_bytes());
    let ValueLocation::Header(name) = signature_scheme.signature else { panic!("{signature_scheme:?}") };
    let signature = format!("{}{}", signature_scheme.prefix, HEXLOWER.encode(&mac.finalize().into_bytes()));
    post.headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), signature.parse().unwrap());
    post.body = Bytes::from(body.to_owned());
    post
}

#[test]
fn handshake_of_a_verified_sender_gets_a_reply() {
    let slack = signed(Provider::Slack, r#"{"type":"url_verification","challenge":"3eZbrw"}"#);
    assert_eq!(slack.reply(), Reply::Json(r#"{"challenge":"3eZbrw"}"#.into()));
    let mut forged = slack;
    forged.secrets = vec![Secret::new("other")];
    assert_eq!(forged.refused(), Refusal::InvalidSignature, "only the sender gets a reply");
    let event = signed(Provider::Slack, r#"{"type":"event_callback","challenge":"x","event":{"type":"message"}}"#);
    assert_eq!(event.verify().unwrap().ty.as_deref(), Some("message"));

    assert_eq!(discord(r#"{"id":"1","type":1}"#).reply(), Reply::Json(r#"{"type":1}"#.into()));
    assert_eq!(discord(r#"{"type":0}"#).reply(), Reply::Empty);
    let event = discord(r#"{"type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}"#);
    assert_eq!(event.verify().unwrap().ty.as_deref(), Some("APPLICATION_AUTHORIZED"));

    let zoom = signed(
        Provider::Zoom,
        r#"{"event":"endpoint.url_validation","payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"}}"#,
    );
    let Reply::Json(answer) = zoom.reply() else { panic!("no JSON reply") };
    let mut mac = Hmac::<Sha256>::new_from_slice(key_of(&Provider::Zoom).as_bytes()).unwrap();
    mac.update(b"qgg8vlvZRS6UYooatFL8Aw");
    assert!(answer.contains(&HEXLOWER.encode(&mac.finalize().into_bytes())), "{answer}");
}

#[test]
fn notion_secret_is_accepted_only_while_none_is_set() {
    let body = r#"{"verification_token":"secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl"}"#;
    let mut post = Post::new(Provider::Notion, &[], &[("content-type", "application/json")], body);
    assert!(matches!(post.refused(), Refusal::AnnouncesSecret(token) if token.expose().starts_with("secret_tMrl")));
    post.secrets = vec![Secret::new("secret_known")];
    assert!(matches!(post.refused(), Refusal::Missing(_)), "a secret is set");
    post.secrets.clear();
    post.body = Bytes::from_static(br#"{"verification_token":"a\nb"}"#);
    assert_eq!(post.refused(), Refusal::Unusable(Unusable::NoSecret));
}

#[test]
fn sns_delivery_is_checked_by_topic_certificate_and_version() {
    let post = sns("Notification", "2", &[("Message", "hello")]);
    let verified = post.verify().unwrap();
    assert_eq!((verified.id.as_str(), verified.ty.as_deref()), ("m-1", Some("Notification")));
    assert!(certificate_url(&post.source, delivery(&post)).unwrap().unwrap().ends_with("-1.pem"));

    let mut foreign = sns("Notification", "2", &[("Message", "hello")]);
    foreign.source.topics = vec!["arn:aws:sns:eu-west-1:123456789012:others".into()];
    assert_eq!(foreign.refused(), Refusal::UnknownTopic);
    assert_eq!(certificate_url(&foreign.source, delivery(&foreign)), Err(Refusal::UnknownTopic));
    let mut bare = sns("Notification", "2", &[("Message", "hello")]);
    bare.certificate = None;
    assert_eq!(bare.refused(), Refusal::InvalidCertificate);
    bare.certificate = Certificate::from_pem(CERTIFICATE);
    assert_eq!(bare.refused(), Refusal::InvalidCertificate, "the certificate is not valid yet");
    assert_eq!(
        sns("Notification", "1", &[("Message", "hello")]).refused(),
        Refusal::InvalidSignature,
        "another version's digest"
    );
    assert_eq!(sns("Notification", "3", &[("Message", "hello")]).refused(), Refusal::InvalidSignature);
    let mut evil = sns("Notification", "2", &[("Message", "hello")]);
    evil.body =
        String::from_utf8(evil.body.to_vec()).unwrap().replace("sns.eu-west-1.amazonaws.com", "evil.example").into();
    assert_eq!(certificate_url(&evil.source, delivery(&evil)), Err(Refusal::InvalidCertificate));

    let url = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=t";
    let confirm = [("Message", "You have chosen"), ("SubscribeURL", url), ("Token", "t")];
    assert_eq!(sns("SubscriptionConfirmation", "2", &confirm).reply(), Reply::ConfirmSubscription(url.into()));
    let elsewhere = [("Message", "m"), ("SubscribeURL", "https://evil.example/"), ("Token", "t")];
    assert_eq!(sns("SubscriptionConfirmation", "2", &elsewhere).refused(), Refusal::InvalidSignature);
}
