//! Tokens with which a server on another machine joins, and the messages of a join.
//!
//! A token is made by the machine that has the seeds of the nats-server. It holds a secret; from that come the seed of a NATS user,
//! who may do nothing but ask to join, and the keys with which request and response are encrypted. The machine that made it keeps
//! the derived [`ExchangeKey`], from which the token cannot be made again. So nobody between the two reads or changes what they say,
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

/// One of the keys that come from a secret.
fn derive(secret: &[u8], label: &[u8]) -> Option<[u8; 32]> {
    let from: Prk = Salt::new(HKDF_SHA256, b"nerve join 1").extract(secret);
    let mut key = [0; 32];
    from.expand(&[label], Length32).and_then(|okm| okm.fill(&mut key)).ok()?;
    Some(key)
}
