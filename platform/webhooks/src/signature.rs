//! Keys and signatures: decoding, and comparison in constant time.

use super::scheme::{KeyPrefix, SignatureScheme};
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

/// Maximum signatures of a delivery. More would be an attempt to consume CPU time.
pub(super) const MAX_SIGNATURES: usize = 16;

/// Maximum bytes of a signature: that of an RSA key of 8192 bits.
const MAX_SIGNATURE_BYTES: usize = 1024;

/// The reason why a secret is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// An empty key protects nothing: anybody could sign with it.
    #[error("it is empty")]
    Empty,
    /// It is not in the encoding of the scheme.
    #[error("it is not valid {0}")]
    Encoding(&'static str),
    /// Not a point on the curve, or not 32 bytes.
    #[error("it is not an Ed25519 public key")]
    PublicKey,
    /// Not a public key in PEM, nor the base64 of one in DER (SubjectPublicKeyInfo).
    #[error("it is not a public key, as PEM or the base64 in it")]
    Spki,
}

/// A decoded key of one signature scheme.
pub(super) enum Key {
    Hmac(Algorithm, Vec<u8>),
    Ed25519(Box<VerifyingKey>),
    /// The bit string of a public key.
    Public(&'static dyn VerificationAlgorithm, Vec<u8>),
    /// The digest of a secret that is sent in clear.
    Token([u8; 32]),
}

impl Key {
    /// Decodes `secret` for this signature scheme. Returns `None` if its prefix belongs to another scheme.
    pub(super) fn of(secret: &Secret, signature_scheme: &SignatureScheme<'_>) -> Option<Result<Self, InvalidKey>> {
        let text = secret.expose();
        let has_prefix = |prefix: &str| text.starts_with(prefix);
        let fits = match signature_scheme.key_prefix {
            KeyPrefix::Any => true,
            KeyPrefix::Optional(prefix) => has_prefix(prefix) || !text.contains('_'),
            KeyPrefix::Required(prefix) => has_prefix(prefix),
            KeyPrefix::Without(prefix) => !has_prefix(prefix),
            KeyPrefix::Certificate => false,
        };
        fits.then(|| Self::decode(text, signature_scheme))
    }

    /// Creates a key from the bit string of a certificate.
    pub(super) fn of_certificate(public: &[u8], signature_scheme: &SignatureScheme<'_>) -> Option<Self> {
        asymmetric(signature_scheme.algorithm).map(|algorithm| Self::Public(algorithm, public.to_vec()))
    }

    fn decode(text: &str, signature_scheme: &SignatureScheme<'_>) -> Result<Self, InvalidKey> {
        if let Some(algorithm) = asymmetric(signature_scheme.algorithm) {
            return Ok(Self::Public(algorithm, public_key(text).ok_or(InvalidKey::Spki)?));
        }
        let bytes = match signature_scheme.key {
            KeyForm::Text => text.as_bytes().to_vec(),
            KeyForm::Hex => {
                HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| InvalidKey::Encoding("hexadecimal"))?
            }
            KeyForm::Base64 => {
                let encoded = text.rsplit_once('_').map_or(text, |(_, encoded)| encoded);
                BASE64_STANDARD.decode(encoded).map_err(|_| InvalidKey::Encoding("base64"))?
            }
        };
        match signature_scheme.algorithm {
            _ if bytes.is_empty() => Err(InvalidKey::Empty),
            Algorithm::Ed25519 => {
                let bytes: [u8; 32] = bytes.try_into().map_err(|_| InvalidKey::PublicKey)?;
                let key = VerifyingKey::from_bytes(&bytes).map_err(|_| InvalidKey::PublicKey)?;
                Ok(Self::Ed25519(Box::new(key)))
            }
            Algorithm::Token => Ok(Self::Token(Sha256::digest(&bytes).into())),
            algorithm => Ok(Self::Hmac(algorithm, bytes)),
        }
    }

