//! Models: added once, used by functions and requests by name.
//!
//! A deployed function pins its model's files by digest, so a replaced model takes effect at the next deploy.

use super::{ArtifactRef, Entry, FunctionRecord, ModelInfo, ModelRecord, RecordChange, Registry};
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
    /// Creates the record of a model whose files are uploaded.
    pub fn new(files: Vec<ArtifactRef>, description: ModelInfo) -> Self {
        Self { files, description, added_at: OffsetDateTime::now_utc() }
    }

    /// Whether replacing this record by `other` changes nothing.
    pub fn same_as(&self, other: &Self) -> bool {
        self.files == other.files && self.description == other.description
    }
}

impl Registry {
    /// Returns the added models, by name.
    ///
    /// # Errors
    /// The broker is unavailable, or a record is of another version.
    pub async fn models(&self) -> Result<Vec<Entry<ModelRecord, ModelName>>, BusError> {
        self.list("model.").await
    }

    /// Returns one model.
    ///
    /// # Errors
    /// The broker is unavailable, or the record is of another version.
    pub async fn model(&self, name: &ModelName) -> Result<Option<Entry<ModelRecord, ModelName>>, BusError> {
        self.get(name, &model_key(name)).await
    }

    /// Adds or replaces a model whose files are uploaded. An identical model changes nothing.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn add_model(&self, name: &ModelName, record: ModelRecord) -> Result<RecordChange, BusError> {
        let before = self.model(name).await?;
        if let Some(before) = &before
            && before.record.same_as(&record)
        {
            return Ok(RecordChange::Unchanged { revision: before.revision });
        }
        let revision = self.put(&model_key(name), &record).await?;
        let Some(before) = before else { return Ok(RecordChange::Created { revision }) };
        self.delete_unreferenced(&before.record.files).await?;
        Ok(RecordChange::Changed { revision })
    }

    /// Removes a model and its files that nothing else uses. Returns `false` if it does not exist.
    ///
    /// # Errors
    /// A deployed function uses the model, or the broker is unavailable.
    pub async fn remove_model(&self, name: &ModelName) -> Result<bool, BusError> {
        let Some(entry) = self.model(name).await? else { return Ok(false) };
        let users = users(name, &entry.record, &self.models().await?, &self.functions().await?);
        if !users.is_empty() {
            let why = match users.as_slice() {
                [user] => {
                    format!("function {user} uses it: remove the function, or deploy it with another model, first")
                }
                users => format!(
                    "functions {} use it: remove them, or deploy them with another model, first",
                    users.join(", ")
                ),
            };
            return Err(BusError::refused(format!("removing the model {name}"), why));
        }
        self.delete(&model_key(name)).await?;
        self.delete_unreferenced(&entry.record.files).await?;
        Ok(true)
    }

    /// Deletes the files that no model or function uses.
    async fn delete_unreferenced(&self, files: &[ArtifactRef]) -> Result<(), BusError> {
        for digest in unreferenced(files, &self.models().await?, &self.functions().await?) {
            self.delete_artifact(digest).await?;
        }
        Ok(())
    }
}

/// Returns the functions that use this model: they have its files and its name, or a file that no other model has, as a
/// function may name a folder instead. A shared file, such as a tokenizer, is not sufficient.
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
    fn model_user_has_its_name_or_a_file_of_no_other_model() {
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
    fn only_unreferenced_files_are_deleted() {
        let freed = files(&["weights-a", "tokenizer", "pinned"]);
        let needed = unreferenced(&freed, &[model("b", &["tokenizer"])], &[function("f", "c", &["pinned"])]);
        assert_eq!(needed.into_iter().collect::<Vec<_>>(), ["weights-a"]);
    }

    #[test]
    fn time_of_adding_is_not_compared() {
        let (now, mut later) = (model("a", &["x"]).record, model("a", &["x"]).record);
        later.added_at += std::time::Duration::from_secs(1);
        assert!(now.same_as(&later) && !now.same_as(&model("a", &["y"]).record));
    }
}
