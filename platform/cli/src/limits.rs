//! What this process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Fewer than this, and a gateway runs out of them before it runs into its own bounds.
const WANTED: u64 = 10_000;

/// Raises the number of files and connections that may be open to what the system lets us have; shells start programs with
/// far fewer, for the sake of very old ones.
pub(crate) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    match raised {
        Ok(limit) if limit >= WANTED => {}
        Ok(limit) => {
            tracing::warn!(
                limit,
                "few files and connections may be open at once: raise the limit (ulimit -n, LimitNOFILE=)"
            );
        }
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}
