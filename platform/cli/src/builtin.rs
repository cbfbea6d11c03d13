//! Resolves and checks the models of built-in functions.

use crate::{
    artifacts::File,
    connection::Connection,
    failure::Failure,
    features,
    model::{self, LocalModel},
    onnx,
};
use nerve_core::{FunctionSpec, ModelName, Name, Pattern, manifest::RuntimeSpec};
use nerve_registry::{ModelInfo, Registry};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Built-in functions without a model.
const FUNCTIONS_WITHOUT_MODEL: [&str; 4] = ["rag/remember", "rag/notify", "rag/learn", "rag/agent"];

/// The model reference of a built-in function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelReference {
    /// A model directory or file.
    Path(PathBuf),
    /// The name of a model in the registry or of a bundled model.
    Name(ModelName),
}

/// A resolved model.
#[derive(Debug)]
pub(crate) struct ResolvedModel {
    /// Its files.
    pub(crate) files: Vec<File>,
    /// Its description.
    pub(crate) info: ModelInfo,
}

/// Checks the table of a built-in function and returns its model reference. The default model is written into `spec`,
/// so that the registry records the model.
pub(crate) fn read(folder: &Path, name: &Name, spec: &mut FunctionSpec) -> Result<Option<ModelReference>, Failure> {
    let emits = &spec.emits;
    let RuntimeSpec::Builtin { function, model, with } = &mut spec.run else { return Ok(None) };
    let refused = || Failure::new(format!("cannot deploy {name}"));
    let literal = |text: &str| !text.split('.').any(|token| token == "*" || token == ">");
    let results: Vec<&Pattern> =
        emits.iter().filter(|one| !features::is_auxiliary_output(function, one.as_str())).collect();
    if !matches!(results.as_slice(), [one] if literal(one.as_str())) {
        let cause = match results.as_slice() {
            [] => format!("`emits` is empty, so the results of {function} would be dropped"),
            [one] => format!("`emits` is the pattern {one}, but {function} requires one event type"),
            _ => format!("`emits` lists several types, but {function} publishes events of one type"),
        };
        return Err(refused().cause(cause).next("use one event type, such as emits = [\"document.embedded\"]"));
    }
    if FUNCTIONS_WITHOUT_MODEL.contains(&function.as_str()) {
        if let Some(model) = model {
            let cause = format!("{function} does not use a model, but `model` is {model}");
            return Err(refused().cause(cause).next("remove `model`"));
        }
        features::check_rag_options(function, with).map_err(|why| invalid_options(name, function, &why))?;
        return Ok(None);
    }
    // All other functions use an embedding model by default.
    if model.is_none() && function != "onnx/score" {
        *model = Some(onnx::DEFAULT_MODEL.to_owned());
    }
    let Some(model) = model else {
        let next = "set model = \"NAME\" of a model added with `nerve models add DIR`, or model = \"./folder\"";
        return Err(refused().cause(format!("{function} has no default model")).next(next));
    };
    if model.contains('/') {
        return Ok(Some(ModelReference::Path(folder.join(&*model))));
    }
    ModelName::parse(model.as_str())
        .map(|name| Some(ModelReference::Name(name)))
        .map_err(|error| refused().because(error))
}

/// Resolves models by name. Bundled models that are not in the registry are collected for upload.
#[derive(Debug, Default)]
pub(crate) struct ModelResolver {
    /// Bundled models to add to the registry.
    pub(crate) to_add: BTreeMap<ModelName, LocalModel>,
}

impl ModelResolver {
    /// Returns the model's current files in the registry, or those of the bundled model.
    pub(crate) async fn resolve(
        &mut self,
        connection: &Connection,
        registry: &Registry,
        name: &ModelName,
    ) -> anyhow::Result<ResolvedModel> {
        if let Some(entry) = registry.model(name).await? {
            let files = entry.record.files.into_iter().map(File::stored).collect();
            return Ok(ResolvedModel { files, info: entry.record.description });
        }
        if !self.to_add.contains_key(name) {
            let config = &connection.config.onnx;
            let Some(folder) = onnx::bundled_folder(config, name.as_str()) else {
                let added = registry.models().await?.into_iter().map(|entry| entry.name.to_string());
                return Err(unknown_model(name, added.chain(onnx::bundled_names(config)).collect()).into());
            };
            self.to_add.insert(name.clone(), model::read_bundled(&folder).await?);
        }
        let model = self.to_add.get(name).cloned();
        let LocalModel { files, info } = model.ok_or_else(|| unknown_model(name, BTreeSet::new()))?;
        Ok(ResolvedModel { files, info })
    }
}

