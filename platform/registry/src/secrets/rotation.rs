//! A new secrets key in place of the current one, while servers run.
//!
//! The order keeps every secret readable at every moment, and lets a rotation that was interrupted go on: the new key is in a file
//! before anything is encrypted for it; servers hold it beside the old one before the first secret is (the bucket's order is that of
//! its watches); and the old one is removed when no secret needs it any more.
//!
//! A machine that has joined is sent the new key encrypted for its own key. So the old key opens nothing that comes later, and a
//! machine whose access was revoked gets no new one.

use super::{
    PUBLIC_KEY, SERVERS_KEYS,
    keyring::{KeyFiles, Keyring, KeyringError, SecretsKey, open, parse_public},
};
use crate::Registry;
use crypto_box::{PublicKey, aead::OsRng};
use nerve_broker::bus::BusError;
use nerve_config::Config;
use nerve_core::Secret;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep};

/// Set while the key is replaced: the id of the new one.
const ROTATION: &str = "nerve.rotation";
/// The new key for one machine, whose key's id follows.
const KEY_FOR: &str = "nerve.key-for.";
/// Who has the new key: a machine by its key's id, or the server of the data folder. The value is the key's id.
const HOLDS: &str = "nerve.holds.";
/// That server.
const LOCAL: &str = "local";
/// How long the server of the data folder may take to read the new key, and how long machines are waited for.
const SERVER_TIMEOUT: Duration = Duration::from_secs(15);
const MACHINES_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
/// How often secrets are listed at most, as others may set some meanwhile.
const MAX_PASSES: usize = 10;

/// A machine that has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// The public key that keys are encrypted for, in hexadecimal digits.
    pub key: String,
}

/// A replaced secrets key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The id of the key before.
    pub from: String,
    /// The id of the key now.
    pub to: String,
    /// How many secrets were encrypted again.
    pub encrypted: usize,
    /// Secrets that the key before does not open.
    pub unreadable: Vec<String>,
    /// Machines that have the new key.
    pub informed: Vec<String>,
    /// Machines that have not answered: they take it when they start.
    pub waiting: Vec<String>,
    /// Whether an earlier call had begun it.
    pub is_resumed: bool,
}

/// Why the key was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The current key cannot be used.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The broker failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// No server has registered a key.
    #[error("no server has registered a secrets key yet: there is nothing to replace")]
    Unregistered,
    /// The current key is not here.
    #[error("the secrets are encrypted for the secrets key {needed}, which is not in this data folder")]
    Missing {
        /// The key that is needed.
        needed: String,
    },
    /// The server of the data folder has not taken the new key.
    #[error("the server of this data folder has not read the new secrets key within {SERVER_TIMEOUT:?}")]
    Unheld,
    /// The public key of a machine is none.
    #[error("the key of the machine {0} cannot be read: revoke it, and let it join again")]
    Machine(String),
    /// Secrets were set all the time.
    #[error("secrets are being set faster than they can be encrypted again: run this again when that is over")]
    Busy,
}

impl Registry {
    /// Replaces the secrets key by a new one, and encrypts all secrets for it. An interrupted call is gone on with.
    ///
    /// `is_served` says that a server runs on this data folder, which must have the new key first.
    ///
    /// # Errors
    /// The current key is not in this data folder, or the broker fails. What was begun is gone on with by the next call.
    pub async fn rotate_secrets_key(
        &self,
        config: &Config,
        machines: &[Machine],
        is_served: bool,
    ) -> Result<Rotated, RotationError> {
        let keyring = Keyring::read(config)?;
        let files = keyring.files().clone();
        let registered = self.public_key().await?.ok_or(RotationError::Unregistered)?;
        let Some(active) = keyring.key_of(&registered) else {
            return Err(RotationError::Missing { needed: super::key_id(&registered) });
        };
        let marked = self.marked().await?;
        // Interrupted after the last step but one: the file of the new key is the current one already.
        let is_promoted = files.next()?.is_none() && marked.as_deref() == Some(active.id().as_str());
        let is_resumed = marked.is_some() || files.next()?.is_some();
        let next = if is_promoted { active.clone() } else { files.make_next()? };
        let from = keyring.first().map_or_else(String::new, |key| key.id());
        let informed = if is_promoted {
            BTreeSet::new()
        } else {
            keyring.reload()?;
            self.hand_over(&next, machines, is_served).await?
        };
        self.put_key(PUBLIC_KEY, next.0.public_key().as_bytes().to_vec()).await?;
        let (encrypted, unreadable) = self.encrypt_again(&keyring, &next).await?;
        if !is_promoted {
            promote(&files, &next)?;
        }
        self.clean_up(&informed).await?;
        let (informed, waiting): (Vec<&Machine>, Vec<&Machine>) =
            machines.iter().partition(|machine| is_promoted || informed.contains(&machine_id(machine)));
        let names = |machines: Vec<&Machine>| machines.into_iter().map(|machine| machine.name.clone()).collect();
        let (informed, waiting) = (names(informed), names(waiting));
        Ok(Rotated { from, to: next.id(), encrypted, unreadable, informed, waiting, is_resumed })
    }

