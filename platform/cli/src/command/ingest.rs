//! `nerve ingest`
//!
//! Documents that the index already has unchanged are skipped. All others are uploaded as new events, regardless of
//! earlier events in the log.

mod check;

use crate::{
    command::deploy::deploy_own,
    connection::Connection,
    failure::Failure,
    files::{LocalFile, PDF, find_files},
    globals::{DataFolder, Globals},
    output::{self, Format},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use check::IndexCheck;
use clap::Args;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use nerve_broker::bus::{Bus, Start, Tail};
use nerve_core::{Event, FunctionSpec, Pattern};
use nerve_events::{
    EventData,
    documents::{DocumentIndexed, DocumentUploaded},
};
use serde::Serialize;
use serde_json::Map;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::IsTerminal,
    path::PathBuf,
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use uuid::Uuid;

/// The default pipeline, deployed if no function handles documents yet.
const PIPELINE: &str = include_str!("../../../../functions/rag/nerve.toml");
/// Maximum files read concurrently.
const MAX_CONCURRENT_READS: usize = 8;
/// Maximum documents of a group. The index checks a group in one request, then its changed documents are uploaded.
const MAX_GROUP_DOCUMENTS: usize = 64;
/// Size at which a group is complete.
const MAX_GROUP_BYTES: usize = 16 << 20;
/// Maximum listed failed and superseded documents.
const MAX_LISTED_DOCUMENTS: usize = 20;
/// Maximum characters of the cause of a failed document.
const MAX_CAUSE_CHARS: usize = 300;

/// Upload documents and wait until they are indexed: Markdown, HTML, PDF, text and code, files or directories
#[derive(Debug, Args)]
#[command(after_help = "\
Files ignored by .gitignore and files that are neither text nor PDF are skipped. The path is the name of a document;
uploaded again, it replaces the previous version. If no function handles documents yet, the default pipeline is deployed.

Documents that the index already has unchanged are not uploaded again; all others are, including those that were changed
and changed back, deleted, or that failed before. If the index does not respond, all documents are uploaded.

The result counts indexed and unchanged documents, and lists failed documents and superseded ones, of which the index has
a later upload. The exit code is 1 if there are failed or superseded documents.

Examples:
  nerve ingest docs/
  nerve ingest README.md manual.pdf --collection manuals
  nerve ingest docs/ --no-wait --output json")]
pub(crate) struct Ingest {
    /// Files and directories
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Collection of the documents
    #[arg(long, value_name = "NAME", default_value = "default")]
    collection: String,
    /// Upload unchanged documents too, for instance after a change of the embedding model
    #[arg(long)]
    force: bool,
    /// Exit when JetStream has stored the documents
    #[arg(long)]
    no_wait: bool,
    /// Idle timeout between indexed documents
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    folder: DataFolder,
}

/// The result of an ingestion.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Documents found.
    documents: usize,
    /// Documents uploaded.
    uploaded: usize,
    /// Documents that the index already had unchanged.
    unchanged: usize,
    indexed: usize,
    chunks: u64,
    /// Documents of which the index has a later upload.
    superseded: BTreeSet<String>,
    /// Failed documents with the cause.
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
        let awaited = (!self.no_wait).then_some(DocumentIndexed::TYPE);
        prepare(&connection, DocumentUploaded::TYPE, awaited, globals.output).await?;
        let (summary, waiting) = (Summary::default(), HashMap::new());
        let bar = ProgressBar::hidden();
        let ingestion = Ingestion { options: &self, bus: &connection.bus, check, bar, summary, waiting };
        ingestion.run(globals.output).await
    }

    /// Creates the upload event with a new id, so that a repeated upload is not dropped as a duplicate.
    fn event(&self, name: &str, content: &[u8]) -> anyhow::Result<Event> {
        // A PDF is binary even if all of its bytes are ASCII.
        let (text, data) = match std::str::from_utf8(content) {
            Ok(text) if !content.starts_with(PDF) => (Some(text.to_owned()), None),
            _ => (None, Some(BASE64_STANDARD.encode(content))),
        };
        let metadata = [("path".to_owned(), name.into()), ("folder".to_owned(), folder_of(name).into())];
        let document = DocumentUploaded {
            collection: Some(self.collection.clone()),
            document: Some(name.to_owned()),
            name: Some(name.to_owned()),
            metadata: Map::from_iter(metadata),
            text,
            data,
            media_type: None,
        };
        let event = Event::new(Uuid::now_v7().to_string(), "/nerve/ingest", DocumentUploaded::event_type());
        let mut event = event.with_data("application/json", serde_json::to_vec(&document)?);
        event.subject = Some(name.to_owned());
        event.time = Some(OffsetDateTime::now_utc());
        Ok(event)
    }
}

/// A run of the command.
struct Ingestion<'a> {
    options: &'a Ingest,
    bus: &'a Bus,
    check: Option<IndexCheck>,
    bar: ProgressBar,
    summary: Summary,
    /// Names of the documents that are not indexed yet, by the ids of their events.
    waiting: HashMap<String, String>,
}