fn unknown_model(name: &ModelName, known: BTreeSet<String>) -> Failure {
    let cause = match known.len() {
        0 => "no model is installed".to_owned(),
        _ => format!("installed models: {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    };
    let next = format!("add it with `nerve models add DIR --name {name}`, or use a directory: model = \"./{name}\"");
    Failure::new(format!("model `{name}` is not installed")).cause(cause).next(next)
}

/// Checks the model and the options, which the worker would reject.
pub(crate) fn check(name: &Name, spec: &FunctionSpec, info: &ModelInfo) -> Result<(), Failure> {
    let RuntimeSpec::Builtin { function, model, with } = &spec.run else { return Ok(()) };
    let refused = || Failure::new(format!("cannot deploy {name}"));
    let supported: &[&str] = match function.as_str() {
        "onnx/embed" => &["embed", "sparse"],
        "onnx/score" => &["rerank", "classify", "tensor"],
        "rag/rerank" => &["embed", "rerank"],
        "rag/generate" => &["embed", "generate"],
        _ => &["embed"],
    };
    if !supported.contains(&info.task.as_str()) {
        let cause = format!("the task of its model {} is {}", model.as_deref().unwrap_or_default(), info.task);
        let next = format!("{function} requires a model for {}; see `nerve models list`", supported.join(", "));
        return Err(refused().cause(cause).next(next));
    }
    let checked = match function.starts_with("rag/") {
        true => features::check_rag_options(function, with),
        false => model::check_options(function, info, with),
    };
    checked.map_err(|why| invalid_options(name, function, &why))
}

/// Creates the error for invalid options.
fn invalid_options(name: &Name, function: &str, why: &str) -> Failure {
    let next = format!("correct it; the manual of {function} lists the options of `with`");
    Failure::new(format!("cannot deploy {name}")).cause(format!("`with`: {why}")).next(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::Manifest;

    fn spec(table: &str) -> FunctionSpec {
        let text = format!("[function.f]\nruntime = \"builtin\"\non = [\"events.>\"]\n{table}\n");
        Manifest::parse(&text).unwrap().functions.into_values().next().unwrap()
    }

    fn read_table(table: &str) -> Result<(FunctionSpec, ModelReference), String> {
        let mut spec = spec(table);
        let reference = read(Path::new("/here"), &Name::parse("f").unwrap(), &mut spec);
        reference.map(|reference| (spec, reference.unwrap())).map_err(message)
    }

    fn message(failure: Failure) -> String {
        format!("{:#}", anyhow::Error::from(failure))
    }

    #[test]
    fn model_is_a_name_a_path_or_the_default() {
        let (spec, reference) = read_table("use = \"onnx/embed\"\nemits = [\"a.b\"]").unwrap();
        assert_eq!(reference, ModelReference::Name(ModelName::parse("all-MiniLM-L6-v2").unwrap()));
        assert!(matches!(spec.run, RuntimeSpec::Builtin { model: Some(model), .. } if model == "all-MiniLM-L6-v2"));
        let (_, reference) = read_table("use = \"onnx/score\"\nmodel = \"mine\"\nemits = [\"a\"]").unwrap();
        assert_eq!(reference, ModelReference::Name(ModelName::parse("mine").unwrap()));
        let (_, reference) = read_table("use = \"onnx/score\"\nmodel = \"./mine\"\nemits = [\"a\"]").unwrap();
        assert_eq!(reference, ModelReference::Path("/here/./mine".into()));
        let error = read_table("use = \"onnx/score\"\nemits = [\"a\"]").unwrap_err();
        assert!(error.contains("no default model"), "{error}");
    }

    #[test]
    fn results_require_one_event_type() {
        for (emits, expected) in
            [("", "dropped"), ("emits = [\"a.*\"]", "pattern"), ("emits = [\"a\", \"b\"]", "several")]
        {
            let error = read_table(&format!("use = \"onnx/embed\"\n{emits}")).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn model_for_another_task_is_rejected() {
        let spec = spec("use = \"onnx/embed\"\nmodel = \"m\"\nemits = [\"a\"]");
        let info = |task: &str| ModelInfo { task: task.into(), ..ModelInfo::default() };
        let name = Name::parse("f").unwrap();
        assert!(check(&name, &spec, &info("sparse")).is_ok());
        assert!(message(check(&name, &spec, &info("rerank")).unwrap_err()).contains("is rerank"));
    }

    #[test]
    fn unknown_model_error_lists_installed_models() {
        let failure = unknown_model(&ModelName::parse("m").unwrap(), BTreeSet::from(["a".into(), "b".into()]));
        assert!(message(failure).contains("installed models: a, b"));
    }
}
