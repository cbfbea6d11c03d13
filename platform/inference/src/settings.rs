//! What an operator may set.

use crate::trials::Trials;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr, time::Duration};

/// How models are run on this machine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The shared library of ONNX Runtime, if one was found.
    pub library: Option<PathBuf>,
    /// Where models' folders and optimised graphs are kept.
    pub cache: PathBuf,
    /// Models that come with this installation: folders by name.
    pub bundled: BTreeMap<String, PathBuf>,
    /// Where the work is done, the first that can; the CPU does what none of them can.
    pub providers: Vec<Provider>,
    /// Threads a model computes with; one a core when zero.
    pub threads: usize,
    /// How far a graph is optimised when it is loaded.
    pub optimisation: Optimisation,
    /// Texts that wait for one model or run in it; of answers, which take longer, at most 32.
    pub queue: usize,
    /// The most tokens of a conversation and its answer that a language model keeps in memory.
    pub context: usize,
    /// How long a model that no function runs is kept after the last request.
    pub idle: Duration,
    /// What tries models before they are loaded, all but those that come with this installation. Without it every model is
    /// trusted.
    pub trials: Option<Trials>,
}

impl Settings {
    /// The threads a model computes with.
    pub(crate) fn cores(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The processor.
    Cpu,
    /// NVIDIA's CUDA.
    Cuda,
    /// NVIDIA's TensorRT.
    TensorRt,
    /// Apple's CoreML.
    CoreMl,
    /// Windows' DirectML.
    DirectMl,
    /// Intel's OpenVINO.
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
                    "`{other}` is not an execution provider: it is one of cpu, cuda, tensorrt, coreml, directml, openvino"
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

/// How far a graph is optimised, by ONNX Runtime's levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimisation {
    /// Not at all.
    Off,
    /// What changes no kernel: constants folded, what is not needed removed.
    Basic,
    /// Kernels fused too.
    Extended,
    /// The layout of memory too, which fits one kind of processor.
    #[default]
    All,
}

impl FromStr for Optimisation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "off" => Self::Off,
            "basic" => Self::Basic,
            "extended" => Self::Extended,
            "all" => Self::All,
            other => {
                return Err(format!("`{other}` is not an optimisation level: it is one of off, basic, extended, all"));
            }
        })
    }
}
