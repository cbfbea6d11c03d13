//! Consumers that are opened again after an error.

use super::REOPEN_INTERVAL;
use nerve_broker::bus::BusError;
use tokio_util::sync::CancellationToken;

/// Runs `consume` until it ends without an error, or until `stop`. After an error it calls `failed`, pauses, and runs it again.
pub(super) async fn reopen_until<C, F>(
    stop: &CancellationToken,
    consume: impl Fn() -> C,
    failed: impl Fn(BusError) -> F,
) where
    C: Future<Output = Result<(), BusError>>,
    F: Future<Output = ()>,
{
    while !stop.is_cancelled() {
        let Err(error) = consume().await else { return };
        failed(error).await;
        stop.run_until_cancelled(tokio::time::sleep(REOPEN_INTERVAL)).await;
    }
}
