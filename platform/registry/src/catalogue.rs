//! The catalogue: a snapshot of all deployed resources, updated at every change.

use super::{
    Entry, FunctionRecord, Keyring, ModelRecord, Registry, ScheduleRecord, SinkRecord, SinkState, SourceRecord, quotas,
    secrets::{PUBLIC_KEY, SERVER_ENTRY_PREFIX, key_id},
};
use bytes::Bytes;
use crypto_box::PublicKey;
use futures::{Stream, StreamExt};
use nerve_broker::bus::{BucketEntry, BusError, EVENTS};
use nerve_core::{
    EventType, ModelName, Name, Secret,
    quota::{Quota, Quotas},
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The wait before a failed watch is reopened.
const REOPEN_INTERVAL: Duration = Duration::from_millis(250);
/// Timeout of the next entry while a snapshot is read.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the first snapshot.
const FIRST_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(15);

/// A snapshot of the deployed resources.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// Functions by name.
    pub functions: BTreeMap<Name, Entry<FunctionRecord>>,
    /// Sources by name.
    pub sources: BTreeMap<Name, Entry<SourceRecord>>,
    /// Sinks by name.
    pub sinks: BTreeMap<Name, Entry<SinkRecord>>,
    /// States of failing or disabled sinks, by the sink's name.
    pub sink_states: BTreeMap<Name, Entry<SinkState>>,
    /// Schedules by name.
    pub schedules: BTreeMap<Name, Entry<ScheduleRecord>>,
    /// Models by name.
    pub models: BTreeMap<ModelName, Entry<ModelRecord, ModelName>>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, CatalogueSecret>,
    /// Quotas of collections.
    pub quotas: Arc<Quotas>,
    /// The id of the current secrets key.
    pub secrets_key: Option<String>,
}

/// A secret of the catalogue.
#[derive(Debug, Clone)]
pub struct CatalogueSecret {
    /// The revision. A new value has a higher one.
    pub revision: u64,
    /// The value; `None` if this server does not have the key for it.
    pub value: Option<Secret>,
    /// The encrypted value, if this server does not have the key for it.
    pub encrypted: Option<Bytes>,
}

/// The reason why a required secret has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MissingSecret {
    /// The secret is not set.
    #[error("secret {0} is not set: nerve secrets set {0}")]
    Unset(String),
    /// This server does not have the key.
    #[error(
        "secret {name} is encrypted for the secrets key {key}, which this server does not have: run `nerve access token` on a \
         machine that has it, and `nerve join TOKEN` here"
    )]
    MissingKey {
        /// Its name.
        name: String,
        /// The id of the key.
        key: String,
    },
}

impl Catalogue {
    /// Returns the values of several secrets.
    ///
    /// # Errors
    /// The first secret without a value.
    pub fn secrets_of(&self, names: &[String]) -> Result<BTreeMap<String, Secret>, MissingSecret> {
        names.iter().map(|name| Ok((name.clone(), self.secret(name)?))).collect()
    }

    /// Returns the value of a secret.
    ///
    /// # Errors
    /// The secret is not set, or this server does not have its key.
    pub fn secret(&self, name: &str) -> Result<Secret, MissingSecret> {
        let secret = self.secrets.get(name).ok_or_else(|| MissingSecret::Unset(name.to_owned()))?;
        secret.value.clone().ok_or_else(|| {
            let key = self.secrets_key.clone().unwrap_or_default();
            MissingSecret::MissingKey { name: name.to_owned(), key }
        })
    }

    /// Returns the revision of a secret's value, or `None` without a value.
    pub fn secret_revision(&self, name: &str) -> Option<u64> {
        let secret = self.secrets.get(name)?;
        secret.value.as_ref().map(|_| secret.revision)
    }

    /// Keeps the revisions of secrets whose value has not changed.
    fn keep_revisions(&mut self, before: &Self) {
        for (name, secret) in &mut self.secrets {
            let known = before.secrets.get(name).filter(|known| known.value.is_some() && known.value == secret.value);
            secret.revision = known.map_or(secret.revision, |known| known.revision);
        }
    }

    /// Decrypts the remaining secrets after the keyring has got another key.
    fn decrypt_remaining(&mut self, keyring: &Keyring) {
        for (name, secret) in &mut self.secrets {
            secret.value = secret.value.take().or_else(|| keyring.decrypt(name, secret.encrypted.as_deref()?));
        }
    }

    /// Whether output events of this function lead, over any number of functions, to events of type `ty`.
    pub fn leads_to(&self, function: &Name, ty: &str) -> bool {
        let Some(first) = self.functions.get(function) else { return false };
        let (mut seen, mut next) = (BTreeSet::from([&first.name]), vec![first]);
        while let Some(entry) = next.pop() {
            let emits = &entry.record.spec.emits;
            if emits.iter().any(|pattern| pattern.covers(ty)) {
                return true;
            }
            for other in self.functions.values().filter(|other| other.record.consumes_any_of(emits)) {
                if seen.insert(&other.name) {
                    next.push(other);
                }
            }
        }
        false
    }

