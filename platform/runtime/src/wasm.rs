//! Runs a WebAssembly component of the world `nerve:function/function` (`functions/wit/nerve.wit`).
//!
//! # Layout
//! - `guest`: the environment of an instance: WASI without files or network, `emit`, `log`, and its memory limit.
//! - `cache`: compiles a component once and keeps the machine code on disk. `compiler`: compiles in a helper process.
//! - `output`: standard output and error as limited log lines, and the tail that explains a trap.
//! - `inspect`: checks at deploy whether a file is a component that Nerve can run.
//!
//! # Flow
//! [`WasmHost::load`] finds or compiles the machine code and links it. Each event gets a fresh instance, so a trap
//! or a timeout affects only that event, and no memory of an instance is visible to the next. The events of a
//! batch run one after the other, each with its own full timeout.

mod cache;
mod compiler;
mod guest;
mod inspect;
mod output;

pub use compiler::{COMPILER, CompileError, Compiler};
pub use inspect::{InspectError, inspect};

use async_trait::async_trait;
use guest::{FunctionPre, Guest};
use nerve_core::{
    Context, Deployment, Emission, Event, EventType, Fault, Function, FunctionError, Host, LoadError, Outcome,
    manifest::RuntimeSpec,
    shares::{Share, Shares},
};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store,
    component::{HasSelf, Linker},
};

/// Interval at which a running component yields its thread, which is also the precision of timeouts.
const TICK: Duration = Duration::from_millis(5);
/// Live instances of one host, shared by its functions; further events wait. The pool has the same capacity.
const LIVE_INSTANCES: u32 = 256;

/// Bytes of each memory and table that are cleared by writing instead of released to the system: releasing
/// interrupts every core, which costs more than the work of a small function. Limited by `LIVE_INSTANCES`.
const KEPT_MEMORY: usize = 256 << 10;
const KEPT_TABLE: usize = 16 << 10;

/// The configuration of components.
#[derive(Debug, Clone)]
pub struct WasmConfig {
    /// A folder for compiled code, created with mode 0700. Write access to it allows running code as this process.
    pub cache_dir: PathBuf,
    /// The compiler.
    pub compiler: Compiler,
}

/// Runs components. All functions share one engine and one pool of instances.
pub struct WasmHost {
    engine: Engine,
    linker: Linker<Guest>,
    cache: cache::Cache,
    live: Shares,
    // Ends the ticker thread when dropped.
    _ticker: Arc<Ticker>,
}

impl WasmHost {
    /// Creates the engine, with pooled instances if the pool's address space is available, or else on demand.
    pub fn new(config: WasmConfig) -> Result<Self, LoadError> {
        let engine = match Engine::new(&engine_config(true)) {
            Ok(engine) => engine,
            Err(error) => {
                tracing::warn!(%error, "no pool of WebAssembly instances; making each on demand, which is slower");
                Engine::new(&engine_config(false))
                    .map_err(|error| failed("the WebAssembly engine could not be made", error))?
            }
        };
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)
            .map_err(|error| failed("WASI could not be linked", error))?;
        guest::FunctionWorld::add_to_linker::<Guest, HasSelf<Guest>>(&mut linker, |guest| guest)
            .map_err(|error| failed("the interface nerve:function/host could not be linked", error))?;
        let cache = cache::Cache::open(config.cache_dir, config.compiler)?;
        let ticker = Ticker::start(engine.clone())?;
        let live = Shares::new(LIVE_INSTANCES as usize);
        Ok(Self { engine, linker, cache, live, _ticker: Arc::new(ticker) })
    }
}

#[async_trait]
impl Host for WasmHost {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        let RuntimeSpec::Wasm { source } = &deployment.spec.run else {
            return Err(LoadError::Invalid(format!(
                "`{}` has runtime = \"{}\"; this host runs wasm",
                deployment.name,
                deployment.spec.run.runtime()
            )));
        };
        let Some(artifact) = deployment.artifacts.iter().find(|artifact| artifact.name == *source) else {
            return Err(LoadError::Invalid(format!(
                "`{}` was deployed without its component `{source}`; deploy it again",
                deployment.name
            )));
        };
        let component = self.cache.component(&self.engine, artifact).await?;
        let pre = self.linker.instantiate_pre(&component).and_then(FunctionPre::new).map_err(|error| {
            LoadError::Invalid(format!(
                "`{}` ({source}) cannot be linked: {error:#}; build it against functions/wit/nerve.wit and WASI 0.2",
                deployment.name
            ))
        })?;
        Ok(Arc::new(WasmFunction { pre, deployment, live: self.live.share(), _ticker: self._ticker.clone() }))
    }
}

