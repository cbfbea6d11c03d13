//! `nerve deploy`

mod checks;
mod steps;

use crate::{
    artifacts::{self, Content, File},
    builtin::{self, ModelReference, ModelResolver, ResolvedModel},
    connection::Connection,
    failure::Failure,
    features, files,
    globals::{DataFolder, Globals},
    model::{LocalModel, ModelReader},
    output::{self, Format},
    plan::{Action, Step},
};
use clap::Args;
use nerve_core::{
    FunctionSpec, Manifest, ModelName, Name, ScheduleSpec, SinkSpec, SourceSpec,
    manifest::{RuntimeSpec, default_sink_secret},
};
use nerve_registry::{ModelRecord, RecordChange, Registry};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
};

/// Maximum size of a manifest.
const MAX_BYTES: u64 = 4 << 20;

/// Deploy the resources in nerve.toml (idempotent: unchanged resources are skipped)
#[derive(Debug, Args)]
#[command(after_help = "\
For a process, arguments that are files in the directory of nerve.toml are deployed, and so is `source`: for a
directory, all files except hidden ones. For a built-in function, the current files of its model are deployed.

Examples:
  nerve deploy
  nerve deploy functions/github-labels --dry-run
  nerve deploy nerve.toml --output json")]
pub(crate) struct Deploy {
    /// A nerve.toml, or its directory
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Print the changes without applying them
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: DataFolder,
}

/// A parsed and checked manifest with the files of its functions.
struct Bundle {
    functions: BTreeMap<Name, (FunctionSpec, Vec<File>)>,
    sources: BTreeMap<Name, SourceSpec>,
    sinks: BTreeMap<Name, SinkSpec>,
    schedules: BTreeMap<Name, ScheduleSpec>,
    /// Models that functions use by name, not resolved yet.
    models_by_name: BTreeMap<Name, ModelName>,
    /// Bundled models to add to the registry.
    models: BTreeMap<ModelName, LocalModel>,
    /// Models that functions use by path, not read yet.
    models_by_path: BTreeMap<Name, PathBuf>,
}

#[derive(Serialize)]
struct DeployReport {
    dry_run: bool,
    changed: bool,
    steps: Vec<Step>,
    /// Probable mistakes in the graph of all functions.
    warnings: Vec<String>,
    missing_secrets: Vec<String>,
    made_secrets: Vec<GeneratedSecret>,
}

/// Returns a hint for a source whose signature covers the URL and that has no `public_url`.
pub(super) fn url_hint(name: &Name, spec: &SourceSpec) -> Option<String> {
    (spec.needs_url() && spec.public_url.is_none()).then(|| {
        format!(
            "note: the sender of {name} signs the URL, but the source has no public_url: the gateway must serve TLS \
             (gateway.tls_cert) or be behind one of gateway.trusted_proxies"
        )
    })
}

/// The outcome of a deploy.
#[derive(Default)]
pub(super) struct DeployOutcome {
    pub(super) changed: bool,
    pub(super) made_secrets: Vec<GeneratedSecret>,
    pub(super) missing_secrets: Vec<String>,
}

/// A signing secret generated for a sink without a configured one. It is shown only once.
#[derive(Debug, Serialize)]
pub(super) struct GeneratedSecret {
    name: String,
    value: String,
}

impl GeneratedSecret {
    /// Formats the secret for the configuration of the endpoint.
    pub(super) fn to_text(&self) -> String {
        format!(
            "created signing secret {} = {}\n    configure it at the receiver (Standard Webhooks); it is shown only once",
            self.name, self.value
        )
    }
}

impl Deploy {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let mut bundle = Bundle::read(&self.path).await?;
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        bundle.resolve_models(&connection, &registry).await?;
        #[cfg(feature = "wasm")]
        bundle.check_components(&connection, &registry).await?;
        bundle.check_templates(&connection).await?;
        let steps = bundle.plan(&registry).await?;
        if globals.output == Format::Text {
            output::line(&steps.iter().map(Step::to_text).collect::<Vec<_>>().join("\n"))?;
        }
        let warnings = bundle.warnings(&registry).await?;
        if globals.output == Format::Text {
            warnings.iter().for_each(|warning| output::hint(&format!("warning: {warning}")));
        }
        let planned = steps.iter().any(|step| step.action != Action::Keep);
        let DeployOutcome { changed, made_secrets, missing_secrets } = match self.dry_run {
            true => DeployOutcome {
                changed: planned,
                missing_secrets: bundle.missing_secrets(&registry).await?,
                ..<_>::default()
            },
            false => bundle.deploy(&registry, globals.output).await?,
        };
        match globals.output {
            Format::Json => {
                let dry_run = self.dry_run;
                let report = DeployReport { dry_run, changed, steps, warnings, missing_secrets, made_secrets };
                output::line(&serde_json::to_string(&report)?)?;
            }
            Format::Text => {
                for secret in &made_secrets {
                    output::line(&secret.to_text())?;
                }
                for name in &missing_secrets {
                    output::hint(&format!("warning: the secret {name} is not set: nerve secrets set {name}"));
                }
                for hint in bundle.sources.iter().filter_map(|(name, spec)| url_hint(name, spec)) {
                    output::hint(&hint);
                }
                output::line(self.summary(changed))?;
            }
        }
        Ok(())
    }

    fn summary(&self, changed: bool) -> &'static str {
        match (self.dry_run, changed) {
            (true, _) => "dry run: nothing was changed",
            (false, true) => "deployed",
            (false, false) => "nothing changed",
        }
    }
}

