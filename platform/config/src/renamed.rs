//! Renamed settings. Their old keys are refused, so that a value is never ignored silently.

use super::ConfigError;

/// Old and new keys of renamed settings.
pub(super) const RENAMED_SETTINGS: &[(&str, &str)] = &[("onnx.optimisation", "onnx.optimization")];

/// Rejects the old key of a renamed setting. `origin` is the file or variable of the key.
pub(super) fn check(key: &str, origin: &str) -> Result<(), ConfigError> {
    match RENAMED_SETTINGS.iter().find(|(old, _)| *old == key) {
        Some((old, new)) => Err(ConfigError::Renamed { origin: origin.to_owned(), old, new }),
        None => Ok(()),
    }
}
