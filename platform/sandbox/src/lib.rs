//! Runs what reads untrusted bytes in confined helper processes.
//!
//! A helper is the same binary with a hidden first argument, [`COMMAND`]. It is started when there is work for it, serves one
//! tenant only, and ends when its pipe does, when it has been idle, or when a request passes its deadline.
//!
//! # Layout
//! - [`Pool`], in `pool`: which request gets which helper, out of one budget of memory. `process`: one helper, seen from the
//!   server. `queue`: who is next.
//! - [`serve`], in `helper`: one helper, seen from within. `confine`: its limits, Landlock and seccomp.
//! - `frame`: what goes over the pipes. [`SandboxError`], in `error`: why there is no answer.
//! - What a program that is no helper may not do: open some files ([`Closed`], in `closed`), reach them by path at all ([`cover()`], in
//!   `cover`), reach other processes ([`CallFilter`], in `calls`).
//! - [`Access`], in `access`: the files that a helper may read, and the library that it loads.
//! - [`PROBE`]: the work that shows what a helper cannot do.
//!
//! # Flow
//! `Pool::run` waits for a helper of the request's tenant or for the memory to start one, writes the request as one frame to
//! its stdin, and reads one frame from its stdout. A helper that dies costs the request that it had. One that had served
//! other requests before may have died of what they left behind, so its request runs once more in a fresh helper.

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

/// The variable, and its value, with which a process of this binary commits memory where its allocator uses it, rather than
/// megabytes at its start. For processes that are small, or whose memory is limited; a server would be slower.
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
