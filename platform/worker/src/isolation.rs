//! Isolation: an event that was in flight when a worker died runs while nothing else does.
//!
//! A crash takes down everything that a worker runs, and nobody knows which event it was. So what was in flight runs alone, one
//! event at a time, and only an event that ran alone pays for a crash.

use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// How long an event waits for the others to end; meanwhile none begins.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// What a worker runs at once: many invocations, or one alone.
#[derive(Debug, Clone, Default)]
pub(super) struct Isolation(Arc<RwLock<()>>);

impl Isolation {
    /// Waits until no event runs alone, and keeps any from it.
    pub(super) async fn share(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.0).read_owned().await
    }

    /// Waits until nothing runs, and keeps anything from it; `None` where something runs for too long.
    pub(super) async fn alone(&self) -> Option<OwnedRwLockWriteGuard<()>> {
        tokio::time::timeout(MAX_WAIT, Arc::clone(&self.0).write_owned()).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_event_runs_alone_or_not_at_all() {
        let isolation = Isolation::default();
        let shared = isolation.share().await;
        assert!(isolation.alone().await.is_none(), "another one runs");
        drop(shared);
        let alone = isolation.alone().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(60), isolation.share()).await.is_err());
        drop(alone);
        drop(isolation.share().await);
    }
}
