//! `nerve collections erase`

use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
    output,
};
use anyhow::anyhow;
use clap::Args;
use nerve_broker::bus::{Bus, ErasedMessages, Erasure, ErasureOutcome, InvokeError, StoredView};
use nerve_core::{Name, function::Views, manifest::RuntimeSpec};
use nerve_rag::erase::{EraseRequest, ErasedDocuments, Tenant};
use serde::Serialize;
use std::{
    io::{IsTerminal, stdin},
    ops::AddAssign,
    time::Duration,
};
use uuid::Uuid;

/// Timeout of counting documents in the index.
const COUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of erasing documents, which rebuilds a large index.
const ERASE_TIMEOUT: Duration = Duration::from_secs(1800);
/// Maximum attempts at documents that others modify concurrently.
const MAX_ATTEMPTS: usize = 16;

/// Erase a collection: its documents, questions, answers and memory, with their events and dead letters
#[derive(Debug, Args)]
#[command(after_help = "\
Stop the collection's callers first. Data in transit may be stored after the erasure: run the command again until all
counts are 0. Later data is a new collection with the same name.

The command erases the documents in the index and all events, answers, dead letters, delayed deliveries, large bodies and
records of failed attempts that belong to the collection directly, or by their correlation ID to its documents, questions and
answers; also the memory of its conversations and data learned from its feedback. Events of other collections are never
erased. Data sent to other systems, backups, and logs of functions are not erased.

Examples:
  nerve collections erase acme --dry-run              only count
  nerve collections erase acme                        count, confirm, erase
  nerve collections erase acme --yes --output json    no confirmation")]
pub(crate) struct Erase {
    /// The collection
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    /// Only count the data to erase
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    folder: DataFolder,
}

/// Counts of a collection's data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Counts {
    /// Documents in the index; `None` if no `rag/index` is deployed.
    documents: Option<u64>,
    /// Their chunks.
    chunks: Option<u64>,
    #[serde(flatten)]
    messages: ErasedMessages,
    #[serde(flatten)]
    views: ErasedViews,
}

/// Documents in the bucket `views`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct ErasedViews {
    /// Conversations.
    memory: u64,
    /// Data learned from feedback: ratings, weights, and rankings of answers.
    learned: u64,
}

impl AddAssign for ErasedViews {
    fn add_assign(&mut self, more: Self) {
        self.memory += more.memory;
        self.learned += more.learned;
    }
}

impl Counts {
    fn new(documents: Option<ErasedDocuments>, messages: ErasedMessages, views: ErasedViews) -> Self {
        let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        Self {
            documents: documents.map(|erased| number(erased.documents)),
            chunks: documents.map(|erased| number(erased.chunks)),
            messages,
            views,
        }
    }

    fn is_empty(&self) -> bool {
        self.documents.unwrap_or_default() == 0 && self.messages.is_empty() && self.views == ErasedViews::default()
    }
}

#[derive(Serialize)]
struct EraseReport<'r> {
    collection: &'r str,
    dry_run: bool,
    /// Whether no data of the collection was left at the end.
    complete: bool,
    erased: Counts,
}

impl Erase {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let name = self.name.as_str();
        if !self.dry_run && !self.yes && !stdin().is_terminal() {
            let next = format!("count with `nerve collections erase {name} --dry-run`, then erase with --yes");
            let failure = Failure::usage(format!("refusing to erase the collection `{name}` without a confirmation"));
            return Err(failure.cause("stdin is not a terminal").next(next).into());
        }
        let connection = Connection::open(globals, &self.folder).await?;
        let target = Target { bus: &connection.bus, tenant: Tenant::new(name), index: index(&connection).await? };
        let owns = |collection: &str| target.tenant.owns(collection);
        let documents = target.documents(true).await?;
        let found = target.bus.find_tenant(&owns).await?;
        let mut report =
            EraseReport { collection: name, dry_run: self.dry_run, complete: true, erased: Counts::default() };
        report.erased = Counts::new(documents, found.count(), target.views(&found, true).await?);
        if found.undecided() > 0 {
            output::hint(&format!(
                "{} events are kept: their workflow also belongs to another collection",
                found.undecided()
            ));
        }
        if !self.dry_run {
            if !self.yes {
                output::hint(&text(&EraseReport { dry_run: true, ..report }));
                confirm(name)?;
            }
            (report.erased, report.complete) = target.erase(found).await?;
            if !report.erased.is_empty() {
                target.bus.publish_erased(name, &report.erased).await?;
            }
        }
        globals.output.show(&report, text)?;
        if report.complete {
            return Ok(());
        }
        let next = format!("stop its callers, then run `nerve collections erase {name}` again");
        let failure = Failure::new(format!("the collection `{name}` is not erased completely"));
        Err(failure.cause("new data of it kept arriving").next(next).into())
    }
}

