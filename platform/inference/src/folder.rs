//! A model's folder in Hugging Face's layout: which files matter, and what the model does.

use crate::{
    files::{FolderError, is_there, unreadable},
    layout::{self, Layout},
    proto::Outline,
    task::Description,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

/// The files beside the graph that say how it is used.
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

/// A model's folder, read and checked without running it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFolder {
    /// The folder.
    pub root: PathBuf,
    /// The files the model needs, relative to the folder with `/`, sorted.
    pub files: Vec<String>,
    /// What the model is.
    pub description: Description,
}

impl ModelFolder {
    /// Reads a model's folder, or one `.onnx` file with what lies beside it, and renders a question with its chat template if
    /// it has one. A model of strangers is read in a helper process.
    ///
    /// # Errors
    /// Says why it is no model.
    pub fn read(path: &Path) -> Result<Self, FolderError> {
        let (root, graph) = locate(path)?;
        let file = root.join(&graph);
        let outline =
            nerve_files::read(&file, u64::MAX).map_err(|error| unreadable(&file, &error)).and_then(|bytes| {
                Outline::read(&bytes).map_err(|why| FolderError(format!("{} cannot be used: {why}", file.display())))
            })?;
        let layout = Layout::read(&root, &outline)?;
        if let layout::Kind::Causal(causal) = &layout.kind {
            let wrong = |why| FolderError(format!("the model in {} cannot be used: {why}", root.display()));
            causal.try_template().map_err(wrong)?;
        }
        let mut files = BTreeSet::from([graph.clone()]);
        let beside = graph.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).unwrap_or_default();
        for data in &outline.external {
            let name = format!("{beside}{data}");
            let within = Path::new(data).components().all(|part| matches!(part, Component::Normal(_)));
            if !within || !is_there(&root, &name)? {
                return Err(FolderError(format!(
                    "{} keeps weights in `{data}`, which is not there: put it beside the model",
                    file.display()
                )));
            }
            files.insert(name);
        }
        let companions = COMPANIONS.iter().map(|name| (*name).to_owned()).chain(layout.module_files(&root));
        for name in companions {
            if is_there(&root, &name)? {
                files.insert(name);
            }
        }
        Ok(Self { root, files: files.into_iter().collect(), description: layout.description() })
    }
}

/// The folder of a model and the graph in it, relative to the folder.
pub(crate) fn locate(path: &Path) -> Result<(PathBuf, String), FolderError> {
    if path.is_dir() {
        return Ok((path.to_owned(), graph_in(path)?));
    }
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".onnx"));
    let is_file = nerve_files::is_there(path).map_err(|error| unreadable(path, &error))?;
    let Some(name) = name.filter(|_| is_file) else {
        return Err(FolderError(format!("{} is neither a folder nor an .onnx file", path.display())));
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(|error| unreadable(folder, &error))?;
    // Hugging Face keeps graphs in `onnx/` below the folder that has the tokenizer.
    match folder.parent() {
        Some(parent) if folder.ends_with("onnx") && parent.join("config.json").is_file() => {
            Ok((parent.to_owned(), format!("onnx/{name}")))
        }
        _ => Ok((folder, name.to_owned())),
    }
}

fn graph_in(folder: &Path) -> Result<String, FolderError> {
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
        [] => Err(FolderError(format!(
            "{} has no .onnx file: export the model to ONNX first, for example with `optimum-cli export onnx`",
            folder.display()
        ))),
        several => Err(FolderError(format!(
            "{} has several .onnx files: name one of {}",
            folder.display(),
            several.join(", ")
        ))),
    }
}

impl Layout {
    /// The settings of the modules that sentence-transformers put in folders of their own.
    fn module_files(&self, root: &Path) -> Vec<String> {
        layout::module_paths(root).into_iter().map(|path| format!("{path}/config.json")).collect()
    }
}
