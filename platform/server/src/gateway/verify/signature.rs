//! Keys and signatures: decoding them, and comparing in constant time.

use super::scheme::{KeyPrefix, Kind};
use base64::{Engine, prelude::BASE64_STANDARD};
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, Mac, digest::KeyInit};
use nerve_core::{
    function::Secret,
    manifest::{Algorithm, Encoding, KeyForm},
};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::{Choice, ConstantTimeEq};

/// Most signatures a header may hold: more is somebody buying our time.
pub(super) const MAX_SIGNATURES: usize = 16;

/// The longest signature: SHA-512 and Ed25519 both give 64 bytes.
const MAX_SIGNATURE_BYTES: usize = 64;

/// Why a secret is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadKey {
    /// An empty key signs nothing: anybody could.
    #[error("it is empty")]
    Empty,
    /// It is not written as the scheme says.
    #[error("it is not valid {0}")]
    Encoding(&'static str),
    /// Not a point on the curve, or not 32 bytes.
    #[error("it is not an Ed25519 public key")]
    PublicKey,
}

/// A secret, ready to check signatures of one kind.
pub(super) enum Key {
    Hmac(Algorithm, Vec<u8>),
    Ed25519(Box<VerifyingKey>),
}

impl Key {
    /// The key that `secret` is for signatures of this kind; none when its prefix says it is for another.
    pub(super) fn of(secret: &Secret, kind: &Kind<'_>) -> Option<Result<Self, BadKey>> {
        let text = secret.expose();
        let marked = |prefix: &str| text.starts_with(prefix);
        let fits = match kind.key_prefix {
            KeyPrefix::Any => true,
            KeyPrefix::Optional(prefix) => marked(prefix) || !text.contains('_'),
            KeyPrefix::Required(prefix) => marked(prefix),
        };
        fits.then(|| Self::decode(text, kind))
    }

    fn decode(text: &str, kind: &Kind<'_>) -> Result<Self, BadKey> {
        let bytes = match kind.key {
            KeyForm::Text => text.as_bytes().to_vec(),
            KeyForm::Hex => hex::decode(text).map_err(|_| BadKey::Encoding("hexadecimal"))?,
            KeyForm::Base64 => {
                let encoded = text.rsplit_once('_').map_or(text, |(_, encoded)| encoded);
                BASE64_STANDARD.decode(encoded).map_err(|_| BadKey::Encoding("base64"))?
            }
        };
        match kind.algorithm {
            _ if bytes.is_empty() => Err(BadKey::Empty),
            Algorithm::Ed25519 => {
                let bytes: [u8; 32] = bytes.try_into().map_err(|_| BadKey::PublicKey)?;
                let key = VerifyingKey::from_bytes(&bytes).map_err(|_| BadKey::PublicKey)?;
                Ok(Self::Ed25519(Box::new(key)))
            }
            algorithm => Ok(Self::Hmac(algorithm, bytes)),
        }
    }

    /// Whether any of `candidates` is this key's signature of the pieces laid end to end.
    ///
    /// Every candidate is looked at, and each comparison takes the same time wherever it differs.
    pub(super) fn signed(&self, pieces: &[&[u8]], candidates: &[Vec<u8>]) -> bool {
        match self {
            Self::Hmac(algorithm, key) => {
                let Some(right) = mac(*algorithm, key, pieces) else { return false };
                let same = |candidate: &Vec<u8>| right.as_slice().ct_eq(candidate.as_slice());
                candidates.iter().fold(Choice::from(0), |found, candidate| found | same(candidate)).into()
            }
            Self::Ed25519(key) => {
                let message = pieces.concat();
                let right = |candidate: &Vec<u8>| {
                    Signature::from_slice(candidate).is_ok_and(|given| key.verify_strict(&message, &given).is_ok())
                };
                candidates.iter().any(right)
            }
        }
    }
}

