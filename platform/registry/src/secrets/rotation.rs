//! Rotation of the secrets key while servers run.
//!
//! The order keeps every secret readable at any time, and makes an interrupted rotation resumable: the new key is in a file
//! before anything is encrypted for it; servers have both keys before the first secret is re-encrypted (watches deliver changes in
//! order); and the old key is removed after the last secret has been re-encrypted.
//!
//! A joined machine receives the new key encrypted for its machine key. So the old key cannot decrypt the new one, and a
//! machine with revoked access does not get it.

use super::{
    PUBLIC_KEY, SERVER_ENTRY_PREFIX,
    keyring::{KeyFiles, Keyring, KeyringError, SecretsKey, decrypt, parse_public},
};
use crate::Registry;
use crypto_box::{PublicKey, aead::OsRng};
use nerve_broker::bus::BusError;
use nerve_config::Config;
use nerve_core::Secret;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep};

/// The entry during a rotation: the id of the new key.
const ROTATION_ENTRY: &str = "nerve.rotation";
/// The prefix of entries with the new key for one machine; the id of the machine's key follows.
const KEY_FOR_PREFIX: &str = "nerve.key-for.";
/// The prefix of entries of holders of the new key: the id of a machine's key, or [`LOCAL_HOLDER`]. The value is the new key's id.
const HOLDER_PREFIX: &str = "nerve.holds.";
/// The holder that is the server of the data folder.
const LOCAL_HOLDER: &str = "local";
/// Timeout of the server of the data folder for reading the new key.
const SERVER_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of machines for accepting the new key.
const MACHINES_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval between checks of the holders.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum passes over the secrets, as secrets may be set during a pass.
const MAX_PASSES: usize = 10;

/// A joined machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its public key, in hexadecimal digits.
    pub key: String,
}

/// The outcome of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationOutcome {
    /// The id of the old key.
    pub from: String,
    /// The id of the new key.
    pub to: String,
    /// Count of re-encrypted secrets.
    pub encrypted: usize,
    /// Secrets that the old key cannot decrypt.
    pub unreadable: Vec<String>,
    /// Machines that have the new key.
    pub informed: Vec<String>,
    /// Machines that have not confirmed. They accept the new key when they start.
    pub waiting: Vec<String>,
    /// Whether an earlier call started the rotation.
    pub is_resumed: bool,
}

/// The error of a rotation.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The current key cannot be used.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The broker failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// No server has registered a key.
    #[error("no server has registered a secrets key yet")]
    Unregistered,
    /// The current key is not in this data folder.
    #[error("the secrets are encrypted for the secrets key {needed}, which is not in this data folder")]
    MissingKey {
        /// The id of the required key.
        needed: String,
    },
    /// The server of the data folder has not confirmed the new key.
    #[error("the server of this data folder has not read the new secrets key within {SERVER_TIMEOUT:?}")]
    ServerTimeout,
    /// The public key of a machine is invalid.
    #[error("key of the machine {0} is invalid: revoke the machine, and let it join again")]
    InvalidMachineKey(String),
    /// Secrets were set continuously.
    #[error("secrets are being set faster than they can be re-encrypted: run this again later")]
    Busy,
}

impl Registry {
    /// Replaces the secrets key, and re-encrypts all secrets. Resumes an interrupted rotation.
    ///
    /// With `is_served`, a server runs on this data folder and must have the new key first.
    ///
    /// # Errors
    /// The current key is not in this data folder, or the broker fails. The next call resumes the rotation.
    pub async fn rotate_secrets_key(
        &self,
        config: &Config,
        machines: &[Machine],
        is_served: bool,
    ) -> Result<RotationOutcome, RotationError> {
        let keyring = Keyring::read(config)?;
        let files = keyring.files().clone();
        let registered = self.public_key().await?.ok_or(RotationError::Unregistered)?;
        let Some(active) = keyring.key_of(&registered) else {
            return Err(RotationError::MissingKey { needed: super::key_id(&registered) });
        };
        let rotation = self.rotation_id().await?;
        // Interrupted before the last step: the new key is already the current file.
        let is_promoted = files.next()?.is_none() && rotation.as_deref() == Some(active.id().as_str());
        let is_resumed = rotation.is_some() || files.next()?.is_some();
        let next = if is_promoted { active.clone() } else { files.create_next()? };
        let from = keyring.first().map_or_else(String::new, |key| key.id());
        let informed = if is_promoted {
            BTreeSet::new()
        } else {
            keyring.reload()?;
            self.distribute(&next, machines, is_served).await?
        };
        self.put_key(PUBLIC_KEY, next.0.public_key().as_bytes().to_vec()).await?;
        let (encrypted, unreadable) = self.reencrypt(&keyring, &next).await?;
        if !is_promoted {
            promote(&files, &next)?;
        }
        self.clean_up(&informed).await?;
        let (informed, waiting): (Vec<&Machine>, Vec<&Machine>) =
            machines.iter().partition(|machine| is_promoted || informed.contains(&machine_id(machine)));
        let names = |machines: Vec<&Machine>| machines.into_iter().map(|machine| machine.name.clone()).collect();
        let (informed, waiting) = (names(informed), names(waiting));
        Ok(RotationOutcome { from, to: next.id(), encrypted, unreadable, informed, waiting, is_resumed })
    }

