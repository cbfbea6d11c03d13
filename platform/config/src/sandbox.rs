//! `[sandbox]`

use super::{ConfigError, duration};
use serde::Deserialize;
use std::time::Duration;

/// The least memory that a helper process can do anything with, in bytes.
const MIN_MEMORY: u64 = 128 << 20;

/// What helper processes may take: those that read documents, compile components, try models and fill in templates.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// The memory of all of them together, in bytes.
    pub memory: u64,
    /// The memory of one that reads documents, in bytes.
    pub document_memory: u64,
    /// The memory of one that compiles a component, in bytes.
    pub compile_memory: u64,
    /// How long compiling a component may take.
    #[serde(deserialize_with = "duration")]
    pub compile_timeout: Duration,
    /// The most memory of one that tries a model, in bytes. It may be more than that of all: then the helper runs alone.
    pub model_memory: u64,
    /// How long trying a model may take.
    #[serde(deserialize_with = "duration")]
    pub model_timeout: Duration,
    /// The most of them at once.
    pub helpers: usize,
}

impl SandboxConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, why: &str| Err(ConfigError::Invalid { key, why: why.to_owned() });
        let of_one =
            [("sandbox.document_memory", self.document_memory), ("sandbox.compile_memory", self.compile_memory)];
        for (key, memory) in of_one {
            if !(MIN_MEMORY..=self.memory).contains(&memory) {
                return wrong(key, "it must be from 134217728 to sandbox.memory, which is for all helpers together");
            }
        }
        if self.model_memory < MIN_MEMORY {
            return wrong("sandbox.model_memory", "it must be at least 134217728");
        }
        let timeouts =
            [("sandbox.compile_timeout", self.compile_timeout), ("sandbox.model_timeout", self.model_timeout)];
        for (key, timeout) in timeouts {
            if timeout.is_zero() {
                return wrong(key, "it must be longer than 0s");
            }
        }
        if !(1..=1024).contains(&self.helpers) {
            return wrong("sandbox.helpers", "it must be from 1 to 1024");
        }
        Ok(())
    }
}