/// Asks for the name of the collection as a confirmation.
fn confirm(name: &str) -> anyhow::Result<()> {
    output::hint(&format!("type the name of the collection to erase it (`{name}`):"));
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if answer.trim_end_matches(['\n', '\r']) == name {
        return Ok(());
    }
    let failure = Failure::new(format!("the collection `{name}` was not erased"));
    Err(failure.cause("the typed name differs").next("nothing was changed: run the command again").into())
}

/// Returns the deployed index function.
async fn index(connection: &Connection) -> anyhow::Result<Option<Name>> {
    let functions = connection.registry().await?.functions().await?;
    let is_index = |run: &RuntimeSpec| matches!(run, RuntimeSpec::Builtin { function, .. } if function == "rag/index");
    let index = functions.into_iter().find(|entry| is_index(&entry.record.spec.run)).map(|entry| entry.name);
    if index.is_none() {
        output::hint("no rag/index is deployed, so no index was searched");
    }
    Ok(index)
}

/// A tenant and the location of its data.
struct Target<'c> {
    bus: &'c Bus,
    tenant: Tenant,
    index: Option<Name>,
}

impl Target<'_> {
    /// Counts the tenant's documents, or erases them.
    async fn documents(&self, dry_run: bool) -> Result<Option<ErasedDocuments>, Failure> {
        let Some(index) = &self.index else { return Ok(None) };
        let wait = if dry_run { COUNT_TIMEOUT } else { ERASE_TIMEOUT };
        let collection = self.tenant.collection().to_owned();
        let verb = if dry_run { "count" } else { "erase" };
        let failed = || Failure::new(format!("cannot {verb} the documents of the collection `{collection}`"));
        let request = EraseRequest { collection: collection.clone(), dry_run };
        let event = request.event(Uuid::now_v7().to_string()).map_err(|error| failed().because(error))?;
        let results = self.bus.invoke(index, &event, wait).await.map_err(|error| {
            let next = match error {
                InvokeError::NoWorker(_) => "start the worker with the index, then run this again",
                InvokeError::Timeout(..) => "run this again: the index may still be working on it",
                InvokeError::Function(_) | InvokeError::Bus(_) => "see `nerve logs`, then run this again",
            };
            let nothing = if dry_run { "nothing was erased: " } else { "" };
            failed().because(error).next(format!("{nothing}{next}"))
        })?;
        let result = results.first().ok_or_else(|| failed().cause(format!("`{index}` returned no result")))?;
        let counted = serde_json::from_slice(&result.data).map_err(|error| {
            let next = "update the worker: it does not support `collection.erase_requested`";
            failed().because(error).next(next)
        })?;
        Ok(Some(counted))
    }

    /// Counts the tenant's documents in `views`, or erases them.
    async fn views(&self, found: &Erasure<'_>, dry_run: bool) -> anyhow::Result<ErasedViews> {
        let mut erased = ErasedViews { memory: self.keys(&self.tenant.memory_keys(), dry_run).await?, learned: 0 };
        for key in self.tenant.learned_keys() {
            erased.learned += self.keys(&key, dry_run).await?;
        }
        erased.learned += self.rankings(found, dry_run).await?;
        Ok(erased)
    }

    async fn keys(&self, pattern: &str, dry_run: bool) -> anyhow::Result<u64> {
        let mut views = Vec::new();
        self.bus.each_view(pattern, |view| views.push((view.key, view.revision))).await?;
        let count = u64::try_from(views.len())?;
        if !dry_run {
            self.bus.erase_views(views).await?;
        }
        Ok(count)
    }

    /// Removes the tenant's answers from the rankings, whose documents are shared with other tenants.
    async fn rankings(&self, found: &Erasure<'_>, dry_run: bool) -> anyhow::Result<u64> {
        let mut removed = 0;
        for _ in 0..MAX_ATTEMPTS {
            let mut changed = Vec::new();
            self.bus
                .each_view(Tenant::ranking_keys(), |view| {
                    let without = self.tenant.without_rankings(&view.data, |answer| found.has_answer(answer));
                    changed.extend(without.map(|rankings| (view, rankings)));
                })
                .await?;
            if changed.is_empty() {
                return Ok(removed);
            }
            for (view, rankings) in changed {
                let count = u64::try_from(rankings.removed)?;
                removed += if dry_run || self.replace(view, rankings.document).await? { count } else { 0 };
            }
            if dry_run {
                return Ok(removed);
            }
        }
        Err(anyhow!("too many concurrent changes of the rankings of answers"))
    }

    /// Replaces or deletes a revision of a document. Returns `false` after a concurrent change.
    async fn replace(&self, view: StoredView, document: Option<Vec<u8>>) -> anyhow::Result<bool> {
        let Some(document) = document else {
            self.bus.erase_views([(view.key, view.revision)]).await?;
            return Ok(true);
        };
        let replaced = self.bus.put_view(&view.key, document.into(), Some(view.revision)).await;
        replaced.map_err(|error| anyhow!("writing the rankings of answers: {error}"))
    }

    /// Erases everything: data of answers first, while the answers are known, and the index last, when no event can
    /// restore a document.
    async fn erase(&self, found: Erasure<'_>) -> anyhow::Result<(Counts, bool)> {
        let mut views = self.views(&found, false).await?;
        let ErasureOutcome { erased, is_complete } = found.run().await?;
        let documents = self.documents(false).await?;
        // Usage is not counted as data of the collection.
        for key in self.tenant.usage_keys() {
            self.keys(&key, false).await?;
        }
        // Conversations that were stored concurrently.
        views.memory += self.keys(&self.tenant.memory_keys(), false).await?;
        for key in self.tenant.learned_keys() {
            views.learned += self.keys(&key, false).await?;
        }
        Ok((Counts::new(documents, erased, views), is_complete))
    }
}