struct WasmFunction {
    pre: FunctionPre<Guest>,
    deployment: Deployment,
    live: Share,
    _ticker: Arc<Ticker>,
}

#[async_trait]
impl Function for WasmFunction {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for (index, event) in batch.into_iter().enumerate() {
            outcomes.push(self.call(index, event, &context).await);
        }
        outcomes
    }
}

impl WasmFunction {
    async fn call(&self, index: usize, event: Event, context: &Context) -> Outcome {
        // Waiting for a free instance does not count as execution time.
        let _slot = self.live.acquire().await;
        let guest = Guest::new(&self.deployment, context.emitter.clone(), index);
        let output = guest.output();
        let mut store = Store::new(self.pre.engine(), guest);
        store.limiter(Guest::limiter);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let timeout = self.deployment.spec.timeout;
        let result = tokio::time::timeout(timeout, async {
            let instance = self.pre.instantiate_async(&mut store).await?;
            instance.call_handle(&mut store, &guest::to_guest(event)).await
        })
        .await;
        output.finish();
        let name = &self.deployment.name;
        match result {
            Err(_) => Err(FunctionError::new(
                Fault::Timeout,
                output.explain(format!("`{name}` did not answer within {timeout:?} (`timeout` in nerve.toml)")),
            )),
            Ok(Err(error)) => {
                // The limiter's message contains the size; the trap around it is only a backtrace.
                let why = match store.data().refused() {
                    Some(refused) => refused.to_owned(),
                    None => error.root_cause().to_string(),
                };
                Err(FunctionError::new(Fault::Crash, output.explain(format!("`{name}` crashed: {why}"))))
            }
            Ok(Ok(Err(failure))) => Err(guest::from_failure(failure)),
            Ok(Ok(Ok(emissions))) => emissions.into_iter().map(from_guest).collect(),
        }
    }
}

/// Validates an output event of a component.
fn from_guest(emission: guest::WitEmission) -> Result<Emission, FunctionError> {
    let ty = EventType::parse(emission.type_).map_err(|error| {
        FunctionError::new(Fault::Invalid, format!("the function emitted an event that cannot be published: {error}"))
    })?;
    Ok(Emission {
        ty,
        data: emission.data.into(),
        content_type: emission.content_type,
        subject: emission.subject,
        partition_key: emission.partition_key,
    })
}

fn engine_config(pooled: bool) -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    if pooled {
        let mut pool = PoolingAllocationConfig::default();
        // A JavaScript or Python component has many core modules that share one or two memories.
        pool.total_component_instances(LIVE_INSTANCES)
            .total_stacks(LIVE_INSTANCES)
            .total_core_instances(LIVE_INSTANCES * 64)
            .max_core_instances_per_component(64)
            .total_memories(LIVE_INSTANCES * 4)
            .max_memories_per_component(4)
            .total_tables(LIVE_INSTANCES * 32)
            .max_tables_per_component(32)
            .table_elements(100_000)
            .linear_memory_keep_resident(KEPT_MEMORY)
            .table_keep_resident(KEPT_TABLE)
            .decommit_batch_size(16)
            .max_core_instance_size(4 << 20)
            .max_component_instance_size(4 << 20);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

fn failed(message: &str, error: wasmtime::Error) -> LoadError {
    LoadError::failed(message, Box::<dyn std::error::Error + Send + Sync>::from(error))
}

/// Advances the engine's epoch on every [`TICK`], so that running components yield; ends when dropped.
struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: Engine) -> Result<Self, LoadError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("wasm-ticker".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(TICK);
                    engine.increment_epoch();
                }
            })
            .map_err(|error| LoadError::failed("the thread that interrupts guests could not be started", error))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within one tick, and it cannot panic.
            let _ = thread.join();
        }
    }
}
