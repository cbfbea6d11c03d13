//! What a built-in function is deployed with: its model, found and checked.

use crate::{
    artifacts::File,
    connection::Connection,
    failure::Failure,
    model::{self, LocalModel},
    onnx,
};
use nerve_core::{FunctionSpec, ModelName, Name, Pattern, manifest::RuntimeSpec};
use nerve_registry::{ModelInfo, Registry};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Built-in functions that run no model.
const WITHOUT_MODEL: [&str; 4] = ["rag/remember", "rag/notify", "rag/learn", "rag/agent"];

/// Which model a built-in function runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The one in this folder or file.
    Path(PathBuf),
    /// The one of this name, in the registry or of this installation.
    Name(ModelName),
}

/// A model that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its files.
    pub(crate) files: Vec<File>,
    /// What it is.
    pub(crate) info: ModelInfo,
}

/// Checks what the manifest alone tells of a built-in function, and says which model it wants. A function that names
/// none gets the default by name, so that what is stored says what runs.
pub(crate) fn read(folder: &Path, name: &Name, spec: &mut FunctionSpec) -> Result<Option<Wanted>, Failure> {
    let emits = &spec.emits;
    let RuntimeSpec::Builtin { function, model, with } = &mut spec.run else { return Ok(None) };
    let refused = || Failure::new(format!("cannot deploy {name}"));
    let literal = |text: &str| !text.split('.').any(|token| token == "*" || token == ">");
    let results: Vec<&Pattern> = emits.iter().filter(|one| !nerve_rag::is_side_event(function, one.as_str())).collect();
    if !matches!(results.as_slice(), [one] if literal(one.as_str())) {
        let cause = match results.as_slice() {
            [] => format!("`emits` is empty, so whatever {function} finds out would be dropped"),
            [one] => format!("`emits` is the pattern {one}, and {function} must know the one type of its events"),
            _ => format!("`emits` names several types, and {function} publishes events of one"),
        };
        return Err(refused().cause(cause).next("name one event type, such as emits = [\"document.embedded\"]"));
    }
    if WITHOUT_MODEL.contains(&function.as_str()) {
        if let Some(model) = model {
            let cause = format!("{function} runs no model, and `model` names {model}");
            return Err(refused().cause(cause).next("remove `model`"));
        }
        nerve_rag::check_options(function, with).map_err(|why| unfit(name, function, &why))?;
        return Ok(None);
    }
    // All but this one embed, or measure by what embeds.
    if model.is_none() && function != "onnx/score" {
        *model = Some(onnx::DEFAULT_MODEL.to_owned());
    }
    let Some(model) = model else {
        let next = "name one: model = \"NAME\", added with `nerve models add DIR`, or model = \"./folder\"";
        return Err(refused().cause(format!("{function} has no default model")).next(next));
    };
    if model.contains('/') {
        return Ok(Some(Wanted::Path(folder.join(&*model))));
    }
    ModelName::parse(model.as_str()).map(|name| Some(Wanted::Name(name))).map_err(|error| refused().because(error))
}

/// Finds models by name, each once; those of this installation that the registry lacks are to be added.
#[derive(Debug, Default)]
pub(crate) struct Models {
    /// What is to be added to the registry.
    pub(crate) to_add: BTreeMap<ModelName, LocalModel>,
}

impl Models {
    /// The model's files: pinned as the registry has them now, or those that it will have.
    pub(crate) async fn find(
        &mut self,
        connection: &Connection,
        registry: &Registry,
        name: &ModelName,
    ) -> anyhow::Result<Found> {
        if let Some(entry) = registry.model(name).await? {
            let files = entry.record.files.into_iter().map(File::stored).collect();
            return Ok(Found { files, info: entry.record.description });
        }
        if !self.to_add.contains_key(name) {
            let config = &connection.config.onnx;
            let Some(folder) = onnx::bundled_folder(config, name.as_str()) else {
                let added = registry.models().await?.into_iter().map(|entry| entry.name.to_string());
                return Err(unknown(name, added.chain(onnx::bundled_names(config)).collect()).into());
            };
            self.to_add.insert(name.clone(), LocalModel::bundled(&folder).await?);
        }
        let model = self.to_add.get(name).cloned();
        let LocalModel { files, info } = model.ok_or_else(|| unknown(name, BTreeSet::new()))?;
        Ok(Found { files, info })
    }
}

