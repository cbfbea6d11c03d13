//! Large bodies: stored in the Object Store by digest, with a reference in the message
//! (the claim-check pattern; the reference is CloudEvents' `dataref` extension).

use super::error::ResultExt as _;
use super::{Bus, BusError, PublishError, streams::BODIES};
use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use nerve_core::Event;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// The header with the reference.
pub(super) const DATAREF_HEADER: &str = "ce-dataref";

const REFERENCE_PREFIX: &str = "nats-object:bodies/";

/// Bytes of the payload limit that are reserved for subject and headers.
const HEADROOM_BYTES: usize = 32 * 1024;

/// Maximum size of a body that is restored into an event: a limit on the cost of one reference.
const MAX_BODY_BYTES: u64 = 64 << 20;

/// Timeout for the next bytes of a body.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// Attempts to read a body before its event is released.
const MAX_READS: u32 = 4;

/// The reason why the body of an event is missing.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The body was deleted or never existed. This is permanent.
    #[error("the event's body is no longer in the Object Store: {0}")]
    Gone(String),
    /// The broker did not deliver it. Retrying can help.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Bus {
    /// Maximum size of a body in a message.
    pub(super) fn max_body_bytes(&self) -> usize {
        self.client.max_payload().saturating_sub(HEADROOM_BYTES)
    }

    /// Stores a body and returns its reference. Equal bodies are stored once.
    pub(super) async fn store_body(&self, body: &Bytes) -> Result<String, PublishError> {
        let unavailable = |error: async_nats::Error| PublishError::Unavailable(error);
        if !self.connected() {
            return Err(unavailable("not connected to NATS".into()));
        }
        let digest = HEXLOWER.encode(&Sha256::digest(body));
        let store = self.jetstream.get_object_store(BODIES).await.map_err(|error| unavailable(error.into()))?;
        // Stored again even if present, because a later event renews the body's age.
        let full = |error| match error {
            BusError::Full { full, .. } => unavailable(full.into()),
            error => unavailable(error.into()),
        };
        self.check_room(BODIES, u64::try_from(body.len()).unwrap_or(u64::MAX)).await.map_err(full)?;
        let stored = store.put(digest.as_str(), &mut body.as_ref()).await;
        stored.map_err(|error| full(BusError::of_bucket(BODIES, "storing a large body", error)))?;
        Ok(format!("{REFERENCE_PREFIX}{digest}"))
    }

    /// Restores the referenced body of an event. No-op for an event with its body inline.
    pub async fn restore_body(&self, event: &mut Event) -> Result<(), BodyError> {
        let reference =
            event.extension(nerve_core::event::DATA_REF).and_then(|text| text.strip_prefix(REFERENCE_PREFIX));
        let Some(digest) = reference.map(str::to_owned) else { return Ok(()) };
        let mut tries = 1..=MAX_READS;
        let body = loop {
            match self.read_body(&digest).await {
                // Another event with the same body stores it again, and deletes the old chunks while they are read.
                Err(BodyError::Bus(error)) if self.connected() && tries.next().is_some() => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "retrying to read a body");
                }
                read => break read?,
            }
        };
        event.data = body;
        event.extensions.remove(nerve_core::event::DATA_REF);
        Ok(())
    }

    async fn read_body(&self, digest: &str) -> Result<Bytes, BodyError> {
        let what = || format!("reading the body {digest}");
        let store = self.jetstream.get_object_store(BODIES).await.unavailable(what)?;
        let mut object = match store.get(digest).await {
            Ok(object) => object,
            Err(error) if error.kind() == async_nats::jetstream::object_store::GetErrorKind::NotFound => {
                return Err(BodyError::Gone(digest.to_owned()));
            }
            Err(error) => return Err(BusError::unavailable(what(), error).into()),
        };
        let size = object.info().size;
        if u64::try_from(size).unwrap_or(u64::MAX) > MAX_BODY_BYTES {
            return Err(BodyError::Gone(format!("{digest} is larger than {MAX_BODY_BYTES} bytes")));
        }
        let mut body = BytesMut::with_capacity(size);
        loop {
            // A reader whose chunks were deleted would wait for them forever.
            let read = tokio::time::timeout(READ_TIMEOUT, object.read_buf(&mut body)).await;
            let read = read.map_err(|_| BusError::unavailable(what(), "timed out while reading"))?;
            if read.unavailable(what)? == 0 {
                break;
            }
        }
        if body.len() != size {
            return Err(BusError::unavailable(what(), "the body is incomplete").into());
        }
        Ok(body.freeze())
    }
}