/// Deploys a generated manifest without files.
pub(super) async fn deploy_own(
    connection: &Connection,
    manifest: &str,
    format: Format,
) -> anyhow::Result<DeployOutcome> {
    let registry = connection.registry().await?;
    let mut bundle = Bundle::parse(Path::new("nerve.toml"), manifest).await?;
    bundle.resolve_models(connection, &registry).await?;
    bundle.deploy(&registry, format).await
}

impl Bundle {
    async fn read(path: &Path) -> Result<Self, Failure> {
        let file = if path.is_dir() { path.join("nerve.toml") } else { path.to_owned() };
        let mut text = String::new();
        let read = nerve_files::open(&file).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
        let length = read.map_err(|error| {
            files::unreadable(&file, error, "pass a nerve.toml or its directory; `nerve new` creates one")
        })?;
        if length as u64 > MAX_BYTES {
            let next = "split it into several directories";
            let failure = Failure::new(format!("cannot read {}", file.display()));
            return Err(failure
                .cause(format!("the maximum size of a manifest is {}", output::size(MAX_BYTES)))
                .next(next));
        }
        Self::parse(&file, &text).await
    }

    async fn parse(file: &Path, text: &str) -> Result<Self, Failure> {
        let manifest = Manifest::parse(text).map_err(|error| {
            let located = |p: &nerve_core::manifest::Problem| {
                let key = if p.key.is_empty() { String::new() } else { format!("{}: ", p.key) };
                format!("{}:{}:{}: {key}{}", file.display(), p.line, p.column, p.message)
            };
            Failure::new(format!("cannot deploy {}", file.display()))
                .cause(error.problems.iter().map(located).collect::<Vec<_>>().join("\n"))
                .next("correct it and deploy again; nothing was changed")
        })?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (mut functions, mut models_by_name, mut models_by_path) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, mut spec) in manifest.functions {
            let files = artifacts::collect(folder, &spec.run)?;
            check(&spec.run, &files)?;
            if let Some(tool) = &spec.tool {
                features::check_tool(tool).map_err(|why| {
                    let next = "correct `parameters`: a JSON Schema as in OpenAI's function calling";
                    Failure::new(format!("cannot deploy {name}")).cause(format!("`tool`: {why}")).next(next)
                })?;
            }
            match builtin::read(folder, &name, &mut spec)? {
                Some(ModelReference::Path(path)) => {
                    LocalModel::check_exists(&path)?;
                    models_by_path.insert(name.clone(), path);
                }
                Some(ModelReference::Name(model)) => drop(models_by_name.insert(name.clone(), model)),
                None => {}
            }
            functions.insert(name, (spec, files));
        }
        let (models, sinks, schedules) = (BTreeMap::new(), manifest.sinks, manifest.schedules);
        Ok(Self { functions, sources: manifest.sources, sinks, schedules, models_by_name, models, models_by_path })
    }

    /// Resolves the models of functions and pins their current files.
    async fn resolve_models(&mut self, connection: &Connection, registry: &Registry) -> anyhow::Result<()> {
        let mut resolver = ModelResolver::default();
        for (name, model) in &self.models_by_name {
            let ResolvedModel { files: resolved, info } = resolver.resolve(connection, registry, model).await?;
            if let Some((spec, files)) = self.functions.get_mut(name) {
                builtin::check(name, spec, &info)?;
                *files = resolved;
            }
        }
        self.models = resolver.to_add;
        let reader = ModelReader::new(&connection.config);
        for (name, path) in &self.models_by_path {
            let model = reader.read(path).await?;
            if let Some((spec, files)) = self.functions.get_mut(name) {
                builtin::check(name, spec, &model.info)?;
                files.clone_from(&model.files);
            }
            if !model.is_uploaded(registry).await? {
                reader.test_run(path, &model).await?;
            }
        }
        reader.close().await;
        Ok(())
    }

    /// Deploys all resources: consumers before producers, so that consumers exist when the first event is published.
    async fn deploy(&self, registry: &Registry, format: Format) -> anyhow::Result<DeployOutcome> {
        let made_secrets = self.generate_secrets(registry).await?;
        let mut changed = !made_secrets.is_empty();
        for (name, model) in &self.models {
            for file in &model.files {
                file.upload(registry, format).await?;
            }
            let record = ModelRecord::new(model.references(), model.info.clone());
            changed |= !matches!(registry.add_model(name, record).await?, RecordChange::Unchanged { .. });
        }
        for (name, (spec, files)) in &self.functions {
            let mut references = Vec::new();
            for file in files {
                references.push(file.upload(registry, format).await?);
            }
            let deployed = registry.deploy_function(name, spec.clone(), references).await?;
            changed |= !matches!(deployed, RecordChange::Unchanged { .. });
        }
        for (name, spec) in &self.sinks {
            let deployed = registry.deploy_sink(name, spec.clone()).await?;
            changed |= !matches!(deployed, RecordChange::Unchanged { .. });
        }
        for (name, spec) in &self.schedules {
            let deployed = registry.deploy_schedule(name, spec.clone()).await?;
            changed |= !matches!(deployed, RecordChange::Unchanged { .. });
        }
        for (name, spec) in &self.sources {
            let deployed = registry.deploy_source(name, spec.clone()).await?;
            changed |= !matches!(deployed, RecordChange::Unchanged { .. });
        }
        Ok(DeployOutcome { changed, made_secrets, missing_secrets: self.missing_secrets(registry).await? })
    }

    /// Generates missing default secrets of sinks.
    async fn generate_secrets(&self, registry: &Registry) -> anyhow::Result<Vec<GeneratedSecret>> {
        let mut generated = Vec::new();
        for (sink, spec) in &self.sinks {
            let name = default_sink_secret(sink);
            if !spec.secrets.contains(&name) {
                continue;
            }
            if let Some(value) = registry.create_signing_secret(&name).await? {
                generated.push(GeneratedSecret { name, value: value.expose().to_owned() });
            }
        }
        Ok(generated)
    }

    /// Returns the names of the referenced secrets that are not set.
    async fn missing_secrets(&self, registry: &Registry) -> anyhow::Result<Vec<String>> {
        let of_functions = self.functions.values().flat_map(|(spec, _)| &spec.secrets);
        let of_sources = self.sources.values().flat_map(|spec| &spec.secrets);
        let of_sinks: Vec<String> = self.sinks.values().flat_map(SinkSpec::secret_names).collect();
        let mut missing: BTreeSet<&String> = of_functions.chain(of_sources).chain(&of_sinks).collect();
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        for secret in registry.secrets().await? {
            missing.remove(&secret.name);
        }
        Ok(missing.into_iter().cloned().collect())
    }
}

