//! Models: added once, named by functions and by requests.
//!
//! A function's deployment pins its model's files by digest, so a model that is replaced changes nothing until the
//! next deploy.

use super::{ArtifactRef, Deployed, Entry, FunctionRecord, ModelInfo, ModelRecord, Registry};
use nerve_broker::bus::BusError;
use nerve_core::{ModelName, manifest::RuntimeSpec};
use std::collections::BTreeSet;
use time::OffsetDateTime;

type Models = [Entry<ModelRecord, ModelName>];
type Functions = [Entry<FunctionRecord>];

fn model_key(name: &ModelName) -> String {
    format!("model.{name}")
}

impl ModelRecord {
    /// A model whose files are uploaded.
    pub fn new(files: Vec<ArtifactRef>, description: ModelInfo) -> Self {
        Self { files, description, added_at: OffsetDateTime::now_utc() }
    }

    /// Whether adding `other` over this would change nothing.
    pub fn same_as(&self, other: &Self) -> bool {
        self.files == other.files && self.description == other.description
    }
}

impl Registry {
    /// The models that were added, by name.
    pub async fn models(&self) -> Result<Vec<Entry<ModelRecord, ModelName>>, BusError> {
        self.list("model.").await
    }

    /// One model.
    pub async fn model(&self, name: &ModelName) -> Result<Option<Entry<ModelRecord, ModelName>>, BusError> {
        self.get(name, &model_key(name)).await
    }

    /// Adds a model whose files are uploaded, or replaces it; the same again changes nothing.
    pub async fn add_model(&self, name: &ModelName, record: ModelRecord) -> Result<Deployed, BusError> {
        let before = self.model(name).await?;
        if let Some(before) = &before
            && before.record.same_as(&record)
        {
            return Ok(Deployed::Unchanged { revision: before.revision });
        }
        let revision = self.put(&model_key(name), &record).await?;
        let Some(before) = before else { return Ok(Deployed::Created { revision }) };
        self.free(&before.record.files).await?;
        Ok(Deployed::Changed { revision })
    }

    /// Removes a model and the files that nothing else needs; `false` when there was none. A model that a deployed
    /// function runs is refused.
    pub async fn remove_model(&self, name: &ModelName) -> Result<bool, BusError> {
        let Some(entry) = self.model(name).await? else { return Ok(false) };
        let users = users(name, &entry.record, &self.models().await?, &self.functions().await?);
        if !users.is_empty() {
            let why = match users.as_slice() {
                [user] => format!("the function {user} runs it: remove that, or deploy it with another model, first"),
                users => format!(
                    "the functions {} run it: remove them, or deploy them with another model, first",
                    users.join(", ")
                ),
            };
            return Err(BusError::refused(format!("removing the model {name}"), why));
        }
        self.delete(&model_key(name)).await?;
        self.free(&entry.record.files).await?;
        Ok(true)
    }

    /// Deletes those of `files` that neither a model nor a function refers to.
    async fn free(&self, files: &[ArtifactRef]) -> Result<(), BusError> {
        for digest in unreferenced(files, &self.models().await?, &self.functions().await?) {
            self.delete_artifact(digest).await?;
        }
        Ok(())
    }
}

/// The functions that run this model: they hold its files and name it, or hold a file that no other model has, for a
/// function may name a folder. A file that is shared, as tokenizers are, says nothing by itself.
fn users(name: &ModelName, record: &ModelRecord, models: &Models, functions: &Functions) -> Vec<String> {
    let others = models.iter().filter(|entry| entry.name != *name);
    let shared: BTreeSet<&str> =
        others.flat_map(|entry| &entry.record.files).map(|file| file.sha256.as_str()).collect();
    let runs = |entry: &&Entry<FunctionRecord>| {
        let FunctionRecord { spec, artifacts, .. } = &entry.record;
        let names_it = matches!(&spec.run, RuntimeSpec::Builtin { model: Some(model), .. } if model == name.as_str());
        let mut held = record.files.iter().filter(|file| artifacts.iter().any(|held| held.sha256 == file.sha256));
        held.any(|file| names_it || !shared.contains(file.sha256.as_str()))
    };
    functions.iter().filter(runs).map(|entry| entry.name.to_string()).collect()
}

fn unreferenced<'f>(files: &'f [ArtifactRef], models: &Models, functions: &Functions) -> BTreeSet<&'f str> {
    let of_models = models.iter().flat_map(|entry| &entry.record.files);
    let of_functions = functions.iter().flat_map(|entry| &entry.record.artifacts);
    let needed: BTreeSet<&str> = of_models.chain(of_functions).map(|file| file.sha256.as_str()).collect();
    files.iter().map(|file| file.sha256.as_str()).filter(|digest| !needed.contains(digest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::{Manifest, Name};

    fn files(digests: &[&str]) -> Vec<ArtifactRef> {
        let file = |digest: &&str| ArtifactRef { name: format!("{digest}.onnx"), sha256: (*digest).into(), size: 1 };
        digests.iter().map(file).collect()
    }

    fn model(name: &str, digests: &[&str]) -> Entry<ModelRecord, ModelName> {
        let description = ModelInfo { task: "embed".into(), dimensions: Some(384), ..ModelInfo::default() };
        let record = ModelRecord::new(files(digests), description);
        Entry { name: ModelName::parse(name).unwrap(), revision: 1, record }
    }

    fn function(name: &str, model: &str, digests: &[&str]) -> Entry<FunctionRecord> {
        let text = "[function.f]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\non = [\"events.>\"]\n";
        let spec =
            Manifest::parse(&format!("{text}model = \"{model}\"\n")).unwrap().functions.into_values().next().unwrap();
        let deployed_at = OffsetDateTime::UNIX_EPOCH;
        let record = FunctionRecord { spec, artifacts: files(digests), stream: "EVENTS".into(), deployed_at };
        Entry { name: Name::parse(name).unwrap(), revision: 1, record }
    }

    #[test]
    fn what_runs_a_model_names_it_or_holds_a_file_of_its_own() {
        let models = [model("a", &["weights-a", "tokenizer"]), model("b", &["weights-b", "tokenizer"])];
        let of = |index: usize, functions: &[Entry<FunctionRecord>], models: &Models| {
            users(&models[index].name, &models[index].record, models, functions)
        };
        let functions = [function("f", "./here", &["weights-a", "tokenizer"]), function("g", "b", &["older"])];
        assert_eq!(of(0, &functions, &models), ["f"]);
        assert!(of(1, &functions, &models).is_empty());
        let twins = [model("a", &["weights"]), model("b", &["weights"])];
        let functions = [function("f", "a", &["weights"])];
        assert_eq!(of(0, &functions, &twins), ["f"]);
        assert!(of(1, &functions, &twins).is_empty());
    }

    #[test]
    fn only_what_nothing_needs_is_freed() {
        let freed = files(&["weights-a", "tokenizer", "pinned"]);
        let needed = unreferenced(&freed, &[model("b", &["tokenizer"])], &[function("f", "c", &["pinned"])]);
        assert_eq!(needed.into_iter().collect::<Vec<_>>(), ["weights-a"]);
    }

    #[test]
    fn the_time_is_no_difference() {
        let (now, mut later) = (model("a", &["x"]).record, model("a", &["x"]).record);
        later.added_at += std::time::Duration::from_secs(1);
        assert!(now.same_as(&later) && !now.same_as(&model("a", &["y"]).record));
    }
}
