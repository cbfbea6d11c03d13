//! The lock of a data directory: one `nerve up` per directory.
//!
//! The lock belongs to the open file, which the nats-server child shares as its stdin. The directory stays locked until
//! both processes have exited, so two servers never use the same store.

use crate::failure::Failure;
use nix::{sys::signal::kill, unistd::Pid};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

/// Timeout for the exit of a child whose parent was killed.
const CHILD_EXIT_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A locked data directory.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Locks `data`. The error names the process that holds the lock.
    pub(crate) async fn take(data: &Path) -> Result<Self, Failure> {
        let path = data.join("lock");
        let message = || format!("cannot lock the data directory {}", data.display());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(|error| Failure::new(message()).because(error))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(Failure::new(message()).because(error)),
                Err(TryLockError::WouldBlock) => {
                    let holder = holder(&mut file);
                    if started.elapsed() > CHILD_EXIT_TIMEOUT || holder.is_some_and(is_alive) {
                        return Err(in_use(data, holder));
                    }
                }
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| {
            writeln!(file, "{}", std::process::id())?;
            file.flush()
        });
        written.map_err(|error| Failure::new(message()).because(error))?;
        Ok(Self(file))
    }

    /// Returns a descriptor with which another process shares the lock.
    pub(crate) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }

    /// Returns a stdin with which a child shares the lock.
    pub(crate) fn share(&self) -> std::io::Result<Stdio> {
        self.0.try_clone().map(Stdio::from)
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn in_use(data: &Path, holder: Option<u32>) -> Failure {
    let process = holder.map_or("another process".to_owned(), |pid| format!("process {pid}"));
    let stop = holder.map_or("stop it".to_owned(), |pid| format!("stop it (kill {pid})"));
    Failure::new(format!("the data directory {} is in use", data.display()))
        .cause(format!("{process} is running `nerve up` on it"))
        .next(format!("use that one, {stop}, or use another directory: nerve up --data DIR"))
}

/// Whether a process with this id exists.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    // EPERM: the process exists and belongs to another user.
    !matches!(kill(Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lock_error_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).await.unwrap();
        let error = anyhow::Error::from(Lock::take(folder.path()).await.unwrap_err());
        let text = format!("{error:#}");
        assert!(text.contains("in use") && text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        Lock::take(folder.path()).await.unwrap();
    }

    #[tokio::test]
    async fn child_that_outlives_its_parent_keeps_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).await.unwrap();
        let mut child = tokio::process::Command::new("sleep").arg("60").stdin(lock.share().unwrap()).spawn().unwrap();
        drop(lock);
        // The process id in the file is alive, so the lock fails without a wait.
        assert!(Lock::take(folder.path()).await.is_err());
        child.kill().await.unwrap();
        Lock::take(folder.path()).await.unwrap();
    }

    #[test]
    fn current_process_is_alive_and_the_largest_id_is_not() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(0x7fff_fffe));
    }
}
