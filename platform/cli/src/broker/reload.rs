//! Reloads the trusted keys of the running nats-server of `nerve up`.

use super::{access, running};
use crate::{endpoint::find_nats, failure::Failure};
use anyhow::{Context, bail};
use nerve_broker::{NatsSettings, connection::REQUEST_TIMEOUT, roles::Role};
use serde::Deserialize;
use std::{path::Path, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Timeout of a reload; a server with a large store may still be starting.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The server's response.
#[derive(Debug, Deserialize)]
struct ReloadResponse {
    error: Option<ServerError>,
}

#[derive(Debug, Deserialize)]
struct ServerError {
    description: String,
}

/// Reloads `trust.conf` in the server on `data`, which closes the connections of revoked users. Returns `false` if no
/// server runs; it reads the file at its start.
pub(crate) async fn apply(data: &Path) -> anyhow::Result<bool> {
    let started = Instant::now();
    loop {
        if running(data).is_none() {
            return Ok(false);
        }
        let reloaded = async {
            let nats = find_nats(NatsSettings::default(), data, Role::Operator)?;
            reload(nats, &access::folder(data)).await
        };
        match reloaded.await {
            Ok(()) => return Ok(true),
            Err(error) if started.elapsed() >= APPLY_TIMEOUT => {
                let thing = "the running nats-server was not reloaded: the change applies after its next start";
                return Err(Failure::new(thing).because(error).next("start `nerve up` again").into());
            }
            Err(_) => sleep(POLL_INTERVAL).await,
        }
    }
}

/// Reloads the server with these connection settings.
pub(super) async fn reload(nats: NatsSettings, folder: &Path) -> anyhow::Result<()> {
    let (nats, _credentials) = access::system(nats, folder)?;
    let client = nats.connect("nerve access").await?.client;
    let subject = format!("$SYS.REQ.SERVER.{}.RELOAD", client.server_info().server_id);
    let response = timeout(REQUEST_TIMEOUT, client.request(subject, "{}".into())).await;
    let response =
        response.context("nats-server does not respond")?.context("cannot send the request to nats-server")?;
    let response: ReloadResponse =
        serde_json::from_slice(&response.payload).context("unexpected response of nats-server")?;
    match response.error {
        None => Ok(()),
        Some(error) => bail!("nats-server rejected the new configuration: {}", error.description),
    }
}
