//! One `nerve up` a data folder.
//!
//! The lock is on the open file, and the nats-server child holds the same file open (as its stdin): the folder
//! stays locked until the last of both has gone, so a new server never meets an old one on the same store.

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

/// How long a child may take to follow its parent, which was killed.
const CHILD_ENDS: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);

/// The data folder, held by this process.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes `data`, or says who holds it.
    pub(crate) async fn take(data: &Path) -> Result<Self, Failure> {
        let path = data.join("lock");
        let broken = || format!("cannot lock the data folder {}", data.display());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(|error| Failure::new(broken()).because(error))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(Failure::new(broken()).because(error)),
                Err(TryLockError::WouldBlock) => {
                    let holder = holder(&mut file);
                    if started.elapsed() > CHILD_ENDS || holder.is_some_and(is_alive) {
                        return Err(held(data, holder));
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| {
            writeln!(file, "{}", std::process::id())?;
            file.flush()
        });
        written.map_err(|error| Failure::new(broken()).because(error))?;
        Ok(Self(file))
    }

    /// The lock for another process, which then holds it as well.
    pub(crate) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }

    /// The lock as the stdin of a child, which then holds it as well.
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

fn held(data: &Path, holder: Option<u32>) -> Failure {
    let who = holder.map_or("another process".to_owned(), |pid| format!("process {pid}"));
    let stop = holder.map_or("stop it".to_owned(), |pid| format!("stop it (kill {pid})"));
    Failure::new(format!("the data folder {} is in use", data.display()))
        .cause(format!("{who} is running `nerve up` on it"))
        .next(format!("use that one, {stop}, or give this one another folder: nerve up --data DIR"))
}

/// Whether a process of that id exists.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    // Not permitted to signal it: it is somebody else's, so it is there.
    !matches!(kill(Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_is_told_who_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).await.unwrap();
        let error = anyhow::Error::from(Lock::take(folder.path()).await.unwrap_err());
        let text = format!("{error:#}");
        assert!(text.contains("in use") && text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        Lock::take(folder.path()).await.unwrap();
    }

    #[tokio::test]
    async fn a_child_that_outlives_its_parent_keeps_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).await.unwrap();
        let mut child = tokio::process::Command::new("sleep").arg("60").stdin(lock.share().unwrap()).spawn().unwrap();
        drop(lock);
        // The pid in the file is this process's, which lives: refused at once.
        assert!(Lock::take(folder.path()).await.is_err());
        child.kill().await.unwrap();
        Lock::take(folder.path()).await.unwrap();
    }

    #[test]
    fn this_process_is_alive_and_the_largest_id_is_not() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(0x7fff_fffe));
    }
}
