//! Keys and signatures: decoding them, and comparing in constant time.

use super::scheme::{KeyPrefix, Kind};
use base64::{Engine, prelude::BASE64_STANDARD};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, Mac, digest::KeyInit};
use nerve_core::{
    function::Secret,
    manifest::{Algorithm, Encoding, KeyForm},
};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use std::borrow::Borrow;
use subtle::{Choice, ConstantTimeEq};
use x509_cert::{der::Decode, spki::SubjectPublicKeyInfoRef};

/// Most signatures a delivery may hold: more is somebody buying our time.
pub(super) const MAX_SIGNATURES: usize = 16;

/// The longest signature: that of an RSA key of 8192 bits.
const MAX_SIGNATURE_BYTES: usize = 1024;

/// Why a secret is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// An empty key signs nothing: anybody could.
    #[error("it is empty")]
    Empty,
    /// It is not written as the scheme says.
    #[error("it is not valid {0}")]
    Encoding(&'static str),
    /// Not a point on the curve, or not 32 bytes.
    #[error("it is not an Ed25519 public key")]
    PublicKey,
    /// Not a public key in PEM, nor the base64 of one in DER (SubjectPublicKeyInfo).
    #[error("it is not a public key, as PEM or the base64 in it")]
    Spki,
}

/// A secret, ready to check signatures of one kind.
pub(super) enum Key {
    Hmac(Algorithm, Vec<u8>),
    Ed25519(Box<VerifyingKey>),
    /// What a public key's bit string holds.
    Public(&'static dyn VerificationAlgorithm, Vec<u8>),
    /// The digest of a secret that is sent as it is.
    Token([u8; 32]),
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
            KeyPrefix::Without(prefix) => !marked(prefix),
            KeyPrefix::Certificate => false,
        };
        fits.then(|| Self::decode(text, kind))
    }

    /// The key in a certificate's bit string.
    pub(super) fn of_certificate(public: &[u8], kind: &Kind<'_>) -> Option<Self> {
        asymmetric(kind.algorithm).map(|algorithm| Self::Public(algorithm, public.to_vec()))
    }

    fn decode(text: &str, kind: &Kind<'_>) -> Result<Self, BadKey> {
        if let Some(algorithm) = asymmetric(kind.algorithm) {
            return Ok(Self::Public(algorithm, public_key(text).ok_or(BadKey::Spki)?));
        }
        let bytes = match kind.key {
            KeyForm::Text => text.as_bytes().to_vec(),
            KeyForm::Hex => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| BadKey::Encoding("hexadecimal"))?,
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
            Algorithm::Token => Ok(Self::Token(Sha256::digest(&bytes).into())),
            algorithm => Ok(Self::Hmac(algorithm, bytes)),
        }
    }

    /// Whether any of `candidates` is this key's signature of the pieces laid end to end.
    ///
    /// Every candidate is looked at, and each comparison takes the same time wherever it differs.
    pub(super) fn signed(&self, pieces: &[impl Borrow<[u8]>], candidates: &[Vec<u8>]) -> bool {
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
            Self::Public(algorithm, key) => {
                let (message, key) = (pieces.concat(), UnparsedPublicKey::new(*algorithm, key));
                candidates.iter().any(|candidate| key.verify(&message, candidate).is_ok())
            }
            // Digests, so that not even the secret's length shows in the time it takes.
            Self::Token(right) => {
                let same = |candidate: &Vec<u8>| right.as_slice().ct_eq(Sha256::digest(candidate).as_slice());
                candidates.iter().fold(Choice::from(0), |found, candidate| found | same(candidate)).into()
            }
        }
    }

    /// This key's HMAC of the pieces laid end to end; none for keys that only check.
    pub(super) fn mac(&self, pieces: &[impl Borrow<[u8]>]) -> Option<Vec<u8>> {
        match self {
            Self::Hmac(algorithm, key) => mac(*algorithm, key, pieces),
            _ => None,
        }
    }

    /// The HMAC in hex of a text that the sender wants back; none for keys that only check.
    pub(super) fn hmac_hex(&self, text: &str) -> Option<String> {
        self.mac(&[text.as_bytes()]).map(|mac| HEXLOWER.encode(&mac))
    }
}

fn asymmetric(algorithm: Algorithm) -> Option<&'static dyn VerificationAlgorithm> {
    match algorithm {
        Algorithm::EcdsaP256 => Some(&ECDSA_P256_SHA256_ASN1),
        Algorithm::RsaSha1 => Some(&RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY),
        Algorithm::RsaSha256 => Some(&RSA_PKCS1_2048_8192_SHA256),
        _ => None,
    }
}

