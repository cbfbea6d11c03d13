//! Has the nats-server of `nerve up` read again whom it trusts, while it runs.

use super::{access, running};
use crate::{endpoint::find_nats, failure::Failure};
use anyhow::{Context, bail};
use nerve_broker::{NatsSettings, connection::REQUEST_TIMEOUT, roles::Role};
use serde::Deserialize;
use std::{path::Path, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// How long a server that has just started may take until it can be asked, with a large store.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// What the server answers.
#[derive(Debug, Deserialize)]
struct Reloaded {
    error: Option<ServerError>,
}

#[derive(Debug, Deserialize)]
struct ServerError {
    description: String,
}

/// Has the server on `data` read `trust.conf` again, which closes the connections of users that it refuses; `false` where none runs,
/// which then reads it at its start.
pub(crate) async fn apply(data: &Path) -> anyhow::Result<bool> {
    let started = Instant::now();
    loop {
        if running(data).is_none() {
            return Ok(false);
        }
        let asked = async {
            let nats = find_nats(NatsSettings::default(), data, Role::Operator)?;
            reload(nats, &access::folder(data)).await
        };
        match asked.await {
            Ok(()) => return Ok(true),
            Err(error) if started.elapsed() >= APPLY_TIMEOUT => {
                let thing = "the running nats-server has not read what was changed: it applies from its next start on";
                return Err(Failure::new(thing).because(error).next("start `nerve up` again").into());
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

/// The same by the way to the server.
pub(super) async fn reload(nats: NatsSettings, folder: &Path) -> anyhow::Result<()> {
    let (nats, _credentials) = access::system(nats, folder)?;
    let client = nats.connect("nerve access").await?.client;
    let subject = format!("$SYS.REQ.SERVER.{}.RELOAD", client.server_info().server_id);
    let answer = timeout(REQUEST_TIMEOUT, client.request(subject, "{}".into())).await;
    let answer = answer.context("nats-server does not answer")?.context("nats-server is not asked")?;
    let answer: Reloaded = serde_json::from_slice(&answer.payload).context("nats-server answers something else")?;
    match answer.error {
        None => Ok(()),
        Some(error) => bail!("nats-server refuses the new configuration: {}", error.description),
    }
}
