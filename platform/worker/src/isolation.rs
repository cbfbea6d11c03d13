//! Isolation: an event that was in flight when a worker crashed is rerun alone.
//!
//! A crash ends all events of a worker, and its cause among them is unknown. So the events in flight are rerun alone, one
//! at a time, and a crash counts as a failed attempt only for an event that ran alone.

use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Maximum wait of an event for the others to end. Meanwhile no other event starts.
const EXCLUSIVE_RUN_TIMEOUT: Duration = Duration::from_secs(2);

/// A lock for running many invocations concurrently, or one alone.
#[derive(Debug, Clone, Default)]
pub(super) struct Isolation(Arc<RwLock<()>>);

impl Isolation {
    /// Waits until no event runs alone. No event can run alone while the guard is held.
    pub(super) async fn share(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.0).read_owned().await
    }

    /// Waits until no event runs. No other event can run while the guard is held. Returns `None` after
    /// [`EXCLUSIVE_RUN_TIMEOUT`].
    pub(super) async fn alone(&self) -> Option<OwnedRwLockWriteGuard<()>> {
        tokio::time::timeout(EXCLUSIVE_RUN_TIMEOUT, Arc::clone(&self.0).write_owned()).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn exclusive_run_waits_for_others_and_blocks_them() {
        let isolation = Isolation::default();
        let shared = isolation.share().await;
        assert!(isolation.alone().await.is_none(), "another event runs");
        drop(shared);
        let alone = isolation.alone().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(60), isolation.share()).await.is_err());
        drop(alone);
        drop(isolation.share().await);
    }
}