fn mac(algorithm: Algorithm, key: &[u8], pieces: &[&[u8]]) -> Option<Vec<u8>> {
    fn run<M: Mac + KeyInit>(key: &[u8], pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let mut mac = <M as Mac>::new_from_slice(key).ok()?;
        for piece in pieces {
            mac.update(piece);
        }
        Some(mac.finalize().into_bytes().to_vec())
    }
    match algorithm {
        Algorithm::Sha1 => run::<Hmac<Sha1>>(key, pieces),
        Algorithm::Sha256 => run::<Hmac<Sha256>>(key, pieces),
        Algorithm::Sha512 => run::<Hmac<Sha512>>(key, pieces),
        Algorithm::Ed25519 => None,
    }
}

/// The signatures of one kind in a header; those of other kinds and those that do not decode are left out.
///
/// None when the header holds more than [`MAX_SIGNATURES`] of them.
pub(super) fn candidates(header: &str, kind: &Kind<'_>) -> Option<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for token in header.split_ascii_whitespace() {
        let mut rest = token;
        while !rest.is_empty() {
            let marked = rest.strip_prefix(kind.mark);
            let (text, after) = marked.unwrap_or(rest).split_once(',').unwrap_or((marked.unwrap_or(rest), ""));
            rest = after;
            if marked.is_none() {
                continue;
            }
            if found.len() == MAX_SIGNATURES {
                return None;
            }
            found.extend(decode(text, kind.encoding).filter(|bytes| bytes.len() <= MAX_SIGNATURE_BYTES));
        }
    }
    Some(found)
}

fn decode(text: &str, encoding: Encoding) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Hex => hex::decode(text).ok(),
        Encoding::Base64 => BASE64_STANDARD.decode(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(mark: &'static str) -> Kind<'static> {
        let (algorithm, encoding) = (Algorithm::Sha256, Encoding::Hex);
        Kind { mark, algorithm, encoding, key: KeyForm::Text, key_prefix: KeyPrefix::Any }
    }

    #[test]
    fn signatures_are_found_in_every_way_senders_list_them() {
        let cases = [
            ("sha256=", "sha256=aa", vec!["aa"]),
            ("v1,", "v1,aa v1,bb", vec!["aa", "bb"]),
            ("v1,", "v1a,aa v1,bb v2,cc", vec!["bb"]),
            ("v1,", "v1,aa,v1,bb", vec!["aa", "bb"]),
            ("v1=", "v1=aa,v1=bb", vec!["aa", "bb"]),
            ("v1=", "t=1,v0=aa,v1=bb", vec!["bb"]),
            ("v1=", "v1=aa, v1=bb", vec!["aa", "bb"]),
            ("", "aa,bb", vec!["aa", "bb"]),
            ("sha256=", "aa", vec![]),
            ("sha256=", "sha256=zz", vec![]),
            ("", "", vec![]),
        ];
        for (mark, header, expected) in cases {
            let found = candidates(header, &kind(mark)).unwrap();
            assert_eq!(found.iter().map(hex::encode).collect::<Vec<_>>(), expected, "{mark} {header}");
        }
    }

    #[test]
    fn a_header_of_endless_signatures_is_refused() {
        let many = |n: usize| vec!["v1=aa"; n].join(",");
        assert_eq!(candidates(&many(MAX_SIGNATURES), &kind("v1=")).unwrap().len(), MAX_SIGNATURES);
        assert!(candidates(&many(MAX_SIGNATURES + 1), &kind("v1=")).is_none());
    }

    #[test]
    fn a_secret_is_decoded_as_the_scheme_says_or_refused() {
        let hmac = Kind { key: KeyForm::Base64, ..kind("") };
        let bad = |text: &str, kind: &Kind<'_>| Key::of(&Secret::new(text), kind).unwrap().err();
        assert_eq!(bad("", &kind("")), Some(BadKey::Empty));
        assert_eq!(bad("whsec_", &hmac), Some(BadKey::Empty));
        assert_eq!(bad("whsec_%", &hmac), Some(BadKey::Encoding("base64")));
        assert_eq!(bad("xyz", &Kind { key: KeyForm::Hex, ..hmac }), Some(BadKey::Encoding("hexadecimal")));
        let ed25519 = Kind { algorithm: Algorithm::Ed25519, ..hmac };
        assert_eq!(bad("whpk_AAAA", &ed25519), Some(BadKey::PublicKey));
        assert!(bad("any_prefix_AAAA", &hmac).is_none());
    }
}
