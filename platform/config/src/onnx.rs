//! `[onnx]`

use super::ConfigError;
use serde::Deserialize;
use std::{path::PathBuf, time::Duration};

/// Model settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxConfig {
    /// The path of the ONNX Runtime library. Searched for if `None`.
    pub library: Option<PathBuf>,
    /// The folder of the models of this installation, one folder each.
    pub models: Option<PathBuf>,
    /// Execution providers, in order of preference.
    pub providers: Vec<Provider>,
    /// Threads that run models; 0 for one per core.
    pub threads: usize,
    /// Graph optimization level.
    pub optimization: Optimization,
    /// Maximum texts queued for one model.
    pub queue: usize,
    /// Maximum context of a language model, in tokens.
    pub context: usize,
    /// The idle time after which a model that only requests use is unloaded.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub idle: Duration,
    /// Timeout of a request.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub timeout: Duration,
    /// Maximum texts of one request.
    pub max_inputs: usize,
    /// Maximum bytes of a request body.
    pub max_body: usize,
}

/// An execution provider of ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// NVIDIA GPUs, with engines that are compiled for each model.
    Tensorrt,
    /// Apple devices.
    Coreml,
    /// GPUs on Windows.
    Directml,
    /// Intel CPUs, GPUs and NPUs.
    Openvino,
}

impl Provider {
    /// Returns the name in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Tensorrt => "tensorrt",
            Self::Coreml => "coreml",
            Self::Directml => "directml",
            Self::Openvino => "openvino",
        }
    }
}

/// The graph optimization level of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimization {
    /// No optimization.
    Off,
    /// Removal of redundant nodes.
    Basic,
    /// `Basic`, and fusion of nodes.
    Extended,
    /// `Extended`, and optimization of the memory layout.
    All,
}

impl Optimization {
    /// Returns the name in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Basic => "basic",
            Self::Extended => "extended",
            Self::All => "all",
        }
    }
}

impl OnnxConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key, why: &str| Err(ConfigError::Invalid { key, why: why.to_owned() });
        if self.providers.is_empty() {
            return invalid("onnx.providers", "must name at least one, such as [\"cpu\"]");
        }
        if self.threads > 1024 {
            return invalid("onnx.threads", "must be from 1 to 1024, or 0 for one per core");
        }
        if self.queue == 0 {
            return invalid("onnx.queue", "must be at least 1");
        }
        if self.context < 2 {
            return invalid("onnx.context", "must be at least 2");
        }
        if self.max_inputs == 0 {
            return invalid("onnx.max_inputs", "must be at least 1");
        }
        if self.timeout.is_zero() {
            return invalid("onnx.timeout", "must be longer than 0s");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn load(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::load(None, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn environment_overrides_the_defaults() {
        let onnx = load(&[]).unwrap().onnx;
        assert_eq!((onnx.providers.as_slice(), onnx.optimization), ([Provider::Cpu].as_slice(), Optimization::All));
        assert_eq!((onnx.threads, onnx.queue, onnx.max_inputs, onnx.max_body), (0, 2048, 2048, 16 << 20));
        assert_eq!((onnx.idle, onnx.timeout), (Duration::from_secs(300), Duration::from_secs(30)));
        assert!(onnx.library.is_none() && onnx.models.is_none());
        let onnx = load(&[
            ("NERVE_ONNX_LIBRARY", "/opt/libonnxruntime.so"),
            ("NERVE_ONNX_PROVIDERS", "cuda, cpu"),
            ("NERVE_ONNX_THREADS", "3"),
            ("NERVE_ONNX_OPTIMIZATION", "basic"),
            ("NERVE_ONNX_MAX_INPUTS", "7"),
        ]);
        let onnx = onnx.unwrap().onnx;
        assert_eq!(onnx.library.unwrap().to_str(), Some("/opt/libonnxruntime.so"));
        assert_eq!(onnx.providers, [Provider::Cuda, Provider::Cpu]);
        assert_eq!((onnx.threads, onnx.optimization, onnx.max_inputs), (3, Optimization::Basic, 7));
    }

    #[test]
    fn value_out_of_range_is_refused_with_its_key() {
        for (variable, value, expected) in [
            ("NERVE_ONNX_PROVIDERS", "cpu,abacus", "abacus"),
            ("NERVE_ONNX_PROVIDERS", "", "onnx.providers"),
            ("NERVE_ONNX_OPTIMIZATION", "most", "most"),
            ("NERVE_ONNX_QUEUE", "0", "onnx.queue"),
            ("NERVE_ONNX_THREADS", "5000", "onnx.threads"),
            ("NERVE_ONNX_CONTEXT", "1", "onnx.context"),
            ("NERVE_ONNX_MAX_INPUTS", "0", "onnx.max_inputs"),
            ("NERVE_ONNX_TIMEOUT", "0s", "onnx.timeout"),
            ("NERVE_ONNX_COLOUR", "red", "colour"),
        ] {
            let error = load(&[(variable, value)]).unwrap_err().to_string();
            assert!(error.contains(expected), "{variable}={value}: {error}");
        }
    }

    #[test]
    fn names_match_the_settings() {
        for name in ["cpu", "cuda", "tensorrt", "coreml", "directml", "openvino"] {
            let onnx = load(&[("NERVE_ONNX_PROVIDERS", name)]).unwrap().onnx;
            assert_eq!(onnx.providers.iter().map(|provider| provider.as_str()).collect::<Vec<_>>(), [name]);
        }
        for name in ["off", "basic", "extended", "all"] {
            assert_eq!(load(&[("NERVE_ONNX_OPTIMIZATION", name)]).unwrap().onnx.optimization.as_str(), name);
        }
    }
}
