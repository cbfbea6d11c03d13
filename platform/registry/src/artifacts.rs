//! RecordChange files: upload to the Object Store and download to a worker's disk, by digest.

use super::{ArtifactRef, Registry};
use data_encoding::HEXLOWER;
use nerve_broker::bus::{ARTIFACTS, BusError, Objects};
use nerve_core::function::Artifact;
use sha2::{Digest, Sha256};
use std::{
    io::Read,
    path::{Path, PathBuf},
};
use tokio::io::AsyncWriteExt;
use tokio_util::io::InspectReader;

/// Bytes per read while a file is hashed.
const READ_CHUNK_BYTES: usize = 1 << 20;

impl ArtifactRef {
    /// Hashes a file of any size. `name` is its name in the deployment.
    ///
    /// # Errors
    /// The I/O error if the file cannot be read.
    pub async fn of_file(name: &str, path: &Path) -> std::io::Result<Self> {
        let (name, path) = (name.to_owned(), path.to_owned());
        let hashed = tokio::task::spawn_blocking(move || {
            let mut file = nerve_files::open(&path)?;
            let (mut digest, mut size, mut buffer) = (Sha256::new(), 0, vec![0; READ_CHUNK_BYTES]);
            loop {
                let length = file.read(&mut buffer)?;
                let Some(read) = buffer.get(..length).filter(|read| !read.is_empty()) else { break };
                digest.update(read);
                size += u64::try_from(length).unwrap_or_default();
            }
            Ok(Self { name, sha256: HEXLOWER.encode(&digest.finalize()), size })
        });
        hashed.await.map_err(std::io::Error::other)?
    }
}

impl Registry {
    /// Stores a file, unless it is already stored. `name` is its name in the manifest.
    ///
    /// # Errors
    /// The broker is unavailable, or the store is full.
    pub async fn upload(&self, name: &str, content: &[u8]) -> Result<ArtifactRef, BusError> {
        let what = || format!("uploading {name}");
        let sha256 = HEXLOWER.encode(&Sha256::digest(content));
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let reference = ArtifactRef { name: name.to_owned(), sha256, size };
        let store = self.object_store().await?;
        if is_stored(&store, &reference).await? {
            return Ok(reference);
        }
        self.bus.check_room(ARTIFACTS, size).await?;
        let mut reader = content;
        store.put(&reference.sha256, &mut reader, what()).await?;
        Ok(reference)
    }

    /// Whether a file is already stored.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn is_uploaded(&self, reference: &ArtifactRef) -> Result<bool, BusError> {
        is_stored(&self.object_store().await?, reference).await
    }

    /// Streams the file at `path` to the store, unless it is already stored.
    ///
    /// # Errors
    /// The file cannot be read or changed meanwhile, the broker is unavailable, or the store is full.
    pub async fn upload_file(&self, reference: &ArtifactRef, path: &Path) -> Result<(), BusError> {
        let what = || format!("uploading {}", path.display());
        let store = self.object_store().await?;
        if is_stored(&store, reference).await? {
            return Ok(());
        }
        self.bus.check_room(ARTIFACTS, reference.size).await?;
        let file = nerve_files::open(path).map_err(|error| BusError::refused(what(), error))?;
        let mut digest = Sha256::new();
        let mut reader = InspectReader::new(tokio::fs::File::from_std(file), |bytes| digest.update(bytes));
        store.put(&reference.sha256, &mut reader, what()).await?;
        drop(reader);
        if HEXLOWER.encode(&digest.finalize()) != reference.sha256 {
            // Its digest would fail at every download.
            self.delete_artifact(&reference.sha256).await?;
            return Err(BusError::refused(what(), "the file changed while it was read: try again"));
        }
        Ok(())
    }

    /// Deletes a file from the Object Store, if it exists.
    pub(super) async fn delete_artifact(&self, sha256: &str) -> Result<(), BusError> {
        self.object_store().await?.delete(sha256, format!("deleting the file {sha256}")).await
    }

    /// Downloads a file to `folder`, unless it exists, and checks its digest. Downloads run one at a time, and concurrent requests
    /// for a file share one download.
    ///
    /// # Errors
    /// The broker is unavailable, the digest is wrong, or the file cannot be written.
    pub async fn fetch(&self, reference: &ArtifactRef, folder: &Path) -> Result<Artifact, BusError> {
        let file = folder.join(&reference.sha256);
        let artifact = Artifact { name: reference.name.clone(), sha256: reference.sha256.clone(), file: file.clone() };
        let _guard = self.fetching.lock().await;
        // A file is renamed to this path after its digest has been checked, so an existing one is complete.
        if tokio::fs::try_exists(&file).await.unwrap_or(false) {
            return Ok(artifact);
        }
        let temporary = folder.join(format!("{}.{}", reference.sha256, uuid::Uuid::now_v7()));
        let fetched = self.fetch_to(reference, &temporary).await;
        let placed = match fetched {
            Ok(()) => tokio::fs::rename(&temporary, &file).await.map_err(|error| local(&file, error)),
            Err(error) => Err(error),
        };
        if placed.is_err() {
            tokio::fs::remove_file(&temporary).await.ok();
        }
        placed.map(|()| artifact)
    }

    async fn fetch_to(&self, reference: &ArtifactRef, path: &PathBuf) -> Result<(), BusError> {
        let what = || format!("fetching {}", reference.name);
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(|error| local(folder, error))?;
        }
        let object = self.object_store().await?.get(&reference.sha256, what()).await?;
        let mut digest = Sha256::new();
        let mut reader = InspectReader::new(object, |bytes| digest.update(bytes));
        let mut file = tokio::fs::File::create(path).await.map_err(|error| local(path, error))?;
        tokio::io::copy(&mut reader, &mut file).await.map_err(|error| BusError::unavailable(what(), error))?;
        file.flush().await.map_err(|error| local(path, error))?;
        file.sync_all().await.map_err(|error| local(path, error))?;
        drop(reader);
        if HEXLOWER.encode(&digest.finalize()) != reference.sha256 {
            return Err(BusError::unavailable(what(), "the downloaded file has another digest"));
        }
        Ok(())
    }

    async fn object_store(&self) -> Result<Objects, BusError> {
        self.bus.object_store(ARTIFACTS).await
    }
}

async fn is_stored(store: &Objects, reference: &ArtifactRef) -> Result<bool, BusError> {
    let size = store.size(&reference.sha256, format!("uploading {}", reference.name)).await?;
    Ok(size == Some(reference.size))
}

fn local(path: &Path, error: std::io::Error) -> BusError {
    BusError::unavailable(format!("writing {}", path.display()), error)
}
