//! A join token: the NATS servers, their certificate, and a secret.

use super::{ExchangeKey, derive};
use crate::jwt::{self, JwtError};
use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use nerve_core::Secret;
use nkeys::{KeyPair, KeyPairType};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The prefix of tokens, by which people and secret scanners recognize them.
const PREFIX: &str = "nerve-join-";
/// The version of the format, and of all values derived from a token.
const VERSION: u8 = 1;
/// Sizes in bytes: secret, decoded public key of NATS, signature, certificate SHA-256, checksum.
const SECRET: usize = 32;
const PUBLIC: usize = 35;
const SIGNATURE: usize = 64;
const SHA256: usize = 32;
const CHECKSUM: usize = 4;
/// Maximum length of a token.
const MAX_TOKEN_CHARS: usize = 4096;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The time of creation, in seconds since 1970.
    pub issued: u64,
    /// The time of expiry, in seconds since 1970.
    pub expires: u64,
    /// The servers, comma-separated.
    pub servers: String,
    /// The SHA-256 of their certificate, if they use TLS.
    pub certificate: Option<[u8; SHA256]>,
    secret: [u8; SECRET],
    account: String,
    signature: [u8; SIGNATURE],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires", &self.expires).field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// The parameters of a new token.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The servers, comma-separated.
    pub servers: String,
    /// The SHA-256 of their certificate, if they use TLS.
    pub certificate: Option<[u8; SHA256]>,
    /// The validity period.
    pub lifetime: Duration,
}

/// The reason why a text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It has another prefix.
    #[error("it does not begin with `{PREFIX}`")]
    Other,
    /// It is incomplete or was altered.
    #[error("it is not whole: a part is missing or was changed on the way")]
    Damaged,
    /// It was created by another version of Nerve.
    #[error("it has the format {0}, which this version of Nerve does not read: use the version that made it")]
    Version(u8),
}

