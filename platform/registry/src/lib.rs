//! The registry of deployed resources: records in KV `functions`, files in the Object Store by digest, encrypted secrets in KV.
//!
//! # Layout
//! - `record`: stored records and their comparison.
//! - `artifacts`: upload and download of deployed files. `eviction`: removal of unused downloads.
//! - `sinks`: sinks, the states of their endpoints, and schedules.
//! - `quotas`: quotas of collections.
//! - `models`: models that functions and the gateway share by name.
//! - `secrets`: secrets, encrypted for the server's key, so that a deployer can set but not read them.
//! - `catalogue`: a snapshot of all resources, updated at every change.
//!
//! # Flow
//! A deploy creates the function's durable consumer, then writes one KV revision. Workers follow the KV and switch to that
//! revision.

mod artifacts;
mod catalogue;
mod eviction;
mod models;
mod quotas;
mod record;
mod secrets;
mod sinks;

pub use catalogue::{Catalogue, CatalogueSecret, MissingSecret};
pub use record::{
    ArtifactRef, DisabledInfo, Entry, FunctionRecord, ModelInfo, ModelRecord, RecordChange, ScheduleRecord, SinkRecord,
    SinkState, SourceRecord,
};
pub use secrets::{KeyFiles, Keyring, KeyringError, Machine, RotationError, RotationOutcome, SecretInfo, SecretsKey};

pub use eviction::evict;

