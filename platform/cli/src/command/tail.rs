//! `nerve tail`

use crate::{
    connection::Connection,
    globals::{DataFolder, Globals},
    output::{self, truncated},
    time_arg::Position,
};
use clap::Args;
use nerve_broker::bus::TailedEvent;
use nerve_core::{Event, Pattern, subject::EVENTS_PREFIX};
use serde::Serialize;

/// Watch new events: time, sequence, type, ID and the beginning of the data
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve tail
  nerve tail --subject 'github.>' --from first
  nerve tail --from 10m -n 20 --output json | jq .type")]
pub(crate) struct Tail {
    /// Subject or event type; wildcards are allowed
    #[arg(long, value_name = "PATTERN", default_value = "events.>", value_parser = parse_subject)]
    subject: Pattern,
    /// Start: first, new, a sequence, a time (RFC 3339) or an age (10m)
    #[arg(long, value_name = "WHERE", default_value = "new")]
    from: Position,
    /// Exit after N events
    #[arg(short = 'n', long = "count", value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Serialize)]
struct TailRecord<'e> {
    sequence: u64,
    #[serde(flatten)]
    event: &'e Event,
}

impl Tail {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let mut tail = connection.bus.tail(&self.subject, self.from.start()).await?;
        if let Some((first, last)) = tail.take_gap() {
            output::hint(&format!("the events {first} to {last} are no longer in the log"));
        }
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            let tailed = tail.next().await;
            output::line(&if globals.output.is_json() { json(&tailed)? } else { text(&tailed) })?;
            left -= 1;
        }
        Ok(())
    }
}

fn json(tailed: &TailedEvent) -> serde_json::Result<String> {
    serde_json::to_string(&TailRecord { sequence: tailed.sequence, event: &tailed.event })
}

fn text(tailed: &TailedEvent) -> String {
    format!("{}  {}  {}", output::timestamp(tailed.time), tailed.sequence, event_text(&tailed.event))
}

/// Formats an event in one line.
pub(super) fn event_text(event: &Event) -> String {
    let data = match std::str::from_utf8(&event.data) {
        _ if event.extension(nerve_core::event::DATA_REF).is_some() => "(large body in the object store)".to_owned(),
        Ok(text) => truncated(text, 120),
        Err(_) => format!("({} bytes)", event.data.len()),
    };
    format!("{}  {}  {data}", event.ty, event.id)
}

/// Parses a subject, or an event type as the subject of its events.
fn parse_subject(text: &str) -> Result<Pattern, String> {
    let whole = text == ">" || text.starts_with(EVENTS_PREFIX);
    let subject = if whole { text.to_owned() } else { format!("{EVENTS_PREFIX}{text}") };
    Pattern::parse(subject).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;

    #[test]
    fn event_type_is_converted_to_its_subject() {
        let read = |text| parse_subject(text).map(|pattern| pattern.to_string());
        assert_eq!(read("github.>").as_deref(), Ok("events.github.>"));
        assert_eq!(read("events.github.push").as_deref(), Ok("events.github.push"));
        assert!(read("a..b").is_err());
    }

    #[test]
    fn json_line_is_the_event_with_its_sequence() {
        let event = Event::new("1", "/s", EventType::parse("a.b").unwrap()).with_data("application/json", "{\"n\":1}");
        let tailed = TailedEvent { sequence: 7, time: time::OffsetDateTime::UNIX_EPOCH, event };
        let line: serde_json::Value = serde_json::from_str(&json(&tailed).unwrap()).unwrap();
        assert_eq!((line["sequence"].as_u64(), line["data"]["n"].as_u64()), (Some(7), Some(1)));
        assert_eq!(line["specversion"], "1.0");
        assert_eq!(text(&tailed), "1970-01-01 00:00:00  7  a.b  1  {\"n\":1}");
    }
}
