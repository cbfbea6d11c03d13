//! Handshakes of senders: requests that verify or probe the URL and are no events.

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

/// The reply to a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A JSON body.
    Json(String),
    /// An empty success response.
    Empty,
    /// Confirm the subscription by fetching this URL of AWS.
    ConfirmSubscription(String),
}

/// Returns the reply to a verified delivery if it is a handshake.
///
/// # Errors
/// [`Refusal`] for an invalid handshake.
pub(super) fn reply(scheme: &Scheme<'_>, content: &Content<'_>, keys: &[Key]) -> Result<Option<Reply>, Refusal> {
    let Some(handshake) = scheme.handshake else { return Ok(None) };
    let named = |at: &str, value: &str| {
        let name = at.rsplit('/').next().unwrap_or_default();
        Reply::Json(json!({ name: value }).to_string())
    };
    Ok(match handshake {
        Handshake::Echo { when, at } if when.is_none_or(|when| content.has(when)) => {
            content.scalar(at).map(|text| named(at, &text))
        }
        Handshake::Discord if content.has(("/type", "0")) && content.scalar("/event/type").is_none() => {
            Some(Reply::Empty)
        }
        Handshake::Discord if content.has(("/type", "1")) && content.scalar("/event/type").is_none() => {
            Some(Reply::Json(json!({"type": 1}).to_string()))
        }
        Handshake::Zoom { when, at } if content.has(when) => {
            let plain = content.scalar(at).ok_or(Refusal::Malformed)?;
            let hashed = keys.iter().find_map(|key| key.hmac_hex(&plain)).ok_or(Refusal::InvalidSignature)?;
            Some(Reply::Json(json!({"plainToken": plain, "encryptedToken": hashed}).to_string()))
        }
        Handshake::Sns if content.has(("/Type", "SubscriptionConfirmation")) => {
            let url = content.scalar("/SubscribeURL").filter(|url| is_subscribe_url(url));
            Some(Reply::ConfirmSubscription(url.ok_or(Refusal::InvalidSignature)?))
        }
        Handshake::Sns if content.has(("/Type", "UnsubscribeConfirmation")) => Some(Reply::Empty),
        _ => None,
    })
}

/// Returns the secret that a first, unsigned delivery announces, if the scheme has such a handshake.
pub(super) fn announced_secret(scheme: &Scheme<'_>, content: &Content<'_>) -> Option<String> {
    match scheme.handshake {
        Some(Handshake::Notion { at }) => content.scalar(at).filter(|token| {
            // The secret is shown to the operator, so only token characters are allowed.
            token.len() <= 255 && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        }),
        _ => None,
    }
}

/// Returns the challenge to echo for a GET with the correct token.
pub fn challenge(query: &str, token: &Secret) -> Option<String> {
    let fields: Vec<_> = super::form::form_fields(query.as_bytes()).collect();
    let one = |name: &str| {
        let mut values = fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str());
        values.next().filter(|_| values.next().is_none())
    };
    let given = one("hub.verify_token")?;
    let matches: bool = given.as_bytes().ct_eq(token.expose().as_bytes()).into();
    let subscribes = one("hub.mode") == Some("subscribe") && matches && !token.expose().is_empty();
    one("hub.challenge").filter(|_| subscribes).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge_is_echoed_only_for_the_correct_token() {
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
