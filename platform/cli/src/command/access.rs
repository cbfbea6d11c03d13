//! `nerve access`

use super::nats::User;
use crate::{
    args::{DataFolder, Globals},
    broker,
    endpoint::find_nats,
    failure::Failure,
    settings,
};
use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use nerve_broker::{NatsSettings, roles::Role};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use std::{path::Path, time::Duration};

/// How long the nats-server may take to come back, with a large store.
const RESTART_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// Who may use the nats-server of `nerve up`.
#[derive(Debug, Subcommand)]
pub(crate) enum Access {
    Rotate(Rotate),
}

/// Make new credentials, and refuse the old ones
#[derive(Debug, Args)]
#[command(after_help = "\
The nats-server is restarted, within a second: `nerve up` and its clients connect again by themselves.
Programs that hold a copy of the old credentials are refused from then on: give them the new ones.

Examples:
  nerve access rotate app
  nerve access rotate")]
pub(crate) struct Rotate {
    /// Whose credentials [default: all]
    #[arg(value_enum, value_name = "ROLE")]
    roles: Vec<User>,
    #[command(flatten)]
    folder: DataFolder,
}

impl Access {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Rotate(rotate) => rotate.run(globals).await,
        }
    }
}

impl Rotate {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = settings::load(None, globals, self.folder.data.as_deref())?;
        let data = &config.data.dir;
        if !broker::access::folder(data).is_dir() {
            let thing = format!("there are no credentials in {}", data.display());
            let next = "name the data folder of a `nerve up` that has a nats-server of its own: --data DIR";
            return Err(Failure::new(thing).next(next).into());
        }
        let users = if self.roles.is_empty() { User::value_variants().to_vec() } else { self.roles };
        let roles: Vec<Role> = users.into_iter().map(User::role).collect();
        broker::access::rotate(data, &roles)?;
        let running = broker::running(data);
        let restarted = running.is_some();
        if let Some(pid) = running {
            restart(pid, data).await?;
        }
        let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
        globals.output.show(&json!({"rotated": names, "restarted": restarted}), |_| {
            let when = if restarted { "now" } else { "from the next start of `nerve up` on" };
            format!("new credentials for {}; the old ones are refused {when}", names.join(", "))
        })
    }
}

/// Ends the nats-server, which its `nerve up` starts again, and waits until it takes the new credentials.
async fn restart(pid: Pid, data: &Path) -> anyhow::Result<()> {
    kill(pid, Signal::SIGTERM).with_context(|| format!("cannot stop nats-server (process {pid})"))?;
    let back = async {
        while broker::running(data).is_none_or(|now| now == pid) {
            tokio::time::sleep(POLL).await;
        }
        let nats = find_nats(NatsSettings::default(), data, Role::Operator)?;
        while nats.connect("nerve-cli").await.is_err() {
            tokio::time::sleep(POLL).await;
        }
        Ok::<_, Failure>(())
    };
    match tokio::time::timeout(RESTART_TIMEOUT, back).await {
        Ok(back) => Ok(back?),
        Err(_) => {
            let next = "read nats-server.log in the data folder, and start `nerve up` again";
            Err(Failure::new("nats-server did not come back with the new credentials").next(next).into())
        }
    }
}
