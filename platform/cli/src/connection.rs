//! The way of a command to NATS.

use crate::{
    args::{DataFolder, Globals},
    endpoint::find_nats,
    failure::Failure,
    settings,
};
use nerve_broker::{ConnectError, roles::Role};
use nerve_server::{
    bus::{Bus, BusError},
    config::Config,
    registry::Registry,
};

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
        let bus = Bus::connect(&config.nats, "nerve-cli").await.map_err(|error| match error {
            BusError::Connect(error) => unconnected(error),
            other => Failure::new("cannot connect to NATS").because(other),
        })?;
        Ok(Self { bus, config })
    }

    /// What is deployed there.
    pub(crate) async fn registry(&self) -> Result<Registry, Failure> {
        Registry::open(&self.bus, self.config.worker.ack_wait).await.map_err(|error| {
            let next = "start `nerve up`, or a gateway or worker, on this NATS once: they make what is needed";
            Failure::new("cannot read what is deployed").because(error).next(next)
        })
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
        | ConnectError::Tls { source, .. } => failure.because(anyhow::Error::from_boxed(source)),
        ConnectError::Settings(error) => failure.because(error),
        ConnectError::TooOld { .. } => failure,
    }
}

/// What helps against an error of the connection.
pub(crate) fn next_step(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Unreachable { .. } => {
            "check the address, and that nats-server runs there with JetStream; `nerve up` starts one"
        }
        ConnectError::Refused { .. } => {
            "name the credentials that the server asks for, such as --creds FILE;\n\
             those of a `nerve up` are found by its data folder: --data DIR;\n\
             a machine whose access was revoked joins again with a new token: nerve access token, nerve join"
        }
        ConnectError::Tls { .. } => "name the CA of the server's certificate with --nats-tls-ca FILE",
        ConnectError::TooOld { .. } => "use a nats-server of at least 2.14; `make setup` brings one",
        ConnectError::Settings(_) => "correct the option, or the setting in [nats]",
    }
}
