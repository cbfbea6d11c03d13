//! The way of a command to NATS.

use crate::{
    args::{DataFolder, Globals},
    endpoint::find_nats,
    failure::Failure,
    joined::{self, Joined},
    settings,
};
use nerve_broker::bus::Bus;
use nerve_broker::{ConnectError, NatsSettings, Violation, roles::Role};
use nerve_config::Config;
use nerve_registry::Registry;
use std::{borrow::Cow, path::Path, time::Duration};
use tokio::sync::watch;

/// How long a command may go on after the server has refused an act of it: it may be one that it does without.
const REFUSED_GRACE: Duration = Duration::from_millis(300);

/// A connection, and the settings it was made with.
pub(crate) struct Connection {
    /// The bus.
    pub(crate) bus: Bus,
    /// The settings.
    pub(crate) config: Config,
}

impl Connection {
    /// Finds NATS and connects.
    pub(crate) async fn open(globals: &Globals, folder: &DataFolder) -> Result<Self, Failure> {
        let mut config = settings::load(None, globals, folder.data.as_deref())?;
        config.nats = find_nats(config.nats, &config.data.dir, Role::Operator)?;
        let connected = config.nats.connect("nerve-cli").await.map_err(unconnected)?;
        globals.refusals.follow(connected.violations.clone(), next_without_rights(&config.nats, &config.data.dir));
        Ok(Self { bus: Bus::over(connected, &config.nats), config })
    }

    /// What is deployed there.
    pub(crate) async fn registry(&self) -> Result<Registry, Failure> {
        Registry::open(&self.bus, self.config.worker.ack_wait).await.map_err(|error| {
            let next = "start `nerve up`, or a gateway or worker, on this NATS once: they make what is needed";
            Failure::new("cannot read what is deployed").because(error).next(next)
        })
    }
}

/// What the server refuses to let this command do: it answers no such request, which would otherwise only time out.
#[derive(Debug)]
pub(crate) struct Refusals {
    followed: watch::Sender<Option<Followed>>,
}

/// A connection, and what helps where its credentials lack rights.
#[derive(Debug, Clone)]
struct Followed {
    violations: watch::Receiver<Option<Violation>>,
    next: String,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { followed: watch::channel(None).0 }
    }
}

impl Refusals {
    fn follow(&self, violations: watch::Receiver<Option<Violation>>, next: String) {
        self.followed.send_replace(Some(Followed { violations, next }));
    }

    /// The first act that is refused; waits for it without end.
    pub(crate) async fn first(&self) -> Failure {
        let mut followed = self.followed.subscribe();
        let Ok(Some(Followed { mut violations, next })) = followed.wait_for(Option::is_some).await.as_deref().cloned()
        else {
            return std::future::pending().await;
        };
        let Ok(Some(violation)) = violations.wait_for(Option::is_some).await.as_deref().cloned() else {
            return std::future::pending().await;
        };
        tokio::time::sleep(REFUSED_GRACE).await;
        Failure::new(violation.to_string()).cause(violation.said).next(next)
    }
}

/// What helps where the credentials lack rights.
fn next_without_rights(nats: &NatsSettings, data: &Path) -> String {
    let joined = Joined::is_in(data) && nats.creds.as_deref() == Some(&joined::credentials_file(data));
    match Joined::read(data).ok().filter(|_| joined) {
        Some(machine) => {
            format!("this machine joined as {}, and may not do that: run it on the machine of `nerve up`", machine.role)
        }
        None => "name credentials that may do it: --creds FILE; those of the operator of a `nerve up` are found by \
                 its data folder: --data DIR"
            .to_owned(),
    }
}

/// Why there is no connection, and what to do.
pub(crate) fn unconnected(error: ConnectError) -> Failure {
    let thing = error.to_string();
    let next = next_step(&error);
    let failure = Failure::new(thing).next(next);
    match error {
        ConnectError::Unreachable { source, .. }
        | ConnectError::Refused { source, .. }
        | ConnectError::Plain { source, .. }
        | ConnectError::Tls { source, .. } => failure.because(anyhow::Error::from_boxed(source)),
        ConnectError::Settings(error) => failure.because(error),
        ConnectError::TooOld { .. } | ConnectError::WithoutJetStream { .. } => failure,
    }
}

/// What helps against an error of the connection.
pub(crate) fn next_step(error: &ConnectError) -> Cow<'static, str> {
    let step = match error {
        ConnectError::Unreachable { .. } => {
            "check the address, and that nats-server runs there with JetStream; `nerve up` starts one"
        }
        ConnectError::Refused { creds: Some(file), .. } if joined::is_credentials_file(file) => {
            "the access of this machine was revoked or replaced: make a new token with `nerve access token` on the machine\n\
             of `nerve up`, and join again with `nerve join`"
        }
        ConnectError::Refused { creds: Some(file), .. } => {
            return format!(
                "check that {} is of this NATS, and of a user whom it still accepts;\n\
                 those of a `nerve up` are found by its data folder: --data DIR",
                file.display()
            )
            .into();
        }
        ConnectError::Refused { .. } => {
            "name the credentials that the server asks for: --creds FILE or another option, or nats.user, nats.token,\n\
             nats.nkey or nats.creds in the settings; those of a `nerve up` are found by its data folder: --data DIR"
        }
        ConnectError::Plain { .. } => "write nats:// instead of tls://, or name the port where it speaks TLS",
        ConnectError::WithoutJetStream { .. } => {
            "start it with `-js`, or with a `jetstream` block in its configuration"
        }
        ConnectError::Tls { .. } => "name the CA of the server's certificate with --nats-tls-ca FILE",
        ConnectError::TooOld { .. } => "use a nats-server of at least 2.14; `make setup` brings one",
        ConnectError::Settings(_) => "correct the option, or the setting in [nats]",
    };
    step.into()
}
