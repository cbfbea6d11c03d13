//! `[onnx]`

use super::{ConfigError, duration};
use serde::Deserialize;
use std::{path::PathBuf, time::Duration};

/// How models are run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxConfig {
    /// ONNX Runtime's library; searched for when none.
    pub library: Option<PathBuf>,
    /// A folder of models that come with this installation, one folder each.
    pub models: Option<PathBuf>,
    /// What runs a model, the first that can.
    pub providers: Vec<Provider>,
    /// Threads of this machine that run models; 0 for one a core.
    pub threads: usize,
    /// How far a model's graph is optimised.
    pub optimisation: Optimisation,
    /// Texts that may wait for one model.
    pub queue: usize,
    /// The most tokens of a conversation and its answer that a language model keeps in memory.
    pub context: usize,
    /// How long a model that only requests use stays in memory without one.
    #[serde(deserialize_with = "duration")]
    pub idle: Duration,
    /// The longest that a request waits for its answer.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// Texts that one request may hold.
    pub max_inputs: usize,
    /// Largest request body, in bytes.
    pub max_body: usize,
}

/// What runs a model: an execution provider of ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The processor.
    Cpu,
    /// NVIDIA's GPUs.
    Cuda,
    /// NVIDIA's GPUs, with engines that are compiled for each model.
    Tensorrt,
    /// Apple's machines.
    Coreml,
    /// GPUs under Windows.
    Directml,
    /// Intel's processors, GPUs and NPUs.
    Openvino,
}

impl Provider {
    /// The name in the settings.
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

/// How far a model's graph is optimised before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimisation {
    /// Not at all.
    Off,
    /// What is redundant is removed.
    Basic,
    /// Nodes are fused as well.
    Extended,
    /// Memory is laid out anew as well.
    All,
}

impl Optimisation {
    /// The name in the settings.
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
        let wrong = |key, why: &str| Err(ConfigError::Invalid { key, why: why.to_owned() });
        if self.providers.is_empty() {
            return wrong("onnx.providers", "it must name at least one, such as [\"cpu\"]");
        }
        if self.threads > 1024 {
            return wrong("onnx.threads", "it must be from 1 to 1024, or 0 for one a core");
        }
        if self.queue == 0 {
            return wrong("onnx.queue", "it must be at least 1");
        }
        if self.context < 2 {
            return wrong("onnx.context", "it must be at least 2");
        }
        if self.max_inputs == 0 {
            return wrong("onnx.max_inputs", "it must be at least 1");
        }
        if self.timeout.is_zero() {
            return wrong("onnx.timeout", "it must be longer than 0s");
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
    fn the_defaults_hold_and_the_environment_wins() {
        let onnx = load(&[]).unwrap().onnx;
        assert_eq!((onnx.providers.as_slice(), onnx.optimisation), ([Provider::Cpu].as_slice(), Optimisation::All));
        assert_eq!((onnx.threads, onnx.queue, onnx.max_inputs, onnx.max_body), (0, 2048, 2048, 16 << 20));
        assert_eq!((onnx.idle, onnx.timeout), (Duration::from_secs(300), Duration::from_secs(30)));
        assert!(onnx.library.is_none() && onnx.models.is_none());
        let onnx = load(&[
            ("NERVE_ONNX_LIBRARY", "/opt/libonnxruntime.so"),
            ("NERVE_ONNX_PROVIDERS", "cuda, cpu"),
            ("NERVE_ONNX_THREADS", "3"),
            ("NERVE_ONNX_OPTIMISATION", "basic"),
            ("NERVE_ONNX_MAX_INPUTS", "7"),
        ]);
        let onnx = onnx.unwrap().onnx;
        assert_eq!(onnx.library.unwrap().to_str(), Some("/opt/libonnxruntime.so"));
        assert_eq!(onnx.providers, [Provider::Cuda, Provider::Cpu]);
        assert_eq!((onnx.threads, onnx.optimisation, onnx.max_inputs), (3, Optimisation::Basic, 7));
    }

    #[test]
    fn values_out_of_bounds_are_named() {
        for (variable, value, said) in [
            ("NERVE_ONNX_PROVIDERS", "cpu,abacus", "abacus"),
            ("NERVE_ONNX_PROVIDERS", "", "onnx.providers"),
            ("NERVE_ONNX_OPTIMISATION", "most", "most"),
            ("NERVE_ONNX_QUEUE", "0", "onnx.queue"),
            ("NERVE_ONNX_THREADS", "5000", "onnx.threads"),
            ("NERVE_ONNX_CONTEXT", "1", "onnx.context"),
            ("NERVE_ONNX_MAX_INPUTS", "0", "onnx.max_inputs"),
            ("NERVE_ONNX_TIMEOUT", "0s", "onnx.timeout"),
            ("NERVE_ONNX_COLOUR", "red", "colour"),
        ] {
            let error = load(&[(variable, value)]).unwrap_err().to_string();
            assert!(error.contains(said), "{variable}={value}: {error}");
        }
    }

    #[test]
    fn names_are_those_of_the_settings() {
        for name in ["cpu", "cuda", "tensorrt", "coreml", "directml", "openvino"] {
            let onnx = load(&[("NERVE_ONNX_PROVIDERS", name)]).unwrap().onnx;
            assert_eq!(onnx.providers.iter().map(|provider| provider.as_str()).collect::<Vec<_>>(), [name]);
        }
        for name in ["off", "basic", "extended", "all"] {
            assert_eq!(load(&[("NERVE_ONNX_OPTIMISATION", name)]).unwrap().onnx.optimisation.as_str(), name);
        }
    }
}