    /// Whether any of `candidates` is this key's signature of the concatenated segments.
    ///
    /// Every candidate is compared, in constant time.
    pub(super) fn has_signed(&self, segments: &[impl Borrow<[u8]>], candidates: &[Vec<u8>]) -> bool {
        match self {
            Self::Hmac(algorithm, key) => {
                let Some(right) = mac(*algorithm, key, segments) else { return false };
                let same = |candidate: &Vec<u8>| right.as_slice().ct_eq(candidate.as_slice());
                candidates.iter().fold(Choice::from(0), |found, candidate| found | same(candidate)).into()
            }
            Self::Ed25519(key) => {
                let message = segments.concat();
                let right = |candidate: &Vec<u8>| {
                    Signature::from_slice(candidate).is_ok_and(|given| key.verify_strict(&message, &given).is_ok())
                };
                candidates.iter().any(right)
            }
            Self::Public(algorithm, key) => {
                let (message, key) = (segments.concat(), UnparsedPublicKey::new(*algorithm, key));
                candidates.iter().any(|candidate| key.verify(&message, candidate).is_ok())
            }
            // Comparing digests hides the length of the secret from timing attacks.
            Self::Token(right) => {
                let same = |candidate: &Vec<u8>| right.as_slice().ct_eq(Sha256::digest(candidate).as_slice());
                candidates.iter().fold(Choice::from(0), |found, candidate| found | same(candidate)).into()
            }
        }
    }

    /// Returns this key's HMAC of the concatenated segments, or `None` for a verification key.
    pub(super) fn mac(&self, segments: &[impl Borrow<[u8]>]) -> Option<Vec<u8>> {
        match self {
            Self::Hmac(algorithm, key) => mac(*algorithm, key, segments),
            _ => None,
        }
    }

