//! Compiles components in helper processes: even small ones can take gigabytes and minutes.

use super::{cache, engine_config, inspect};
use nerve_sandbox::{Limits, Pool, Request, SandboxError, Setup, Work};
use std::time::Duration;
use wasmtime::Engine;

/// The work of a compiling helper process. Its setup is the compatibility hash of the target engine.
pub const COMPILER: Work = Work {
    name: "components",
    start: |wanted| {
        // Nothing is executed here, so there is no pool of instances.
        let engine = Engine::new(&engine_config(false)).map_err(|error| format!("there is no compiler: {error:#}"))?;
        if !wanted.is_empty() && wanted != cache::compatibility(&engine).to_le_bytes() {
            return Err("the compiler is of another version than what runs its code".to_owned());
        }
        Ok(Box::new(move |component| {
            inspect(component).map_err(|error| error.to_string())?;
            engine.precompile_component(component).map_err(|error| format!("it does not compile: {error:#}"))
        }))
    },
    load: None,
};

/// Stack size of a compiler.
const STACK_BYTES: u64 = 16 << 20;
/// Maximum size of a component.
const MAX_COMPONENT_BYTES: u64 = 128 << 20;
/// Maximum size of compiled code, which is read into the server's memory.
const MAX_CODE_BYTES: u64 = 192 << 20;

/// Helper processes that compile components.
#[derive(Clone)]
pub struct Compiler {
    /// Their pool.
    pub pool: Pool,
    /// Memory per process, in bytes.
    pub memory: u64,
    /// Timeout of one compilation.
    pub timeout: Duration,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { memory, timeout, .. } = self;
        f.debug_struct("Compiler").field("memory", memory).field("timeout", timeout).finish_non_exhaustive()
    }
}

/// The reason why a component was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It is not a valid component.
    #[error("{0}")]
    Invalid(String),
    /// Retrying can help.
    #[error(transparent)]
    Failed(SandboxError),
}

impl Compiler {
    /// Checks whether a component compiles.
    ///
    /// # Errors
    /// If it does not.
    pub async fn check(&self, component: Vec<u8>, sha256: &str) -> Result<(), CompileError> {
        self.run(component, sha256, Setup::default()).await.map(drop)
    }

    /// Compiles a component for this engine.
    pub(super) async fn compile(
        &self,
        engine: &Engine,
        component: Vec<u8>,
        sha256: &str,
    ) -> Result<Vec<u8>, CompileError> {
        let setup = cache::compatibility(engine).to_le_bytes().to_vec();
        self.run(component, sha256, Setup::new(setup.into())).await
    }

    async fn run(&self, component: Vec<u8>, sha256: &str, setup: Setup) -> Result<Vec<u8>, CompileError> {
        let request = Request {
            work: COMPILER.name,
            tenant: sha256.to_owned(),
            setup,
            parts: vec![component.into()],
            limits: Limits {
                memory: self.memory,
                stack: STACK_BYTES,
                input: MAX_COMPONENT_BYTES,
                output: MAX_CODE_BYTES,
            },
            timeout: self.timeout,
        };
        self.pool.run(&request).await.map_err(|error| match error {
            SandboxError::Refused(why) => CompileError::Invalid(why),
            SandboxError::Died(nerve_sandbox::Death::Memory(_)) => {
                CompileError::Invalid(format!("compiling it: {error} (`sandbox.compile_memory` in the settings)"))
            }
            SandboxError::Timeout(_) => {
                CompileError::Invalid(format!("compiling it: {error} (`sandbox.compile_timeout` in the settings)"))
            }
            error if error.is_permanent() => CompileError::Invalid(format!("compiling it: {error}")),
            error => CompileError::Failed(error),
        })
    }
}