use nerve_broker::bus::{
    Bucket, Bus, BusError, DEAD, DeadLetter, FUNCTIONS, REDRIVE_PREFIX, SECRETS, TIMERS, consumer_name, due_subject,
};
use nerve_core::{FunctionSpec, Name, Pattern, SourceSpec};
use serde::{Serialize, de::DeserializeOwned};
use std::{str::FromStr, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::sync::Mutex;

/// The registry of deployed resources.
#[derive(Clone, Debug)]
pub struct Registry {
    bus: Bus,
    functions: Bucket,
    secrets: Bucket,
    ack_wait: Duration,
    /// Held while a file is downloaded. Flow control limits the pending bytes of one download; those of several would exceed the
    /// limit of nats-server, which then closes the connection.
    fetching: Arc<Mutex<()>>,
}

/// Returns the key of a function in the bucket `functions`.
pub(crate) fn function_key(name: &Name) -> String {
    format!("function.{name}")
}

/// Returns the key of a source in the bucket `functions`.
pub(crate) fn source_key(name: &Name) -> String {
    format!("source.{name}")
}

/// The error for a name of another resource. Functions and sinks share the names of consumers, dead letters and logs.
fn name_conflict(name: &Name, kind: &str) -> BusError {
    BusError::refused(format!("deploying {name}"), format!("a {kind} has this name: give one of the two another name"))
}

impl Registry {
    /// Opens the buckets, which [`Bus::provision`] has created. `ack_wait` applies to the consumers that the registry creates.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn open(bus: &Bus, ack_wait: Duration) -> Result<Self, BusError> {
        let (functions, secrets) = (bus.bucket(FUNCTIONS).await?, bus.bucket(SECRETS).await?);
        Ok(Self { bus: bus.clone(), functions, secrets, ack_wait, fetching: Arc::default() })
    }

    /// Returns the deployed functions, by name.
    ///
    /// # Errors
    /// The broker is unavailable, or a record is of another version.
    pub async fn functions(&self) -> Result<Vec<Entry<FunctionRecord>>, BusError> {
        self.list("function.").await
    }

    /// Returns the deployed sources, by name.
    ///
    /// # Errors
    /// The broker is unavailable, or a record is of another version.
    pub async fn sources(&self) -> Result<Vec<Entry<SourceRecord>>, BusError> {
        self.list("source.").await
    }

    /// Returns one deployed function.
    ///
    /// # Errors
    /// The broker is unavailable, or the record is of another version.
    pub async fn function(&self, name: &Name) -> Result<Option<Entry<FunctionRecord>>, BusError> {
        self.get(name, &function_key(name)).await
    }

    /// Returns one deployed source.
    ///
    /// # Errors
    /// The broker is unavailable, or the record is of another version.
    pub async fn source(&self, name: &Name) -> Result<Option<Entry<SourceRecord>>, BusError> {
        self.get(name, &source_key(name)).await
    }

    /// Deploys a function whose artifacts are uploaded. An identical deployment changes nothing.
    ///
    /// # Errors
    /// A sink has the name, the stream cannot be resolved, or the broker is unavailable.
    pub async fn deploy_function(
        &self,
        name: &Name,
        spec: FunctionSpec,
        artifacts: Vec<ArtifactRef>,
    ) -> Result<RecordChange, BusError> {
        if self.sink(name).await?.is_some() {
            return Err(name_conflict(name, "sink"));
        }
        let stream = self.resolve_stream(name, spec.stream.as_deref(), &spec.on).await?;
        let record = FunctionRecord { spec, artifacts, stream, deployed_at: OffsetDateTime::now_utc() };
        let before = self.function(name).await?;
        // The consumer is created first, so that the broker keeps the function's events from now on.
        self.ensure_consumers(name, &record).await?;
        if let Some(before) = &before {
            if before.record.same_as(&record) {
                return Ok(RecordChange::Unchanged { revision: before.revision });
            }
            if before.record.stream != record.stream {
                self.delete_consumer(&before.record.stream, name).await?;
            }
        }
        let revision = self.put(&function_key(name), &record).await?;
        Ok(if before.is_some() { RecordChange::Changed { revision } } else { RecordChange::Created { revision } })
    }

    /// Deploys a source. An identical deployment changes nothing.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn deploy_source(&self, name: &Name, spec: SourceSpec) -> Result<RecordChange, BusError> {
        let record = SourceRecord { spec: Arc::new(spec), deployed_at: OffsetDateTime::now_utc() };
        let before = self.source(name).await?;
        match before {
            Some(before) if before.record.spec == record.spec => {
                Ok(RecordChange::Unchanged { revision: before.revision })
            }
            before => {
                let revision = self.put(&source_key(name), &record).await?;
                Ok(if before.is_some() {
                    RecordChange::Changed { revision }
                } else {
                    RecordChange::Created { revision }
                })
            }
        }
    }

    /// Removes a function, its consumers and its delayed retries. Returns `false` if it is not deployed.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn remove_function(&self, name: &Name) -> Result<bool, BusError> {
        let Some(entry) = self.function(name).await? else { return Ok(false) };
        self.delete(&function_key(name)).await?;
        for stream in [entry.record.stream.as_str(), DEAD, TIMERS] {
            self.delete_consumer(stream, name).await?;
        }
        self.bus.purge_delayed(name).await?;
        Ok(true)
    }

    /// Removes a source. Returns `false` if it is not deployed.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn remove_source(&self, name: &Name) -> Result<bool, BusError> {
        if self.source(name).await?.is_none() {
            return Ok(false);
        }
        self.delete(&source_key(name)).await.map(|()| true)
    }

    /// Sends a dead letter back to its function or sink, in the deployed revision.
    ///
    /// # Errors
    /// [`BusError::Refused`] if no function or sink of that name is deployed.
    pub async fn redrive(&self, id: u64) -> Result<DeadLetter, BusError> {
        let dead = self.bus.dead_letter(id).await?;
        let name = Name::parse(dead.function.as_str());
        let name = name.map_err(|error| BusError::refused(format!("redriving dead letter {id}"), error))?;
        if self.function(&name).await?.is_none() && self.sink(&name).await?.is_none() {
            let why = format!("no function or sink `{name}` is deployed: deploy it, then redrive");
            return Err(BusError::refused(format!("redriving dead letter {id}"), why));
        }
        self.bus.redrive(id).await
    }

    async fn resolve_stream(&self, name: &Name, stream: Option<&str>, on: &[Pattern]) -> Result<String, BusError> {
        self.bus.resolve_stream(name, stream, on).await
    }

    /// Creates or updates the durable consumers of a function: for its subjects, its delayed retries and its redriven dead letters.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn ensure_consumers(&self, name: &Name, record: &FunctionRecord) -> Result<(), BusError> {
        let subjects = record.spec.on.iter().map(ToString::to_string).collect();
        self.bus.ensure_consumer(&record.stream, name, subjects, self.ack_wait).await?;
        self.bus.ensure_consumer(TIMERS, name, vec![due_subject(name)], self.ack_wait).await?;
        let redriven = vec![format!("{REDRIVE_PREFIX}{name}")];
        self.bus.ensure_consumer(DEAD, name, redriven, self.ack_wait).await
    }

    async fn delete_consumer(&self, stream: &str, name: &Name) -> Result<(), BusError> {
        self.bus.unbind(stream, &consumer_name(name)).await
    }

    async fn list<R, N>(&self, prefix: &str) -> Result<Vec<Entry<R, N>>, BusError>
    where
        R: DeserializeOwned,
        N: FromStr + Clone + Ord,
    {
        let mut entries = Vec::new();
        for key in self.functions.keys("listing deployed resources").await? {
            let Some(name) = key.strip_prefix(prefix).and_then(|name| N::from_str(name).ok()) else { continue };
            entries.extend(self.get(&name, &key).await?);
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    async fn get<R, N>(&self, name: &N, key: &str) -> Result<Option<Entry<R, N>>, BusError>
    where
        R: DeserializeOwned,
        N: Clone,
    {
        let what = || format!("reading {key}");
        let Some(entry) = self.functions.entry(key, what()).await? else { return Ok(None) };
        let record = serde_json::from_slice(&entry.value).map_err(|error| {
            BusError::refused(what(), format!("record of another version of Nerve ({error}): deploy it again"))
        })?;
        Ok(Some(Entry { name: name.clone(), revision: entry.revision, record }))
    }

    async fn put(&self, key: &str, record: &impl Serialize) -> Result<u64, BusError> {
        let body = serde_json::to_vec(record).map_err(|error| BusError::refused(format!("writing {key}"), error))?;
        self.functions.put(key, body, format!("writing {key}")).await
    }

    async fn delete(&self, key: &str) -> Result<(), BusError> {
        self.functions.delete(key, format!("deleting {key}")).await
    }
}
