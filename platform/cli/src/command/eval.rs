//! `nerve eval`

mod report;
mod run;

use crate::{
    command::ingest::prepare,
    connection::Connection,
    failure::Failure,
    files::unreadable,
    globals::{DataFolder, Globals},
    output,
};
use clap::Args;
use data_encoding::HEXLOWER;
use nerve_core::answer;
use nerve_events::{EventData, retrieval::PromptReceived};
use report::{EvalReport, EvalRun};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{path::PathBuf, time::Duration};

/// Maximum questions of a file.
const MAX_QUESTIONS: usize = 10_000;
/// Maximum size of a file of questions.
const MAX_BYTES: u64 = 64 << 20;

/// Evaluate retrieval recall, groundedness and latency on a question set
#[derive(Debug, Args)]
#[command(after_help = "\
Each line of the file is a JSON object with `question` and optionally `source` (the document with the answer, or the end
of its name; several as a list) and `collection`. The result is compared with the last run of the same questions.

Examples:
  nerve eval questions.jsonl
  nerve eval questions.jsonl --collection manuals --output json | jq .recall_at_5")]
pub(crate) struct Eval {
    /// The file of questions (JSON Lines)
    file: PathBuf,
    /// Collection to search, unless a question has its own
    #[arg(long, value_name = "NAME", default_value = "default")]
    collection: String,
    /// Concurrent questions
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    at_once: u8,
    /// Timeout of one answer
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    folder: DataFolder,
}

/// A question of the file.
#[derive(Debug, Clone, Deserialize, Serialize)]
struct Question {
    question: String,
    #[serde(default, alias = "sources", deserialize_with = "one_or_many")]
    source: Vec<String>,
    #[serde(default)]
    collection: Option<String>,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Sources {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Sources>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Sources::One(one)) => vec![one],
        Some(Sources::Many(many)) => many,
    })
}

impl Eval {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let text = nerve_files::read_to_string(&self.file, MAX_BYTES);
        let text = text.map_err(|error| unreadable(&self.file, error, "pass a file of questions"))?;
        let questions = self.questions(&text)?;
        let connection = Connection::open(globals, &self.folder).await?;
        prepare(&connection, PromptReceived::TYPE, Some(answer::GENERATED), globals.output).await?;
        let results = run::ask_all(&connection.bus, &questions, (self.at_once.into(), self.patience)).await?;
        let run = EvalRun::of(&questions, results);
        let key = key(&questions);
        let before = report::load(&connection.bus, &key).await?;
        report::store(&connection.bus, &key, &run).await?;
        if questions.iter().all(|question| question.source.is_empty()) {
            output::hint("no question has a `source`, so recall is not measured");
        }
        globals.output.show(&EvalReport { run: &run, before: before.as_ref() }, EvalReport::to_text)
    }

    fn questions(&self, text: &str) -> Result<Vec<Question>, Failure> {
        let invalid = |cause: String| {
            let next = "each line must be an object such as {\"question\": \"…\", \"source\": \"page.html\"}";
            Failure::new(format!("cannot use {}", self.file.display())).cause(cause).next(next)
        };
        let mut questions = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let question: Result<Question, _> = serde_json::from_str(line);
            let mut question = question.map_err(|error| invalid(format!("line {}: {error}", number + 1)))?;
            question.collection.get_or_insert_with(|| self.collection.clone());
            questions.push(question);
        }
        match questions.len() {
            0 => Err(invalid("it contains no questions".to_owned())),
            1..=MAX_QUESTIONS => Ok(questions),
            more => Err(invalid(format!("it contains {more} questions, the maximum is {MAX_QUESTIONS}"))),
        }
    }
}

/// Returns the storage key of the last run of these questions.
fn key(questions: &[Question]) -> String {
    let text = serde_json::to_string(questions).unwrap_or_default();
    format!("eval.{}", HEXLOWER.encode(Sha256::digest(text).get(..12).unwrap_or_default()))
}