    /// The keys that a machine which joins needs, in hexadecimal digits: first the one that secrets are encrypted for.
    ///
    /// # Errors
    /// A key cannot be read, or the broker fails.
    pub async fn keys_to_share(&self, config: &Config) -> Result<Vec<Secret>, KeyringError> {
        let registered = self.public_key().await?;
        let mut keys = Keyring::read(config)?.keys();
        keys.sort_by_key(|key| registered.as_ref() != Some(&key.0.public_key()));
        Ok(keys.iter().map(SecretsKey::text).collect())
    }

    /// Gives the new key to all who are to have it, and returns who says that it has it.
    async fn hand_over(
        &self,
        next: &SecretsKey,
        machines: &[Machine],
        is_served: bool,
    ) -> Result<BTreeSet<String>, RotationError> {
        let wanted: BTreeSet<String> = machines.iter().map(machine_id).collect();
        self.forget_others(&wanted).await?;
        for machine in machines {
            let wrong = || RotationError::Machine(machine.name.clone());
            let public = parse_public(&machine.key).ok_or_else(wrong)?;
            let sealed = public.seal(&mut OsRng, next.text().expose().as_bytes()).map_err(|_| wrong())?;
            self.put_key(&format!("{KEY_FOR}{}", super::key_id(&public)), sealed).await?;
        }
        self.put_key(ROTATION, next.id().into_bytes()).await?;
        let started = Instant::now();
        loop {
            let holders = self.holders(&next.id()).await?;
            let (is_held, waited) = (!is_served || holders.contains(LOCAL), started.elapsed());
            if is_held && (holders.is_superset(&wanted) || waited >= MACHINES_TIMEOUT) {
                return Ok(holders);
            }
            if waited >= SERVER_TIMEOUT {
                return Err(RotationError::Unheld);
            }
            sleep(POLL).await;
        }
    }

