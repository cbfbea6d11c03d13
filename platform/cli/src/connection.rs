//! The way of a command to NATS.

use crate::{
    args::{DataFolder, Globals},
    endpoint::find_nats,
    failure::Failure,
    settings,
};
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
        config.nats.url = find_nats(Some(&config.nats.url), &config.data.dir)?;
        let bus = Bus::connect(&config.nats, "nerve-cli").await.map_err(unreachable)?;
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

fn unreachable(error: BusError) -> Failure {
    let next = "check the address, and that nats-server runs there with JetStream; `nerve up` starts one";
    match error {
        BusError::Unavailable { what, source } => {
            Failure::new(format!("{what} failed")).because(anyhow::Error::from_boxed(source)).next(next)
        }
        other => Failure::new("cannot connect to NATS").because(other).next(next),
    }
}