/// Checks a component, which the worker would reject.
fn check(run: &RuntimeSpec, files: &[File]) -> Result<(), Failure> {
    match (run, files) {
        (RuntimeSpec::Wasm { source }, [File { content: Content::Memory(content), .. }]) => {
            features::check_component(content)
                .map_err(|error| Failure::new(format!("cannot deploy {source}")).because(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(files: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let error = Bundle::read(folder.path()).await.err().unwrap();
        format!("{:#}", anyhow::Error::from(error))
    }

    #[tokio::test]
    async fn manifest_error_has_line_and_key() {
        let text = "[function.a]\nruntime = \"wasm\"\nsource = \"a.wasm\"\non = [\"events.>\"]\ntimeoutt = \"3s\"\n";
        let error = refused(&[("nerve.toml", text)]).await;
        assert!(error.contains("nerve.toml:5:1: function.a.timeoutt: "), "{error}");
        assert!(error.contains("timeout"), "{error}");
    }

    #[tokio::test]
    async fn missing_or_empty_manifest_and_invalid_component_are_rejected() {
        assert!(refused(&[]).await.contains("nerve.toml"));
        assert!(refused(&[("nerve.toml", "")]).await.contains("[function."));
        let text = "[function.a]\nruntime = \"wasm\"\nsource = \"a.wasm\"\non = [\"events.>\"]\n";
        assert!(refused(&[("nerve.toml", text), ("a.wasm", "hello")]).await.contains("not WebAssembly"));
    }

    #[tokio::test]
    async fn built_in_function_is_checked_before_the_upload() {
        let table = "[function.a]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\non = [\"events.>\"]\n";
        assert!(refused(&[("nerve.toml", table)]).await.contains("emits"));
        let with_model = format!("{table}emits = [\"b\"]\nmodel = \"./none\"\n");
        assert!(refused(&[("nerve.toml", &with_model)]).await.contains("none"));
    }
}