    /// Returns the HMAC of a text in hex, or `None` for a verification key.
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

/// Returns the bit string of a public key in PEM, or in the base64 of a PEM.
fn public_key(text: &str) -> Option<Vec<u8>> {
    let der = from_pem(text, "PUBLIC KEY").or_else(|| BASE64_STANDARD.decode(text.trim()).ok())?;
    let read = SubjectPublicKeyInfoRef::from_der(&der).ok()?;
    read.subject_public_key.as_bytes().map(<[u8]>::to_vec)
}

/// Decodes the PEM block with this label.
pub(super) fn from_pem(text: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (inner, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let inner: String = inner.split_ascii_whitespace().collect();
    BASE64_STANDARD.decode(inner).ok()
}

fn mac(algorithm: Algorithm, key: &[u8], segments: &[impl Borrow<[u8]>]) -> Option<Vec<u8>> {
    fn run<M: Mac + KeyInit>(key: &[u8], segments: &[impl Borrow<[u8]>]) -> Option<Vec<u8>> {
        let mut mac = <M as Mac>::new_from_slice(key).ok()?;
        for segment in segments {
            mac.update(segment.borrow());
        }
        Some(mac.finalize().into_bytes().to_vec())
    }
    match algorithm {
        Algorithm::Sha1 => run::<Hmac<Sha1>>(key, segments),
        Algorithm::Sha256 => run::<Hmac<Sha256>>(key, segments),
        Algorithm::Sha512 => run::<Hmac<Sha512>>(key, segments),
        _ => None,
    }
}

/// Returns the signatures of one scheme in a header, without those of other schemes and those that cannot be decoded.
///
/// Returns `None` for more than [`MAX_SIGNATURES`].
pub(super) fn candidates(header: &str, signature_scheme: &SignatureScheme<'_>) -> Option<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    if signature_scheme.algorithm == Algorithm::Token {
        // A token is the rest of the header after the prefix, such as `Bearer `, in any case.
        let token = header
            .split_at_checked(signature_scheme.prefix.len())
            .filter(|(prefix, _)| prefix.eq_ignore_ascii_case(signature_scheme.prefix));
        found.extend(token.map(|(_, token)| token.trim().as_bytes().to_vec()));
        return Some(found);
    }
    for token in header.split_ascii_whitespace() {
        let mut rest = token;
        while !rest.is_empty() {
            let value = rest.strip_prefix(signature_scheme.prefix);
            let (text, after) = value.unwrap_or(rest).split_once([',', ';']).unwrap_or((value.unwrap_or(rest), ""));
            rest = after;
            if value.is_none() {
                continue;
            }
            if found.len() == MAX_SIGNATURES {
                return None;
            }
            found.extend(decode(text, signature_scheme.encoding).filter(|bytes| bytes.len() <= MAX_SIGNATURE_BYTES));
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
    use super::{super::scheme::ValueLocation, *};

    fn signature_scheme(prefix: &'static str) -> SignatureScheme<'static> {
        let (algorithm, encoding) = (Algorithm::Sha256, Encoding::Hex);
        SignatureScheme {
            signature: ValueLocation::Header("x"),
            prefix,
            algorithm,
            encoding,
            key: KeyForm::Text,
            key_prefix: KeyPrefix::Any,
            signed: "{body}",
            timestamp: None,
            guard_field: None,
        }
    }

    #[test]
    fn signatures_are_found_in_every_list_format() {
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
        for (prefix, header, expected) in cases {
            let found = candidates(header, &signature_scheme(prefix)).unwrap();
            assert_eq!(
                found.iter().map(|found| HEXLOWER.encode(found)).collect::<Vec<_>>(),
                expected,
                "{prefix} {header}"
            );
        }
    }

    #[test]
    fn too_many_signatures_are_rejected() {
        let many = |n: usize| vec!["v1=aa"; n].join(",");
        assert_eq!(candidates(&many(MAX_SIGNATURES), &signature_scheme("v1=")).unwrap().len(), MAX_SIGNATURES);
        assert!(candidates(&many(MAX_SIGNATURES + 1), &signature_scheme("v1=")).is_none());
    }

    #[test]
    fn token_is_compared_as_a_whole() {
        let bearer = SignatureScheme { algorithm: Algorithm::Token, ..signature_scheme("Bearer ") };
        let key = Key::of(&Secret::new("a token, with spaces"), &bearer).unwrap().unwrap();
        let right = |header: &str| key.has_signed(&[b"".as_slice()], &candidates(header, &bearer).unwrap());
        assert!(right("Bearer a token, with spaces") && right("bearer a token, with spaces"));
        for wrong in ["a token, with spaces", "Bearer a token", "Bearer ", "", "Bearer a token, with spaces!", "Béarer"]
        {
            assert!(!right(wrong), "{wrong}");
        }
    }

    #[test]
    fn secret_in_the_wrong_encoding_is_refused() {
        let hmac = SignatureScheme { key: KeyForm::Base64, ..signature_scheme("") };
        let bad = |text: &str, signature_scheme: &SignatureScheme<'_>| {
            Key::of(&Secret::new(text), signature_scheme).unwrap().err()
        };
        assert_eq!(bad("", &signature_scheme("")), Some(InvalidKey::Empty));
        assert_eq!(bad("whsec_", &hmac), Some(InvalidKey::Empty));
        assert_eq!(bad("whsec_%", &hmac), Some(InvalidKey::Encoding("base64")));
        assert_eq!(
            bad("xyz", &SignatureScheme { key: KeyForm::Hex, ..hmac }),
            Some(InvalidKey::Encoding("hexadecimal"))
        );
        let ed25519 = SignatureScheme { algorithm: Algorithm::Ed25519, ..hmac };
        assert_eq!(bad("whpk_AAAA", &ed25519), Some(InvalidKey::PublicKey));
        assert!(bad("any_prefix_AAAA", &hmac).is_none());
        for algorithm in [Algorithm::EcdsaP256, Algorithm::RsaSha256] {
            let signature_scheme = SignatureScheme { algorithm, ..hmac };
            for text in ["", "AAAA", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----", "whpk_%"] {
                assert_eq!(bad(text, &signature_scheme), Some(InvalidKey::Spki), "{text}");
            }
        }
    }
}
