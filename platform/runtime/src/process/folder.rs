//! Working folders: each load of a function has its own, which is removed with that load.
//!
//! The folder of a load is inside that of its host, which the host keeps locked while it has functions. The
//! kernel releases the lock of a killed host, so the next host can identify unused folders.

use nerve_core::{Deployment, LoadError};
use std::{
    fs::{File, OpenOptions},
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// The name of the lock files: one shared by all hosts, and one per host in its own folder.
const LOCK: &str = "lock";

/// The folders of one host.
pub(super) struct Folders {
    work_dir: PathBuf,
    /// Created on first use.
    host: OnceCell<Arc<HostFolder>>,
}

/// The folder of one host. The lock is released after the folder is removed.
struct HostFolder {
    dir: TempDir,
    _lock: File,
}

/// The folder of one load.
pub(super) struct Folder {
    dir: TempDir,
    _host: Arc<HostFolder>,
}

impl Folders {
    /// Prepares `work_dir`: removes the folders of killed hosts.
    pub(super) fn open(work_dir: PathBuf) -> Self {
        if work_dir.exists()
            && let Err(error) = remove_leftovers(&work_dir)
        {
            tracing::warn!(folder = %work_dir.display(), %error, "folders of earlier processes cannot be removed");
        }
        Self { work_dir, host: OnceCell::new() }
    }

    /// Creates the folder of a load, with the deployed files in it.
    pub(super) async fn make(&self, deployment: &Deployment) -> Result<Folder, LoadError> {
        let host = self.host.get_or_try_init(|| async {
            let work_dir = self.work_dir.clone();
            blocking(move || HostFolder::make(&work_dir)).await.map(Arc::new)
        });
        let failed = |error| {
            let what = format!("a working folder could not be made in {}", self.work_dir.display());
            LoadError::failed(what, error)
        };
        let host = host.await.map_err(failed)?.clone();
        let prefix = format!("{}-{}-", deployment.name, deployment.revision);
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(host.dir.path()).map_err(failed)?;
        let folder = Folder { dir, _host: host };
        folder.lay_out(deployment).await?;
        Ok(folder)
    }
}

impl HostFolder {
    fn make(work_dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(work_dir)?;
        // A host that cleans up would treat a folder without its lock as unused.
        let _all = lock(work_dir)?;
        let dir = tempfile::Builder::new().prefix("host-").tempdir_in(work_dir)?;
        let lock = lock(dir.path())?;
        Ok(Self { dir, _lock: lock })
    }
}

impl Folder {
    /// Its path.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Restores the deployed files if the folder was removed.
    pub(super) async fn restore(&self, deployment: &Deployment) -> Result<(), LoadError> {
        if self.path().is_dir() { Ok(()) } else { self.lay_out(deployment).await }
    }

    /// Copies the artifacts to their names, so that changes by a process do not affect others.
    async fn lay_out(&self, deployment: &Deployment) -> Result<(), LoadError> {
        let home = self.path();
        let failed = |error| LoadError::failed(format!("the folder {} could not be laid out", home.display()), error);
        tokio::fs::create_dir_all(home).await.map_err(failed)?;
        for artifact in &deployment.artifacts {
            let name = Path::new(&artifact.name);
            if artifact.name.is_empty() || !name.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(LoadError::Invalid(format!(
                    "`{}` is not a path inside the function's folder; deploy files beside nerve.toml",
                    artifact.name
                )));
            }
            let target = home.join(name);
            if let Some(parent) = target.parent() {
                tokio::fs::create_dir_all(parent).await.map_err(failed)?;
            }
            tokio::fs::copy(&artifact.file, &target).await.map_err(failed)?;
            // A deployed program must be executable, and its folder removable.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            tokio::fs::set_permissions(&target, mode).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Removes the folder with all files of the process.
    pub(super) async fn remove(self) {
        let path = self.path().to_owned();
        if let Err(error) = blocking(move || self.dir.close()).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %path.display(), %error, "the folder of a process that has ended cannot be removed");
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Holds the lock of a folder until the file is dropped.
fn lock(folder: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join(LOCK))?;
    file.lock()?;
    Ok(file)
}

/// Removes every folder in `work_dir` that no running host has locked.
fn remove_leftovers(work_dir: &Path) -> io::Result<()> {
    let _all = lock(work_dir)?;
    for entry in std::fs::read_dir(work_dir)? {
        let entry = entry?;
        let folder = entry.path();
        if !entry.file_type()?.is_dir() || is_held(&folder) {
            continue;
        }
        if let Err(error) = std::fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %folder.display(), %error, "the folder of an earlier process cannot be removed");
        }
    }
    Ok(())
}

/// Returns whether a running host uses this folder. One without a lock is from a version with another layout.
fn is_held(folder: &Path) -> bool {
    match OpenOptions::new().write(true).open(folder.join(LOCK)) {
        Ok(lock) => lock.try_lock().is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}
