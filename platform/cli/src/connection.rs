//! Connection of a command to NATS.

use crate::{
    endpoint::find_nats,
    failure::Failure,
    globals::{DataFolder, Globals},
    membership::{self, Membership},
    settings,
};
use nerve_broker::bus::Bus;
use nerve_broker::{ConnectError, NatsSettings, Violation, roles::Role};
use nerve_config::Config;
use nerve_registry::Registry;
use std::{borrow::Cow, path::Path, time::Duration};
use tokio::sync::watch;

/// Grace period of a command after a permission error, which may concern an optional operation.
const PERMISSION_ERROR_GRACE: Duration = Duration::from_millis(300);

/// A connection and its settings.
pub(crate) struct Connection {
    /// The connection.
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
        globals
            .permission_errors
            .follow(connected.violations.clone(), next_for_missing_permissions(&config.nats, &config.data.dir));
        Ok(Self { bus: Bus::over(connected, &config.nats), config })
    }

    /// Opens the registry.
    pub(crate) async fn registry(&self) -> Result<Registry, Failure> {
        Registry::open(&self.bus, self.config.worker.ack_wait).await.map_err(|error| {
            let next = "start `nerve up`, a gateway or a worker on this NATS once: it creates the streams and buckets";
            Failure::new("cannot read the registry").because(error).next(next)
        })
    }
}

/// Permission errors of the server. It does not reply to such a request, which would otherwise time out.
#[derive(Debug)]
pub(crate) struct PermissionErrors {
    followed: watch::Sender<Option<FollowedConnection>>,
}

/// A connection's permission errors, and the next step for them.
#[derive(Debug, Clone)]
struct FollowedConnection {
    violations: watch::Receiver<Option<Violation>>,
    next: String,
}

impl Default for PermissionErrors {
    fn default() -> Self {
        Self { followed: watch::channel(None).0 }
    }
}

impl PermissionErrors {
    fn follow(&self, violations: watch::Receiver<Option<Violation>>, next: String) {
        self.followed.send_replace(Some(FollowedConnection { violations, next }));
    }

    /// Waits for the first permission error.
    pub(crate) async fn first(&self) -> Failure {
        let mut followed = self.followed.subscribe();
        let Ok(Some(FollowedConnection { mut violations, next })) =
            followed.wait_for(Option::is_some).await.as_deref().cloned()
        else {
            return std::future::pending().await;
        };
        let Ok(Some(violation)) = violations.wait_for(Option::is_some).await.as_deref().cloned() else {
            return std::future::pending().await;
        };
        tokio::time::sleep(PERMISSION_ERROR_GRACE).await;
        Failure::new(violation.to_string()).cause(violation.said).next(next)
    }
}

/// Returns the next step for missing permissions.
fn next_for_missing_permissions(nats: &NatsSettings, data: &Path) -> String {
    let has_joined = Membership::exists(data) && nats.creds.as_deref() == Some(&membership::credentials_file(data));
    match Membership::read(data).ok().filter(|_| has_joined) {
        Some(machine) => {
            format!(
                "this machine joined as {}, which lacks the permission: run the command on the machine of `nerve up`",
                machine.role
            )
        }
        None => {
            "use credentials with this permission: --creds FILE; those of the operator of a `nerve up` are in its data \
                 directory: --data DIR"
                .to_owned()
        }
    }
}

/// Converts a connection error, with its next step.
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

/// Returns the next step for a connection error.
pub(crate) fn next_step(error: &ConnectError) -> Cow<'static, str> {
    let step = match error {
        ConnectError::Unreachable { .. } => {
            "check the address, and that nats-server runs there with JetStream; `nerve up` starts one"
        }
        ConnectError::Refused { creds: Some(file), .. } if membership::is_credentials_file(file) => {
            "the access of this machine was revoked or replaced: create a new token with `nerve access token` on the machine\n\
             of `nerve up`, and join again with `nerve join`"
        }
        ConnectError::Refused { creds: Some(file), .. } => {
            return format!(
                "check that {} belongs to this NATS and to a user that is still valid;\n\
                 the credentials of a `nerve up` are in its data directory: --data DIR",
                file.display()
            )
            .into();
        }
        ConnectError::Refused { .. } => {
            "pass the credentials that the server requires: --creds FILE or another option, or nats.user, nats.token,\n\
             nats.nkey or nats.creds in the settings; those of a `nerve up` are in its data directory: --data DIR"
        }
        ConnectError::Plain { .. } => "use nats:// instead of tls://, or the port of its TLS listener",
        ConnectError::WithoutJetStream { .. } => {
            "start it with `-js`, or with a `jetstream` block in its configuration"
        }
        ConnectError::Tls { .. } => "pass the CA of the server's certificate with --nats-tls-ca FILE",
        ConnectError::TooOld { .. } => "use a nats-server of at least version 2.14; `make setup` installs one",
        ConnectError::Settings(_) => "correct the option, or the setting in [nats]",
    };
    step.into()
}
