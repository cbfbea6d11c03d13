//! `nerve ingest`

use crate::{
    args::{DataFolder, Globals},
    command::deploy::deploy_own,
    connection::Connection,
    failure::Failure,
    files::{LocalFile, PDF, find_files},
    output::{self, Format},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use data_encoding::HEXLOWER;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use nerve_core::{Event, EventType, Pattern};
use nerve_server::bus::{Bus, Start, Tail};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    io::IsTerminal,
    path::PathBuf,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// The functions that index documents and find them, deployed where nothing takes documents yet.
const PIPELINE: &str = include_str!("../../../../functions/rag/nerve.toml");
const UPLOADED: &str = "document.uploaded";
const INDEXED: &str = "events.document.indexed";
/// Documents that are on their way to JetStream at once.
const IN_FLIGHT: usize = 64;
/// Failed documents that are named.
const NAMED: usize = 20;

/// Upload documents, and wait until they are indexed: Markdown, HTML, PDF, text and code, whole folders too
#[derive(Debug, Args)]
#[command(after_help = "\
What a .gitignore names is left out, and so is what is no text and no PDF. A document is named by its path; uploaded
again, it replaces the one before. Where nothing takes documents yet, the functions that index them are deployed.

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
    /// End once JetStream has the documents
    #[arg(long)]
    no_wait: bool,
    /// The longest to wait without a document being indexed
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    folder: DataFolder,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Documents that JetStream has.
    documents: usize,
    /// Those that it had already, as they are.
    unchanged: usize,
    indexed: usize,
    chunks: u64,
    /// Documents that were given up, and why.
    failed: BTreeMap<String, String>,
    /// Files that are neither text nor PDF, or too large.
    skipped: usize,
    seconds: f64,
}

