//! Why the settings of a server cannot be used.

use super::{trust::Untrusted, without_excerpt};
use std::{io, path::PathBuf};

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or variable cannot be read, or says something unknown.
    #[error("the configuration is wrong: {0}")]
    Read(String),
    /// The settings file cannot be read.
    #[error("the settings file {} cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// The settings file of the current folder may be somebody else's.
    #[error("{0}: name the file with --config if it is meant, or start in another folder")]
    Untrusted(#[from] Untrusted),
    /// `[nats]` contradicts itself.
    #[error("the configuration is wrong: {0}")]
    Nats(#[from] nerve_broker::SettingsError),
    /// A value is out of its bounds.
    #[error("the configuration is wrong: {key}: {why}")]
    Invalid {
        /// The setting.
        key: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
}

impl From<config::ConfigError> for ConfigError {
    fn from(error: config::ConfigError) -> Self {
        Self::Read(without_excerpt(&error.to_string()))
    }
}
