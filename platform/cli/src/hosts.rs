//! The hosts of functions in a server, and its models: what the Cargo features of this build include.

use crate::sandbox;
use nerve_config::Config;
use nerve_core::{Host, Inference};
use nerve_runtime::{HttpHost, ProcessConfig, ProcessHost, Runtimes};
use nerve_sandbox::Pool;
use std::sync::Arc;

/// Creates the hosts of all runtimes. Compiled code and working directories of processes are in the data directory.
pub(crate) fn function_host(config: &Config, helpers: &Pool, models: &ModelRunner) -> anyhow::Result<Arc<dyn Host>> {
    let processes = ProcessConfig::new(config.data.dir.join("processes"));
    let shim = Some(sandbox::shim(config.private_paths()?, &processes.work_dir));
    let process = ProcessHost::new(ProcessConfig { shim, ..processes });
    let (wasm, builtin) = (components(config, helpers)?, builtin::host(config, helpers, models)?);
    Ok(Arc::new(Runtimes::new(wasm, process, HttpHost::new()?, builtin)))
}

#[cfg(feature = "wasm")]
fn components(config: &Config, helpers: &Pool) -> anyhow::Result<Arc<dyn Host>> {
    use nerve_runtime::{WasmConfig, WasmHost};

    let compiler = sandbox::compiler(&config.sandbox, helpers);
    Ok(Arc::new(WasmHost::new(WasmConfig { cache_dir: config.data.dir.join("compiled"), compiler })?))
}

#[cfg(not(feature = "wasm"))]
fn components(_: &Config, _: &Pool) -> anyhow::Result<Arc<dyn Host>> {
    Ok(Arc::new(crate::features::AbsentHost("wasm")))
}

/// The built-in functions.
#[cfg(feature = "onnx")]
mod builtin {
    use super::{Config, Host, ModelRunner, Pool};
    use async_trait::async_trait;
    use nerve_core::{Deployment, Function, LoadError, manifest::RuntimeSpec};
    use nerve_onnx::OnnxHost;
    use std::sync::Arc;

    /// The host of the built-in functions.
    struct BuiltinHost {
        onnx: OnnxHost,
        rag: Arc<dyn Host>,
    }

    pub(super) fn host(config: &Config, helpers: &Pool, models: &ModelRunner) -> anyhow::Result<Arc<dyn Host>> {
        Ok(Arc::new(BuiltinHost { rag: rag(config, helpers, models)?, onnx: OnnxHost::new(models.onnx.clone()) }))
    }

    /// Questions and documents share embedding models; the index is in the data directory or a database.
    #[cfg(feature = "rag")]
    fn rag(config: &Config, helpers: &Pool, models: &ModelRunner) -> anyhow::Result<Arc<dyn Host>> {
        use anyhow::Context;
        use nerve_rag::{DocumentReaders, RagHost, Settings};

        let readers = DocumentReaders::new(helpers.clone(), config.sandbox.document_memory);
        let (folder, postgres) = (config.data.dir.join("index"), config.rag.postgres.clone());
        let rag = RagHost::new(Settings { folder, postgres, readers }, models.onnx.clone());
        Ok(Arc::new(rag.context("invalid `rag.postgres`")?))
    }

    #[cfg(not(feature = "rag"))]
    fn rag(_: &Config, _: &Pool, _: &ModelRunner) -> anyhow::Result<Arc<dyn Host>> {
        Ok(Arc::new(crate::features::AbsentHost("rag")))
    }

    #[async_trait]
    impl Host for BuiltinHost {
        async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
            match &deployment.spec.run {
                RuntimeSpec::Builtin { function, .. } if function.starts_with("rag/") => {
                    self.rag.load(deployment).await
                }
                _ => self.onnx.load(deployment).await,
            }
        }
    }
}

/// A build without models has no built-in functions.
#[cfg(not(feature = "onnx"))]
mod builtin {
    use super::{Config, Host, ModelRunner, Pool};
    use std::sync::Arc;

    pub(super) fn host(_: &Config, _: &Pool, _: &ModelRunner) -> anyhow::Result<Arc<dyn Host>> {
        Ok(Arc::new(crate::features::AbsentHost("onnx")))
    }
}

pub(crate) use models::ModelRunner;

#[cfg(feature = "onnx")]
mod models {
    use super::{Config, Inference, Pool};
    use crate::{onnx, sandbox};
    use nerve_inference::OnnxInference;
    use std::{sync::Arc, time::Duration};
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    /// Timeout for closing models at shutdown.
    const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

    /// Runs models in this process.
    pub(crate) struct ModelRunner {
        pub(super) onnx: Arc<OnnxInference>,
        stop: CancellationToken,
        tasks: TaskTracker,
    }

    impl ModelRunner {
        /// Starts even without models or ONNX Runtime, and logs what is missing.
        pub(crate) fn start(config: &Config, helpers: &Pool) -> anyhow::Result<Self> {
            let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
            let (cache, prober) = (config.data.dir.join("models"), sandbox::prober(&config.sandbox, helpers));
            let settings = onnx::engine_settings(&config.onnx, cache, prober)?;
            let default = settings.bundled.contains_key(onnx::DEFAULT_MODEL);
            let onnx = Arc::new(OnnxInference::start(settings, stop.clone(), tasks.clone()));
            let loading = onnx.clone();
            tasks.spawn_blocking(move || match loading.library() {
                Ok(file) => tracing::debug!(library = %file.display(), "ONNX Runtime"),
                Err(error) => tracing::warn!("cannot run models: {error}"),
            });
            if !default {
                tracing::warn!(
                    "the default model {name} is not installed: run `make setup`, or \
                     `nerve models add DIR --name {name}`",
                    name = onnx::DEFAULT_MODEL
                );
            }
            Ok(Self { onnx, stop, tasks })
        }

        /// Runs models for the gateway.
        pub(crate) fn inference(&self) -> Option<Arc<dyn Inference>> {
            Some(self.onnx.clone())
        }

        /// Drops all models and waits until their threads have exited.
        pub(crate) async fn close(self) {
            let Self { onnx, stop, tasks } = self;
            drop(onnx);
            stop.cancel();
            tasks.close();
            if tokio::time::timeout(CLOSE_TIMEOUT, tasks.wait()).await.is_err() {
                tracing::warn!("a model did not stop within {CLOSE_TIMEOUT:?}");
            }
        }
    }
}

#[cfg(not(feature = "onnx"))]
mod models {
    use super::{Config, Inference, Pool};
    use std::sync::Arc;

    /// Runs no model.
    pub(crate) struct ModelRunner;

    impl ModelRunner {
        pub(crate) fn start(_: &Config, _: &Pool) -> anyhow::Result<Self> {
            Ok(Self)
        }

        pub(crate) fn inference(&self) -> Option<Arc<dyn Inference>> {
            None
        }

        pub(crate) async fn close(self) {}
    }
}