fn unknown(name: &ModelName, known: BTreeSet<String>) -> Failure {
    let cause = match known.len() {
        0 => "no model is added yet".to_owned(),
        _ => format!("known are {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    };
    let next = format!("add it with `nerve models add DIR --name {name}`, or name a folder: model = \"./{name}\"");
    Failure::new(format!("there is no model `{name}`")).cause(cause).next(next)
}

/// Finds out here what a worker would find out later.
pub(crate) fn check(name: &Name, spec: &FunctionSpec, info: &ModelInfo) -> Result<(), Failure> {
    let RuntimeSpec::Builtin { function, model, with } = &spec.run else { return Ok(()) };
    let refused = || Failure::new(format!("cannot deploy {name}"));
    let able: &[&str] = match function.as_str() {
        "onnx/embed" => &["embed", "sparse"],
        "onnx/score" => &["rerank", "classify", "tensor"],
        "rag/rerank" => &["embed", "rerank"],
        "rag/generate" => &["embed", "generate"],
        _ => &["embed"],
    };
    if !able.contains(&info.task.as_str()) {
        let cause = format!("its model {} is for {}", model.as_deref().unwrap_or_default(), info.task);
        let next =
            format!("{function} wants a model for {}; `nerve models list` shows which there are", able.join(", "));
        return Err(refused().cause(cause).next(next));
    }
    let checked = match function.starts_with("rag/") {
        true => nerve_rag::check_options(function, with),
        false => nerve_onnx::check_options(function, &model::description(info)?, with),
    };
    checked.map_err(|why| unfit(name, function, &why))
}

/// Why options do not fit a function.
fn unfit(name: &Name, function: &str, why: &str) -> Failure {
    let next = format!("correct it; the manual of {function} lists what `with` takes");
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

    fn read_table(table: &str) -> Result<(FunctionSpec, Wanted), String> {
        let mut spec = spec(table);
        let wanted = read(Path::new("/here"), &Name::parse("f").unwrap(), &mut spec);
        wanted.map(|wanted| (spec, wanted.unwrap())).map_err(told)
    }

    fn told(failure: Failure) -> String {
        format!("{:#}", anyhow::Error::from(failure))
    }

    #[test]
    fn a_model_is_a_name_a_path_or_the_default() {
        let (spec, wanted) = read_table("use = \"onnx/embed\"\nemits = [\"a.b\"]").unwrap();
        assert_eq!(wanted, Wanted::Name(ModelName::parse("all-MiniLM-L6-v2").unwrap()));
        assert!(matches!(spec.run, RuntimeSpec::Builtin { model: Some(model), .. } if model == "all-MiniLM-L6-v2"));
        let (_, wanted) = read_table("use = \"onnx/score\"\nmodel = \"mine\"\nemits = [\"a\"]").unwrap();
        assert_eq!(wanted, Wanted::Name(ModelName::parse("mine").unwrap()));
        let (_, wanted) = read_table("use = \"onnx/score\"\nmodel = \"./mine\"\nemits = [\"a\"]").unwrap();
        assert_eq!(wanted, Wanted::Path("/here/./mine".into()));
        let error = read_table("use = \"onnx/score\"\nemits = [\"a\"]").unwrap_err();
        assert!(error.contains("no default model"), "{error}");
    }

    #[test]
    fn results_need_one_type() {
        for (emits, said) in [("", "dropped"), ("emits = [\"a.*\"]", "pattern"), ("emits = [\"a\", \"b\"]", "several")]
        {
            let error = read_table(&format!("use = \"onnx/embed\"\n{emits}")).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_model_for_something_else_is_refused() {
        let spec = spec("use = \"onnx/embed\"\nmodel = \"m\"\nemits = [\"a\"]");
        let info = |task: &str| ModelInfo { task: task.into(), ..ModelInfo::default() };
        let name = Name::parse("f").unwrap();
        assert!(check(&name, &spec, &info("sparse")).is_ok());
        assert!(told(check(&name, &spec, &info("rerank")).unwrap_err()).contains("is for rerank"));
    }

    #[test]
    fn an_unknown_model_is_told_with_those_there_are() {
        let failure = unknown(&ModelName::parse("m").unwrap(), BTreeSet::from(["a".into(), "b".into()]));
        assert!(told(failure).contains("known are a, b"));
    }
}
