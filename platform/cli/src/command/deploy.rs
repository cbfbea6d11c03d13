//! `nerve deploy`

mod checks;

use crate::{
    args::{DataFolder, Globals},
    artifacts::{self, Content, File},
    builtin::{self, Found, Models, Wanted},
    connection::Connection,
    failure::Failure,
    fields, files,
    model::LocalModel,
    output::{self, Format},
    plan::{self, Action, State, Step},
    sandbox,
};
use clap::Args;
use nerve_core::{
    FunctionSpec, Manifest, ModelName, Name, ScheduleSpec, SinkSpec, SourceSpec,
    manifest::{RuntimeSpec, default_sink_secret},
};
use nerve_registry::{Deployed, FunctionRecord, ModelRecord, Registry};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
};

/// The largest manifest, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Deploy what a nerve.toml describes; what is deployed already and the same is left alone
#[derive(Debug, Args)]
#[command(after_help = "\
Of a process, the arguments that name files in the folder of nerve.toml are deployed with it, and
whatever `source` names: of a folder, all files but hidden ones. Of a built-in function, its model's
files are, as they are at that moment.

Examples:
  nerve deploy
  nerve deploy functions/github-labels --dry-run
  nerve deploy nerve.toml --output json")]
pub(crate) struct Deploy {
    /// A nerve.toml, or the folder it is in
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: DataFolder,
}

/// What is to be deployed, read and checked.
struct Bundle {
    functions: BTreeMap<Name, (FunctionSpec, Vec<File>)>,
    sources: BTreeMap<Name, SourceSpec>,
    sinks: BTreeMap<Name, SinkSpec>,
    schedules: BTreeMap<Name, ScheduleSpec>,
    /// The models that functions name, which the registry is still to be asked for.
    named: BTreeMap<Name, ModelName>,
    /// The models that come with this installation and are to be added.
    models: BTreeMap<ModelName, LocalModel>,
    /// Where the models lie that functions name by their folder, which is still to be read.
    beside: BTreeMap<Name, PathBuf>,
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    changed: bool,
    steps: Vec<Step>,
    /// What is likely a mistake among all functions together.
    warnings: Vec<String>,
    missing_secrets: Vec<String>,
    made_secrets: Vec<Made>,
}

/// What a source needs of its gateway, where it does not say itself which URL its sender signs.
pub(super) fn url_hint(name: &Name, spec: &SourceSpec) -> Option<String> {
    (spec.needs_url() && spec.public_url.is_none()).then(|| {
        format!(
            "note: the sender of {name} signs the URL, and the source has no public_url: the gateway must serve TLS \
             (gateway.tls_cert) or be behind one of gateway.trusted_proxies"
        )
    })
}

/// What a deploy has done.
#[derive(Default)]
pub(super) struct Done {
    pub(super) changed: bool,
    pub(super) made_secrets: Vec<Made>,
    pub(super) missing_secrets: Vec<String>,
}

/// A secret that was made for a sink that names none. This is the one time that it is shown.
#[derive(Debug, Serialize)]
pub(super) struct Made {
    name: String,
    value: String,
}

impl Made {
    /// For whoever sets up the endpoint.
    pub(super) fn to_text(&self) -> String {
        format!(
            "made the secret {} = {}\n    the endpoint verifies with it (Standard Webhooks); it is not shown again",
            self.name, self.value
        )
    }
}

impl Deploy {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let mut bundle = Bundle::read(&self.path).await?;
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        bundle.find_models(&connection, &registry).await?;
        bundle.try_components(&connection, &registry).await?;
        bundle.try_templates(&connection).await?;
        let steps = bundle.plan(&registry).await?;
        if globals.output == Format::Text {
            output::line(&steps.iter().map(Step::to_text).collect::<Vec<_>>().join("\n"))?;
        }
        let warnings = bundle.warnings(&registry).await?;
        if globals.output == Format::Text {
            warnings.iter().for_each(|warning| output::hint(&format!("warning: {warning}")));
        }
        let planned = steps.iter().any(|step| step.action != Action::Keep);
        let Done { changed, made_secrets, missing_secrets } = match self.dry_run {
            true => {
                Done { changed: planned, missing_secrets: bundle.missing_secrets(&registry).await?, ..<_>::default() }
            }
            false => bundle.deploy(&registry, globals.output).await?,
        };
        match globals.output {
            Format::Json => {
                let dry_run = self.dry_run;
                let report = Report { dry_run, changed, steps, warnings, missing_secrets, made_secrets };
                output::line(&serde_json::to_string(&report)?)?;
            }
            Format::Text => {
                for made in &made_secrets {
                    output::line(&made.to_text())?;
                }
                for name in &missing_secrets {
                    output::hint(&format!("warning: the secret {name} is not set yet: nerve secrets set {name}"));
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
            (true, _) => "nothing was changed: this was a dry run",
            (false, true) => "deployed",
            (false, false) => "nothing changed",
        }
    }
}

/// Deploys a manifest that Nerve itself wrote, and that names no files.
pub(super) async fn deploy_own(connection: &Connection, manifest: &str, format: Format) -> anyhow::Result<Done> {
    let registry = connection.registry().await?;
    let mut bundle = Bundle::parse(Path::new("nerve.toml"), manifest).await?;
    bundle.find_models(connection, &registry).await?;
    bundle.deploy(&registry, format).await
}

impl Bundle {
    async fn read(path: &Path) -> Result<Self, Failure> {
        let file = if path.is_dir() { path.join("nerve.toml") } else { path.to_owned() };
        let mut text = String::new();
        let read = nerve_files::open(&file).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
        let length = read.map_err(|error| {
            files::unreadable(&file, error, "name a nerve.toml or the folder it is in; `nerve new` begins one")
        })?;
        if length as u64 > MAX_BYTES {
            let next = "deploy what it declares in several folders";
            let unread = Failure::new(format!("cannot read {}", file.display()));
            return Err(unread.cause(format!("a manifest has at most {}", output::size(MAX_BYTES))).next(next));
        }
        Self::parse(&file, &text).await
    }

