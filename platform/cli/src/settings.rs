//! Settings of the server, overridden by the command line.

use crate::{
    failure::Failure,
    globals::{Globals, NatsFlags},
};
use nerve_broker::{NatsSettings, Servers};
use nerve_config::Config;
use std::path::Path;

/// Loads the settings. Precedence: defaults < `file` (or `nerve-server.toml`) < `NERVE_*` < the command line.
pub(crate) fn load(file: Option<&Path>, globals: &Globals, data: Option<&Path>) -> Result<Config, Failure> {
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut config = Config::load(file, environment).map_err(|error| {
        let next = "correct the file or the NERVE_ variable; the server's default.toml lists every setting";
        Failure::new("cannot use the settings").because(error).next(next)
    })?;
    config.nats = with_flags(config.nats, &globals.nats)?;
    if let Some(data) = data {
        config.data.dir = data.to_owned();
    }
    Ok(config)
}

/// Applies the options of the command line. Credentials there replace all others.
fn with_flags(settings: NatsSettings, flags: &NatsFlags) -> Result<NatsSettings, Failure> {
    let user = flags.nats_user.is_some() || flags.nats_password_file.is_some();
    let has_credentials =
        [&flags.creds, &flags.nats_token_file, &flags.nats_nkey_file].into_iter().flatten().count() > 0 || user;
    let mut nats = if has_credentials { settings.without_credentials() } else { settings };
    if has_credentials {
        nats.user.clone_from(&flags.nats_user);
        nats.password_file.clone_from(&flags.nats_password_file);
        nats.token_file.clone_from(&flags.nats_token_file);
        nats.nkey_file.clone_from(&flags.nats_nkey_file);
        nats.creds.clone_from(&flags.creds);
    }
    if let Some(url) = &flags.nats {
        nats.url = Servers::parse(url.expose()).map_err(invalid)?;
    }
    nats.tls |= flags.nats_tls;
    nats.tls_first |= flags.nats_tls_first;
    nats.tls_ca = flags.nats_tls_ca.clone().or(nats.tls_ca);
    nats.tls_client_cert = flags.nats_tls_client_cert.clone().or(nats.tls_client_cert);
    nats.tls_client_key = flags.nats_tls_client_key.clone().or(nats.tls_client_key);
    nats.domain = flags.nats_domain.clone().or(nats.domain);
    nats.check().map_err(invalid)?;
    Ok(nats)
}

fn invalid(error: impl Into<anyhow::Error>) -> Failure {
    let next = "correct --nats and the other options, or the settings in [nats]; platform/reference/nats.md lists them";
    Failure::usage("invalid NATS settings").because(error).next(next)
}
