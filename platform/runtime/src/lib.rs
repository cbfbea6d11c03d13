//! Runs one function: a WebAssembly component, a long-lived process or an HTTP service. Never sees NATS.
//!
//! # Layout
//! - [`wasm`]: components, a fresh instance an event.
//! - [`process`]: a child that speaks one JSON object a line.
//! - [`http`]: a service that events are posted to.
//!
//! # Flow
//! A worker hands [`Runtimes`] a deployment; the host that its `runtime` names prepares it, and the function that
//! comes back takes batches of events.

#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod process;
pub mod wasm;

pub use http::HttpHost;
pub use process::{ProcessConfig, ProcessHost, SHIM, Shim, die_with_parent, run_shim};
pub use wasm::{COMPILER, CompileError, Compiler, WasmConfig, WasmHost, inspect};

use async_trait::async_trait;
use nerve_core::{Deployment, Function, Host, LoadError, manifest::RuntimeSpec};
use std::sync::Arc;

/// Every runtime in one host; `spec.run` chooses.
pub struct Runtimes {
    wasm: WasmHost,
    process: ProcessHost,
    http: HttpHost,
    builtin: Arc<dyn Host>,
}

impl Runtimes {
    /// Composes the hosts; `builtin` runs the functions that come with Nerve, which live in crates of their own.
    pub fn new(wasm: WasmHost, process: ProcessHost, http: HttpHost, builtin: Arc<dyn Host>) -> Self {
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
