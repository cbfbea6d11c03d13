//! SIGTERM and SIGINT: the first starts a graceful shutdown, the second ends it.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals that stop a server.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Replaces the default handlers, which would end the process.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Cancels `shutdown` at the first signal and returns at the second.
    pub(crate) async fn until_second(mut self, shutdown: &CancellationToken) {
        self.next().await;
        tracing::info!("shutting down gracefully; a second signal stops immediately");
        shutdown.cancel();
        self.next().await;
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
