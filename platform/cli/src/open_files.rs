//! Limit of open files of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// With fewer open files a gateway cannot reach its own connection limits.
const MIN_OPEN_FILES: u64 = 10_000;

/// Raises the soft limit of open files to the hard limit. Shells set a far lower soft limit for very old programs.
pub(crate) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    match raised {
        Ok(limit) if limit >= MIN_OPEN_FILES => {}
        Ok(limit) => {
            tracing::warn!(limit, "the limit of open files and connections is low: raise it (ulimit -n, LimitNOFILE=)");
        }
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}
