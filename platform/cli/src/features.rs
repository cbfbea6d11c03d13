//! What a build without a Cargo feature does instead.

#[cfg(feature = "rag")]
pub(crate) use nerve_rag::{check_options as check_rag_options, check_tool, is_auxiliary_output};
#[cfg(feature = "wasm")]
pub(crate) use nerve_runtime::inspect as check_component;

#[cfg(not(all(feature = "wasm", feature = "onnx", feature = "rag")))]
pub(crate) use absent::*;

#[cfg(not(all(feature = "wasm", feature = "onnx", feature = "rag")))]
mod absent {
    use async_trait::async_trait;
    use nerve_core::{Deployment, Function, Host, LoadError};
    #[cfg(not(feature = "rag"))]
    use serde_json::{Map, Value};
    use std::sync::Arc;

    /// The next step for a user of such a build.
    pub(crate) const NEXT_STEP: &str =
        "use a nerve that was built with it: `cargo build -p nerve-cli` has all features";

    /// The cause of a refusal.
    pub(crate) fn absent(feature: &str) -> String {
        format!("this nerve was built without the feature `{feature}`")
    }

    /// Refuses every function.
    pub(crate) struct AbsentHost(pub(crate) &'static str);

    #[async_trait]
    impl Host for AbsentHost {
        async fn load(&self, _: Deployment) -> Result<Arc<dyn Function>, LoadError> {
            Err(LoadError::Invalid(absent(self.0)))
        }
    }

    #[cfg(not(feature = "wasm"))]
    pub(crate) fn check_component(_: &[u8]) -> Result<(), AbsentFeature> {
        Err(AbsentFeature("wasm"))
    }

    /// The error of [`check_component`].
    #[derive(Debug, thiserror::Error)]
    #[error("this nerve was built without the feature `{0}`")]
    pub(crate) struct AbsentFeature(&'static str);

    #[cfg(not(feature = "rag"))]
    pub(crate) fn check_rag_options(_: &str, _: &Map<String, Value>) -> Result<(), String> {
        Err(absent("rag"))
    }

    /// Accepts every tool: only `rag/agent` reads its parameters.
    #[cfg(not(feature = "rag"))]
    pub(crate) fn check_tool(_: &nerve_core::tool::ToolSpec) -> Result<(), String> {
        Ok(())
    }

    #[cfg(not(feature = "rag"))]
    pub(crate) fn is_auxiliary_output(_: &str, _: &str) -> bool {
        false
    }
}
