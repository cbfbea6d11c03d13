//! `nerve trace`

use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
    output,
    time_arg::Position,
};
use clap::Args;
use nerve_broker::bus::{self, TracedEvent};
use serde::Serialize;

/// Show the causal tree of events for an event, answer or correlation ID
#[derive(Debug, Args)]
#[command(after_help = "\
The ID is that of a workflow (an answer, a `correlationid`) or of any of its events.

Examples:
  nerve trace 01997c3e-6a52-7c11-b4f3-3d1f3f0a8a52
  nerve trace a1b2c3 --since 1h --output json | jq '.events[0].led_to'")]
pub(crate) struct Trace {
    /// Event, answer or correlation ID
    id: String,
    /// Start of the search: first, a sequence, a time (RFC 3339) or an age (10m) [default: the time in the ID, or else
    /// first]
    #[arg(long, value_name = "WHEN")]
    since: Option<Position>,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Serialize)]
struct TraceReport<'t> {
    id: &'t str,
    #[serde(flatten)]
    trace: &'t bus::Trace,
}

impl Trace {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let trace = connection.bus.trace(&self.id, self.since.map(|since| since.start())).await?;
        if trace.events.is_empty() {
            let cause = format!("no event found with id or correlationid {}", self.id);
            let next = "see `nerve tail --from 10m` for ids, or search more of the log with --since";
            return Err(Failure::new("nothing to trace").cause(cause).next(next).into());
        }
        if trace.truncated {
            output::hint("the trace exceeds its maximum size: the newest events are missing");
        }
        globals.output.show(&TraceReport { id: &self.id, trace: &trace }, |_| text(&trace.events))
    }
}

/// Formats one event per line, with its effects below it.
fn text(events: &[TracedEvent]) -> String {
    let mut lines = Vec::new();
    for event in events {
        lines.push(line(event, ""));
        below(&event.led_to, "", &mut lines);
    }
    let width = lines.iter().map(|(tree, _)| tree.chars().count()).max().unwrap_or_default();
    let pad = |tree: &str| " ".repeat(width - tree.chars().count());
    lines.iter().map(|(tree, rest)| format!("{tree}{}  {rest}", pad(tree))).collect::<Vec<_>>().join("\n")
}

/// The depth of a trace is limited, and so is this recursion.
fn below(events: &[TracedEvent], indent: &str, lines: &mut Vec<(String, String)>) {
    for (index, event) in events.iter().enumerate() {
        let last = index + 1 == events.len();
        let (branch, deeper) = if last { ("└ ", "  ") } else { ("├ ", "│ ") };
        lines.push(line(event, &format!("{indent}{branch}")));
        below(&event.led_to, &format!("{indent}{deeper}"), lines);
    }
}

/// Returns the branch of the tree and the description of the event.
fn line(event: &TracedEvent, branch: &str) -> (String, String) {
    let by = event.source.strip_prefix("/functions/").unwrap_or(&event.source);
    let mut rest = format!("{:>7} ms  {by}", event.offset_ms);
    if event.parts > 0 {
        rest.push_str(&format!("  ({} answer parts streamed)", event.parts));
    }
    for (id, function) in &event.dead {
        rest.push_str(&format!("  dead-lettered by {function}: nerve dlq show {id}"));
    }
    (format!("{branch}{}", event.ty), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use time::OffsetDateTime;

    fn traced(ty: &str, source: &str, led_to: Vec<TracedEvent>) -> TracedEvent {
        let time = OffsetDateTime::UNIX_EPOCH;
        let (id, ty, source) = (ty.to_owned(), ty.to_owned(), source.to_owned());
        TracedEvent {
            id,
            ty,
            source,
            cause: None,
            time,
            offset_ms: 7,
            sequence: 1,
            parts: 0,
            dead: BTreeMap::new(),
            led_to,
        }
    }

    #[test]
    fn trace_is_drawn_as_a_tree() {
        let mut second = traced("b", "/functions/f", vec![traced("c", "/functions/g", vec![])]);
        second.dead.insert(3, "g".into());
        let third = TracedEvent { parts: 2, ..traced("d", "/functions/f", vec![]) };
        let drawn = text(&[traced("a", "/s", vec![second, third])]);
        let expected = "a            7 ms  /s\n├ b          7 ms  f  dead-lettered by g: nerve dlq show 3\n│ └ c        7 ms  g\n\
                      └ d          7 ms  f  (2 answer parts streamed)";
        assert_eq!(drawn, expected);
    }
}