    /// Whether any function consumes events of type `ty`.
    pub fn has_consumer(&self, ty: &EventType) -> bool {
        self.consumers(ty).next().is_some()
    }

    /// Returns the functions that consume events of type `ty`.
    pub fn consumers(&self, ty: &EventType) -> impl Iterator<Item = &Name> {
        let subject = ty.subject();
        let consumes = move |entry: &&Entry<FunctionRecord>| {
            entry.record.stream == EVENTS && entry.record.spec.on.iter().any(|on| on.covers(subject.as_str()))
        };
        self.functions.values().filter(consumes).map(|entry| &entry.name)
    }

    /// Returns the digests of all files of functions and models.
    pub(super) fn digests(&self) -> BTreeSet<String> {
        let of_functions = self.functions.values().flat_map(|entry| &entry.record.artifacts);
        let of_models = self.models.values().flat_map(|entry| &entry.record.files);
        of_functions.chain(of_models).map(|file| file.sha256.clone()).collect()
    }

    fn set_quota(&mut self, collection: String, entry: &BucketEntry, put: bool) {
        let own = &mut Arc::make_mut(&mut self.quotas).own;
        match put.then(|| serde_json::from_slice(&entry.value)) {
            None => drop(own.remove(&collection)),
            Some(Ok(quota)) => drop(own.insert(collection, quota)),
            Some(Err(error)) => {
                tracing::error!(collection, %error, "quota cannot be read; set it again with this version of Nerve");
            }
        }
    }

    /// ResultSetPublisher a secret. A re-encrypted secret keeps its revision, so that nothing is reloaded.
    fn set_secret(&mut self, keyring: &Keyring, entry: BucketEntry) {
        let value = keyring.decrypt(&entry.key, &entry.value);
        if value.is_none() {
            tracing::warn!(secret = entry.key, "secret is encrypted for a key that this server does not have");
        }
        let before = self.secrets.get(&entry.key);
        let is_same = |before: &&CatalogueSecret| value.is_some() && before.value == value;
        let revision = before.filter(is_same).map_or(entry.revision, |before| before.revision);
        let encrypted = value.is_none().then_some(entry.value);
        self.secrets.insert(entry.key, CatalogueSecret { revision, value, encrypted });
    }

    fn apply(&mut self, keyring: &Keyring, change: BucketChange) {
        let BucketChange { bucket, entry } = change;
        let put = !entry.is_deleted;
        match bucket {
            WatchedBucket::Secrets if entry.key == PUBLIC_KEY => {
                let public = PublicKey::from_slice(&entry.value).ok();
                self.secrets_key = public.map(|public| key_id(&public));
            }
            WatchedBucket::Secrets if entry.key.starts_with(SERVER_ENTRY_PREFIX) => {}
            WatchedBucket::Secrets if put => self.set_secret(keyring, entry),
            WatchedBucket::Secrets => {
                self.secrets.remove(&entry.key);
            }
            WatchedBucket::Functions => {
                if let Some(name) = named(&entry.key, "function.") {
                    set(&mut self.functions, name, &entry, put);
                } else if let Some(name) = named(&entry.key, "source.") {
                    set(&mut self.sources, name, &entry, put);
                } else if let Some(name) = named(&entry.key, "sink.") {
                    set(&mut self.sinks, name, &entry, put);
                } else if let Some(name) = named(&entry.key, "sink-state.") {
                    set(&mut self.sink_states, name, &entry, put);
                } else if let Some(name) = named(&entry.key, "schedule.") {
                    set(&mut self.schedules, name, &entry, put);
                } else if let Some(name) = named(&entry.key, "model.") {
                    set(&mut self.models, name, &entry, put);
                } else if let Some(collection) = quotas::collection_of(&entry.key) {
                    self.set_quota(collection, &entry, put);
                }
            }
        }
    }
}

fn named<N: FromStr>(key: &str, prefix: &str) -> Option<N> {
    key.strip_prefix(prefix).and_then(|name| N::from_str(name).ok())
}

