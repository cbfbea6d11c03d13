//! Bodies too large for a message lie in the Object Store, by their digest, and the message refers to them
//! (the claim-check pattern; the reference is CloudEvents' `dataref` extension).

use super::{Bus, BusError, PublishError, streams::BODIES};
use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use nerve_core::Event;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// The header that refers to a body.
pub(super) const HEADER: &str = "ce-dataref";

const SCHEME: &str = "nats-object:bodies/";

/// What is left of a message's limit for its subject and headers, in bytes.
const HEADROOM: usize = 32 * 1024;

/// The largest body that is put back into an event, in bytes: a bound on what one reference can cost.
const LARGEST: u64 = 64 << 20;

/// How long the next bytes of a body may take.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a body is read again, before its event is given back.
const MAX_READS: u32 = 4;

/// Why a body that an event refers to is not there.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is gone, or never was: nothing brings it back.
    #[error("the event's body is no longer in the Object Store: {0}")]
    Gone(String),
    /// The broker did not hand it over: try again.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Bus {
    /// The largest body that goes into a message, in bytes.
    pub(super) fn largest_body(&self) -> usize {
        self.client.max_payload().saturating_sub(HEADROOM)
    }

    /// Stores a body and returns the reference to it. The same body is stored once.
    pub(super) async fn store_body(&self, body: &Bytes) -> Result<String, PublishError> {
        let unavailable = |error: async_nats::Error| PublishError::Unavailable(error);
        if !self.connected() {
            return Err(unavailable("there is no connection to NATS".into()));
        }
        let digest = HEXLOWER.encode(&Sha256::digest(body));
        let store = self.jetstream.get_object_store(BODIES).await.map_err(|error| unavailable(error.into()))?;
        // A later event starts the body's age anew, so a body that is there is written again all the same.
        let full = |error| match error {
            BusError::Full { full, .. } => unavailable(full.into()),
            error => unavailable(error.into()),
        };
        self.check_room(BODIES, u64::try_from(body.len()).unwrap_or(u64::MAX)).await.map_err(full)?;
        let stored = store.put(digest.as_str(), &mut body.as_ref()).await;
        stored.map_err(|error| full(BusError::of_bucket(BODIES, "storing a large body", error)))?;
        Ok(format!("{SCHEME}{digest}"))
    }

    /// Puts the body that `event` refers to into it; an event with its body aboard is left alone.
    pub async fn restore_body(&self, event: &mut Event) -> Result<(), BodyError> {
        let reference = event.extension(nerve_core::event::DATA_REF).and_then(|text| text.strip_prefix(SCHEME));
        let Some(digest) = reference.map(str::to_owned) else { return Ok(()) };
        let mut tries = 1..=MAX_READS;
        let body = loop {
            match self.read_body(&digest).await {
                // Another event with the same body stores it again, and its old chunks are deleted under whoever reads them.
                Err(BodyError::Bus(error)) if self.connected() && tries.next().is_some() => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a body is read again");
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
        let store = self.jetstream.get_object_store(BODIES).await;
        let store = store.map_err(|error| BusError::unavailable(what(), error))?;
        let mut object = match store.get(digest).await {
            Ok(object) => object,
            Err(error) if error.kind() == async_nats::jetstream::object_store::GetErrorKind::NotFound => {
                return Err(BodyError::Gone(digest.to_owned()));
            }
            Err(error) => return Err(BusError::unavailable(what(), error).into()),
        };
        let size = object.info().size;
        if u64::try_from(size).unwrap_or(u64::MAX) > LARGEST {
            return Err(BodyError::Gone(format!("{digest} is larger than {LARGEST} bytes")));
        }
        let mut body = BytesMut::with_capacity(size);
        loop {
            // A reader whose chunks were deleted would wait for them without end.
            let read = tokio::time::timeout(READ_TIMEOUT, object.read_buf(&mut body)).await;
            let read = read.map_err(|_| BusError::unavailable(what(), "the broker sends no more of it"))?;
            if read.map_err(|error| BusError::unavailable(what(), error))? == 0 {
                break;
            }
        }
        if body.len() != size {
            return Err(BusError::unavailable(what(), "the broker sent a part of it").into());
        }
        Ok(body.freeze())
    }
}
