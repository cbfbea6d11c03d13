//! `nerve eval`

mod report;
mod run;

use crate::{
    args::{DataFolder, Globals},
    command::ingest::prepare,
    connection::Connection,
    failure::Failure,
    files::unreadable,
    output,
};
use clap::Args;
use data_encoding::HEXLOWER;
use nerve_core::answer;
use report::{Report, Run};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{path::PathBuf, time::Duration};

/// The most questions of one file.
const QUESTIONS: usize = 10_000;
/// The largest file of questions, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Ask a file of questions, and measure the answers: what was found, how far it is grounded, how long it took
#[derive(Debug, Args)]
#[command(after_help = "\
Each line of the file is an object with `question`, and, where they are known, `source` (the document that answers it,
or the end of its name; several as a list) and `collection`. The last run of the same questions is compared with.

Examples:
  nerve eval questions.jsonl
  nerve eval questions.jsonl --collection manuals --output json | jq .recall_at_5")]
pub(crate) struct Eval {
    /// The questions
    file: PathBuf,
    /// What is searched, where a question names nothing else
    #[arg(long, value_name = "NAME", default_value = "default")]
    collection: String,
    /// Questions that are asked at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    at_once: u8,
    /// The longest to wait for one answer
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    folder: DataFolder,
}

/// A line of the file.
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
        let text = text.map_err(|error| unreadable(&self.file, error, "name a file of questions"))?;
        let questions = self.questions(&text)?;
        let connection = Connection::open(globals, &self.folder).await?;
        prepare(&connection, "prompt.received", Some(answer::GENERATED), globals.output).await?;
        let asked = run::ask_all(&connection.bus, &questions, (self.at_once.into(), self.patience)).await?;
        let run = Run::of(&questions, asked);
        let key = key(&questions);
        let before = report::load(&connection.bus, &key).await?;
        report::store(&connection.bus, &key, &run).await?;
        if questions.iter().all(|question| question.source.is_empty()) {
            output::hint("no question names its `source`, so nothing says what should have been found");
        }
        globals.output.show(&Report { run: &run, before: before.as_ref() }, Report::to_text)
    }

    fn questions(&self, text: &str) -> Result<Vec<Question>, Failure> {
        let refused = |cause: String| {
            let next = "each line is an object such as {\"question\": \"…\", \"source\": \"page.html\"}";
            Failure::new(format!("cannot use {}", self.file.display())).cause(cause).next(next)
        };
        let mut questions = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let question: Result<Question, _> = serde_json::from_str(line);
            let mut question = question.map_err(|error| refused(format!("line {}: {error}", number + 1)))?;
            question.collection.get_or_insert_with(|| self.collection.clone());
            questions.push(question);
        }
        match questions.len() {
            0 => Err(refused("it has no question".to_owned())),
            1..=QUESTIONS => Ok(questions),
            more => Err(refused(format!("it has {more} questions, and {QUESTIONS} are the most"))),
        }
    }
}

/// Where the run of these questions is kept.
fn key(questions: &[Question]) -> String {
    let text = serde_json::to_string(questions).unwrap_or_default();
    format!("eval.{}", HEXLOWER.encode(Sha256::digest(text).get(..12).unwrap_or_default()))
}
