//! The request of a joining machine, and the response of the machine that created its token.

use super::derive;
use crate::jwt::JwtError;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use nkeys::KeyPair;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The first byte of an encrypted response; the other kind reports an unknown token.
const ENCRYPTED: u8 = 1;

/// The reason why a join message cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// It was not encrypted with this token's key, or was altered.
    #[error("it was not encrypted with the key of this token")]
    Key,
    /// It is not a message of this version.
    #[error("it is not a message of this version of Nerve")]
    Format,
    /// The system provides no random bytes.
    #[error("the system provides no random bytes")]
    Random,
}

/// The key of request and response, kept by the machine that created the token.
#[derive(Clone, PartialEq, Eq)]
pub struct ExchangeKey([u8; 32]);

impl fmt::Debug for ExchangeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExchangeKey(…)")
    }
}

impl ExchangeKey {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The key as stored text.
    pub fn text(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// Parses a stored key.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()?))
    }

    /// Encrypts a request for the token with this id.
    ///
    /// # Errors
    /// If the system provides no random bytes.
    pub fn encrypt_request(&self, id: &str, request: &Request) -> Result<Vec<u8>, ExchangeError> {
        self.encrypt(b"request", id, request)
    }

    /// Decrypts a request for the token with this id.
    ///
    /// # Errors
    /// If it was not encrypted for that token, or is of another version.
    pub fn decrypt_request(&self, id: &str, request: &[u8]) -> Result<Request, ExchangeError> {
        self.decrypt(b"request", id, request)
    }

    /// Encrypts a response.
    ///
    /// # Errors
    /// If the system provides no random bytes.
    pub fn encrypt_response(&self, id: &str, response: &Response) -> Result<Vec<u8>, ExchangeError> {
        let mut sent = self.encrypt(b"response", id, response)?;
        sent.insert(0, ENCRYPTED);
        Ok(sent)
    }

    /// Decrypts a response; `None` if the other side does not know the token.
    ///
    /// # Errors
    /// If it was not encrypted for this token, or is of another version.
    pub fn decrypt_response(&self, id: &str, response: &[u8]) -> Result<Option<Response>, ExchangeError> {
        match response.split_first() {
            Some((&ENCRYPTED, encrypted)) => self.decrypt(b"response", id, encrypted).map(Some),
            _ => Ok(None),
        }
    }

    fn key(&self, label: &[u8]) -> Option<LessSafeKey> {
        let secret = derive(&self.0, label)?;
        UnboundKey::new(&CHACHA20_POLY1305, &secret).ok().map(LessSafeKey::new)
    }

    fn encrypt(&self, label: &[u8], id: &str, message: &impl Serialize) -> Result<Vec<u8>, ExchangeError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| ExchangeError::Random)?;
        let mut text = serde_json::to_vec(message).map_err(|_| ExchangeError::Format)?;
        let key = self.key(label).ok_or(ExchangeError::Key)?;
        let sealed =
            key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(id.as_bytes()), &mut text);
        sealed.map_err(|_| ExchangeError::Key)?;
        Ok([nonce.as_slice(), &text].concat())
    }

    fn decrypt<T: for<'de> Deserialize<'de>>(&self, label: &[u8], id: &str, sent: &[u8]) -> Result<T, ExchangeError> {
        let (nonce, sealed) = sent.split_first_chunk::<NONCE_LEN>().ok_or(ExchangeError::Format)?;
        let mut text = sealed.to_vec();
        let key = self.key(label).ok_or(ExchangeError::Key)?;
        let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(id.as_bytes()), &mut text);
        let opened = opened.map_err(|_| ExchangeError::Key)?;
        serde_json::from_slice(opened).map_err(|_| ExchangeError::Format)
    }
}

/// The request of a joining machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// The requested name.
    pub name: String,
    /// The public key of its new NATS user; the seed stays there.
    pub public: String,
    /// The public key, in hexadecimal digits, for the encryption of later secrets keys.
    pub machine_key: String,
    /// The user to replace, if the machine has joined before.
    pub replaces: Option<Replaced>,
}

/// A user whose credentials are replaced, with proof that the requester owns them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Replaced {
    /// The public key.
    pub public: String,
    /// The signature of [`proof`](Self::proof), in base64url.
    pub signature: String,
}

