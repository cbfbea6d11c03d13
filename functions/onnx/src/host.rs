//! The host of the built-in functions `onnx/*`.

use crate::{builtin::BuiltinFunction, options::Options};
use async_trait::async_trait;
use nerve_core::{Deployment, EventType, Function, Host, LoadError, inference::Model, manifest::RuntimeSpec};
use nerve_inference::OnnxInference;
use std::sync::Arc;

/// Host of `onnx/embed` and `onnx/score`.
pub struct OnnxHost {
    models: Arc<OnnxInference>,
}

impl OnnxHost {
    /// A host that uses these models.
    pub fn new(models: Arc<OnnxInference>) -> Self {
        Self { models }
    }
}

#[async_trait]
impl Host for OnnxHost {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        let Deployment { name, spec, artifacts, .. } = deployment;
        let RuntimeSpec::Builtin { function, model, with } = spec.run else {
            return Err(LoadError::Invalid(format!(
                "`{name}` is not a built-in function; this host supports builtin only"
            )));
        };
        let emits = match spec.emits.as_slice() {
            [one] => EventType::parse(one.as_str()).map_err(|error| LoadError::Invalid(format!("`emits`: {error}")))?,
            _ => return Err(LoadError::Invalid(format!("`{name}` must have exactly one type in `emits`"))),
        };
        let model = Model { name: model.unwrap_or_else(|| function.clone()), files: artifacts };
        let loaded = self.models.load(&model).await;
        let loaded = loaded.map_err(|error| LoadError::failed(format!("loading the model `{}`", model.name), error))?;
        let options = Options::read(&function, &loaded.description, &with);
        let options = options.map_err(|why| LoadError::Invalid(format!("`with` of `{name}`: {why}")))?;
        Ok(Arc::new(BuiltinFunction { loaded, options, timeout: spec.timeout, emits }))
    }
}