    /// Encrypts for `next` what another key of `keyring` opens, until nothing is left.
    async fn encrypt_again(&self, keyring: &Keyring, next: &SecretsKey) -> Result<(usize, Vec<String>), RotationError> {
        let mut encrypted = 0;
        for _ in 0..MAX_PASSES {
            let (mut is_quiet, mut unreadable) = (true, Vec::new());
            for secret in self.secrets().await? {
                let name = secret.name;
                let Some(entry) = self.secrets.entry(&name, format!("reading the secret {name}")).await? else {
                    continue;
                };
                if open(next, &name, &entry.value).is_some() {
                    continue;
                }
                match keyring.open(&name, &entry.value) {
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

    /// Stores a secret again; `false` where somebody has changed it meanwhile.
    async fn replace(&self, name: &str, value: &Secret, key: &SecretsKey, revision: u64) -> Result<bool, BusError> {
        let sealed = super::seal(&key.0.public_key(), name, value)?;
        let what = format!("encrypting the secret {name} again");
        Ok(self.secrets.update((name, revision), sealed, what).await?.is_some())
    }

    /// Says that it is over, and removes what was said for it.
    async fn clean_up(&self, informed: &BTreeSet<String>) -> Result<(), BusError> {
        self.purge_key(ROTATION).await?;
        for holder in informed {
            self.purge_key(&format!("{HOLDS}{holder}")).await?;
            if holder != LOCAL {
                self.purge_key(&format!("{KEY_FOR}{holder}")).await?;
            }
        }
        Ok(())
    }

    /// Takes the new key that was encrypted for this machine, and keeps it; says whether it is new to this server.
    pub(super) async fn accept_key(&self, keyring: &Keyring) -> Result<bool, KeyringError> {
        let Some(machine) = keyring.files().machine()? else { return Ok(false) };
        let sent = self.get_key(&format!("{KEY_FOR}{}", machine.id())).await?;
        let key = sent.and_then(|sealed| machine.0.unseal(&sealed).ok());
        let Some(key) = key.and_then(|text| SecretsKey::parse(std::str::from_utf8(&text).ok()?)) else {
            return Ok(false);
        };
        if keyring.key_of(&key.0.public_key()).is_none() {
            keyring.files().write_next(&key)?;
        }
        let grown = keyring.reload()?;
        if grown {
            tracing::info!(key = key.id(), "this server has the new secrets key");
        }
        self.put_key(&format!("{HOLDS}{}", machine.id()), key.id().into_bytes()).await?;
        Ok(grown)
    }

    /// Makes the new key the current one where the rotation is over.
    pub(super) async fn settle_key(&self, keyring: &Keyring) -> Result<(), KeyringError> {
        let files = keyring.files();
        let Some(next) = files.next()? else { return Ok(()) };
        if self.marked().await?.is_some() {
            return Ok(());
        }
        if self.public_key().await?.as_ref() == Some(&next.0.public_key()) {
            promote(files, &next)?;
            tracing::info!(key = next.id(), "the secrets key was replaced");
        } else if files.machine()?.is_some() {
            // The key before, which a machine that joined in between was given as well.
            files.remove_next()?;
        }
        keyring.reload().map(drop)
    }

    /// Follows what the bucket says about keys; says whether this server has a key now that it had not.
    pub(crate) async fn follow_keys(&self, keyring: &Keyring, key: &str) -> bool {
        let followed = async {
            let (mut grown, machine) = (keyring.reload()?, keyring.files().machine()?);
            if machine.as_ref().is_some_and(|machine| key == format!("{KEY_FOR}{}", machine.id())) {
                grown |= self.accept_key(keyring).await?;
            }
            if key == ROTATION && machine.is_none() {
                let next = keyring.files().next()?;
                if let (Some(next), Some(marked)) = (next, self.marked().await?)
                    && next.id() == marked
                {
                    self.put_key(&format!("{HOLDS}{LOCAL}"), marked.into_bytes()).await?;
                }
            }
            if [ROTATION, PUBLIC_KEY].contains(&key) {
                self.settle_key(keyring).await?;
            }
            Ok::<_, KeyringError>(grown)
        };
        followed.await.unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "the new secrets key cannot be taken");
            false
        })
    }

    async fn marked(&self) -> Result<Option<String>, BusError> {
        let marked = self.get_key(ROTATION).await?;
        Ok(marked.and_then(|id| String::from_utf8(id.to_vec()).ok()))
    }

    /// Removes what is left of machines that are gone.
    async fn forget_others(&self, wanted: &BTreeSet<String>) -> Result<(), BusError> {
        for key in self.keys().await? {
            let machine = key.strip_prefix(KEY_FOR).or_else(|| key.strip_prefix(HOLDS));
            if machine.is_some_and(|id| id != LOCAL && !wanted.contains(id)) {
                self.purge_key(&key).await?;
            }
        }
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<String>, BusError> {
        self.secrets.keys("listing what servers keep for secrets").await
    }

    async fn holders(&self, id: &str) -> Result<BTreeSet<String>, BusError> {
        let mut holders = BTreeSet::new();
        for key in self.keys().await? {
            let Some(holder) = key.strip_prefix(HOLDS) else { continue };
            if self.get_key(&key).await?.as_deref() == Some(id.as_bytes()) {
                holders.insert(holder.to_owned());
            }
        }
        Ok(holders)
    }

    async fn get_key(&self, key: &str) -> Result<Option<bytes::Bytes>, BusError> {
        debug_assert!(key.starts_with(SERVERS_KEYS));
        self.secrets.get(key, format!("reading {key}")).await
    }

    async fn put_key(&self, key: &str, value: Vec<u8>) -> Result<(), BusError> {
        self.secrets.put(key, value, format!("writing {key}")).await.map(drop)
    }

    async fn purge_key(&self, key: &str) -> Result<(), BusError> {
        self.secrets.purge(key, format!("removing {key}")).await
    }
}

/// Makes the new key the current one; another call may have done so.
fn promote(files: &KeyFiles, next: &SecretsKey) -> Result<(), KeyringError> {
    files.promote().or_else(|error| match files.current() {
        Ok(Some(current)) if current.id() == next.id() => Ok(()),
        _ => Err(error),
    })
}

/// What a machine is known by in the bucket.
fn machine_id(machine: &Machine) -> String {
    let public = parse_public(&machine.key);
    public.map(|public: PublicKey| super::key_id(&public)).unwrap_or_default()
}
