//! Tokens that let a server on another machine join, and the messages of a join.
//!
//! The machine that holds the seeds of the nats-server creates a token. The token holds a secret, from which three things are derived:
//! the seed of a NATS user that may only request to join, and the keys that encrypt request and response. The creating machine keeps
//! the derived [`ExchangeKey`], from which the token cannot be recovered. So no intermediary can read or change the messages,
//! with TLS or without.

mod exchange;
mod token;

pub use exchange::{ExchangeError, ExchangeKey, Grant, Replaced, Request, Response, Trust, UNKNOWN_TOKEN};
pub use token::{Offer, Token, TokenError};

use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

/// The length of a derived key.
struct Length32;

impl KeyType for Length32 {
    fn len(&self) -> usize {
        32
    }
}

/// Derives a key from a secret.
fn derive(secret: &[u8], label: &[u8]) -> Option<[u8; 32]> {
    let from: Prk = Salt::new(HKDF_SHA256, b"nerve join 1").extract(secret);
    let mut key = [0; 32];
    from.expand(&[label], Length32).and_then(|okm| okm.fill(&mut key)).ok()?;
    Some(key)
}
