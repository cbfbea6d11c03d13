//! `nerve ask`

use crate::{
    command::ingest::prepare,
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
    output,
};
use clap::Args;
use nerve_broker::bus::AnswerPart;
use nerve_core::{
    Event,
    answer::{self, Part},
};
use nerve_events::{
    EventData,
    retrieval::{PromptReceived, QuestionParameters},
};
use serde_json::Value;
use std::{fmt::Write, time::Duration};
use time::OffsetDateTime;
use uuid::Uuid;

/// Ask a question about the ingested documents; streams the answer with citations
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
    /// Collection to search
    #[arg(long, value_name = "NAME", default_value = "default")]
    collection: String,
    /// Conversation ID; earlier turns are used as context
    #[arg(long, value_name = "NAME")]
    conversation: Option<String>,
    /// Required metadata of documents; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_filter)]
    filter: Vec<(String, Value)>,
    /// Idle timeout between parts of the answer
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    folder: DataFolder,
}

impl Ask {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        prepare(&connection, PromptReceived::TYPE, Some(answer::GENERATED), globals.output).await?;
        let prompt = self.prompt()?;
        let mut parts = connection.bus.answer(&prompt.id, None).await?;
        connection.bus.publish_own(&prompt).await?;
        let mut streamed = String::new();
        loop {
            let Ok(AnswerPart { part, event, .. }) = tokio::time::timeout(self.patience, parts.next()).await else {
                return Err(self.failed(format!("no part of the answer within {:?}", self.patience)).into());
            };
            let data: Value = serde_json::from_slice(&event.data)?;
            match part {
                Part::Token if !globals.output.is_json() => {
                    let text = field(&data, "text");
                    output::fragment(&text)?;
                    streamed.push_str(&text);
                }
                Part::Done if globals.output.is_json() => return globals.output.show(&data, |_| String::new()),
                Part::Done => return Ok(output::line(&rest(&data, &streamed))?),
                Part::Error => {
                    output::fragment(if streamed.is_empty() { "" } else { "\n" })?;
                    let cause = match field(&data, "function").as_str() {
                        "" => field(&data, "message"),
                        function => format!("{function}: {}", field(&data, "message")),
                    };
                    return Err(self.failed(cause).into());
                }
                _ => {}
            }
        }
    }

    fn failed(&self, cause: String) -> Failure {
        let next = "check the logs of the functions (`nerve logs`), whether they are deployed (`nerve list`), and the dead \
                    letters (`nerve dlq list`)";
        Failure::new("the question was not answered").cause(cause).next(next)
    }

    fn prompt(&self) -> anyhow::Result<Event> {
        let parameters = QuestionParameters {
            collection: Some(self.collection.clone()),
            conversation: self.conversation.clone(),
            filter: self.filter.iter().cloned().collect(),
            ..QuestionParameters::default()
        };
        let question = Some(self.question.clone());
        let data = PromptReceived { question, parameters, ..PromptReceived::default() };
        let event = Event::new(Uuid::now_v7().to_string(), "/nerve/ask", PromptReceived::event_type());
        let mut event = event.with_data("application/json", serde_json::to_vec(&data)?);
        event.time = Some(OffsetDateTime::now_utc());
        Ok(event)
    }
}

/// Parses `key=value`. The value is JSON, such as a number or a list, or else a string.
fn parse_filter(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((key.to_owned(), value))
}

fn field(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Returns the rest of the answer to print: its text, unless it was streamed, and the citations.
fn rest(answer: &Value, streamed: &str) -> String {
    let mut text = if streamed.is_empty() { field(answer, "answer") } else { String::new() };
    let citations = answer.get("citations").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, citation) in citations.iter().enumerate() {
        let heading = citation.get("heading").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let location: Vec<String> =
            std::iter::once(field(citation, "name")).chain(heading.map(str::to_owned)).collect();
        let quoted = field(citation, "text").split_whitespace().collect::<Vec<_>>().join(" ");
        let number = citation.get("number").and_then(Value::as_u64).unwrap_or(index as u64 + 1);
        let gap = if index == 0 { "\n" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{gap}\n  [{number}] {}: “{quoted}”", location.join(" › "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn filter_value_is_text_unless_it_is_json() {
        assert_eq!(parse_filter("team=support"), Ok(("team".into(), json!("support"))));
        assert_eq!(parse_filter("year=2026"), Ok(("year".into(), json!(2026))));
        assert_eq!(parse_filter("tags=[\"a\"]"), Ok(("tags".into(), json!(["a"]))));
        assert!(parse_filter("team").is_err());
    }

    #[test]
    fn answer_text_ends_with_citations() {
        let citation = json!({"name": "fees.md", "heading": ["Fees"], "text": "Ten\npercent."});
        let answer = json!({"answer": "Ten percent.", "citations": [citation]});
        assert_eq!(rest(&answer, ""), "Ten percent.\n\n  [1] fees.md › Fees: “Ten percent.”");
        assert_eq!(rest(&answer, "Ten percent."), "\n\n  [1] fees.md › Fees: “Ten percent.”");
    }
}
