//! Secrets, sealed to the server's public key (libsodium's sealed boxes: X25519, XSalsa20-Poly1305).
//!
//! The public key stands beside the secrets, so anybody who may write to the bucket can set one; only a server
//! with the private key can read it. The sealed text begins with the secret's name, so one sealed value cannot
//! be passed off under another name.

use super::Registry;
use crate::{bus::BusError, config::Config};
use async_nats::jetstream::kv;
use base64::{Engine, prelude::BASE64_STANDARD};
use crypto_box::{
    PublicKey, SecretKey,
    aead::{OsRng, rand_core::RngCore},
};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use futures::StreamExt;
use nerve_core::Secret;
use serde::Serialize;
use std::{fmt, io::Write, path::Path};
use time::OffsetDateTime;

/// Where the public key stands; no secret's name has a dot.
pub(super) const PUBLIC_KEY: &str = "nerve.public-key";

/// The largest secret, in bytes.
const LARGEST: usize = 64 * 1024;

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

/// The private key of this server, if it has one.
#[derive(Clone)]
pub struct Keyring(Option<SecretKey>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring(…)")
    }
}

/// Why the private key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// It is not a key.
    #[error("{0} does not hold a key: it must be 64 hexadecimal digits")]
    Malformed(String),
    /// It is another key than the one that the secrets were sealed to.
    #[error(
        "the secrets in this NATS are sealed to another key than that of {0}: give this server the key of the one \
         that started first (its secrets.key, or NERVE_SECRETS_KEY)"
    )]
    Other(String),
    /// Its file cannot be read or written.
    #[error("the secrets key in {path} cannot be used")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The broker failed.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Keyring {
    /// Opens `sealed`, which must have been sealed under `name`.
    pub(super) fn open(&self, name: &str, sealed: &[u8]) -> Option<Secret> {
        let plain = self.0.as_ref()?.unseal(sealed).ok()?;
        let value = plain.strip_prefix(name.as_bytes())?.strip_prefix(b"\0")?;
        String::from_utf8(value.to_vec()).ok().map(Secret::new)
    }
}

impl Registry {
    /// The private key by `config`; made, kept in the data folder and registered where there is none yet.
    ///
    /// A server without the key that the secrets are sealed to runs, but opens none of them.
    pub async fn keyring(&self, config: &Config) -> Result<Keyring, KeyringError> {
        let path = config.data.dir.join("secrets.key");
        let (origin, configured) = match &config.secrets.key {
            Some(key) => ("secrets.key".to_owned(), Some(key.expose().to_owned())),
            None => (path.display().to_string(), read_key_file(&path)?),
        };
        let registered = self.public_key().await?;
        let private = match (configured, &registered) {
            (Some(text), _) => parse_key(&text).ok_or_else(|| KeyringError::Malformed(origin.clone()))?,
            (None, None) => make_key_file(&path)?,
            (None, Some(_)) => {
                tracing::warn!(
                    "this server has no secrets key: functions and sources with secrets will not work here; \
                                set NERVE_SECRETS_KEY to the key of the server that started first"
                );
                return Ok(Keyring(None));
            }
        };
        let public = private.public_key();
        let registered = match registered {
            Some(registered) => registered,
            None => self.register(&public).await?,
        };
        if registered != public {
            return Err(KeyringError::Other(origin));
        }
        Ok(Keyring(Some(private)))
    }

    /// Writes the public key; another server may have been quicker, and then its key is returned.
    async fn register(&self, public: &PublicKey) -> Result<PublicKey, BusError> {
        let created = self.secrets.create(PUBLIC_KEY, public.to_bytes().to_vec().into()).await;
        match created {
            Ok(_) => Ok(public.clone()),
            Err(error) => {
                let quicker = self.public_key().await?;
                quicker.ok_or_else(|| BusError::unavailable("registering the secrets key", error))
            }
        }
    }

    async fn public_key(&self) -> Result<Option<PublicKey>, BusError> {
        let what = "reading the secrets' public key";
        let entry = self.secrets.get(PUBLIC_KEY).await.map_err(|error| BusError::unavailable(what, error))?;
        entry.map(|bytes| PublicKey::from_slice(&bytes).map_err(|error| BusError::refused(what, error))).transpose()
    }

