//! Eviction of downloaded files that no deployed resource uses.

use super::Catalogue;
use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Minimum age of an evicted file, and the interval of sweeps. Another process that shares the folder may still use a younger one.
const MIN_FILE_AGE: Duration = Duration::from_secs(3600);

/// Removes unused files from `folder` until `stop`: at each change those that it makes unused, and at the start and every hour all
/// others, such as those of an earlier run.
pub async fn evict(folder: PathBuf, mut catalogue: watch::Receiver<Arc<Catalogue>>, stop: CancellationToken) {
    let mut named = catalogue.borrow_and_update().digests();
    let mut sweeps = tokio::time::interval(MIN_FILE_AGE);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = sweeps.tick() => {
                if let Err(error) = sweep(&folder, &named, MIN_FILE_AGE).await {
                    tracing::warn!(folder = %folder.display(), %error, "cannot sweep unused files");
                }
            }
            changed = catalogue.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = catalogue.borrow_and_update().digests();
                for digest in named.difference(&now) {
                    // A file that has been deployed again meanwhile is in use.
                    if !catalogue.borrow().digests().contains(digest) {
                        remove(&folder.join(digest)).await;
                    }
                }
                named = now;
            }
        }
    }
}

/// Removes files in `folder` that are older than `age` and not in `named`, including unfinished downloads.
async fn sweep(folder: &Path, named: &BTreeSet<String>, age: Duration) -> io::Result<()> {
    let mut entries = match tokio::fs::read_dir(folder).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    while let Some(entry) = entries.next_entry().await? {
        let metadata = entry.metadata().await?;
        let is_named = entry.file_name().to_str().is_some_and(|name| named.contains(name));
        let old = SystemTime::now().duration_since(metadata.modified()?).is_ok_and(|passed| passed >= age);
        if metadata.is_file() && !is_named && old {
            remove(&entry.path()).await;
        }
    }
    Ok(())
}

async fn remove(file: &Path) {
    match tokio::fs::remove_file(file).await {
        Ok(()) => tracing::debug!(file = %file.display(), "unused file removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(file = %file.display(), %error, "unused file cannot be removed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArtifactRef, Entry, ModelInfo, ModelRecord};
    use nerve_core::ModelName;
    use tokio_util::task::TaskTracker;

    fn catalogue(digests: &[&str]) -> Arc<Catalogue> {
        let file = |digest: &&str| ArtifactRef { name: "x".into(), sha256: (*digest).into(), size: 1 };
        let description = ModelInfo { task: "embed".into(), ..ModelInfo::default() };
        let record = ModelRecord::new(digests.iter().map(file).collect(), description);
        let name = ModelName::parse("m").unwrap();
        let mut catalogue = Catalogue::default();
        catalogue.models.insert(name.clone(), Entry { name, revision: 1, record });
        Arc::new(catalogue)
    }

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn sweep_removes_old_unused_files() {
        let here = folder(&["a", "b", "b.unfinished"]);
        std::fs::create_dir(here.path().join("folder")).unwrap();
        let named = BTreeSet::from(["a".to_owned()]);
        sweep(here.path(), &named, MIN_FILE_AGE).await.unwrap();
        assert_eq!(names(here.path()).len(), 4, "all files are young");
        sweep(here.path(), &named, Duration::ZERO).await.unwrap();
        assert_eq!(names(here.path()), ["a", "folder"]);
        sweep(&here.path().join("none"), &named, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn change_removes_files_that_it_makes_unused() {
        let here = folder(&["a", "b", "stranger"]);
        let (sender, receiver) = watch::channel(catalogue(&["a", "b"]));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(evict(here.path().to_owned(), receiver, stop.clone()));
        tasks.close();
        // The task must see the first state before it can compare.
        tokio::time::sleep(Duration::from_millis(50)).await;
        sender.send_replace(catalogue(&["b"]));
        let cleared = async {
            while names(here.path()) != ["b", "stranger"] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), cleared).await.unwrap();
        stop.cancel();
        tasks.wait().await;
    }
}
