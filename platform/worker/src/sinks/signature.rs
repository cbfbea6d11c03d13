//! Standard Webhooks signatures: `v1` (HMAC-SHA256) and `v1a` (ed25519), one per secret.

use base64::{Engine, prelude::BASE64_STANDARD};
use data_encoding::HEXLOWER;
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, Mac};
use nerve_core::{Event, Secret};
use sha2::{Digest, Sha256};

/// Length of a shared secret in bytes: the minimum of Standard Webhooks, and a sensible maximum.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=256;

enum Key {
    Shared(Vec<u8>),
    Private(Box<SigningKey>),
}

/// Signs with every active secret, so that a receiver may verify with the old or the new one during a rotation.
pub(super) struct Signer(Vec<Key>);

impl Signer {
    /// Parses secrets such as `whsec_…` (shared) or `whsk_…` (ed25519).
    ///
    /// # Errors
    /// Names the invalid secret, without its value.
    pub(super) fn new<'s>(secrets: impl IntoIterator<Item = (&'s str, &'s Secret)>) -> Result<Self, String> {
        let keys = secrets.into_iter().map(|(name, secret)| {
            parse_key(secret.expose()).ok_or_else(|| {
                format!(
                    "secret {name} is not a Standard Webhooks secret: it must be whsec_ and the base64 of 24 to 64 \
                     bytes, or whsk_ and the base64 of an ed25519 key"
                )
            })
        });
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// Returns the value of `webhook-signature`: one signature per secret, in manifest order.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let signatures = self.0.iter().map(|key| match key {
            Key::Shared(secret) => {
                #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
                let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key");
                mac.update(&signed);
                format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
            }
            Key::Private(key) => format!("v1a,{}", BASE64_STANDARD.encode(key.sign(&signed).to_bytes())),
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

fn parse_key(secret: &str) -> Option<Key> {
    if let Some(text) = secret.strip_prefix("whsk_") {
        let bytes = BASE64_STANDARD.decode(text).ok()?;
        // The seed alone, or followed by the public key, as libsodium writes it.
        let seed: [u8; 32] = bytes.get(..32)?.try_into().ok()?;
        return matches!(bytes.len(), 32 | 64).then(|| Key::Private(Box::new(SigningKey::from_bytes(&seed))));
    }
    let bytes = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).ok()?;
    SECRET_BYTES.contains(&bytes.len()).then_some(Key::Shared(bytes))
}

/// Returns the `webhook-id` that an older Nerve used: the same for each attempt, and unique across sources.
pub(super) fn old_message_id(event: &Event) -> String {
    let mut digest = Sha256::new();
    digest.update(u64::try_from(event.source.len()).unwrap_or(u64::MAX).to_be_bytes());
    digest.update(&event.source);
    digest.update(&event.id);
    let digest = HEXLOWER.encode(&digest.finalize());
    format!("msg_{}", digest.get(..32).unwrap_or(&digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn signer(secrets: &[&str]) -> Result<Signer, String> {
        let secrets: Vec<Secret> = secrets.iter().map(|text| Secret::new(*text)).collect();
        Signer::new(secrets.iter().map(|secret| ("NAME", secret)))
    }

    #[test]
    fn signature_matches_the_vector_of_the_specification() {
        let signed =
            signer(&[SECRET]).unwrap().sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_active_secret_signs_once() {
        let private = format!("whsk_{}", BASE64_STANDARD.encode([7; 32]));
        let signed = signer(&[SECRET, &private]).unwrap().sign("msg_1", 1, b"{}");
        let (shared, asymmetric) = signed.split_once(' ').unwrap();
        assert!(shared.starts_with("v1,"));
        let signature = BASE64_STANDARD.decode(asymmetric.strip_prefix("v1a,").unwrap()).unwrap();
        let signature = ed25519_dalek::Signature::from_slice(&signature).unwrap();
        let public = SigningKey::from_bytes(&[7; 32]).verifying_key();
        public.verify_strict(b"msg_1.1.{}", &signature).unwrap();
    }

    #[test]
    fn invalid_secret_is_named_and_its_value_not_shown() {
        for bad in ["hunter2!", "whsec_", "whsec_c2hvcnQ=", "whsk_c2hvcnQ="] {
            let error = signer(&[bad]).err().unwrap();
            let value = bad.split_once('_').map_or(bad, |(_, value)| value);
            assert!(error.contains("NAME") && (value.is_empty() || !error.contains(value)), "{error}");
        }
    }

    #[test]
    fn old_message_id_depends_on_event_and_source() {
        let id = |source: &str, id: &str| old_message_id(&Event::new(id, source, EventType::parse("a").unwrap()));
        assert_eq!(id("/a", "1"), id("/a", "1"));
        assert_ne!(id("/a", "1"), id("/b", "1"));
        assert_ne!(id("/a", "1"), id("/a1", ""));
        assert_eq!(id("/a", "1").len(), 36);
    }
}
