//! `nerve ask`

use crate::{
    args::{DataFolder, Globals},
    command::ingest::prepare,
    connection::Connection,
    failure::Failure,
    output,
};
use clap::Args;
use nerve_broker::bus::AnswerPart;
use nerve_core::{
    Event, EventType,
    answer::{self, Part},
};
use serde_json::{Map, Value, json};
use std::{fmt::Write, time::Duration};
use time::OffsetDateTime;
use uuid::Uuid;

const ASKED: &str = "prompt.received";

/// Ask the documents that were ingested: the answer comes as it is made, and says where it is from
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve ask \"What do late invoices cost?\"
  nerve ask \"How long do refunds take?\" --collection manuals --filter team=support
  nerve ask \"And in France?\" --conversation ada
  nerve ask \"What do late invoices cost?\" --output json | jq .citations")]
pub(crate) struct Ask {
    /// The question
    question: String,
    /// What is searched
    #[arg(long, value_name = "NAME", default_value = "default")]
    collection: String,
    /// Goes on with a conversation: what was asked and answered in it before counts
    #[arg(long, value_name = "NAME")]
    conversation: Option<String>,
    /// Metadata that documents must have; several narrow further
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_filter)]
    filter: Vec<(String, Value)>,
    /// The longest to wait for the next part of the answer
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    folder: DataFolder,
}

impl Ask {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        prepare(&connection, ASKED, Some(answer::GENERATED), globals.output).await?;
        let prompt = self.prompt()?;
        let mut parts = connection.bus.answer(&prompt.id, None).await?;
        connection.bus.publish_own(&prompt).await?;
        let mut said = String::new();
        loop {
            let Ok(AnswerPart { part, event, .. }) = tokio::time::timeout(self.patience, parts.next()).await else {
                return Err(self.unanswered(format!("nothing came within {:?}", self.patience)).into());
            };
            let data: Value = serde_json::from_slice(&event.data)?;
            match part {
                Part::Token if !globals.output.is_json() => {
                    let text = field(&data, "text");
                    output::piece(&text)?;
                    said.push_str(&text);
                }
                Part::Done if globals.output.is_json() => return globals.output.show(&data, |_| String::new()),
                Part::Done => return Ok(output::line(&rest(&data, &said))?),
                Part::Error => {
                    output::piece(if said.is_empty() { "" } else { "\n" })?;
                    let cause = match field(&data, "function").as_str() {
                        "" => field(&data, "message"),
                        function => format!("{function}: {}", field(&data, "message")),
                    };
                    return Err(self.unanswered(cause).into());
                }
                _ => {}
            }
        }
    }

    fn unanswered(&self, cause: String) -> Failure {
        let next = "`nerve logs` shows what the functions do, `nerve list` whether they are deployed, `nerve dlq list` \
                    what was given up";
        Failure::new("the question is not answered").cause(cause).next(next)
    }

    fn prompt(&self) -> anyhow::Result<Event> {
        let filter: Map<String, Value> = self.filter.iter().cloned().collect();
        let mut data = json!({"question": self.question, "collection": self.collection, "filter": filter});
        if let (Some(conversation), Value::Object(fields)) = (&self.conversation, &mut data) {
            fields.insert("conversation".to_owned(), conversation.as_str().into());
        }
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

fn field(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// What is left to print of an answer: its text, where it was not streamed, and where each sentence is from.
fn rest(answer: &Value, said: &str) -> String {
    let mut text = if said.is_empty() { field(answer, "answer") } else { String::new() };
    let citations = answer.get("citations").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, citation) in citations.iter().enumerate() {
        let heading = citation.get("heading").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let place: Vec<String> = std::iter::once(field(citation, "name")).chain(heading.map(str::to_owned)).collect();
        let quoted = field(citation, "text").split_whitespace().collect::<Vec<_>>().join(" ");
        let number = citation.get("number").and_then(Value::as_u64).unwrap_or(index as u64 + 1);
        let gap = if index == 0 { "\n" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{gap}\n  [{number}] {}: “{quoted}”", place.join(" › "));
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
        assert_eq!(rest(&answer, ""), "Ten percent.\n\n  [1] fees.md › Fees: “Ten percent.”");
        assert_eq!(rest(&answer, "Ten percent."), "\n\n  [1] fees.md › Fees: “Ten percent.”");
    }
}
