//! `nerve ingest`
//!
//! The index decides what is uploaded: a document that it has exactly as it is here is not. Everything else is uploaded
//! as a new event, whatever the log has from before.

mod check;

use crate::{
    args::{DataFolder, Globals},
    command::deploy::deploy_own,
    connection::Connection,
    failure::Failure,
    files::{LocalFile, PDF, find_files},
    output::{self, Format},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use check::IndexCheck;
use clap::Args;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use nerve_broker::bus::{Bus, Start, Tail};
use nerve_core::{Event, EventType, FunctionSpec, Pattern};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::IsTerminal,
    path::PathBuf,
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use uuid::Uuid;

/// The functions that index documents and find them, deployed where no function indexes documents yet.
const PIPELINE: &str = include_str!("../../../../functions/rag/nerve.toml");
const UPLOADED: &str = "document.uploaded";
const INDEXED: &str = "document.indexed";
/// The most files that are read at once.
const MAX_READS: usize = 8;
/// The most documents of a group: the index is asked about a group at once, then what it does not have is uploaded.
const MAX_GROUP_DOCUMENTS: usize = 64;
/// The bytes at which a group is full.
const MAX_GROUP_BYTES: usize = 16 << 20;
/// Failed and superseded documents that are named.
const NAMED: usize = 20;
/// The most characters of the reason why a document failed.
const MAX_REASON_CHARACTERS: usize = 300;

/// Upload documents, and wait until they are indexed: Markdown, HTML, PDF, text and code, whole folders too
#[derive(Debug, Args)]
#[command(after_help = "\
What a .gitignore names is left out, and so is what is no text and no PDF. A document is named by its path; uploaded
again, it replaces the one before. Where no function indexes documents yet, those that do are deployed.

The index decides what is uploaded. A document that it has exactly as the file is now is unchanged, and is not uploaded
again; every other document is: also one that was changed and changed back, deleted, or that failed before. If the index
does not answer, all documents are uploaded.

The result counts the documents that were indexed and that are unchanged, and names those that failed and those that are
superseded, of which the index has a version that was uploaded later. The exit code is 1 if there is one of these.

Examples:
  nerve ingest docs/
  nerve ingest README.md manual.pdf --collection manuals
  nerve ingest docs/ --no-wait --output json")]
pub(crate) struct Ingest {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// What is searched together
    #[arg(long, value_name = "NAME", default_value = "default")]
    collection: String,
    /// Upload unchanged documents too, for instance after a change of how documents are embedded
    #[arg(long)]
    force: bool,
    /// End once JetStream has the documents
    #[arg(long)]
    no_wait: bool,
    /// The longest to wait without a document being indexed
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    folder: DataFolder,
}

/// What became of the documents.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Documents that were found.
    documents: usize,
    /// Documents that were uploaded.
    uploaded: usize,
    /// Documents that the index had from an earlier upload, exactly as they are.
    unchanged: usize,
    indexed: usize,
    chunks: u64,
    /// Documents of which the index has a version that was uploaded later.
    superseded: BTreeSet<String>,
    /// Documents that failed, and why.
    failed: BTreeMap<String, String>,
    /// Files that are neither text nor PDF, or too large.
    skipped: usize,
    seconds: f64,
}

impl Ingest {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let check = match self.force {
            true => None,
            false => IndexCheck::find(&connection.registry().await?).await?,
        };
        let awaited = (!self.no_wait).then_some(INDEXED);
        prepare(&connection, UPLOADED, awaited, globals.output).await?;
        let (summary, waiting) = (Summary::default(), HashMap::new());
        let bar = ProgressBar::hidden();
        let ingestion = Ingestion { options: &self, bus: &connection.bus, check, bar, summary, waiting };
        ingestion.run(globals.output).await
    }

    /// The upload of a document, under an id of its own: what is uploaded again is no duplicate of what was before.
    fn event(&self, name: &str, content: &[u8]) -> anyhow::Result<Event> {
        // A PDF may be ASCII throughout, and is none the more a text.
        let fields = match std::str::from_utf8(content) {
            Ok(said) if !content.starts_with(PDF) => json!({"text": said}),
            _ => json!({"data": BASE64_STANDARD.encode(content)}),
        };
        let mut document = json!({
            "collection": self.collection,
            "document": name,
            "name": name,
            "metadata": {"path": name, "folder": folder_of(name)},
        });
        if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
            document.extend(fields);
        }
        let event = Event::new(Uuid::now_v7().to_string(), "/nerve/ingest", EventType::parse(UPLOADED)?);
        let mut event = event.with_data("application/json", serde_json::to_vec(&document)?);
        event.subject = Some(name.to_owned());
        event.time = Some(OffsetDateTime::now_utc());
        Ok(event)
    }
}