    /// Returns the keys for a joining machine, in hexadecimal digits; the registered key is first.
    ///
    /// # Errors
    /// A key cannot be read, or the broker fails.
    pub async fn keys_to_share(&self, config: &Config) -> Result<Vec<Secret>, KeyringError> {
        let registered = self.public_key().await?;
        let mut keys = Keyring::read(config)?.keys();
        keys.sort_by_key(|key| registered.as_ref() != Some(&key.0.public_key()));
        Ok(keys.iter().map(SecretsKey::text).collect())
    }

    /// Distributes the new key to machines, and returns its holders.
    async fn distribute(
        &self,
        next: &SecretsKey,
        machines: &[Machine],
        is_served: bool,
    ) -> Result<BTreeSet<String>, RotationError> {
        let expected: BTreeSet<String> = machines.iter().map(machine_id).collect();
        self.forget_others(&expected).await?;
        for machine in machines {
            let invalid = || RotationError::InvalidMachineKey(machine.name.clone());
            let public = parse_public(&machine.key).ok_or_else(invalid)?;
            let encrypted = public.seal(&mut OsRng, next.text().expose().as_bytes()).map_err(|_| invalid())?;
            self.put_key(&format!("{KEY_FOR_PREFIX}{}", super::key_id(&public)), encrypted).await?;
        }
        self.put_key(ROTATION_ENTRY, next.id().into_bytes()).await?;
        let started = Instant::now();
        loop {
            let holders = self.holders(&next.id()).await?;
            let (is_held, waited) = (!is_served || holders.contains(LOCAL_HOLDER), started.elapsed());
            if is_held && (holders.is_superset(&expected) || waited >= MACHINES_TIMEOUT) {
                return Ok(holders);
            }
            if waited >= SERVER_TIMEOUT {
                return Err(RotationError::ServerTimeout);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Re-encrypts all secrets for `next`, until a pass finds none to do.
    async fn reencrypt(&self, keyring: &Keyring, next: &SecretsKey) -> Result<(usize, Vec<String>), RotationError> {
        let mut encrypted = 0;
        for _ in 0..MAX_PASSES {
            let (mut is_quiet, mut unreadable) = (true, Vec::new());
            for secret in self.secrets().await? {
                let name = secret.name;
                let Some(entry) = self.secrets.entry(&name, format!("reading the secret {name}")).await? else {
                    continue;
                };
                if decrypt(next, &name, &entry.value).is_some() {
                    continue;
                }
                match keyring.decrypt(&name, &entry.value) {
                    Some(value) => {
                        is_quiet = false;
                        encrypted += usize::from(self.replace(&name, &value, next, entry.revision).await?);
                    }
                    None => unreadable.push(name),
                }
            }
            if is_quiet {
                return Ok((encrypted, unreadable));
            }
        }
        Err(RotationError::Busy)
    }

    /// Re-encrypts one secret. Returns `false` if it has changed meanwhile.
    async fn replace(&self, name: &str, value: &Secret, key: &SecretsKey, revision: u64) -> Result<bool, BusError> {
        let encrypted = super::encrypt(&key.0.public_key(), name, value)?;
        let what = format!("re-encrypting the secret {name}");
        Ok(self.secrets.update((name, revision), encrypted, what).await?.is_some())
    }

    /// Ends the rotation and removes its entries.
    async fn clean_up(&self, informed: &BTreeSet<String>) -> Result<(), BusError> {
        self.purge_key(ROTATION_ENTRY).await?;
        for holder in informed {
            self.purge_key(&format!("{HOLDER_PREFIX}{holder}")).await?;
            if holder != LOCAL_HOLDER {
                self.purge_key(&format!("{KEY_FOR_PREFIX}{holder}")).await?;
            }
        }
        Ok(())
    }

    /// Stores the new key that was encrypted for this machine. Returns whether it is new to this server.
    pub(super) async fn accept_key(&self, keyring: &Keyring) -> Result<bool, KeyringError> {
        let Some(machine) = keyring.files().machine()? else { return Ok(false) };
        let received = self.get_key(&format!("{KEY_FOR_PREFIX}{}", machine.id())).await?;
        let key = received.and_then(|encrypted| machine.0.unseal(&encrypted).ok());
        let Some(key) = key.and_then(|text| SecretsKey::parse(std::str::from_utf8(&text).ok()?)) else {
            return Ok(false);
        };
        if keyring.key_of(&key.0.public_key()).is_none() {
            keyring.files().write_next(&key)?;
        }
        let has_new_key = keyring.reload()?;
        if has_new_key {
            tracing::info!(key = key.id(), "new secrets key received");
        }
        self.put_key(&format!("{HOLDER_PREFIX}{}", machine.id()), key.id().into_bytes()).await?;
        Ok(has_new_key)
    }

    /// Makes the new key the current one after the rotation has ended.
    pub(super) async fn finish_rotation(&self, keyring: &Keyring) -> Result<(), KeyringError> {
        let files = keyring.files();
        let Some(next) = files.next()? else { return Ok(()) };
        if self.rotation_id().await?.is_some() {
            return Ok(());
        }
        if self.public_key().await?.as_ref() == Some(&next.0.public_key()) {
            promote(files, &next)?;
            tracing::info!(key = next.id(), "secrets key replaced");
        } else if files.machine()?.is_some() {
            // The old key, which a machine that joined during the rotation received too.
            files.remove_next()?;
        }
        keyring.reload().map(drop)
    }

    /// Processes a change of a key entry. Returns whether this server has a new key.
    pub(crate) async fn follow_keys(&self, keyring: &Keyring, key: &str) -> bool {
        let followed = async {
            let (mut has_new_key, machine) = (keyring.reload()?, keyring.files().machine()?);
            if machine.as_ref().is_some_and(|machine| key == format!("{KEY_FOR_PREFIX}{}", machine.id())) {
                has_new_key |= self.accept_key(keyring).await?;
            }
            if key == ROTATION_ENTRY && machine.is_none() {
                let next = keyring.files().next()?;
                if let (Some(next), Some(rotation)) = (next, self.rotation_id().await?)
                    && next.id() == rotation
                {
                    self.put_key(&format!("{HOLDER_PREFIX}{LOCAL_HOLDER}"), rotation.into_bytes()).await?;
                }
            }
            if [ROTATION_ENTRY, PUBLIC_KEY].contains(&key) {
                self.finish_rotation(keyring).await?;
            }
            Ok::<_, KeyringError>(has_new_key)
        };
        followed.await.unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "new secrets key cannot be accepted");
            false
        })
    }