    /// Seals and stores a secret.
    pub async fn set_secret(&self, name: &str, value: &Secret) -> Result<u64, BusError> {
        let what = || format!("setting the secret {name}");
        if value.expose().len() > LARGEST {
            return Err(BusError::refused(what(), format!("it is larger than {LARGEST} bytes")));
        }
        let public = self.public_key().await?.ok_or_else(|| {
            BusError::refused(
                what(),
                "no server has registered a key yet: start `nerve up`, or a gateway or worker, first",
            )
        })?;
        let plain = [name.as_bytes(), b"\0", value.expose().as_bytes()].concat();
        let sealed = public.seal(&mut OsRng, &plain).map_err(|error| BusError::refused(what(), error))?;
        let stored = self.secrets.put(name, sealed.into()).await;
        stored.map_err(|error| BusError::of_bucket(crate::bus::SECRETS, what(), error))
    }

    /// Sets a secret that Standard Webhooks can sign with (`whsec_` and 32 random bytes) and returns it; none where one is
    /// set under that name already.
    pub async fn make_signing_secret(&self, name: &str) -> Result<Option<Secret>, BusError> {
        let there = self.secrets.get(name).await;
        if there.map_err(|error| BusError::unavailable(format!("reading the secret {name}"), error))?.is_some() {
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
        let sealed = self.secrets.get(name).await;
        let sealed = sealed.map_err(|error| BusError::unavailable(format!("reading the secret {name}"), error))?;
        Ok(sealed.and_then(|sealed| keyring.open(name, &sealed)))
    }

    /// The names of the secrets that are set.
    pub async fn secrets(&self) -> Result<Vec<SecretInfo>, BusError> {
        let unavailable = |error: async_nats::Error| BusError::unavailable("listing secrets", error);
        let mut keys = self.secrets.keys().await.map_err(|error| unavailable(error.into()))?;
        let mut found = Vec::new();
        while let Some(key) = keys.next().await {
            let name = key.map_err(|error| unavailable(error.into()))?;
            if name == PUBLIC_KEY {
                continue;
            }
            let entry = self.secrets.entry(&name).await.map_err(|error| unavailable(error.into()))?;
            if let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) {
                found.push(SecretInfo { name, revision: entry.revision, set_at: entry.created });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes a secret; `false` when there was none.
    pub async fn remove_secret(&self, name: &str) -> Result<bool, BusError> {
        let what = || format!("removing the secret {name}");
        let there = self.secrets.get(name).await.map_err(|error| BusError::unavailable(what(), error))?;
        if there.is_none() {
            return Ok(false);
        }
        self.secrets.purge(name).await.map(|()| true).map_err(|error| BusError::unavailable(what(), error))
    }
}

fn parse_key(text: &str) -> Option<SecretKey> {
    let bytes: [u8; 32] = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok()?.try_into().ok()?;
    Some(SecretKey::from_bytes(bytes))
}

fn read_key_file(path: &Path) -> Result<Option<String>, KeyringError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KeyringError::File { path: path.display().to_string(), source }),
    }
}

/// Makes a key in a file that only this user reads; of two servers that start at once, one makes it.
fn make_key_file(path: &Path) -> Result<SecretKey, KeyringError> {
    let failed = |source| KeyringError::File { path: path.display().to_string(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let key = SecretKey::generate(&mut OsRng);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(mut file) => {
            writeln!(file, "{}", HEXLOWER.encode(&key.to_bytes())).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            Ok(key)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let text = read_key_file(path)?.unwrap_or_default();
            parse_key(&text).ok_or_else(|| KeyringError::Malformed(path.display().to_string()))
        }
        Err(source) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_under_its_own_name_only() {
        let key = SecretKey::generate(&mut OsRng);
        let sealed = key.public_key().seal(&mut OsRng, b"A\0hunter2").unwrap();
        let keyring = Keyring(Some(key));
        assert_eq!(keyring.open("A", &sealed).unwrap().expose(), "hunter2");
        assert!(keyring.open("B", &sealed).is_none());
        assert!(Keyring(Some(SecretKey::generate(&mut OsRng))).open("A", &sealed).is_none());
        assert!(Keyring(None).open("A", &sealed).is_none());
    }

    #[test]
    fn the_key_file_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/secrets.key");
        let first = make_key_file(&path).unwrap();
        assert_eq!(make_key_file(&path).unwrap().to_bytes(), first.to_bytes());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
