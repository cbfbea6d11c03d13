//! `[sandbox]`

use super::ConfigError;
use serde::Deserialize;
use std::time::Duration;

/// Minimum memory of a helper process, in bytes.
const MIN_MEMORY_BYTES: u64 = 128 << 20;

/// Limits of helper processes, which read documents, compile components, probe models and render templates.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// Maximum memory of all helpers together, in bytes.
    pub memory: u64,
    /// Maximum memory of a helper that reads documents, in bytes.
    pub document_memory: u64,
    /// Maximum memory of a helper that compiles a component, in bytes.
    pub compile_memory: u64,
    /// Timeout of the compilation of a component.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub compile_timeout: Duration,
    /// Maximum memory of a helper that probes a model, in bytes. If it exceeds `memory`, the helper runs alone.
    pub model_memory: u64,
    /// Timeout of the probe of a model.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub model_timeout: Duration,
    /// Maximum concurrent helpers.
    pub helpers: usize,
}

impl SandboxConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key, why: &str| Err(ConfigError::Invalid { key, why: why.to_owned() });
        let per_helper =
            [("sandbox.document_memory", self.document_memory), ("sandbox.compile_memory", self.compile_memory)];
        for (key, memory) in per_helper {
            if !(MIN_MEMORY_BYTES..=self.memory).contains(&memory) {
                return invalid(key, "must be from 134217728 to sandbox.memory, the limit of all helpers together");
            }
        }
        if self.model_memory < MIN_MEMORY_BYTES {
            return invalid("sandbox.model_memory", "must be at least 134217728");
        }
        let timeouts =
            [("sandbox.compile_timeout", self.compile_timeout), ("sandbox.model_timeout", self.model_timeout)];
        for (key, timeout) in timeouts {
            if timeout.is_zero() {
                return invalid(key, "must be longer than 0s");
            }
        }
        if !(1..=1024).contains(&self.helpers) {
            return invalid("sandbox.helpers", "must be from 1 to 1024");
        }
        Ok(())
    }
}
