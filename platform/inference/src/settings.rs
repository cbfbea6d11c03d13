//! Settings of inference.

use crate::prober::ModelProber;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr, time::Duration};

/// Settings of inference on this machine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Path of ONNX Runtime's shared library, if one was found.
    pub library: Option<PathBuf>,
    /// Folder for the models' files and optimized graphs.
    pub cache: PathBuf,
    /// Bundled models: folders by name.
    pub bundled: BTreeMap<String, PathBuf>,
    /// Execution providers, in order of preference; the CPU runs what none of them supports.
    pub providers: Vec<Provider>,
    /// Number of threads per model; 0 for one per core.
    pub threads: usize,
    /// Graph optimization level.
    pub optimization: GraphOptimization,
    /// Maximum number of queued and running texts per model; for generations, at most 32.
    pub queue: usize,
    /// Maximum number of tokens of a conversation with its answer in memory.
    pub context: usize,
    /// Time that a model without functions is kept after its last request.
    pub idle: Duration,
    /// Probes of models before they are loaded, except for bundled ones. `None` trusts every model.
    pub prober: Option<ModelProber>,
}

impl Settings {
    /// Number of threads per model.
    pub(crate) fn cores(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// Execution provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// CPU.
    Cpu,
    /// NVIDIA CUDA.
    Cuda,
    /// NVIDIA TensorRT.
    TensorRt,
    /// Apple CoreML.
    CoreMl,
    /// Microsoft DirectML.
    DirectMl,
    /// Intel OpenVINO.
    OpenVino,
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "cpu" => Self::Cpu,
            "cuda" => Self::Cuda,
            "tensorrt" => Self::TensorRt,
            "coreml" => Self::CoreMl,
            "directml" => Self::DirectMl,
            "openvino" => Self::OpenVino,
            other => {
                return Err(format!(
                    "`{other}` is not an execution provider: it must be one of cpu, cuda, tensorrt, coreml, directml, openvino"
                ));
            }
        })
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::CoreMl => "coreml",
            Self::DirectMl => "directml",
            Self::OpenVino => "openvino",
        })
    }
}

/// Graph optimization levels of ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GraphOptimization {
    /// No optimization.
    Off,
    /// Constant folding and removal of redundant nodes.
    Basic,
    /// Also kernel fusion.
    Extended,
    /// Also memory layouts for the current processor.
    #[default]
    All,
}

impl FromStr for GraphOptimization {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "off" => Self::Off,
            "basic" => Self::Basic,
            "extended" => Self::Extended,
            "all" => Self::All,
            other => {
                return Err(format!(
                    "`{other}` is not an optimization level: it must be one of off, basic, extended, all"
                ));
            }
        })
    }
}
