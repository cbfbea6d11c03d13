//! Configures helper processes from the settings.

use nerve_config::SandboxConfig;
#[cfg(feature = "onnx")]
use nerve_inference::ModelProber;
#[cfg(feature = "wasm")]
use nerve_runtime::Compiler;
use nerve_runtime::Shim;
use nerve_sandbox::{Pool, Settings};
use std::path::{Path, PathBuf};

/// Creates a pool of helper processes. Requires a Tokio runtime.
pub(crate) fn pool(config: &SandboxConfig) -> Pool {
    Pool::new(Settings::new(config.memory, config.helpers))
}

/// Returns the compiler of components in `pool`.
#[cfg(feature = "wasm")]
pub(crate) fn compiler(config: &SandboxConfig, pool: &Pool) -> Compiler {
    Compiler { pool: pool.clone(), memory: config.compile_memory, timeout: config.compile_timeout }
}

/// Returns the reader and tester of models in `pool`.
#[cfg(feature = "onnx")]
pub(crate) fn prober(config: &SandboxConfig, pool: &Pool) -> ModelProber {
    ModelProber { pool: pool.clone(), memory: config.model_memory, timeout: config.model_timeout }
}

/// Logs which isolation features for helper processes this kernel, or the container's policy, lacks.
pub(crate) fn warn_about_missing_isolation() {
    let missing = nerve_sandbox::missing();
    if !missing.is_empty() {
        tracing::warn!(
            "helper processes that read untrusted bytes run without {}: this kernel, or the container's policy, lacks it",
            missing.join(" and ")
        );
    }
}

/// Returns the parent of process functions, which must not open `closed`. Logs which isolation features this kernel
/// lacks for that.
pub(crate) fn shim(closed: Vec<PathBuf>, folder: &Path) -> Shim {
    if !nerve_sandbox::can_close() {
        tracing::warn!(
            "process functions can read the data directory, including keys, and other functions' environment, and signal other \
             processes: this kernel lacks Landlock (Linux 5.19), or the container's policy refuses it; run only processes \
             that are as trusted as the operator"
        );
    }
    if !nerve_sandbox::can_filter() {
        tracing::warn!(
            "process functions can change limits and priorities of the server and its broker: this kernel lacks seccomp \
             filters, or the container's policy refuses them; run only processes that are as trusted as the operator"
        );
    }
    // This path stays valid if the file is replaced.
    let shim = Shim::new("/proc/self/exe", closed);
    shim.clone().covering(folder).unwrap_or_else(|error| {
        tracing::warn!(
            "process functions can change modes, owners and times of files in the data directory, and so open it to other \
             users: cannot cover it in their mount namespace ({error}); allow user namespaces, or run only \
             processes that are as trusted as the operator"
        );
        shim
    })
}
