//! The environment of one component instance.

use super::output::Output;
use nerve_core::{
    Deployment, Event, Fault, FunctionError,
    function::{Emitter, LogLevel, LogSink},
};
use std::sync::Arc;
use time::format_description::well_known::Rfc3339;
use wasmtime::{ResourceLimiter, component::ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::indexing_slicing)]
mod bindings {
    wasmtime::component::bindgen!({
        path: "../../functions/wit",
        world: "function",
        imports: { default: async },
        exports: { default: async },
    });
}

use bindings::nerve::function::{host, types};
pub(super) use bindings::{Function as FunctionWorld, FunctionPre};
pub(super) use types::Emission as WitEmission;

/// Maximum elements of a table, as in the pool.
const TABLE_ELEMENTS: usize = 100_000;

/// The state of one call.
pub(super) struct Guest {
    wasi: WasiCtx,
    table: ResourceTable,
    emitter: Arc<dyn Emitter>,
    index: usize,
    output: Output,
    memory: Memory,
}

impl Guest {
    /// A component with the manifest's environment and secrets, without files, network and arguments.
    pub(super) fn new(deployment: &Deployment, emitter: Arc<dyn Emitter>, index: usize) -> Self {
        let logs: LogSink = deployment.logs.clone();
        let output = Output::new(logs);
        let mut wasi = WasiCtxBuilder::new();
        for (name, value) in &deployment.spec.env {
            wasi.env(name, value);
        }
        for (name, secret) in &deployment.secrets {
            wasi.env(name, secret.expose());
        }
        wasi.stdout(output.stream(false)).stderr(output.stream(true));
        wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
        let memory = Memory { limit: deployment.spec.memory, held: 0, refused: None };
        Self { wasi: wasi.build(), table: ResourceTable::new(), emitter, index, output, memory }
    }

    pub(super) fn output(&self) -> Output {
        self.output.clone()
    }

    pub(super) fn limiter(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.memory
    }

    /// The reason why memory was refused, if it was.
    pub(super) fn refused(&self) -> Option<&str> {
        self.memory.refused.as_deref()
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl types::Host for Guest {}

impl host::Host for Guest {
    async fn emit(&mut self, event: types::Emission) -> Result<(), types::Failure> {
        let emitted = match super::from_guest(event) {
            Ok(emission) => self.emitter.emit(self.index, emission).await,
            Err(error) => Err(error),
        };
        emitted.map_err(|error| match error.fault {
            Fault::Invalid => types::Failure::Invalid(error.message),
            _ => types::Failure::Retry(error.message),
        })
    }

    async fn log(&mut self, level: types::Level, message: String) {
        let level = match level {
            types::Level::Debug => LogLevel::Debug,
            types::Level::Info => LogLevel::Info,
            types::Level::Warn => LogLevel::Warn,
            types::Level::Error => LogLevel::Error,
        };
        self.output.log(level, &message);
    }
}

/// Limits the sum of the linear memories of all the component's modules.
struct Memory {
    limit: u64,
    held: u64,
    refused: Option<String>,
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let wanted = self.held.saturating_add(desired.saturating_sub(current) as u64);
        if wanted > self.limit {
            let message = format!(
                "it asked for {} KiB of memory and its limit is {} KiB; raise `memory` in nerve.toml if it needs that much",
                wanted.div_ceil(1024),
                self.limit / 1024
            );
            self.refused = Some(message.clone());
            return Err(wasmtime::Error::msg(message));
        }
        self.held = wanted;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }
}

/// The event in the types of the WIT world.
pub(super) fn to_guest(event: Event) -> types::Event {
    types::Event {
        id: event.id,
        source: event.source,
        type_: event.ty.into(),
        subject: event.subject,
        time: event.time.and_then(|time| time.format(&Rfc3339).ok()),
        content_type: event.content_type,
        extensions: event.extensions.into_iter().collect(),
        data: event.data.into(),
    }
}

/// The component's own error.
pub(super) fn from_failure(failure: types::Failure) -> FunctionError {
    match failure {
        types::Failure::Invalid(message) => FunctionError::new(Fault::Invalid, message),
        types::Failure::Retry(message) => FunctionError::new(Fault::Retry { after: None }, message),
    }
}