    async fn parse(file: &Path, text: &str) -> Result<Self, Failure> {
        let manifest = Manifest::parse(text).map_err(|error| {
            let place = |p: &nerve_core::manifest::Problem| {
                let key = if p.key.is_empty() { String::new() } else { format!("{}: ", p.key) };
                format!("{}:{}:{}: {key}{}", file.display(), p.line, p.column, p.message)
            };
            Failure::new(format!("cannot deploy {}", file.display()))
                .cause(error.problems.iter().map(place).collect::<Vec<_>>().join("\n"))
                .next("correct it and deploy again; nothing was changed")
        })?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (mut functions, mut named, mut beside) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, mut spec) in manifest.functions {
            let files = artifacts::collect(folder, &spec.run)?;
            check(&spec.run, &files)?;
            if let Some(tool) = &spec.tool {
                nerve_rag::check_tool(tool).map_err(|why| {
                    let next = "correct `parameters`: JSON Schema, as OpenAI's API has it of a function";
                    Failure::new(format!("cannot deploy {name}")).cause(format!("`tool`: {why}")).next(next)
                })?;
            }
            match builtin::read(folder, &name, &mut spec)? {
                Some(Wanted::Path(path)) => {
                    LocalModel::check_exists(&path)?;
                    beside.insert(name.clone(), path);
                }
                Some(Wanted::Name(model)) => drop(named.insert(name.clone(), model)),
                None => {}
            }
            functions.insert(name, (spec, files));
        }
        let (models, sinks, schedules) = (BTreeMap::new(), manifest.sinks, manifest.schedules);
        Ok(Self { functions, sources: manifest.sources, sinks, schedules, named, models, beside })
    }

    /// Pins the models that functions name as they are at this moment.
    async fn find_models(&mut self, connection: &Connection, registry: &Registry) -> anyhow::Result<()> {
        let mut models = Models::default();
        for (name, model) in &self.named {
            let Found { files: found, info } = models.find(connection, registry, model).await?;
            if let Some((spec, files)) = self.functions.get_mut(name) {
                builtin::check(name, spec, &info)?;
                *files = found;
            }
        }
        self.models = models.to_add;
        let pool = sandbox::pool(&connection.config.sandbox);
        let trials = sandbox::trials(&connection.config.sandbox, &pool);
        for (name, path) in &self.beside {
            let model = LocalModel::read(path, &trials).await?;
            if let Some((spec, files)) = self.functions.get_mut(name) {
                builtin::check(name, spec, &model.info)?;
                files.clone_from(&model.files);
            }
            if !model.is_uploaded(registry).await? {
                model.try_out(path, &trials, &connection.config.onnx).await?;
            }
        }
        pool.close().await;
        Ok(())
    }

    async fn plan(&self, registry: &Registry) -> anyhow::Result<Vec<Step>> {
        let mut steps = Vec::new();
        for name in self.models.keys() {
            let wanted = State { fields: Vec::new(), files: Vec::new() };
            steps.push(plan::step("model", name.as_str(), None, &wanted));
        }
        for (name, (spec, files)) in &self.functions {
            let now = registry.function(name).await?.map(|entry| state_of(&entry.record));
            let files = files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect();
            let wanted = State { fields: fields::of_function(spec), files };
            steps.push(plan::step("function", name.as_str(), now.as_ref(), &wanted));
        }
        for (name, spec) in &self.sinks {
            let now = registry.sink(name).await?.map(|entry| State::of(fields::of_sink(&entry.record.spec)));
            steps.push(plan::step("sink", name.as_str(), now.as_ref(), &State::of(fields::of_sink(spec))));
        }
        for (name, spec) in &self.schedules {
            let now = registry.schedule(name).await?.map(|entry| State::of(fields::of_schedule(&entry.record.spec)));
            steps.push(plan::step("schedule", name.as_str(), now.as_ref(), &State::of(fields::of_schedule(spec))));
        }
        for (name, spec) in &self.sources {
            let now = registry.source(name).await?.map(|entry| state_of_source(&entry.record.spec));
            steps.push(plan::step("source", name.as_str(), now.as_ref(), &state_of_source(spec)));
        }
        Ok(steps)
    }