/// One run of the command.
struct Ingestion<'a> {
    options: &'a Ingest,
    bus: &'a Bus,
    check: Option<IndexCheck>,
    bar: ProgressBar,
    summary: Summary,
    /// The names of the documents that are on their way, by the ids of their events.
    waiting: HashMap<String, String>,
}

/// What `document.indexed` says of an upload; a function of the user's own may say less.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Indexed {
    chunks: u64,
    stale: bool,
    unchanged: bool,
}

impl Ingestion<'_> {
    async fn run(mut self, format: Format) -> anyhow::Result<()> {
        let started = Instant::now();
        let tails = (
            self.bus.tail(&Pattern::parse(format!("events.{INDEXED}"))?, Start::New).await?,
            self.bus.tail_dead(Start::New).await?,
        );
        let files = find_files(&self.options.paths)?;
        self.bar = bar(files.len(), format);
        self.upload(files).await?;
        if self.summary.documents == 0 {
            let cause = format!("nothing there is text or PDF ({} files were looked at)", self.summary.skipped);
            let next = "name files or folders with Markdown, HTML, PDF, text or code";
            return Err(Failure::new("no document to ingest").cause(cause).next(next).into());
        }
        if let (Some(error), Format::Text) = (self.check.as_ref().and_then(IndexCheck::failure), format) {
            output::hint(&format!("unchanged documents were uploaded too, since the index did not answer: {error}"));
        }
        if !self.options.no_wait {
            self.bar.set_message("indexed");
            self.bar.set_position(0);
            self.bar.set_length(u64::try_from(self.waiting.len()).unwrap_or_default());
            self.wait(tails).await?;
        }
        self.bar.finish_and_clear();
        self.summary.seconds = started.elapsed().as_secs_f64();
        format.show(&self.summary, |summary| summary.to_text(self.options.no_wait))?;
        self.summary.check()
    }

    /// Uploads the files of which the index does not have the content.
    async fn upload(&mut self, files: Vec<LocalFile>) -> anyhow::Result<()> {
        let read = futures::stream::iter(files).map(|file| async move { (file.read().await, file.name) });
        let mut read = std::pin::pin!(read.buffered(MAX_READS));
        let (mut group, mut bytes) = (Vec::with_capacity(MAX_GROUP_DOCUMENTS), 0);
        while let Some((content, name)) = read.next().await {
            let Some(content) = content else {
                self.summary.skipped += 1;
                self.bar.inc(1);
                continue;
            };
            bytes += content.len();
            group.push((self.options.event(&name, &content)?, name));
            if group.len() >= MAX_GROUP_DOCUMENTS || bytes >= MAX_GROUP_BYTES {
                self.upload_group(std::mem::take(&mut group)).await?;
                bytes = 0;
            }
        }
        self.upload_group(group).await
    }

    async fn upload_group(&mut self, group: Vec<(Event, String)>) -> anyhow::Result<()> {
        self.summary.documents += group.len();
        let mut checked = match &mut self.check {
            Some(check) => check.check(self.bus, &self.options.collection, &group).await,
            None => HashMap::new(),
        };
        let mut uploads = Vec::with_capacity(group.len());
        for (mut event, name) in group {
            match checked.remove(&name) {
                Some(checked) if checked.unchanged => {
                    self.summary.unchanged += 1;
                    self.bar.inc(1);
                    continue;
                }
                // The clock of whoever made the last upload may be ahead of the one here, and this upload is later.
                Some(checked) => event.time = event.time.max(check::moment_after(checked.latest_upload)),
                None => {}
            }
            uploads.push((event, name));
        }
        let bus = self.bus;
        let sent = uploads.into_iter().map(|(event, name)| async move {
            bus.publish_own(&event).await?;
            anyhow::Ok((event.id, name))
        });
        let mut sent = futures::stream::iter(sent).buffer_unordered(MAX_GROUP_DOCUMENTS);
        while let Some(published) = sent.next().await {
            let (id, name) = published?;
            self.summary.uploaded += 1;
            self.bar.inc(1);
            self.waiting.insert(id, name);
        }
        Ok(())
    }

    /// Waits until each document that was uploaded is indexed or has failed.
    async fn wait(&mut self, (mut indexed, mut dead): (Tail, Tail)) -> anyhow::Result<()> {
        while !self.waiting.is_empty() {
            let patience = self.options.patience;
            let news = tokio::time::timeout(patience, async {
                tokio::select! {
                    made = indexed.next() => (made, true),
                    given_up = dead.next() => (given_up, false),
                }
            });
            let Ok((tailed, good)) = news.await else {
                self.bar.finish_and_clear();
                let cause = format!("{} documents are on their way, and none came in {patience:?}", self.waiting.len());
                let next =
                    "`nerve logs` shows what the functions do; --patience waits longer; what is uploaded goes on";
                return Err(Failure::new("the documents are not indexed yet").cause(cause).next(next).into());
            };
            let event = tailed.event;
            let upload = event.extension("correlationid").unwrap_or(&event.id);
            let Some(name) = self.waiting.remove(upload) else { continue };
            if good {
                self.summary.add(name, serde_json::from_slice(&event.data).unwrap_or_default());
            } else {
                let why = self.failure(tailed.sequence).await;
                self.summary.failed.insert(name, why);
            }
            self.bar.inc(1);
        }
        Ok(())
    }

    /// Which function failed on a dead letter's event, and why.
    async fn failure(&self, dead_letter: u64) -> String {
        let Ok(letter) = self.bus.dead_letter(dead_letter).await else {
            return format!("it is the dead letter {dead_letter}");
        };
        let error = letter.errors.last().map_or("it gave no reason", |attempt| attempt.error.message.as_str());
        format!("{}: {}", letter.function, output::shortened(error, MAX_REASON_CHARACTERS))
    }
}

