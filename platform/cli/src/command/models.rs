//! `nerve models`

use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
    model::{ModelReader, summary, total},
    output,
};
use clap::{Args, Subcommand};
use nerve_broker::bus::BusError;
use nerve_core::ModelName;
use nerve_registry::{ModelInfo, ModelRecord, RecordChange};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Models in the registry, used by name in functions and requests
#[derive(Debug, Subcommand)]
pub(crate) enum Models {
    /// Add or replace an ONNX model; deployed functions keep their files
    #[command(after_help = "\
From a directory in the Hugging Face layout, the required files are uploaded: model.onnx with its external
data, tokenizer.json, config.json and the pooling configuration.

Examples:
  nerve models add models/bge-small-en-v1.5
  nerve models add export --name reranker
  nerve models add churn.onnx --output json")]
    Add(Add),
    /// List the models in the registry
    #[command(after_help = "\
Examples:
  nerve models list
  nerve models list --output json | jq '.[].name'")]
    List(DataFolder),
    /// Remove a model that no deployed function uses, with its files
    #[command(after_help = "\
Examples:
  nerve models remove reranker")]
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// A model directory, or an .onnx file
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
    /// Name of the model [default: the name of the directory or file]
    #[arg(long)]
    name: Option<ModelName>,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The model's name
    name: ModelName,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Serialize)]
struct ModelReport {
    name: ModelName,
    #[serde(flatten)]
    deployed: RecordChange,
    description: ModelInfo,
    files: usize,
    size: u64,
}

impl Models {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run(globals).await,
            Self::List(folder) => list(globals, &folder).await,
            Self::Remove(remove) => remove.run(globals).await,
        }
    }
}

impl Add {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let name = match self.name {
            Some(name) => name,
            None => name_of(&self.path)?,
        };
        let connection = Connection::open(globals, &self.folder).await?;
        let reader = ModelReader::new(&connection.config);
        let model = reader.read(&self.path).await?;
        reader.test_run(&self.path, &model).await?;
        reader.close().await;
        let registry = connection.registry().await?;
        for file in &model.files {
            file.upload(&registry, globals.output).await?;
        }
        let references = model.references();
        let deployed = registry.add_model(&name, ModelRecord::new(references.clone(), model.info.clone())).await?;
        let (files, size) = (references.len(), total(&references));
        let report = ModelReport { name, deployed, description: model.info, files, size };
        globals.output.show(&report, |report| {
            let text = format!("{}: {}", report.name, summary(&report.description, &references));
            match report.deployed {
                RecordChange::Created { .. } => format!("added {text}"),
                RecordChange::Changed { .. } => {
                    format!("replaced {text}\nfunctions keep their files until you deploy again")
                }
                RecordChange::Unchanged { .. } => format!("nothing changed: {text}"),
            }
        })
    }
}

impl Remove {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let name = &self.name;
        let registry = Connection::open(globals, &self.folder).await?.registry().await?;
        let removed = registry.remove_model(name).await.map_err(|error| match error {
            BusError::Refused { why, .. } => {
                let (cause, next) = why.split_once(": ").unwrap_or((&why, "see `nerve list`"));
                Failure::new(format!("cannot remove the model {name}")).cause(cause).next(next).into()
            }
            other => anyhow::Error::from(other),
        })?;
        if !removed {
            let next = "see `nerve models list`";
            return Err(Failure::new(format!("model `{name}` is not installed")).next(next).into());
        }
        globals.output.show(&json!({"removed": name}), |_| format!("removed {name}"))
    }
}

async fn list(globals: &Globals, folder: &DataFolder) -> anyhow::Result<()> {
    let models = Connection::open(globals, folder).await?.registry().await?.models().await?;
    globals.output.show(&models, |models| {
        if models.is_empty() {
            return "no models; add one with `nerve models add DIR`".to_owned();
        }
        let count = |count: Option<usize>| count.map(|count| count.to_string()).unwrap_or_default();
        let rows = models.iter().map(|entry| {
            let info = &entry.record.description;
            [
                entry.name.to_string(),
                info.task.clone(),
                count(info.dimensions),
                count(info.max_tokens),
                output::size(total(&entry.record.files)),
                output::timestamp(entry.record.added_at),
            ]
        });
        output::table(["MODEL", "TASK", "DIMENSIONS", "TOKENS", "SIZE", "ADDED (UTC)"], rows)
    })
}

/// Returns the name of the directory, or of the file without its extension.
fn name_of(path: &Path) -> Result<ModelName, Failure> {
    let real = path.canonicalize().map_err(|error| {
        let next = "pass a model directory or an .onnx file";
        Failure::new(format!("cannot read {}", path.display())).because(error).next(next)
    })?;
    // A link keeps its own name; `.` is resolved.
    let named = if path.file_name().is_some() { path } else { &real };
    let name = if real.is_dir() { named.file_name() } else { named.file_stem() };
    let name = name.and_then(|name| name.to_str()).unwrap_or_default();
    ModelName::parse(name).map_err(|error| {
        let next = "set a name with --name NAME";
        Failure::usage(format!("the path {} does not end with a valid model name", path.display()))
            .because(error)
            .next(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_name_is_that_of_its_path() {
        let here = tempfile::tempdir().unwrap();
        let folder = here.path().join("bge-small-en-v1.5");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("churn.v2.onnx"), "").unwrap();
        std::fs::create_dir(here.path().join("my model")).unwrap();
        assert_eq!(name_of(&folder).unwrap().as_str(), "bge-small-en-v1.5");
        assert_eq!(name_of(&folder.join(".")).unwrap().as_str(), "bge-small-en-v1.5");
        assert_eq!(name_of(&folder.join("churn.v2.onnx")).unwrap().as_str(), "churn.v2");
        let error = |path: &Path| format!("{:#}", anyhow::Error::from(name_of(path).unwrap_err()));
        assert!(error(&here.path().join("my model")).contains("my model"));
        assert!(error(&here.path().join("none")).contains("none"));
    }
}