impl Replaced {
    /// The signed text: the new public key, and the token's id.
    fn proof(id: &str, new: &str) -> String {
        format!("nerve join: {new} by {id}")
    }

    /// Signs with the old seed.
    ///
    /// # Errors
    /// If `old` has no seed.
    pub fn sign(old: &KeyPair, id: &str, new: &str) -> Result<Self, JwtError> {
        let signature = old.sign(Self::proof(id, new).as_bytes()).map_err(|error| JwtError::new(&error))?;
        Ok(Self { public: old.public_key(), signature: BASE64URL_NOPAD.encode(&signature) })
    }

    /// Returns whether the request with this token's id for the user `new` was signed with the old seed.
    pub fn is_proven(&self, id: &str, new: &str) -> bool {
        let signature = BASE64URL_NOPAD.decode(self.signature.as_bytes());
        let (Ok(old), Ok(signature)) = (KeyPair::from_public_key(&self.public), signature) else { return false };
        old.verify(Self::proof(id, new).as_bytes(), &signature).is_ok()
    }
}

/// The response to a joining machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It has joined.
    Joined(Grant),
    /// It was rejected, with the reason.
    Refused(String),
}

/// The data for a machine that has joined.
#[derive(Clone, Serialize, Deserialize)]
pub struct Grant {
    /// Its name.
    pub name: String,
    /// Its role: `worker` or `gateway`.
    pub role: String,
    /// The JWT of its user.
    pub jwt: String,
    /// The secrets keys in hexadecimal digits: the current one, and the next one during a rotation.
    pub secrets_keys: Vec<String>,
    /// The certificate of the servers, or that of their CA, in PEM.
    pub trust: Option<Trust>,
}

/// How the servers are authenticated, in PEM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// By this certificate, for any name.
    Certificate(String),
    /// By a certificate of this CA, for their host name.
    Ca(String),
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}

/// The response to a request with an unknown token, which cannot be encrypted.
pub const UNKNOWN_TOKEN: &[u8] = &[0];

#[cfg(test)]
mod tests {
    use super::{
        super::{Offer, Token},
        *,
    };
    use std::time::Duration;

    fn token() -> Token {
        let offer = Offer { servers: "nats://h".to_owned(), certificate: None, lifetime: Duration::from_secs(900) };
        Token::create(&KeyPair::new_account(), offer).unwrap()
    }

    fn request() -> Request {
        Request { name: "b".into(), public: "U".into(), machine_key: String::new(), replaces: None }
    }

    #[test]
    fn message_is_decrypted_only_for_its_token_and_direction() {
        let (token, other) = (token(), token());
        let (id, key) = (token.id().unwrap(), token.exchange_key().unwrap());
        let kept = ExchangeKey::parse(&key.text()).unwrap();
        let sent = key.encrypt_request(&id, &request()).unwrap();
        assert_eq!(kept.decrypt_request(&id, &sent).unwrap().name, "b");
        assert_eq!(kept.decrypt_request("UOTHER", &sent).unwrap_err(), ExchangeError::Key);
        assert_eq!(other.exchange_key().unwrap().decrypt_request(&id, &sent).unwrap_err(), ExchangeError::Key);
        let as_response = [&[ENCRYPTED], sent.as_slice()].concat();
        assert_eq!(key.decrypt_response(&id, &as_response).unwrap_err(), ExchangeError::Key);
        for at in [0, NONCE_LEN, sent.len() - 1] {
            let mut changed = sent.clone();
            changed[at] ^= 1;
            assert_eq!(kept.decrypt_request(&id, &changed).unwrap_err(), ExchangeError::Key);
        }
        assert!(key.decrypt_response(&id, UNKNOWN_TOKEN).unwrap().is_none());
    }

    #[test]
    fn replacement_is_proven_by_the_old_seed() {
        let (old, other) = (KeyPair::new_user(), KeyPair::new_user());
        let replaced = Replaced::sign(&old, "UTOKEN", "UNEW").unwrap();
        assert!(replaced.is_proven("UTOKEN", "UNEW"));
        assert!(!replaced.is_proven("UTOKEN", "UOTHER") && !replaced.is_proven("UREPLAYED", "UNEW"));
        assert!(!Replaced { public: other.public_key(), ..replaced }.is_proven("UTOKEN", "UNEW"));
    }
}
