//! `nerve ask`

use crate::{
    args::{DataFolder, Globals},
    command::ingest::prepare,
    connection::Connection,
    failure::Failure,
};
use clap::Args;
use nerve_core::{Event, EventType, Pattern};
use nerve_server::bus::{Start, Tailed};
use serde_json::{Map, Value, json};
use std::{fmt::Write, time::Duration};
use time::OffsetDateTime;
use uuid::Uuid;

const ASKED: &str = "prompt.received";
const ANSWERED: &str = "events.answer.generated";

/// Ask the documents that were ingested: the answer quotes them, and says where it is from
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve ask \"What do late invoices cost?\"
  nerve ask \"How long do refunds take?\" --collection manuals --filter team=support
  nerve ask \"What do late invoices cost?\" --output json | jq .citations")]
pub(crate) struct Ask {
    /// The question
    question: String,
    /// What is searched
    #[arg(long, value_name = "NAME", default_value = "default")]
    collection: String,
    /// Metadata that documents must have; several narrow further
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_filter)]
    filter: Vec<(String, Value)>,
    /// The longest to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    folder: DataFolder,
}

impl Ask {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        prepare(&connection, ASKED, globals.output).await?;
        let mut answers = connection.bus.tail(&Pattern::parse(ANSWERED)?, Start::New).await?;
        let mut dead = connection.bus.tail_dead(Start::New).await?;
        let prompt = self.prompt()?;
        connection.bus.publish(&prompt).await?;
        let is_ours =
            |tailed: &Tailed| tailed.event.extension("correlationid").unwrap_or(&tailed.event.id) == prompt.id;
        let answer = async {
            loop {
                let (tailed, answered) = tokio::select! {
                    answer = answers.next() => (answer, true),
                    given_up = dead.next() => (given_up, false),
                };
                if is_ours(&tailed) {
                    return (tailed.event, answered);
                }
            }
        };
        let Ok((event, answered)) = tokio::time::timeout(self.patience, answer).await else {
            let cause = format!("no answer came within {:?}", self.patience);
            let next = "`nerve logs` shows what the functions do, `nerve list` whether they are deployed";
            return Err(Failure::new("the question is not answered").cause(cause).next(next).into());
        };
        if !answered {
            let cause = format!("{} was given up", event.ty);
            return Err(Failure::new("the question is not answered")
                .cause(cause)
                .next("`nerve dlq list` shows why")
                .into());
        }
        let answer: Value = serde_json::from_slice(&event.data)?;
        globals.output.show(&answer, text)
    }

    fn prompt(&self) -> anyhow::Result<Event> {
        let filter: Map<String, Value> = self.filter.iter().cloned().collect();
        let data = json!({"question": self.question, "collection": self.collection, "filter": filter});
        let event = Event::new(Uuid::now_v7().to_string(), "/nerve/ask", EventType::parse(ASKED)?);
        let mut event = event.with_data("application/json", serde_json::to_vec(&data)?);
        event.time = Some(OffsetDateTime::now_utc());
        Ok(event)
    }
}

/// `key=value`; a value that is JSON, such as a number or a list, is that.
fn parse_filter(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((key.to_owned(), value))
}

/// The answer, and below it where each sentence is from.
fn text(answer: &Value) -> String {
    let field = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut text = field(answer, "answer");
    let citations = answer.get("citations").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, citation) in citations.iter().enumerate() {
        let heading = citation.get("heading").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let place: Vec<String> = std::iter::once(field(citation, "name")).chain(heading.map(str::to_owned)).collect();
        let quoted = field(citation, "text").split_whitespace().collect::<Vec<_>>().join(" ");
        let gap = if index == 0 { "\n" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{gap}\n  [{}] {}: “{quoted}”", index + 1, place.join(" › "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_text_unless_it_is_json() {
        assert_eq!(parse_filter("team=support"), Ok(("team".into(), json!("support"))));
        assert_eq!(parse_filter("year=2026"), Ok(("year".into(), json!(2026))));
        assert_eq!(parse_filter("tags=[\"a\"]"), Ok(("tags".into(), json!(["a"]))));
        assert!(parse_filter("team").is_err());
    }

    #[test]
    fn an_answer_says_where_it_is_from() {
        let citation = json!({"name": "fees.md", "heading": ["Fees"], "text": "Ten\npercent."});
        let answer = json!({"answer": "Ten percent.", "citations": [citation]});
        assert_eq!(text(&answer), "Ten percent.\n\n  [1] fees.md › Fees: “Ten percent.”");
    }
}