/// The bit string in a public key that is written as PEM or as the base64 in it.
fn public_key(text: &str) -> Option<Vec<u8>> {
    let der = from_pem(text, "PUBLIC KEY").or_else(|| BASE64_STANDARD.decode(text.trim()).ok())?;
    let read = SubjectPublicKeyInfoRef::from_der(&der).ok()?;
    read.subject_public_key.as_bytes().map(<[u8]>::to_vec)
}

/// What stands between the lines that begin and end something of this label.
pub(super) fn from_pem(text: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (inner, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let inner: String = inner.split_ascii_whitespace().collect();
    BASE64_STANDARD.decode(inner).ok()
}

fn mac(algorithm: Algorithm, key: &[u8], pieces: &[impl Borrow<[u8]>]) -> Option<Vec<u8>> {
    fn run<M: Mac + KeyInit>(key: &[u8], pieces: &[impl Borrow<[u8]>]) -> Option<Vec<u8>> {
        let mut mac = <M as Mac>::new_from_slice(key).ok()?;
        for piece in pieces {
            mac.update(piece.borrow());
        }
        Some(mac.finalize().into_bytes().to_vec())
    }
    match algorithm {
        Algorithm::Sha1 => run::<Hmac<Sha1>>(key, pieces),
        Algorithm::Sha256 => run::<Hmac<Sha256>>(key, pieces),
        Algorithm::Sha512 => run::<Hmac<Sha512>>(key, pieces),
        _ => None,
    }
}

/// The signatures of one kind in a header; those of other kinds and those that do not decode are left out.
///
/// None when the header holds more than [`MAX_SIGNATURES`] of them.
pub(super) fn candidates(header: &str, kind: &Kind<'_>) -> Option<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    if kind.algorithm == Algorithm::Token {
        // A token is all that follows the mark, such as `Bearer `, which is written in either case.
        let token = header.split_at_checked(kind.mark.len()).filter(|(mark, _)| mark.eq_ignore_ascii_case(kind.mark));
        found.extend(token.map(|(_, token)| token.trim().as_bytes().to_vec()));
        return Some(found);
    }
    for token in header.split_ascii_whitespace() {
        let mut rest = token;
        while !rest.is_empty() {
            let marked = rest.strip_prefix(kind.mark);
            let (text, after) = marked.unwrap_or(rest).split_once([',', ';']).unwrap_or((marked.unwrap_or(rest), ""));
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
        Encoding::Hex => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok(),
        Encoding::Base64 => BASE64_STANDARD.decode(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::scheme::Place, *};

    fn kind(mark: &'static str) -> Kind<'static> {
        let (algorithm, encoding) = (Algorithm::Sha256, Encoding::Hex);
        Kind {
            signature: Place::Header("x"),
            mark,
            algorithm,
            encoding,
            key: KeyForm::Text,
            key_prefix: KeyPrefix::Any,
            signed: "{body}",
            timestamp: None,
            only: None,
        }
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
            ("h1=", "ts=1;h1=aa;h1=bb", vec!["aa", "bb"]),
            ("v1=", "v1=aa, v1=bb", vec!["aa", "bb"]),
            ("", "aa,bb", vec!["aa", "bb"]),
            ("sha256=", "aa", vec![]),
            ("sha256=", "sha256=zz", vec![]),
            ("", "", vec![]),
        ];
        for (mark, header, expected) in cases {
            let found = candidates(header, &kind(mark)).unwrap();
            assert_eq!(
                found.iter().map(|found| HEXLOWER.encode(found)).collect::<Vec<_>>(),
                expected,
                "{mark} {header}"
            );
        }
    }

    #[test]
    fn a_header_of_endless_signatures_is_refused() {
        let many = |n: usize| vec!["v1=aa"; n].join(",");
        assert_eq!(candidates(&many(MAX_SIGNATURES), &kind("v1=")).unwrap().len(), MAX_SIGNATURES);
        assert!(candidates(&many(MAX_SIGNATURES + 1), &kind("v1=")).is_none());
    }

    #[test]
    fn a_token_is_compared_whole() {
        let bearer = Kind { algorithm: Algorithm::Token, ..kind("Bearer ") };
        let key = Key::of(&Secret::new("a token, with spaces"), &bearer).unwrap().unwrap();
        let right = |header: &str| key.signed(&[b"".as_slice()], &candidates(header, &bearer).unwrap());
        assert!(right("Bearer a token, with spaces") && right("bearer a token, with spaces"));
        for wrong in ["a token, with spaces", "Bearer a token", "Bearer ", "", "Bearer a token, with spaces!", "Béarer"]
        {
            assert!(!right(wrong), "{wrong}");
        }
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
        for algorithm in [Algorithm::EcdsaP256, Algorithm::RsaSha256] {
            let kind = Kind { algorithm, ..hmac };
            for text in ["", "AAAA", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----", "whpk_%"] {
                assert_eq!(bad(text, &kind), Some(BadKey::Spki), "{text}");
            }
        }
    }
}
