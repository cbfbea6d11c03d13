//! The helper processes of this installation, as the settings have them.

use nerve_config::SandboxConfig;
use nerve_inference::Trials;
use nerve_runtime::{Compiler, Shim};
use nerve_sandbox::{Pool, Settings};
use std::path::{Path, PathBuf};

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

/// Says once what this kernel, or the policy of its container, lacks of what confines helper processes.
pub(crate) fn warn_of_what_is_missing() {
    let missing = nerve_sandbox::missing();
    if !missing.is_empty() {
        tracing::warn!(
            "helper processes that read untrusted bytes run without {}: this kernel, or the container's policy, lacks it",
            missing.join(" and ")
        );
    }
}

/// The parent of process functions, which may not open `closed`; says once what this kernel lacks of what keeps them from that, and
/// from other processes.
pub(crate) fn shim(closed: Vec<PathBuf>, folder: &Path) -> Shim {
    if !nerve_sandbox::can_close() {
        tracing::warn!(
            "process functions can read the data folder, keys included, and other functions' environment, and signal other \
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
    // By this name it is found whatever has become of the file.
    let shim = Shim::new("/proc/self/exe", closed);
    shim.clone().covering(folder).unwrap_or_else(|error| {
        tracing::warn!(
            "process functions can change modes, owners and times of files in the data folder, and so open it to other \
             users: it cannot be covered in a mount namespace of theirs ({error}); allow user namespaces, or run only \
             processes that are as trusted as the operator"
        );
        shim
    })
}