impl Ingest {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let started = Instant::now();
        let connection = Connection::open(globals, &self.folder).await?;
        prepare(&connection, UPLOADED, globals.output).await?;
        let bus = &connection.bus;
        let (mut indexed, mut dead) =
            (bus.tail(&Pattern::parse(INDEXED)?, Start::New).await?, bus.tail_dead(Start::New).await?);
        let files = find_files(&self.paths)?;
        let bar = bar(files.len(), globals.output);
        let mut summary = Summary::default();
        let mut waiting = self.upload(bus, files, &bar, &mut summary).await?;
        if summary.documents == 0 {
            let cause = format!("nothing there is text or PDF ({} files were looked at)", summary.skipped);
            let next = "name files or folders with Markdown, HTML, PDF, text or code";
            return Err(Failure::new("no document to ingest").cause(cause).next(next).into());
        }
        if !self.no_wait {
            bar.set_message("indexed");
            bar.set_position(0);
            bar.set_length(u64::try_from(waiting.len()).unwrap_or_default());
            self.wait(&mut indexed, &mut dead, &mut waiting, &bar, &mut summary).await?;
        }
        bar.finish_and_clear();
        summary.seconds = started.elapsed().as_secs_f64();
        globals.output.show(&summary, |summary| summary.to_text(self.no_wait))?;
        if summary.failed.is_empty() {
            return Ok(());
        }
        let cause = format!("{} of them could not be indexed", summary.failed.len());
        Err(Failure::new("not all documents are indexed").cause(cause).next("`nerve dlq list` shows why, whole").into())
    }

    /// Publishes the files; returns the names of those that are on their way, by the ids of their events.
    async fn upload(
        &self,
        bus: &Bus,
        files: Vec<LocalFile>,
        bar: &ProgressBar,
        summary: &mut Summary,
    ) -> anyhow::Result<HashMap<String, String>> {
        let mut waiting = HashMap::new();
        let sent = futures::stream::iter(files).map(|file| async move {
            let Some(content) = file.read().await else { return anyhow::Ok(None) };
            let event = self.event(&file.name, &content)?;
            let published = bus.publish_own(&event).await?;
            anyhow::Ok(Some((event.id, file.name, published.duplicate)))
        });
        let mut sent = std::pin::pin!(sent.buffer_unordered(IN_FLIGHT));
        while let Some(published) = sent.next().await {
            bar.inc(1);
            let Some((id, name, duplicate)) = published? else {
                summary.skipped += 1;
                continue;
            };
            summary.documents += 1;
            if duplicate {
                summary.unchanged += 1;
            } else {
                waiting.insert(id, name);
            }
        }
        Ok(waiting)
    }

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
        // The same content under the same name is the same upload, as long as the log remembers it.
        let mut digest = Sha256::new();
        digest.update(format!("{}\0{}\0", self.collection, name));
        digest.update(content);
        let id = HEXLOWER.encode(&digest.finalize());
        let event = Event::new(id, "/nerve/ingest", EventType::parse(UPLOADED)?);
        let mut event = event.with_data("application/json", serde_json::to_vec(&document)?);
        event.subject = Some(name.to_owned());
        event.time = Some(OffsetDateTime::now_utc());
        Ok(event)
    }

    /// Waits until each document is indexed or given up.
    async fn wait(
        &self,
        indexed: &mut Tail,
        dead: &mut Tail,
        waiting: &mut HashMap<String, String>,
        bar: &ProgressBar,
        summary: &mut Summary,
    ) -> anyhow::Result<()> {
        while !waiting.is_empty() {
            let news = tokio::time::timeout(self.patience, async {
                tokio::select! {
                    made = indexed.next() => (made, true),
                    given_up = dead.next() => (given_up, false),
                }
            });
            let Ok((tailed, good)) = news.await else {
                bar.finish_and_clear();
                let cause =
                    format!("{} documents are on their way, and none came in {:?}", waiting.len(), self.patience);
                let next =
                    "`nerve logs` shows what the functions do; --patience waits longer; what is uploaded goes on";
                return Err(Failure::new("the documents are not indexed yet").cause(cause).next(next).into());
            };
            let event = tailed.event;
            let upload = event.extension("correlationid").unwrap_or(&event.id);
            let Some(name) = waiting.remove(upload) else { continue };
            if good {
                let made: Value = serde_json::from_slice(&event.data).unwrap_or_default();
                summary.indexed += 1;
                summary.chunks += made.get("chunks").and_then(Value::as_u64).unwrap_or_default();
            } else {
                summary.failed.insert(name, format!("given up as {}", event.ty));
            }
            bar.inc(1);
        }
        Ok(())
    }
}

/// Deploys the functions that index documents and answer questions, unless something takes events of this type already.
pub(super) async fn prepare(connection: &Connection, ty: &str, format: Format) -> anyhow::Result<()> {
    let subject = format!("events.{ty}");
    let functions = connection.registry().await?.functions().await?;
    if functions.iter().any(|entry| entry.record.spec.on.iter().any(|pattern| pattern.covers(&subject))) {
        return Ok(());
    }
    if format == Format::Text {
        output::hint(&format!("nothing takes {ty} yet: deploying Nerve's own pipeline, from chunk to notify"));
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
    fn to_text(&self, no_wait: bool) -> String {
        let mut lines = match no_wait {
            true => vec![format!("uploaded {} documents", self.documents)],
            false => vec![format!(
                "indexed {} of {} documents, {} chunks, in {:.1} s",
                self.indexed, self.documents, self.chunks, self.seconds
            )],
        };
        if self.unchanged > 0 {
            let were = if self.unchanged == 1 {
                "was uploaded already, as it is"
            } else {
                "were uploaded already, as they are"
            };
            lines.push(format!("{} {were}", self.unchanged));
        }
        if self.skipped > 0 {
            let (files, were) = if self.skipped == 1 { ("file is", "was") } else { ("files are", "were") };
            let skipped = self.skipped;
            lines.push(format!("{skipped} {files} no text and no PDF, or too large, and {were} skipped"));
        }
        lines.extend(self.failed.iter().take(NAMED).map(|(name, why)| format!("failed: {name}: {why}")));
        lines.join("\n")
    }
}
