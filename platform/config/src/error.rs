//! Errors of the settings.

use super::{trust::UntrustedPath, without_excerpt};
use std::{io, path::PathBuf};

/// The error of invalid settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or variable cannot be parsed, or has an unknown setting.
    #[error("invalid configuration: {0}")]
    Read(String),
    /// A file or variable has the old key of a renamed setting.
    #[error("invalid configuration: {origin}: setting {old} has been renamed to {new}")]
    Renamed {
        /// The file or variable.
        origin: String,
        /// The old key.
        old: &'static str,
        /// The new key.
        new: &'static str,
    },
    /// The settings file cannot be read.
    #[error("settings file {} cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// Another user can change the settings file of the current folder.
    #[error("{0}: to use this settings file, name it with --config; otherwise start in another folder")]
    Untrusted(#[from] UntrustedPath),
    /// Settings of `[nats]` contradict each other.
    #[error("invalid configuration: {0}")]
    Nats(#[from] nerve_broker::SettingsError),
    /// A value is out of range.
    #[error("invalid configuration: {key}: {why}")]
    Invalid {
        /// The setting.
        key: &'static str,
        /// The allowed values, and the reason.
        why: String,
    },
}

impl From<config::ConfigError> for ConfigError {
    fn from(error: config::ConfigError) -> Self {
        Self::Read(without_excerpt(&error.to_string()))
    }
}