    /// Deploys all of it: what takes events before what makes them, so that it is bound when the first one comes.
    async fn deploy(&self, registry: &Registry, format: Format) -> anyhow::Result<Done> {
        let made_secrets = self.make_secrets(registry).await?;
        let mut changed = !made_secrets.is_empty();
        for (name, model) in &self.models {
            for file in &model.files {
                file.upload(registry, format).await?;
            }
            let record = ModelRecord::new(model.references(), model.info.clone());
            changed |= !matches!(registry.add_model(name, record).await?, Deployed::Unchanged { .. });
        }
        for (name, (spec, files)) in &self.functions {
            let mut references = Vec::new();
            for file in files {
                references.push(file.upload(registry, format).await?);
            }
            let deployed = registry.deploy_function(name, spec.clone(), references).await?;
            changed |= !matches!(deployed, Deployed::Unchanged { .. });
        }
        for (name, spec) in &self.sinks {
            let deployed = registry.deploy_sink(name, spec.clone()).await?;
            changed |= !matches!(deployed, Deployed::Unchanged { .. });
        }
        for (name, spec) in &self.schedules {
            let deployed = registry.deploy_schedule(name, spec.clone()).await?;
            changed |= !matches!(deployed, Deployed::Unchanged { .. });
        }
        for (name, spec) in &self.sources {
            let deployed = registry.deploy_source(name, spec.clone()).await?;
            changed |= !matches!(deployed, Deployed::Unchanged { .. });
        }
        Ok(Done { changed, made_secrets, missing_secrets: self.missing_secrets(registry).await? })
    }

    /// Makes the secrets of sinks that name none, each once.
    async fn make_secrets(&self, registry: &Registry) -> anyhow::Result<Vec<Made>> {
        let mut made = Vec::new();
        for (sink, spec) in &self.sinks {
            let name = default_sink_secret(sink);
            if !spec.secrets.contains(&name) {
                continue;
            }
            if let Some(value) = registry.make_signing_secret(&name).await? {
                made.push(Made { name, value: value.expose().to_owned() });
            }
        }
        Ok(made)
    }

    /// The secrets that are named and not set.
    async fn missing_secrets(&self, registry: &Registry) -> anyhow::Result<Vec<String>> {
        let of_functions = self.functions.values().flat_map(|(spec, _)| &spec.secrets);
        let of_sources = self.sources.values().flat_map(|spec| &spec.secrets);
        let of_sinks: Vec<String> = self.sinks.values().flat_map(SinkSpec::secret_names).collect();
        let mut named: BTreeSet<&String> = of_functions.chain(of_sources).chain(&of_sinks).collect();
        if named.is_empty() {
            return Ok(Vec::new());
        }
        for secret in registry.secrets().await? {
            named.remove(&secret.name);
        }
        Ok(named.into_iter().cloned().collect())
    }
}

fn state_of(record: &FunctionRecord) -> State {
    let files = record.artifacts.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect();
    State { fields: fields::of_function(&record.spec), files }
}

fn state_of_source(spec: &SourceSpec) -> State {
    State::of(fields::of_source(spec))
}

/// Finds out here what a worker would find out later.
fn check(run: &RuntimeSpec, files: &[File]) -> Result<(), Failure> {
    match (run, files) {
        (RuntimeSpec::Wasm { source }, [File { content: Content::Read(content), .. }]) => {
            nerve_runtime::inspect(content)
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
    async fn a_broken_manifest_is_told_by_line_and_key() {
        let text = "[function.a]\nruntime = \"wasm\"\nsource = \"a.wasm\"\non = [\"events.>\"]\ntimeoutt = \"3s\"\n";
        let error = refused(&[("nerve.toml", text)]).await;
        assert!(error.contains("nerve.toml:5:1: function.a.timeoutt: "), "{error}");
        assert!(error.contains("timeout"), "{error}");
    }

    #[tokio::test]
    async fn no_manifest_an_empty_one_and_what_is_no_component_are_refused() {
        assert!(refused(&[]).await.contains("nerve.toml"));
        assert!(refused(&[("nerve.toml", "")]).await.contains("[function."));
        let text = "[function.a]\nruntime = \"wasm\"\nsource = \"a.wasm\"\non = [\"events.>\"]\n";
        assert!(refused(&[("nerve.toml", text), ("a.wasm", "hello")]).await.contains("not WebAssembly"));
    }

    #[tokio::test]
    async fn a_built_in_function_is_checked_before_anything_is_sent() {
        let table = "[function.a]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\non = [\"events.>\"]\n";
        assert!(refused(&[("nerve.toml", table)]).await.contains("emits"));
        let with_model = format!("{table}emits = [\"b\"]\nmodel = \"./none\"\n");
        assert!(refused(&[("nerve.toml", &with_model)]).await.contains("none"));
    }
}
