//! Secrets, encrypted for the server's public key (libsodium's sealed boxes: X25519, XSalsa20-Poly1305).
//!
//! The public key is stored beside the secrets, so any client with write access to the bucket can set a secret; only a server
//! with the private key can read it. The plaintext begins with the secret's name, so a value cannot be copied to another name.
//!
//! - `keyring`: the private keys of a server, and their files.
//! - `rotation`: replaces the current key.

mod keyring;
mod rotation;

pub use keyring::{KeyFiles, Keyring, KeyringError, SecretsKey};
pub use rotation::{Machine, RotationError, RotationOutcome};

pub(super) use keyring::key_id;

use super::Registry;
use base64::{Engine, prelude::BASE64_STANDARD};
use crypto_box::{
    PublicKey,
    aead::{OsRng, rand_core::RngCore},
};
use nerve_broker::bus::BusError;
use nerve_config::Config;
use nerve_core::Secret;
use serde::Serialize;
use time::OffsetDateTime;

/// The prefix of entries that servers store beside the secrets. Names of secrets have no dot.
pub(super) const SERVER_ENTRY_PREFIX: &str = "nerve.";
/// The entry of the public key.
pub(super) const PUBLIC_KEY: &str = "nerve.public-key";

/// Maximum bytes of a secret.
const MAX_SECRET_BYTES: usize = 64 * 1024;
/// Maximum attempts to store a secret while its key is being replaced.
const MAX_ATTEMPTS: usize = 5;

/// The metadata of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretInfo {
    /// Its name.
    pub name: String,
    /// The KV revision.
    pub revision: u64,
    /// Time of setting.
    #[serde(with = "time::serde::rfc3339")]
    pub set_at: OffsetDateTime,
}

impl Registry {
    /// Returns the private keys of this server. Without any, it creates one in the data folder and registers it.
    ///
    /// A server without the registered key runs, but decrypts no secret.
    ///
    /// # Errors
    /// A key cannot be read, or the secrets are encrypted for another one.
    pub async fn keyring(&self, config: &Config) -> Result<Keyring, KeyringError> {
        let keyring = Keyring::read(config)?;
        self.accept_key(&keyring).await?;
        let registered = match (self.public_key().await?, keyring.first()) {
            (Some(registered), None) => {
                tracing::warn!(
                    "this server does not have the secrets key {}: functions, sources and sinks with secrets do not work here; \
                     run `nerve access token` on a machine that has it, and `nerve join TOKEN` here",
                    key_id(&registered)
                );
                return Ok(keyring);
            }
            (Some(registered), Some(_)) => registered,
            (None, Some(first)) => self.register(&first.0.public_key()).await?,
            (None, None) => {
                let key = keyring.files().create_current()?;
                keyring.reload()?;
                self.register(&key.0.public_key()).await?
            }
        };
        if keyring.key_of(&registered).is_none() {
            let held = keyring.first().map_or_else(String::new, |key| key.id());
            return Err(KeyringError::KeyMismatch { needed: key_id(&registered), held, origin: keyring.origin() });
        }
        self.finish_rotation(&keyring).await?;
        Ok(keyring)
    }

    /// Stores the public key. If another server was faster, returns its key.
    async fn register(&self, public: &PublicKey) -> Result<PublicKey, BusError> {
        let what = "registering the secrets key";
        let created = self.secrets.create(PUBLIC_KEY, public.to_bytes().to_vec(), what).await;
        if let Ok(Some(_)) = created {
            return Ok(public.clone());
        }
        // Another server was first, or the acknowledgement was lost.
        match (self.public_key().await?, created) {
            (Some(registered), _) => Ok(registered),
            (None, Err(error)) => Err(error),
            (None, Ok(_)) => Err(BusError::unavailable(what, "the key was deleted meanwhile")),
        }
    }

    async fn public_key(&self) -> Result<Option<PublicKey>, BusError> {
        let what = "reading the secrets' public key";
        let entry = self.secrets.get(PUBLIC_KEY, what).await?;
        entry.map(|bytes| PublicKey::from_slice(&bytes).map_err(|error| BusError::refused(what, error))).transpose()
    }

    /// Encrypts and stores a secret.
    ///
    /// # Errors
    /// The secret is too large, no server has registered a key, or the broker is unavailable.
    pub async fn set_secret(&self, name: &str, value: &Secret) -> Result<u64, BusError> {
        let what = || format!("setting the secret {name}");
        if value.expose().len() > MAX_SECRET_BYTES {
            return Err(BusError::refused(what(), format!("it is larger than {MAX_SECRET_BYTES} bytes")));
        }
        for _ in 0..MAX_ATTEMPTS {
            let public = self.public_key().await?.ok_or_else(|| {
                BusError::refused(
                    what(),
                    "no server has registered a secrets key yet: start `nerve up`, or a gateway or worker, first",
                )
            })?;
            let encrypted = encrypt(&public, name, value)?;
            let revision = self.secrets.put(name, encrypted, what()).await?;
            // A rotation may have passed this secret before it was stored, and will then delete its key.
            if self.public_key().await?.as_ref() == Some(&public) {
                return Ok(revision);
            }
        }
        Err(BusError::refused(what(), "the secrets key was replaced repeatedly: try again"))
    }

    /// ResultSetPublisher a random Standard Webhooks secret (`whsec_` and 32 bytes) and returns it. Returns `None` if the name is already set.
    ///
    /// # Errors
    /// No server has registered a key, or the broker is unavailable.
    pub async fn create_signing_secret(&self, name: &str) -> Result<Option<Secret>, BusError> {
        if self.secrets.get(name, format!("reading the secret {name}")).await?.is_some() {
            return Ok(None);
        }
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        let secret = Secret::new(format!("whsec_{}", BASE64_STANDARD.encode(bytes)));
        self.set_secret(name, &secret).await?;
        Ok(Some(secret))
    }

    /// Returns the value of a secret, or `None` if it is not set or `keyring` cannot decrypt it.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn secret(&self, keyring: &Keyring, name: &str) -> Result<Option<Secret>, BusError> {
        let encrypted = self.secrets.get(name, format!("reading the secret {name}")).await?;
        Ok(encrypted.and_then(|encrypted| keyring.decrypt(name, &encrypted)))
    }

    /// Returns the metadata of all secrets.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn secrets(&self) -> Result<Vec<SecretInfo>, BusError> {
        let what = "listing secrets";
        let mut secrets = Vec::new();
        for name in self.secrets.keys(what).await? {
            if name.starts_with(SERVER_ENTRY_PREFIX) {
                continue;
            }
            if let Some(entry) = self.secrets.entry(&name, what).await? {
                secrets.push(SecretInfo { name, revision: entry.revision, set_at: entry.created });
            }
        }
        secrets.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(secrets)
    }

    /// Removes a secret. Returns `false` if it is not set.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn remove_secret(&self, name: &str) -> Result<bool, BusError> {
        let what = || format!("removing the secret {name}");
        if self.secrets.get(name, what()).await?.is_none() {
            return Ok(false);
        }
        self.secrets.purge(name, what()).await.map(|()| true)
    }
}

fn encrypt(public: &PublicKey, name: &str, value: &Secret) -> Result<Vec<u8>, BusError> {
    let plain = [name.as_bytes(), b"\0", value.expose().as_bytes()].concat();
    public.seal(&mut OsRng, &plain).map_err(|error| BusError::refused(format!("encrypting the secret {name}"), error))
}
