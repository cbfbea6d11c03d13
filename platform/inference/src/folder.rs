//! Model folders in Hugging Face's layout: required files and description of the model.

use crate::{
    files::{ModelError, is_there, unreadable},
    signature::GraphSignature,
    spec::{self, ModelSpec},
    task::Description,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

/// Files beside the graph that describe its use.
const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// A model's folder, read and checked without running the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFolder {
    /// Path of the folder.
    pub root: PathBuf,
    /// Required files, relative to the folder with `/`, sorted.
    pub files: Vec<String>,
    /// Description of the model.
    pub description: Description,
}

impl ModelFolder {
    /// Reads a model's folder, or an `.onnx` file with the files beside it, and probes its chat template if it has
    /// one. Untrusted models must be read in a helper process.
    ///
    /// # Errors
    /// Tells why it is not a usable model.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let (root, graph) = locate(path)?;
        let file = root.join(&graph);
        let signature =
            nerve_files::read(&file, u64::MAX).map_err(|error| unreadable(&file, &error)).and_then(|bytes| {
                GraphSignature::read(&bytes)
                    .map_err(|why| ModelError(format!("{} cannot be used: {why}", file.display())))
            })?;
        let spec = ModelSpec::read(&root, &signature)?;
        if let spec::ModelKind::Causal(causal) = &spec.kind {
            let unusable = |why| ModelError(format!("the model in {} cannot be used: {why}", root.display()));
            causal.probe_template().map_err(unusable)?;
        }
        let mut files = BTreeSet::from([graph.clone()]);
        let graph_folder = graph.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).unwrap_or_default();
        for data in &signature.external_files {
            let name = format!("{graph_folder}{data}");
            let within = Path::new(data).components().all(|part| matches!(part, Component::Normal(_)));
            if !within || !is_there(&root, &name)? {
                return Err(ModelError(format!(
                    "{} has weights in `{data}`, which is missing: put it beside the model",
                    file.display()
                )));
            }
            files.insert(name);
        }
        let companions = COMPANIONS.iter().map(|name| (*name).to_owned()).chain(spec.module_files(&root));
        for name in companions {
            if is_there(&root, &name)? {
                files.insert(name);
            }
        }
        Ok(Self { root, files: files.into_iter().collect(), description: spec.description() })
    }
}

/// Folder of a model, and its graph relative to the folder.
pub(crate) fn locate(path: &Path) -> Result<(PathBuf, String), ModelError> {
    if path.is_dir() {
        return Ok((path.to_owned(), graph_in(path)?));
    }
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".onnx"));
    let is_file = nerve_files::is_there(path).map_err(|error| unreadable(path, &error))?;
    let Some(name) = name.filter(|_| is_file) else {
        return Err(ModelError(format!("{} is neither a folder nor an .onnx file", path.display())));
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(|error| unreadable(folder, &error))?;
    // Hugging Face stores graphs in `onnx/` below the tokenizer's folder.
    match folder.parent() {
        Some(parent) if folder.ends_with("onnx") && parent.join("config.json").is_file() => {
            Ok((parent.to_owned(), format!("onnx/{name}")))
        }
        _ => Ok((folder, name.to_owned())),
    }
}

fn graph_in(folder: &Path) -> Result<String, ModelError> {
    for usual in ["model.onnx", "onnx/model.onnx"] {
        if is_there(folder, usual)? {
            return Ok(usual.to_owned());
        }
    }
    let mut found = Vec::new();
    for below in ["", "onnx/"] {
        let Ok(entries) = fs::read_dir(folder.join(below)) else { continue };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        found.extend(names.filter(|name| name.ends_with(".onnx")).map(|name| format!("{below}{name}")));
    }
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(ModelError(format!(
            "{} has no .onnx file: export the model to ONNX first, for example with `optimum-cli export onnx`",
            folder.display()
        ))),
        several => {
            Err(ModelError(format!("{} has several .onnx files: name one of {}", folder.display(), several.join(", "))))
        }
    }
}

impl ModelSpec {
    /// Settings of sentence-transformers modules, which have their own folders.
    fn module_files(&self, root: &Path) -> Vec<String> {
        spec::module_paths(root).into_iter().map(|path| format!("{path}/config.json")).collect()
    }
}
