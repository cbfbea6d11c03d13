//! Secrets, encrypted for the server's public key (libsodium's sealed boxes: X25519, XSalsa20-Poly1305).
//!
//! The public key stands beside the secrets, so anybody who may write to the bucket can set one; only a server
//! with the private key can read it. The encrypted text begins with the secret's name, so one value cannot
//! be passed off under another name.
//!
//! - `keyring`: the private keys of a server, and their files.
//! - `rotation`: a new key in place of the current one.

mod keyring;
mod rotation;

pub use keyring::{KeyFiles, Keyring, KeyringError, SecretsKey};
pub use rotation::{Machine, Rotated, RotationError};

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

/// What servers keep beside the secrets begins with this; no secret's name has a dot.
pub(super) const SERVERS_KEYS: &str = "nerve.";
/// Where the public key stands.
pub(super) const PUBLIC_KEY: &str = "nerve.public-key";

/// The largest secret, in bytes.
const LARGEST: usize = 64 * 1024;
/// How often a secret is encrypted anew, because the key was replaced meanwhile.
const MAX_TRIES: usize = 5;

/// A secret, as far as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretInfo {
    /// Its name.
    pub name: String,
    /// How often the bucket has changed up to when it was set.
    pub revision: u64,
    /// When it was set.
    #[serde(with = "time::serde::rfc3339")]
    pub set_at: OffsetDateTime,
}

impl Registry {
    /// The private keys by `config`; one is made, kept in the data folder and registered where there is none yet.
    ///
    /// A server without a key runs, but opens no secret.
    ///
    /// # Errors
    /// A key cannot be read, or the secrets are encrypted for another one.
    pub async fn keyring(&self, config: &Config) -> Result<Keyring, KeyringError> {
        let keyring = Keyring::read(config)?;
        self.accept_key(&keyring).await?;
        let registered = match (self.public_key().await?, keyring.first()) {
            (Some(registered), None) => {
                tracing::warn!(
                    "this server lacks the secrets key {}: functions, sources and sinks with secrets do not work here; \
                     `nerve join TOKEN` brings it, with a token that `nerve access token` makes on the machine that has it",
                    key_id(&registered)
                );
                return Ok(keyring);
            }
            (Some(registered), Some(_)) => registered,
            (None, Some(first)) => self.register(&first.0.public_key()).await?,
            (None, None) => {
                let made = keyring.files().make_current()?;
                keyring.reload()?;
                self.register(&made.0.public_key()).await?
            }
        };
        if keyring.key_of(&registered).is_none() {
            let held = keyring.first().map_or_else(String::new, |key| key.id());
            return Err(KeyringError::Other { needed: key_id(&registered), held, origin: keyring.origin() });
        }
        self.settle_key(&keyring).await?;
        Ok(keyring)
    }

    /// Writes the public key; another server may have been quicker, and then its key is returned.
    async fn register(&self, public: &PublicKey) -> Result<PublicKey, BusError> {
        let what = "registering the secrets key";
        match self.secrets.create(PUBLIC_KEY, public.to_bytes().to_vec(), what).await? {
            Some(_) => Ok(public.clone()),
            None => {
                self.public_key().await?.ok_or_else(|| BusError::unavailable(what, "the key was deleted meanwhile"))
            }
        }
    }

    async fn public_key(&self) -> Result<Option<PublicKey>, BusError> {
        let what = "reading the secrets' public key";
        let entry = self.secrets.get(PUBLIC_KEY, what).await?;
        entry.map(|bytes| PublicKey::from_slice(&bytes).map_err(|error| BusError::refused(what, error))).transpose()
    }

    /// Encrypts and stores a secret.
    pub async fn set_secret(&self, name: &str, value: &Secret) -> Result<u64, BusError> {
        let what = || format!("setting the secret {name}");
        if value.expose().len() > LARGEST {
            return Err(BusError::refused(what(), format!("it is larger than {LARGEST} bytes")));
        }
        for _ in 0..MAX_TRIES {
            let public = self.public_key().await?.ok_or_else(|| {
                BusError::refused(
                    what(),
                    "no server has registered a key yet: start `nerve up`, or a gateway or worker, first",
                )
            })?;
            let sealed = seal(&public, name, value)?;
            let revision = self.secrets.put(name, sealed, what()).await?;
            // A rotation may have passed this secret before it was stored, and then removes the key that opens it.
            if self.public_key().await?.as_ref() == Some(&public) {
                return Ok(revision);
            }
        }
        Err(BusError::refused(what(), "the secrets key was replaced again and again: try it again"))
    }

    /// Sets a secret that Standard Webhooks can sign with (`whsec_` and 32 random bytes) and returns it; none where one is
    /// set under that name already.
    pub async fn make_signing_secret(&self, name: &str) -> Result<Option<Secret>, BusError> {
        if self.secrets.get(name, format!("reading the secret {name}")).await?.is_some() {
            return Ok(None);
        }
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        let secret = Secret::new(format!("whsec_{}", BASE64_STANDARD.encode(bytes)));
        self.set_secret(name, &secret).await?;
        Ok(Some(secret))
    }

    /// The value of a secret, where `keyring` can open it; none where it is not set or sealed to another key.
    pub async fn secret(&self, keyring: &Keyring, name: &str) -> Result<Option<Secret>, BusError> {
        let sealed = self.secrets.get(name, format!("reading the secret {name}")).await?;
        Ok(sealed.and_then(|sealed| keyring.open(name, &sealed)))
    }

    /// The names of the secrets that are set.
    pub async fn secrets(&self) -> Result<Vec<SecretInfo>, BusError> {
        let what = "listing secrets";
        let mut found = Vec::new();
        for name in self.secrets.keys(what).await? {
            if name.starts_with(SERVERS_KEYS) {
                continue;
            }
            if let Some(entry) = self.secrets.entry(&name, what).await? {
                found.push(SecretInfo { name, revision: entry.revision, set_at: entry.created });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes a secret; `false` when there was none.
    pub async fn remove_secret(&self, name: &str) -> Result<bool, BusError> {
        let what = || format!("removing the secret {name}");
        if self.secrets.get(name, what()).await?.is_none() {
            return Ok(false);
        }
        self.secrets.purge(name, what()).await.map(|()| true)
    }
}

fn seal(public: &PublicKey, name: &str, value: &Secret) -> Result<Vec<u8>, BusError> {
    let plain = [name.as_bytes(), b"\0", value.expose().as_bytes()].concat();
    public.seal(&mut OsRng, &plain).map_err(|error| BusError::refused(format!("encrypting the secret {name}"), error))
}
