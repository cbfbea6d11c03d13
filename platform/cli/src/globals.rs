//! Options of every command.

use crate::{connection::PermissionErrors, output::Format};
use clap::Args;
use nerve_core::Secret;
use std::{convert::Infallible, path::PathBuf};

/// Heading of these options in help texts.
const HEADING: &str = "Global options";

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// Output format of results: text, or json (streams: JSON Lines)
    #[arg(long, global = true, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    #[arg(default_value_t = Format::Text, help_heading = HEADING)]
    pub(crate) output: Format,
    /// Options of the NATS connection.
    #[command(flatten)]
    pub(crate) nats: NatsFlags,
    /// Permission errors of NATS.
    #[arg(skip)]
    pub(crate) permission_errors: PermissionErrors,
}

/// Options of the NATS connection. Secrets are passed in files, because all users of a machine can read process arguments.
#[derive(Debug, Args)]
#[group(skip)]
#[command(next_help_heading = HEADING)]
pub(crate) struct NatsFlags {
    /// URLs of the NATS servers with JetStream, comma-separated
    #[arg(long = "nats", global = true, value_name = "URL", env = "NERVE_NATS_URL", hide_env_values = true)]
    #[arg(value_parser = secret)]
    pub(crate) nats: Option<Secret>,
    /// NATS credentials file (JWT)
    #[arg(long, global = true, value_name = "FILE", env = "NERVE_NATS_CREDS", hide_env_values = true)]
    pub(crate) creds: Option<PathBuf>,
    /// NATS user
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub(crate) nats_user: Option<String>,
    /// File with the user's password
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_password_file: Option<PathBuf>,
    /// File with a NATS token
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_token_file: Option<PathBuf>,
    /// File with the seed of an nkey
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_nkey_file: Option<PathBuf>,
    /// Require TLS
    #[arg(long, global = true, hide_short_help = true)]
    pub(crate) nats_tls: bool,
    /// Start TLS before the NATS protocol
    #[arg(long, global = true, hide_short_help = true)]
    pub(crate) nats_tls_first: bool,
    /// Trusted CA certificates instead of the system's, in PEM
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_tls_ca: Option<PathBuf>,
    /// Client certificate (mTLS), in PEM
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_tls_client_cert: Option<PathBuf>,
    /// Private key of the client certificate, in PEM
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_tls_client_key: Option<PathBuf>,
    /// JetStream domain
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub(crate) nats_domain: Option<String>,
}

/// Parses a value that `Debug` and errors do not show.
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// The data directory of a `nerve up`.
#[derive(Debug, Args)]
pub(crate) struct DataFolder {
    /// Data directory; used to find the running `nerve up` [default: .nerve]
    #[arg(long = "data", alias = "data-dir", value_name = "DIR", env = "NERVE_DATA_DIR", hide_env_values = true)]
    pub(crate) data: Option<PathBuf>,
}
