//! `nerve trace`

use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
    moment::Position,
    output,
};
use clap::Args;
use nerve_broker::bus::{self, Traced};
use serde::Serialize;

/// Show everything that one event led to, as a tree: an answer from its question on
#[derive(Debug, Args)]
#[command(after_help = "\
The id is a workflow's (an answer's, a `correlationid`), or that of any of its events.

Examples:
  nerve trace 01997c3e-6a52-7c11-b4f3-3d1f3f0a8a52
  nerve trace a1b2c3 --since 1h --output json | jq '.events[0].led_to'")]
pub(crate) struct Trace {
    /// The id
    id: String,
    /// From where the log is looked through: first, a sequence, a time (RFC 3339) or how long ago (10m) [default: the
    /// moment that the id tells, else first]
    #[arg(long, value_name = "WHEN")]
    since: Option<Position>,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Serialize)]
struct Shown<'t> {
    id: &'t str,
    #[serde(flatten)]
    trace: &'t bus::Trace,
}

impl Trace {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let trace = connection.bus.trace(&self.id, self.since.map(|since| since.start())).await?;
        if trace.events.is_empty() {
            let cause = format!("no event of the log has the id or the correlationid {}", self.id);
            let next = "`nerve tail --from 10m` shows ids; --since looks through more of the log";
            return Err(Failure::new("there is nothing to trace").cause(cause).next(next).into());
        }
        if trace.truncated {
            output::hint("there are more events than a trace holds: the newest are missing");
        }
        globals.output.show(&Shown { id: &self.id, trace: &trace }, |_| text(&trace.events))
    }
}

/// One event a line, what it led to below it.
fn text(events: &[Traced]) -> String {
    let mut lines = Vec::new();
    for event in events {
        lines.push(line(event, ""));
        below(&event.led_to, "", &mut lines);
    }
    let width = lines.iter().map(|(tree, _)| tree.chars().count()).max().unwrap_or_default();
    let pad = |tree: &str| " ".repeat(width - tree.chars().count());
    lines.iter().map(|(tree, rest)| format!("{tree}{}  {rest}", pad(tree))).collect::<Vec<_>>().join("\n")
}

/// The levels of a trace are bounded, so this recursion is.
fn below(events: &[Traced], indent: &str, lines: &mut Vec<(String, String)>) {
    for (place, event) in events.iter().enumerate() {
        let last = place + 1 == events.len();
        let (branch, deeper) = if last { ("└ ", "  ") } else { ("├ ", "│ ") };
        lines.push(line(event, &format!("{indent}{branch}")));
        below(&event.led_to, &format!("{indent}{deeper}"), lines);
    }
}

/// The tree's part, and what is said of the event.
fn line(event: &Traced, branch: &str) -> (String, String) {
    let by = event.source.strip_prefix("/functions/").unwrap_or(&event.source);
    let mut rest = format!("{:>7} ms  {by}", event.offset_ms);
    if event.parts > 0 {
        rest.push_str(&format!("  ({} parts streamed for it)", event.parts));
    }
    for (id, function) in &event.dead {
        rest.push_str(&format!("  given up by {function}: nerve dlq show {id}"));
    }
    (format!("{branch}{}", event.ty), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use time::OffsetDateTime;

    fn traced(ty: &str, source: &str, led_to: Vec<Traced>) -> Traced {
        let time = OffsetDateTime::UNIX_EPOCH;
        let (id, ty, source) = (ty.to_owned(), ty.to_owned(), source.to_owned());
        Traced { id, ty, source, cause: None, time, offset_ms: 7, sequence: 1, parts: 0, dead: BTreeMap::new(), led_to }
    }

    #[test]
    fn a_tree_is_drawn() {
        let mut second = traced("b", "/functions/f", vec![traced("c", "/functions/g", vec![])]);
        second.dead.insert(3, "g".into());
        let third = Traced { parts: 2, ..traced("d", "/functions/f", vec![]) };
        let drawn = text(&[traced("a", "/s", vec![second, third])]);
        let wanted = "a            7 ms  /s\n├ b          7 ms  f  given up by g: nerve dlq show 3\n│ └ c        7 ms  g\n\
                      └ d          7 ms  f  (2 parts streamed for it)";
        assert_eq!(drawn, wanted);
    }
}
