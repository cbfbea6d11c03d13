//! The server's settings with what the command line says on top.

use crate::{args::Globals, failure::Failure};
use nerve_server::config::Config;
use std::path::Path;

/// The defaults < `file` (or `nerve-server.toml`) < `NERVE_*` < the command line.
pub(crate) fn load(file: Option<&Path>, globals: &Globals, data: Option<&Path>) -> Result<Config, Failure> {
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut config = Config::load(file, environment).map_err(|error| {
        let next = "correct it in the file or the NERVE_ variable; the server's default.toml lists every setting";
        Failure::new("cannot use the settings").because(error).next(next)
    })?;
    if let Some(url) = &globals.nats {
        config.nats.url.clone_from(url);
    }
    config.nats.creds = globals.creds.clone().or(config.nats.creds);
    if let Some(data) = data {
        config.data.dir = data.to_owned();
    }
    Ok(config)
}
