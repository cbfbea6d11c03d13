//! Runs code that parses untrusted bytes in confined helper processes.
//!
//! A helper is the same binary with a hidden first argument, [`COMMAND`]. It is started on demand, serves one
//! tenant only, and ends at the end of its pipe, after idling, or when a request exceeds its deadline.
//!
//! # Layout
//! - [`Pool`], in `pool`: assigns helpers to requests, within one memory budget. `process`: a helper, from the server's
//!   side. `queue`: the scheduling decisions.
//! - [`serve`], in `helper`: the inside of a helper. `confine`: its limits, Landlock and seccomp.
//! - `frame`: the frames on the pipes. [`SandboxError`], in `error`: the errors.
//! - Restrictions for other programs: files that they cannot open ([`Closed`], in `closed`) or reach by path ([`cover()`], in
//!   `cover`), and foreign processes ([`CallFilter`], in `calls`).
//! - [`Access`], in `access`: readable files of a helper, and the library that it loads.
//! - [`PROBE`]: work that demonstrates the confinement.
//!
//! # Flow
//! `Pool::run` waits for a helper of the request's tenant or for the memory to start one, writes the request as one frame to
//! its stdin, and reads one frame from its stdout. A helper that dies fails its request. One that had served
//! other requests before may have died of their effects, so its request runs once more in a fresh helper.

mod access;
mod calls;
mod closed;
mod confine;
mod cover;
mod error;
mod frame;
mod helper;
mod pool;
mod probe;
mod process;
mod queue;

/// The environment variable that makes a process of this binary commit memory on use, instead of
/// megabytes at startup. For small processes, or those with a memory limit; a server would be slower.
pub const LATE_COMMIT: (&str, &str) = ("MIMALLOC_ARENA_EAGER_COMMIT", "0");

pub use access::Access;
pub use calls::CallFilter;
pub use closed::{Closed, can_close};
pub use confine::{can_filter, missing};
pub use cover::cover;
pub use error::{Death, SandboxError};
pub use helper::{COMMAND, Job, Work, serve};
pub use pool::{Limits, Pool, Request, Settings, Setup};
pub use probe::PROBE;