impl Ingestion<'_> {
    async fn run(mut self, format: Format) -> anyhow::Result<()> {
        let started = Instant::now();
        let tails = (
            self.bus.tail(&Pattern::parse(format!("events.{}", DocumentIndexed::TYPE))?, Start::New).await?,
            self.bus.tail_dead(Start::New).await?,
        );
        let files = find_files(&self.options.paths)?;
        self.bar = bar(files.len(), format);
        self.upload(files).await?;
        if self.summary.documents == 0 {
            let cause = format!("none of {} files is text or PDF", self.summary.skipped);
            let next = "pass files or directories with Markdown, HTML, PDF, text or code";
            return Err(Failure::new("no documents to ingest").cause(cause).next(next).into());
        }
        if let (Some(error), Format::Text) = (self.check.as_ref().and_then(IndexCheck::failure), format) {
            output::hint(&format!("unchanged documents were uploaded too, because the index did not respond: {error}"));
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

    /// Uploads the files that the index does not have unchanged.
    async fn upload(&mut self, files: Vec<LocalFile>) -> anyhow::Result<()> {
        let read = futures::stream::iter(files).map(|file| async move { (file.read().await, file.name) });
        let mut read = std::pin::pin!(read.buffered(MAX_CONCURRENT_READS));
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
                // The clock of the previous uploader may be ahead, but this upload must be later.
                Some(checked) => event.time = event.time.max(check::time_after(checked.latest_upload)),
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

    /// Waits until all uploaded documents are indexed or have failed.
    async fn wait(&mut self, (mut indexed, mut dead): (Tail, Tail)) -> anyhow::Result<()> {
        while !self.waiting.is_empty() {
            let patience = self.options.patience;
            let next_event = tokio::time::timeout(patience, async {
                tokio::select! {
                    event = indexed.next() => (event, true),
                    event = dead.next() => (event, false),
                }
            });
            let Ok((tailed, is_indexed)) = next_event.await else {
                self.bar.finish_and_clear();
                let cause =
                    format!("{} documents are pending, and none was indexed within {patience:?}", self.waiting.len());
                let next = "see `nerve logs`, or raise --patience; indexing continues in the background";
                return Err(Failure::new("the documents are not indexed yet").cause(cause).next(next).into());
            };
            let event = tailed.event;
            let upload = event.extension("correlationid").unwrap_or(&event.id);
            let Some(name) = self.waiting.remove(upload) else { continue };
            if is_indexed {
                self.summary.add(name, serde_json::from_slice(&event.data).unwrap_or_default());
            } else {
                let why = self.failure(tailed.sequence).await;
                self.summary.failed.insert(name, why);
            }
            self.bar.inc(1);
        }
        Ok(())
    }

    /// Returns the function and the error of a dead letter.
    async fn failure(&self, dead_letter: u64) -> String {
        let Ok(letter) = self.bus.dead_letter(dead_letter).await else {
            return format!("see dead letter {dead_letter}");
        };
        let error = letter.errors.last().map_or("no error recorded", |attempt| attempt.error.message.as_str());
        format!("{}: {}", letter.function, output::truncated(error, MAX_CAUSE_CHARS))
    }
}

/// Deploys the default pipeline unless functions already consume events of type `ty` and emit the type `awaited`.
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
        format!("no function consumes {ty} yet")
    } else if let Some(awaited) = awaited.filter(|awaited| !any(|spec| &spec.emits, awaited)) {
        format!("no function emits {awaited} yet")
    } else {
        return Ok(());
    };
    if format == Format::Text {
        output::hint(&format!("{missing}: deploying the default pipeline (chunk to notify)"));
    }
    deploy_own(connection, PIPELINE, format).await.map(drop)
}

fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Creates a progress bar, hidden unless stderr is a terminal and the output is text.
fn bar(files: usize, format: Format) -> ProgressBar {
    if format.is_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(u64::try_from(files).unwrap_or_default()).with_message("uploaded");
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}");
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

impl Summary {
    /// Counts an indexed document.
    fn add(&mut self, name: String, indexed: DocumentIndexed) {
        match indexed {
            DocumentIndexed { unchanged: true, .. } => self.unchanged += 1,
            DocumentIndexed { stale: true, .. } => {
                self.superseded.insert(name);
            }
            DocumentIndexed { chunks, .. } => {
                self.indexed += 1;
                self.chunks += u64::try_from(chunks).unwrap_or_default();
            }
        }
    }

    /// Checks that all documents are indexed in this version.
    ///
    /// # Errors
    /// If documents failed or are superseded.
    fn check(&self) -> anyhow::Result<()> {
        let mut causes = Vec::new();
        let mut next = "ingest them again to index these versions";
        if !self.superseded.is_empty() {
            causes.push(format!("{} have a later version", self.superseded.len()));
        }
        if !self.failed.is_empty() {
            causes.push(format!("{} failed", self.failed.len()));
            next = "see `nerve dlq list`, correct the cause and ingest them again";
        }
        if causes.is_empty() {
            return Ok(());
        }
        Err(Failure::new("not all documents are indexed").cause(causes.join(" and ")).next(next).into())
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
            let has = if self.unchanged == 1 { "is unchanged" } else { "are unchanged" };
            lines.push(format!("{} {has}", self.unchanged));
        }
        if self.skipped > 0 {
            let (files, were) = if self.skipped == 1 { ("file", "is") } else { ("files", "are") };
            let skipped = self.skipped;
            lines.push(format!("skipped {skipped} {files} that {were} neither text nor PDF, or too large"));
        }
        let superseded = |name: &String| format!("superseded: {name}: the index has a later version");
        lines.extend(self.superseded.iter().take(MAX_LISTED_DOCUMENTS).map(superseded));
        lines.extend(self.failed.iter().take(MAX_LISTED_DOCUMENTS).map(|(name, why)| format!("failed: {name}: {why}")));
        lines.join("\n")
    }
}
