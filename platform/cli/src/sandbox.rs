//! The helper processes of this installation, as the settings have them.

use nerve_inference::Trials;
use nerve_runtime::Compiler;
use nerve_sandbox::{Pool, Settings};
use nerve_server::config::SandboxConfig;

/// A pool of helper processes. To be called on a Tokio runtime.
pub(crate) fn pool(config: &SandboxConfig) -> Pool {
    Pool::new(Settings::new(config.memory, config.helpers))
}

/// What compiles components in `pool`.
pub(crate) fn compiler(config: &SandboxConfig, pool: &Pool) -> Compiler {
    Compiler { pool: pool.clone(), memory: config.compile_memory, timeout: config.compile_timeout }
}

/// What tries models in `pool`.
pub(crate) fn trials(config: &SandboxConfig, pool: &Pool) -> Trials {
    Trials { pool: pool.clone(), memory: config.model_memory, timeout: config.model_timeout }
}

/// Says once what this kernel lacks of what confines helper processes, and of what closes folders to process functions.
pub(crate) fn warn_of_what_is_missing() {
    let missing = nerve_sandbox::missing();
    if !missing.is_empty() {
        tracing::warn!(
            "helper processes that read untrusted bytes run without {}: this kernel lacks it",
            missing.join(" and ")
        );
    }
    if !nerve_sandbox::can_close() {
        tracing::warn!(
            "process functions can read the data folder, keys included, and other functions' environment: this kernel lacks \
             Landlock (Linux 5.19); run only processes that are as trusted as the operator"
        );
    }
}
