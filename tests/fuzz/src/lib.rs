//! What each fuzz target does with its input. `make test` does the same with what is kept of it (tests/it/fuzz.rs).
//!
//! Each function panics where what it checks does not hold.

pub mod documents;
pub mod endpoint;
pub mod events;
pub mod forwarded;
pub mod hooks;
pub mod lines;
pub mod manifests;
pub mod outlines;
mod request;
pub mod templates;
