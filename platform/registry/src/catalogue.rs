//! Everything that is deployed, as one snapshot that follows every change.

use super::{
    Entry, FunctionRecord, Keyring, ModelRecord, Registry, ScheduleRecord, SinkRecord, SinkState, SourceRecord, quotas,
    secrets::{PUBLIC_KEY, SERVERS_KEYS, key_id},
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

/// The wait before a broken watch is opened again.
const REOPEN: Duration = Duration::from_millis(250);
/// How long the first snapshot may take.
const FIRST: Duration = Duration::from_secs(15);

/// What is deployed at one moment.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// By name.
    pub functions: BTreeMap<Name, Entry<FunctionRecord>>,
    /// By name.
    pub sources: BTreeMap<Name, Entry<SourceRecord>>,
    /// By name.
    pub sinks: BTreeMap<Name, Entry<SinkRecord>>,
    /// By the sink's name; those that are well have none.
    pub sink_states: BTreeMap<Name, Entry<SinkState>>,
    /// By name.
    pub schedules: BTreeMap<Name, Entry<ScheduleRecord>>,
    /// By name.
    pub models: BTreeMap<ModelName, Entry<ModelRecord, ModelName>>,
    /// By name.
    pub secrets: BTreeMap<String, SealedOrOpen>,
    /// What collections may have.
    pub quotas: Arc<Quotas>,
    /// The id of the key that secrets are encrypted for now.
    pub secrets_key: Option<String>,
}

/// A secret as this server has it.
#[derive(Debug, Clone)]
pub struct SealedOrOpen {
    /// A new value has a higher one.
    pub revision: u64,
    /// The value; `None` when it is encrypted for a key that this server does not have.
    pub value: Option<Secret>,
    /// What cannot be opened yet.
    pub sealed: Option<Bytes>,
}

/// Why a secret that something needs is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MissingSecret {
    /// It is not set.
    #[error("the secret {0} is not set: nerve secrets set {0}")]
    Unset(String),
    /// This server has not the key.
    #[error(
        "the secret {name} is encrypted for the secrets key {key}, which this server does not have: `nerve join TOKEN` brings it, \
         with a token that `nerve access token` makes on the machine that has it"
    )]
    Sealed {
        /// Its name.
        name: String,
        /// The id of the key.
        key: String,
    },
}

impl Catalogue {
    /// The values of the secrets named; the error is about the first one that has none.
    pub fn secrets_of(&self, names: &[String]) -> Result<BTreeMap<String, Secret>, MissingSecret> {
        names.iter().map(|name| Ok((name.clone(), self.secret(name)?))).collect()
    }

    /// The value of a secret.
    pub fn secret(&self, name: &str) -> Result<Secret, MissingSecret> {
        let secret = self.secrets.get(name).ok_or_else(|| MissingSecret::Unset(name.to_owned()))?;
        secret.value.clone().ok_or_else(|| {
            let key = self.secrets_key.clone().unwrap_or_default();
            MissingSecret::Sealed { name: name.to_owned(), key }
        })
    }

    /// What tells the value of a secret from others that it had; none where there is no value.
    pub fn secret_revision(&self, name: &str) -> Option<u64> {
        let secret = self.secrets.get(name)?;
        secret.value.as_ref().map(|_| secret.revision)
    }

    /// Gives secrets whose value is as it was the revision that they had.
    fn keep_revisions(&mut self, before: &Self) {
        for (name, secret) in &mut self.secrets {
            let known = before.secrets.get(name).filter(|known| known.value.is_some() && known.value == secret.value);
            secret.revision = known.map_or(secret.revision, |known| known.revision);
        }
    }

    /// Opens what this keyring opens, now that it has another key.
    fn open_sealed(&mut self, keyring: &Keyring) {
        for (name, secret) in &mut self.secrets {
            secret.value = secret.value.take().or_else(|| keyring.open(name, secret.sealed.as_deref()?));
        }
    }

    /// Whether what this function emits leads, over any number of functions, to events of type `ty`.
    pub fn leads_to(&self, function: &Name, ty: &str) -> bool {
        let Some(first) = self.functions.get(function) else { return false };
        let (mut seen, mut next) = (BTreeSet::from([&first.name]), vec![first]);
        while let Some(entry) = next.pop() {
            let emits = &entry.record.spec.emits;
            if emits.iter().any(|pattern| pattern.covers(ty)) {
                return true;
            }
            for other in self.functions.values().filter(|other| other.record.takes_any_of(emits)) {
                if seen.insert(&other.name) {
                    next.push(other);
                }
            }
        }
        false
    }

    /// Whether any function takes events of type `ty`.
    pub fn takes(&self, ty: &EventType) -> bool {
        self.takers(ty).next().is_some()
    }

    /// The functions that take events of type `ty`.
    pub fn takers(&self, ty: &EventType) -> impl Iterator<Item = &Name> {
        let subject = ty.subject();
        let takes = move |entry: &&Entry<FunctionRecord>| {
            entry.record.stream == EVENTS && entry.record.spec.on.iter().any(|on| on.covers(subject.as_str()))
        };
        self.functions.values().filter(takes).map(|entry| &entry.name)
    }

