//! Runs one function: a WebAssembly component, a long-lived process or an HTTP service. Independent of NATS.
//!
//! # Layout
//! - [`wasm`]: components, with a fresh instance per event; absent without the feature `wasm`.
//! - [`process`]: a child process that exchanges one JSON object per line.
//! - [`http`]: a service that receives events as requests.
//!
//! # Flow
//! A worker passes a deployment to [`Runtimes`]; the host of its `runtime` loads it, and returns a function that
//! processes batches of events.

#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod process;
#[cfg(feature = "wasm")]
pub mod wasm;

pub use http::HttpHost;
pub use process::{ProcessConfig, ProcessHost, SHIM, Shim, die_with_parent, run_shim};
#[cfg(feature = "wasm")]
pub use wasm::{COMPILER, CompileError, Compiler, WasmConfig, WasmHost, inspect};

use async_trait::async_trait;
use nerve_core::{Deployment, Function, Host, LoadError, manifest::RuntimeSpec};
use std::sync::Arc;

/// Every runtime in one host; `spec.run` chooses.
pub struct Runtimes {
    wasm: Arc<dyn Host>,
    process: ProcessHost,
    http: HttpHost,
    builtin: Arc<dyn Host>,
}

impl Runtimes {
    /// Composes the hosts; `builtin` runs the functions that come with Nerve, which are in other crates.
    pub fn new(wasm: Arc<dyn Host>, process: ProcessHost, http: HttpHost, builtin: Arc<dyn Host>) -> Self {
        Self { wasm, process, http, builtin }
    }
}

#[async_trait]
impl Host for Runtimes {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        match &deployment.spec.run {
            RuntimeSpec::Wasm { .. } => self.wasm.load(deployment).await,
            RuntimeSpec::Process { .. } => self.process.load(deployment).await,
            RuntimeSpec::Http { .. } => self.http.load(deployment).await,
            RuntimeSpec::Builtin { .. } => self.builtin.load(deployment).await,
        }
    }
}