fn set<R, N>(records: &mut BTreeMap<N, Entry<R, N>>, name: N, entry: &BucketEntry, put: bool)
where
    R: DeserializeOwned,
    N: Ord + Clone,
{
    if !put {
        records.remove(&name);
        return;
    }
    match serde_json::from_slice(&entry.value) {
        Ok(record) => {
            records.insert(name.clone(), Entry { name, revision: entry.revision, record });
        }
        // The previous record stays in use: a newer version has written one that this server cannot run.
        Err(error) => {
            tracing::error!(key = entry.key, %error, "deployment cannot be read; deploy it again with this version of Nerve")
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum WatchedBucket {
    Functions,
    Secrets,
}

struct BucketChange {
    bucket: WatchedBucket,
    entry: BucketEntry,
}

impl Registry {
    /// Reads the catalogue and follows its changes until `stop`.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn follow(
        &self,
        (keyring, default_quota): (Keyring, Quota),
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<watch::Receiver<Arc<Catalogue>>, BusError> {
        let (sender, receiver) = watch::channel(Arc::new(Catalogue::default()));
        let mut follower = Follower { registry: self.clone(), keyring, default_quota, sender };
        let opened = tokio::time::timeout(FIRST_SNAPSHOT_TIMEOUT, follower.open()).await;
        let mut changes = opened.map_err(|error| BusError::unavailable("reading the catalogue", error))??;
        tasks.spawn(async move {
            stop.run_until_cancelled(async {
                loop {
                    follower.run(&mut changes).await;
                    changes = loop {
                        tokio::time::sleep(REOPEN_INTERVAL).await;
                        match follower.open().await {
                            Ok(changes) => break changes,
                            Err(error) => tracing::debug!(%error, "catalogue watch waits for the broker"),
                        }
                    };
                }
            })
            .await;
        });
        Ok(receiver)
    }
}

struct Follower {
    registry: Registry,
    keyring: Keyring,
    default_quota: Quota,
    sender: watch::Sender<Arc<Catalogue>>,
}

type Changes = futures::stream::BoxStream<'static, Result<BucketChange, BusError>>;

impl Follower {
    /// Reads a new snapshot, and returns the later changes.
    async fn open(&mut self) -> Result<Changes, BusError> {
        let quotas = Quotas { default: self.default_quota, ..Quotas::default() };
        let mut catalogue = Catalogue { quotas: Arc::new(quotas), ..Catalogue::default() };
        let functions = self.open_bucket(WatchedBucket::Functions, &mut catalogue).await?;
        let secrets = self.open_bucket(WatchedBucket::Secrets, &mut catalogue).await?;
        catalogue.keep_revisions(&self.sender.borrow());
        self.sender.send_replace(Arc::new(catalogue));
        Ok(futures::stream::select(functions, secrets).boxed())
    }

    async fn open_bucket(
        &self,
        bucket: WatchedBucket,
        catalogue: &mut Catalogue,
    ) -> Result<impl Stream<Item = Result<BucketChange, BusError>> + Send + 'static, BusError> {
        let store = match bucket {
            WatchedBucket::Functions => &self.registry.functions,
            WatchedBucket::Secrets => &self.registry.secrets,
        };
        let what = "watching the catalogue";
        let (stored, changes) = store.follow(what).await?;
        let mut changes = changes.map(move |entry| Ok(BucketChange { bucket, entry: entry? })).boxed();
        // The watch marks the last stored entry, but sends nothing for an empty bucket.
        let mut seen = stored == 0;
        while !seen {
            let next = tokio::time::timeout(ENTRY_TIMEOUT, changes.next()).await;
            let Ok(Some(change)) = next else {
                return Err(BusError::unavailable(what, "the watch timed out"));
            };
            let change: BucketChange = change?;
            seen = change.entry.pending == 0;
            self.apply(catalogue, change).await;
        }
        Ok(changes)
    }

    async fn apply(&self, catalogue: &mut Catalogue, change: BucketChange) {
        let has_new_key = self.follow_keys(&change).await;
        catalogue.apply(&self.keyring, change);
        if has_new_key {
            catalogue.decrypt_remaining(&self.keyring);
        }
    }

    /// Processes a change of keys. Returns whether this server has got a new key.
    async fn follow_keys(&self, change: &BucketChange) -> bool {
        let is_about_keys =
            matches!(change.bucket, WatchedBucket::Secrets) && change.entry.key.starts_with(SERVER_ENTRY_PREFIX);
        is_about_keys && self.registry.follow_keys(&self.keyring, &change.entry.key).await
    }

    /// Applies changes until the watch or its connection ends.
    async fn run(&self, changes: &mut Changes) {
        let mut reconnects = self.registry.bus.reconnects();
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                _ = reconnects.changed() => return,
            };
            let Some(change) = change else { return };
            match change {
                Ok(change) => {
                    let has_new_key = self.follow_keys(&change).await;
                    self.sender.send_modify(|catalogue| {
                        let catalogue = Arc::make_mut(catalogue);
                        catalogue.apply(&self.keyring, change);
                        if has_new_key {
                            catalogue.decrypt_remaining(&self.keyring);
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "catalogue watch failed; reopening it");
                    return;
                }
            }
        }
    }
}
