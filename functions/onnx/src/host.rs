//! The host of the built-in functions.

use crate::{builtin::BuiltIn, options::Options};
use async_trait::async_trait;
use nerve_core::{Deployment, EventType, Function, Host, LoadError, inference::Model, manifest::RuntimeSpec};
use nerve_inference::Onnx;
use std::sync::Arc;

/// Loads `onnx/embed` and `onnx/score`.
pub struct OnnxHost {
    models: Arc<Onnx>,
}

impl OnnxHost {
    /// Functions on these models.
    pub fn new(models: Arc<Onnx>) -> Self {
        Self { models }
    }
}

#[async_trait]
impl Host for OnnxHost {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        let Deployment { name, spec, artifacts, .. } = deployment;
        let RuntimeSpec::Builtin { function, model, with } = spec.run else {
            return Err(LoadError::Invalid(format!("`{name}` is no built-in function; this host runs builtin")));
        };
        let emits = match spec.emits.as_slice() {
            [one] => EventType::parse(one.as_str()).map_err(|error| LoadError::Invalid(format!("`emits`: {error}")))?,
            _ => return Err(LoadError::Invalid(format!("`{name}` must emit one type of events, which `emits` names"))),
        };
        let model = Model { name: model.unwrap_or_else(|| function.clone()), files: artifacts };
        let loaded = self.models.load(&model).await;
        let loaded = loaded.map_err(|error| LoadError::failed(format!("loading the model `{}`", model.name), error))?;
        let options = Options::read(&function, &loaded.description, &with);
        let options = options.map_err(|why| LoadError::Invalid(format!("`with` of `{name}`: {why}")))?;
        Ok(Arc::new(BuiltIn { loaded, options, timeout: spec.timeout, emits }))
    }
}
