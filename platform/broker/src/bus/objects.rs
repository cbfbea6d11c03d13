//! Object stores, for crates that do not name the NATS client.

use super::error::ResultExt as _;
use super::{Bus, BusError};
use async_nats::jetstream::object_store::{DeleteErrorKind, InfoErrorKind, ObjectStore};
use tokio::io::AsyncRead;

/// An object store; cheap to clone.
///
/// Each method accepts the name of the operation (`"uploading model.onnx"`), which begins the error message.
#[derive(Clone)]
pub struct Objects {
    name: &'static str,
    store: ObjectStore,
}

impl Bus {
    /// Opens an object store, which [`Bus::provision`] creates.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached or has no such store.
    pub async fn object_store(&self, name: &'static str) -> Result<Objects, BusError> {
        let store =
            self.jetstream.get_object_store(name).await.unavailable(|| format!("opening the object store {name}"))?;
        Ok(Objects { name, store })
    }
}

impl Objects {
    /// The size of an object in bytes; `None` if there is none.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn size(&self, object: &str, what: impl Into<String>) -> Result<Option<u64>, BusError> {
        match self.store.info(object).await {
            // A deleted object leaves a record of size 0, which is not an empty object.
            Ok(info) if info.deleted => Ok(None),
            Ok(info) => Ok(u64::try_from(info.size).ok()),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(BusError::unavailable(what, error)),
        }
    }

    /// Stores the bytes of `content`.
    ///
    /// # Errors
    /// [`BusError::Full`] if the store is full, [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn put(
        &self,
        object: &str,
        content: &mut (impl AsyncRead + Unpin),
        what: impl Into<String>,
    ) -> Result<(), BusError> {
        let stored = self.store.put(object, content).await;
        stored.map(drop).map_err(|error| BusError::of_bucket(self.name, what, error))
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached or has no such object.
    pub async fn get(&self, object: &str, what: String) -> Result<impl AsyncRead + Unpin + Send + use<>, BusError> {
        self.store.get(object).await.unavailable(|| what)
    }

    /// Deletes an object if it exists.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn delete(&self, object: &str, what: impl Into<String>) -> Result<(), BusError> {
        match self.store.delete(object).await {
            Err(error) if error.kind() != DeleteErrorKind::NotFound => Err(BusError::unavailable(what, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
