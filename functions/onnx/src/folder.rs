//! A model's folder in Hugging Face's layout: which files matter, and what the model does.

use crate::{
    layout::{self, Layout},
    proto::Outline,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
    str::FromStr,
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

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Texts to dense vectors.
    Embed,
    /// Texts to sparse vectors, one weight a token of the vocabulary (SPLADE).
    Sparse,
    /// A query and a document to one relevance.
    Rerank,
    /// Texts to labels.
    Classify,
    /// A conversation to what is said next.
    Generate,
    /// Numbers and strings to whatever the graph declares.
    Tensor,
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Embed, Self::Sparse, Self::Rerank, Self::Classify, Self::Generate, Self::Tensor];
        all.into_iter()
            .find(|task| task.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not what a model can be for"))
    }
}

impl Task {
    /// The word for it, as `nerve models list` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Sparse => "sparse",
            Self::Rerank => "rerank",
            Self::Classify => "classify",
            Self::Generate => "generate",
            Self::Tensor => "tensor",
        }
    }
}

/// What a folder says of its model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// What it is for.
    pub task: Task,
    /// Length of its vectors, or count of its labels, where the graph declares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    /// The most tokens it reads of one text, or of a conversation with its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// What its graph takes, by name, where a manifest maps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// What its graph gives, by name, where a manifest maps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
}

/// A model's folder, read and checked without running it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// The folder.
    pub root: PathBuf,
    /// The files the model needs, relative to the folder with `/`, sorted.
    pub files: Vec<String>,
    /// What the model is.
    pub description: Description,
}

/// Why a folder or file is no model that can be run: what, why, and the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FolderError(pub(crate) String);

impl ModelFolder {
    /// Reads a model's folder, or one `.onnx` file with what lies beside it.
    pub fn read(path: &Path) -> Result<Self, FolderError> {
        let (root, graph) = locate(path)?;
        let file = root.join(&graph);
        let outline = fs::read(&file).map_err(|error| unreadable(&file, &error)).and_then(|bytes| {
            Outline::read(&bytes).map_err(|why| FolderError(format!("{} cannot be used: {why}", file.display())))
        })?;
        let layout = Layout::read(&root, &outline)?;
        let mut files = BTreeSet::from([graph.clone()]);
        let beside = graph.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).unwrap_or_default();
        for data in &outline.external {
            let name = format!("{beside}{data}");
            let within = Path::new(data).components().all(|part| matches!(part, Component::Normal(_)));
            if !within || !root.join(&name).is_file() {
                return Err(FolderError(format!(
                    "{} keeps weights in `{data}`, which is not there: put it beside the model",
                    file.display()
                )));
            }
            files.insert(name);
        }
        let companions = COMPANIONS.iter().map(|name| (*name).to_owned()).chain(layout.module_files(&root));
        files.extend(companions.filter(|name| root.join(name).is_file()));
        Ok(Self { root, files: files.into_iter().collect(), description: layout.description() })
    }
}

/// The folder of a model and the graph in it, relative to the folder.
pub(crate) fn locate(path: &Path) -> Result<(PathBuf, String), FolderError> {
    if path.is_dir() {
        return Ok((path.to_owned(), graph_in(path)?));
    }
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".onnx"));
    let Some(name) = name.filter(|_| path.is_file()) else {
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
        if folder.join(usual).is_file() {
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

pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> FolderError {
    FolderError(format!("{} cannot be read: {error}", path.display()))
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(root: &Path, name: &str) -> Result<Option<T>, FolderError> {
    let file = root.join(name);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&file, &error)),
    };
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|error| FolderError(format!("{} cannot be used: {error}", file.display())))
}

impl Layout {
    /// The settings of the modules that sentence-transformers put in folders of their own.
    fn module_files(&self, root: &Path) -> Vec<String> {
        layout::module_paths(root).into_iter().map(|path| format!("{path}/config.json")).collect()
    }
}