    /// The digest of every file that a function or a model needs.
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
                tracing::error!(collection, %error, "a quota cannot be read; set it with this version");
            }
        }
    }

    /// Sets a secret. One that was only encrypted again keeps its revision: nothing that uses it is loaded anew.
    fn set_secret(&mut self, keyring: &Keyring, entry: BucketEntry) {
        let value = keyring.open(&entry.key, &entry.value);
        if value.is_none() {
            tracing::warn!(secret = entry.key, "this secret is encrypted for a key that this server does not have");
        }
        let before = self.secrets.get(&entry.key);
        let is_same = |before: &&SealedOrOpen| value.is_some() && before.value == value;
        let revision = before.filter(is_same).map_or(entry.revision, |before| before.revision);
        let sealed = value.is_none().then_some(entry.value);
        self.secrets.insert(entry.key, SealedOrOpen { revision, value, sealed });
    }

    fn apply(&mut self, keyring: &Keyring, change: Change) {
        let Change { bucket, entry } = change;
        let put = !entry.is_deleted;
        match bucket {
            Bucket::Secrets if entry.key == PUBLIC_KEY => {
                let public = PublicKey::from_slice(&entry.value).ok();
                self.secrets_key = public.map(|public| key_id(&public));
            }
            Bucket::Secrets if entry.key.starts_with(SERVERS_KEYS) => {}
            Bucket::Secrets if put => self.set_secret(keyring, entry),
            Bucket::Secrets => {
                self.secrets.remove(&entry.key);
            }
            Bucket::Functions => {
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
        // The one before it goes on: a newer tool wrote something that this server cannot run.
        Err(error) => {
            tracing::error!(key = entry.key, %error, "a deployment cannot be read; deploy it with this version")
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Bucket {
    Functions,
    Secrets,
}

struct Change {
    bucket: Bucket,
    entry: BucketEntry,
}

impl Registry {
    /// The catalogue, whole from the first, and everything that changes it until `stop`.
    pub async fn follow(
        &self,
        (keyring, default_quota): (Keyring, Quota),
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<watch::Receiver<Arc<Catalogue>>, BusError> {
        let (sender, receiver) = watch::channel(Arc::new(Catalogue::default()));
        let mut follower = Follower { registry: self.clone(), keyring, default_quota, sender };
        let opened = tokio::time::timeout(FIRST, follower.open()).await;
        let mut changes = opened.map_err(|error| BusError::unavailable("reading what is deployed", error))??;
        tasks.spawn(async move {
            stop.run_until_cancelled(async {
                loop {
                    follower.run(&mut changes).await;
                    changes = loop {
                        tokio::time::sleep(REOPEN).await;
                        match follower.open().await {
                            Ok(changes) => break changes,
                            Err(error) => tracing::debug!(%error, "the watch of what is deployed waits for the broker"),
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

type Changes = futures::stream::BoxStream<'static, Result<Change, BusError>>;

impl Follower {
    /// Reads the whole into a new snapshot, and returns what comes after it.
    async fn open(&mut self) -> Result<Changes, BusError> {
        let quotas = Quotas { default: self.default_quota, ..Quotas::default() };
        let mut catalogue = Catalogue { quotas: Arc::new(quotas), ..Catalogue::default() };
        let functions = self.open_bucket(Bucket::Functions, &mut catalogue).await?;
        let secrets = self.open_bucket(Bucket::Secrets, &mut catalogue).await?;
        catalogue.keep_revisions(&self.sender.borrow());
        self.sender.send_replace(Arc::new(catalogue));
        Ok(futures::stream::select(functions, secrets).boxed())
    }

    async fn open_bucket(
        &self,
        bucket: Bucket,
        catalogue: &mut Catalogue,
    ) -> Result<impl Stream<Item = Result<Change, BusError>> + Send + 'static, BusError> {
        let store = match bucket {
            Bucket::Functions => &self.registry.functions,
            Bucket::Secrets => &self.registry.secrets,
        };
        let what = "watching what is deployed";
        let (stored, changes) = store.follow(what).await?;
        let mut changes = changes.map(move |entry| Ok(Change { bucket, entry: entry? })).boxed();
        // The watch says which entry is the last of what was there, but says nothing where there was nothing.
        let mut seen = stored == 0;
        while !seen {
            let next = tokio::time::timeout(REOPEN * 20, changes.next()).await;
            let Ok(Some(change)) = next else {
                return Err(BusError::unavailable(what, "the watch fell silent"));
            };
            let change: Change = change?;
            seen = change.entry.pending == 0;
            self.apply(catalogue, change).await;
        }
        Ok(changes)
    }

    async fn apply(&self, catalogue: &mut Catalogue, change: Change) {
        let has_another_key = self.follow_keys(&change).await;
        catalogue.apply(&self.keyring, change);
        if has_another_key {
            catalogue.open_sealed(&self.keyring);
        }
    }

    /// Whether a change has given this server another key.
    async fn follow_keys(&self, change: &Change) -> bool {
        let is_about_keys = matches!(change.bucket, Bucket::Secrets) && change.entry.key.starts_with(SERVERS_KEYS);
        is_about_keys && self.registry.follow_keys(&self.keyring, &change.entry.key).await
    }

    /// Applies changes until the watch ends, or the connection it stands on does.
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
                    let has_another_key = self.follow_keys(&change).await;
                    self.sender.send_modify(|catalogue| {
                        let catalogue = Arc::make_mut(catalogue);
                        catalogue.apply(&self.keyring, change);
                        if has_another_key {
                            catalogue.open_sealed(&self.keyring);
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "the watch of what is deployed is opened again");
                    return;
                }
            }
        }
    }
}
