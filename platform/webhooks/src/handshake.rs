//! What senders ask besides sending events: whether the URL is ours, or whether we are there.

use super::{
    Refusal,
    certificate::is_subscribe_url,
    content::Content,
    scheme::{Handshake, Scheme},
    signature::Key,
};
use nerve_core::function::Secret;
use serde_json::json;
use subtle::ConstantTimeEq;

/// What is answered, or done, instead of publishing an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// This JSON.
    Json(String),
    /// Nothing, but that all is well.
    Nothing,
    /// The subscription is confirmed by fetching this URL, which is AWS'.
    Confirm(String),
}

/// What a verified delivery asks, if it is no event.
pub(super) fn asked(scheme: &Scheme<'_>, content: &Content<'_>, keys: &[Key]) -> Result<Option<Reply>, Refusal> {
    let Some(handshake) = scheme.handshake else { return Ok(None) };
    let named = |at: &str, value: &str| {
        let name = at.rsplit('/').next().unwrap_or_default();
        Reply::Json(json!({ name: value }).to_string())
    };
    Ok(match handshake {
        Handshake::Echo { when, at } if when.is_none_or(|when| content.is(when)) => {
            content.scalar(at).map(|text| named(at, &text))
        }
        Handshake::Discord if content.is(("/type", "0")) && content.scalar("/event/type").is_none() => {
            Some(Reply::Nothing)
        }
        Handshake::Discord if content.is(("/type", "1")) && content.scalar("/event/type").is_none() => {
            Some(Reply::Json(json!({"type": 1}).to_string()))
        }
        Handshake::Zoom { when, at } if content.is(when) => {
            let plain = content.scalar(at).ok_or(Refusal::Malformed)?;
            let hashed = keys.iter().find_map(|key| key.hmac_hex(&plain)).ok_or(Refusal::Wrong)?;
            Some(Reply::Json(json!({"plainToken": plain, "encryptedToken": hashed}).to_string()))
        }
        Handshake::Sns if content.is(("/Type", "SubscriptionConfirmation")) => {
            let url = content.scalar("/SubscribeURL").filter(|url| is_subscribe_url(url));
            Some(Reply::Confirm(url.ok_or(Refusal::Wrong)?))
        }
        Handshake::Sns if content.is(("/Type", "UnsubscribeConfirmation")) => Some(Reply::Nothing),
        _ => None,
    })
}

/// The secret that a first, unsigned delivery brings, where the scheme begins so.
pub(super) fn brought(scheme: &Scheme<'_>, content: &Content<'_>) -> Option<String> {
    match scheme.handshake {
        Some(Handshake::Notion { at }) => content.scalar(at).filter(|token| {
            // It is shown to the operator, so it is nothing that could pass for more than a token.
            token.len() <= 255 && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        }),
        _ => None,
    }
}

/// The challenge that a GET with the right token is answered with.
pub fn challenge(query: &str, token: &Secret) -> Option<String> {
    let fields: Vec<_> = super::pieces::form_fields(query.as_bytes()).collect();
    let one = |name: &str| {
        let mut values = fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str());
        values.next().filter(|_| values.next().is_none())
    };
    let given = one("hub.verify_token")?;
    let right: bool = given.as_bytes().ct_eq(token.expose().as_bytes()).into();
    let subscribes = one("hub.mode") == Some("subscribe") && right && !token.expose().is_empty();
    one("hub.challenge").filter(|_| subscribes).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_get_is_answered_to_who_knows_the_token() {
        let token = Secret::new("meat & bread");
        let right = "hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=meat+%26%20bread";
        assert_eq!(challenge(right, &token).as_deref(), Some("1158201444"));
        for wrong in [
            "",
            "hub.mode=subscribe&hub.challenge=1",
            "hub.mode=subscribe&hub.challenge=1&hub.verify_token=",
            "hub.mode=subscribe&hub.challenge=1&hub.verify_token=meat",
            "hub.mode=other&hub.challenge=1&hub.verify_token=meat+%26%20bread",
            "hub.mode=subscribe&hub.verify_token=meat+%26%20bread",
            "hub.mode=subscribe&hub.challenge=1&hub.challenge=2&hub.verify_token=meat+%26%20bread",
        ] {
            assert_eq!(challenge(wrong, &token), None, "{wrong}");
        }
        assert_eq!(challenge("hub.mode=subscribe&hub.challenge=1&hub.verify_token=", &Secret::new("")), None);
    }
}