/// Deploys the functions that index documents and answer questions, unless some function takes events of type `ty` already, and
/// some function may emit the type `awaited`, if one is.
pub(super) async fn prepare(
    connection: &Connection,
    ty: &str,
    awaited: Option<&str>,
    format: Format,
) -> anyhow::Result<()> {
    let subject = format!("events.{ty}");
    let functions = connection.registry().await?.functions().await?;
    let any = |patterns: fn(&FunctionSpec) -> &[Pattern], text: &str| {
        functions.iter().any(|entry| patterns(&entry.record.spec).iter().any(|pattern| pattern.covers(text)))
    };
    let missing = if !any(|spec| &spec.on, &subject) {
        format!("no function takes {ty} yet")
    } else if let Some(awaited) = awaited.filter(|awaited| !any(|spec| &spec.emits, awaited)) {
        format!("no function emits {awaited} yet")
    } else {
        return Ok(());
    };
    if format == Format::Text {
        output::hint(&format!("{missing}: deploying Nerve's own pipeline, from chunk to notify"));
    }
    deploy_own(connection, PIPELINE, format).await.map(drop)
}

fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Progress for people who look on; nothing for programs and logs.
fn bar(files: usize, format: Format) -> ProgressBar {
    if format.is_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(u64::try_from(files).unwrap_or_default()).with_message("uploaded");
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}");
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

impl Summary {
    /// Counts a document that the index has done with.
    fn add(&mut self, name: String, indexed: Indexed) {
        match indexed {
            Indexed { unchanged: true, .. } => self.unchanged += 1,
            Indexed { stale: true, .. } => {
                self.superseded.insert(name);
            }
            Indexed { chunks, .. } => {
                self.indexed += 1;
                self.chunks += chunks;
            }
        }
    }

    /// # Errors
    /// If the index does not have each document as it is here.
    fn check(&self) -> anyhow::Result<()> {
        let mut causes = Vec::new();
        let mut next = "ingest them again to have these versions";
        if !self.superseded.is_empty() {
            causes.push(format!("{} of them were uploaded in a later version", self.superseded.len()));
        }
        if !self.failed.is_empty() {
            causes.push(format!("{} of them failed", self.failed.len()));
            next = "`nerve dlq list` shows each attempt; correct the cause and ingest them again";
        }
        if causes.is_empty() {
            return Ok(());
        }
        Err(Failure::new("not all documents are indexed").cause(causes.join(", and ")).next(next).into())
    }

    fn to_text(&self, no_wait: bool) -> String {
        let mut lines = match no_wait {
            true => vec![format!("uploaded {} of {} documents", self.uploaded, self.documents)],
            false => vec![format!(
                "indexed {} of {} documents, {} chunks, in {:.1} s",
                self.indexed, self.documents, self.chunks, self.seconds
            )],
        };
        if self.unchanged > 0 {
            let has = if self.unchanged == 1 {
                "is unchanged: the index has it"
            } else {
                "are unchanged: the index has them"
            };
            lines.push(format!("{} {has} already", self.unchanged));
        }
        if self.skipped > 0 {
            let (files, were) = if self.skipped == 1 { ("file is", "was") } else { ("files are", "were") };
            let skipped = self.skipped;
            lines.push(format!("{skipped} {files} no text and no PDF, or too large, and {were} skipped"));
        }
        let superseded = |name: &String| format!("superseded: {name}: the index has a version that was uploaded later");
        lines.extend(self.superseded.iter().take(NAMED).map(superseded));
        lines.extend(self.failed.iter().take(NAMED).map(|(name, why)| format!("failed: {name}: {why}")));
        lines.join("\n")
    }
}