    async fn rotation_id(&self) -> Result<Option<String>, BusError> {
        let id = self.get_key(ROTATION_ENTRY).await?;
        Ok(id.and_then(|id| String::from_utf8(id.to_vec()).ok()))
    }

    /// Removes entries of other machines.
    async fn forget_others(&self, expected: &BTreeSet<String>) -> Result<(), BusError> {
        for key in self.keys().await? {
            let machine = key.strip_prefix(KEY_FOR_PREFIX).or_else(|| key.strip_prefix(HOLDER_PREFIX));
            if machine.is_some_and(|id| id != LOCAL_HOLDER && !expected.contains(id)) {
                self.purge_key(&key).await?;
            }
        }
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<String>, BusError> {
        self.secrets.keys("listing server entries of the secrets").await
    }

    async fn holders(&self, id: &str) -> Result<BTreeSet<String>, BusError> {
        let mut holders = BTreeSet::new();
        for key in self.keys().await? {
            let Some(holder) = key.strip_prefix(HOLDER_PREFIX) else { continue };
            if self.get_key(&key).await?.as_deref() == Some(id.as_bytes()) {
                holders.insert(holder.to_owned());
            }
        }
        Ok(holders)
    }

    async fn get_key(&self, key: &str) -> Result<Option<bytes::Bytes>, BusError> {
        debug_assert!(key.starts_with(SERVER_ENTRY_PREFIX));
        self.secrets.get(key, format!("reading {key}")).await
    }

    async fn put_key(&self, key: &str, value: Vec<u8>) -> Result<(), BusError> {
        self.secrets.put(key, value, format!("writing {key}")).await.map(drop)
    }

    async fn purge_key(&self, key: &str) -> Result<(), BusError> {
        self.secrets.purge(key, format!("removing {key}")).await
    }
}

/// Makes the new key the current one, unless another call has done so.
fn promote(files: &KeyFiles, next: &SecretsKey) -> Result<(), KeyringError> {
    files.promote().or_else(|error| match files.current() {
        Ok(Some(current)) if current.id() == next.id() => Ok(()),
        _ => Err(error),
    })
}

/// Returns the id of a machine in the bucket.
fn machine_id(machine: &Machine) -> String {
    let public = parse_public(&machine.key);
    public.map(|public: PublicKey| super::key_id(&public)).unwrap_or_default()
}