fn text(report: &EraseReport<'_>) -> String {
    let EraseReport { collection, dry_run, erased: Counts { documents, chunks, messages, views }, .. } = report;
    let known = |count: &Option<u64>| count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    let rows = [
        ("documents", known(documents)),
        ("chunks", known(chunks)),
        ("answers", messages.answers.to_string()),
        ("answer parts", messages.answer_parts.to_string()),
        ("events", messages.events.to_string()),
        ("dead letters", messages.dead_letters.to_string()),
        ("delayed deliveries", messages.delayed.to_string()),
        ("large bodies", messages.large_bodies.to_string()),
        ("attempts", messages.attempts.to_string()),
        ("idempotency keys", messages.requests.to_string()),
        ("conversations", views.memory.to_string()),
        ("learned", views.learned.to_string()),
    ];
    let title = if *dry_run { "would be erased from" } else { "erased from" };
    format!("{title} the collection {collection}:\n{}", output::pairs(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_lists_counts_as_text_and_json() {
        let messages = ErasedMessages { events: 7, dead_letters: 1, ..ErasedMessages::default() };
        let erased = Counts::new(None, messages, ErasedViews { memory: 2, learned: 0 });
        let report = EraseReport { collection: "acme", dry_run: true, complete: true, erased };
        let shown = text(&report);
        assert!(shown.starts_with("would be erased from the collection acme:\n"), "{shown}");
        let row = |name: &str| shown.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        assert_eq!((row("documents"), row("events"), row("conversations")), (Some("unknown"), Some("7"), Some("2")));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((json["erased"]["events"].as_u64(), json["erased"]["memory"].as_u64()), (Some(7), Some(2)));
        assert!(json["erased"]["documents"].is_null());
        assert!(!erased.is_empty() && Counts::default().is_empty());
    }
}