impl Token {
    /// Creates a token whose NATS user is signed by `account`.
    ///
    /// # Errors
    /// If `account` cannot sign, or the system provides no random bytes.
    pub fn create(account: &KeyPair, offer: Offer) -> Result<Self, JwtError> {
        let issued = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| JwtError::new(&error))?.as_secs();
        let mut secret = [0; SECRET];
        SystemRandom::new().fill(&mut secret).map_err(|error| JwtError::new(&error))?;
        let mut token = Self {
            issued,
            expires: issued.saturating_add(offer.lifetime.as_secs()),
            servers: offer.servers,
            certificate: offer.certificate,
            secret,
            account: account.public_key(),
            signature: [0; SIGNATURE],
        };
        let signature = account.sign(token.claims()?.as_bytes()).map_err(|error| JwtError::new(&error))?;
        token.signature = signature.try_into().map_err(|_| JwtError::new(&"its signature has another length"))?;
        Ok(token)
    }

    /// Parses a token, ignoring white space around and in it.
    ///
    /// # Errors
    /// If it is not a token of this version, or incomplete.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).take(MAX_TOKEN_CHARS).collect();
        let text = text.strip_prefix(PREFIX).ok_or(TokenError::Other)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(TokenError::Damaged)?;
        match body.first() {
            Some(&VERSION) if Self::checksum(body) == *checksum => {}
            Some(&VERSION) | None => return Err(TokenError::Damaged),
            Some(&version) => return Err(TokenError::Version(version)),
        }
        Self::decode(body).ok_or(TokenError::Damaged)
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (_, body) = body.split_first()?;
        let (issued, body) = body.split_first_chunk()?;
        let (lifetime, body) = body.split_first_chunk()?;
        let (secret, body) = body.split_first_chunk()?;
        let (account, body) = body.split_first_chunk::<PUBLIC>()?;
        let (signature, body) = body.split_first_chunk()?;
        let (has_certificate, body) = body.split_first()?;
        let (certificate, servers) = match has_certificate {
            0 => (None, body),
            _ => body.split_first_chunk().map(|(sha256, rest)| (Some(*sha256), rest))?,
        };
        let issued = u64::from_be_bytes(*issued);
        Some(Self {
            issued,
            expires: issued.checked_add(u64::from(u32::from_be_bytes(*lifetime)))?,
            servers: String::from_utf8(servers.to_vec()).ok()?,
            certificate,
            secret: *secret,
            account: BASE32_NOPAD.encode(account),
            signature: *signature,
        })
    }

    /// The token as text.
    ///
    /// # Errors
    /// If its account's public key is invalid.
    pub fn text(&self) -> Result<Secret, JwtError> {
        let lifetime = u32::try_from(self.expires.saturating_sub(self.issued)).unwrap_or(u32::MAX);
        let account = BASE32_NOPAD.decode(self.account.as_bytes()).map_err(|error| JwtError::new(&error))?;
        let mut body = vec![VERSION];
        body.extend(self.issued.to_be_bytes());
        body.extend(lifetime.to_be_bytes());
        body.extend(self.secret);
        body.extend(account);
        body.extend(self.signature);
        body.push(u8::from(self.certificate.is_some()));
        body.extend(self.certificate.iter().flatten());
        body.extend(self.servers.as_bytes());
        body.extend(Self::checksum(&body));
        Ok(Secret::new(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&body))))
    }

    fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
        let digest: [u8; SHA256] = Sha256::digest(body).into();
        digest.first_chunk().copied().unwrap_or_default()
    }

    /// The NATS user of this token.
    ///
    /// # Errors
    /// None in practice: a seed of the right length is always valid.
    pub fn user(&self) -> Result<KeyPair, JwtError> {
        let seed = derive(&self.secret, b"user").ok_or(JwtError::new(&"no seed can be derived"))?;
        KeyPair::new_from_raw(KeyPairType::User, seed).map_err(|error| JwtError::new(&error))
    }

    /// The public key of that user, which identifies the token.
    ///
    /// # Errors
    /// See [`user`](Self::user).
    pub fn id(&self) -> Result<String, JwtError> {
        Ok(self.user()?.public_key())
    }

    /// The credentials file of that user.
    ///
    /// # Errors
    /// See [`user`](Self::user).
    pub fn credentials(&self) -> Result<Secret, JwtError> {
        let jwt = format!("{}.{}", self.claims()?, BASE64URL_NOPAD.encode(&self.signature));
        let seed = self.user()?.seed().map_err(|error| JwtError::new(&error))?;
        Ok(Secret::new(jwt::credentials(&jwt, &seed)))
    }

    /// The encryption key of request and response.
    ///
    /// # Errors
    /// None in practice.
    pub fn exchange_key(&self) -> Result<ExchangeKey, JwtError> {
        derive(&self.secret, b"exchange").map(ExchangeKey::new).ok_or(JwtError::new(&"no key can be derived"))
    }

    fn claims(&self) -> Result<String, JwtError> {
        Ok(jwt::join_claims(&self.account, &self.id()?, self.issued, self.expires))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let offer = Offer {
            servers: "tls://nerve.example:4222".to_owned(),
            certificate: Some([7; 32]),
            lifetime: Duration::from_secs(900),
        };
        Token::create(&KeyPair::new_account(), offer).unwrap()
    }

    #[test]
    fn token_is_parsed_as_created_and_hidden_in_debug() {
        let token = token();
        let text = token.text().unwrap();
        assert!(text.expose().len() < 360, "{}", text.expose().len());
        let wrapped = format!(" {}\n{} ", &text.expose()[..40], &text.expose()[40..]);
        assert_eq!(Token::parse(&wrapped).unwrap(), token);
        assert!(!format!("{token:?}{text:?}").contains(&text.expose()[20..60]));
        let plain = Token { certificate: None, ..token.clone() };
        assert_eq!(Token::parse(plain.text().unwrap().expose()).unwrap(), plain);
    }

    #[test]
    fn damaged_token_is_rejected_before_use() {
        let text = token().text().unwrap().expose().to_owned();
        for at in [PREFIX.len() + 5, PREFIX.len() + 60, text.len() - 2] {
            let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert!(Token::parse(&changed).is_err(), "{at}");
        }
        assert_eq!(Token::parse(&text[..text.len() - 8]), Err(TokenError::Damaged));
        assert_eq!(Token::parse("hunter2"), Err(TokenError::Other));
        let mut body = BASE64URL_NOPAD.decode(&text.as_bytes()[PREFIX.len()..]).unwrap();
        body[0] = 9;
        let later = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&body));
        assert_eq!(Token::parse(&later), Err(TokenError::Version(9)));
    }

    #[test]
    fn token_user_is_signed_by_its_account() {
        let account = KeyPair::new_account();
        let offer = Offer { servers: String::new(), certificate: None, lifetime: Duration::from_secs(60) };
        let token = Token::create(&account, offer).unwrap();
        let again = Token::parse(token.text().unwrap().expose()).unwrap();
        let credentials = again.credentials().unwrap();
        let jwt = credentials.expose().lines().nth(1).unwrap();
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        account.verify(signed.as_bytes(), &BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap()).unwrap();
        assert!(credentials.expose().contains(&again.user().unwrap().seed().unwrap()));
        let body = BASE64URL_NOPAD.decode(signed.split_once('.').unwrap().1.as_bytes()).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["nats"]["pub"]["allow"], serde_json::json!([format!("join.{}", token.id().unwrap())]));
    }
}
