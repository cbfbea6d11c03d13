//! `nerve logs`

use crate::{
    args::{DataFolder, Globals},
    command::describe::not_deployed,
    connection::Connection,
    moment::{self, Since},
    output::Format,
};
use clap::Args;
use nerve_broker::bus::{LogRecord, Start};
use nerve_core::Name;

/// Read what functions log, failed attempts included
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve logs word-count
  nerve logs word-count -f --since 10m
  nerve logs -f --output json")]
pub(crate) struct Logs {
    /// The function [default: all]
    name: Option<Name>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// From this moment on: a time (RFC 3339) or how long ago (10m)
    #[arg(long, value_name = "WHEN")]
    since: Option<Since>,
    /// The last lines only, where nothing is followed
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 1000)]
    lines: usize,
    #[command(flatten)]
    folder: DataFolder,
}

impl Logs {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let start = self.since.map_or(Start::First, Since::start);
        if self.follow {
            let mut logs = connection.bus.follow_logs(self.name.as_ref(), start).await?;
            loop {
                print(&logs.next().await, globals.output)?;
            }
        }
        let records = connection.bus.read_logs(self.name.as_ref(), start, self.lines).await?;
        if let (Some(name), true) = (&self.name, records.is_empty()) {
            check_known(&connection, name).await?;
        }
        for record in &records {
            print(record, globals.output)?;
        }
        Ok(())
    }
}

/// Refuses the name of what is not deployed and has logged nothing.
async fn check_known(connection: &Connection, name: &Name) -> anyhow::Result<()> {
    let registry = connection.registry().await?;
    let is_run = registry.function(name).await?.is_some() || registry.sink(name).await?.is_some();
    let is_deployed = is_run || registry.source(name).await?.is_some() || registry.schedule(name).await?.is_some();
    if is_deployed || !connection.bus.read_logs(Some(name), Start::First, 1).await?.is_empty() {
        return Ok(());
    }
    Err(not_deployed(name).into())
}

fn print(record: &LogRecord, format: Format) -> anyhow::Result<()> {
    format.show(record, |record| {
        let level = format!("{:?}", record.level).to_lowercase();
        let event = record.event.as_ref().map(|id| format!("  (event {id})")).unwrap_or_default();
        let message = indented(&record.message);
        format!("{}  {}  {level:5}  {message}{event}", moment::shown(record.time), record.function)
    })
}

/// A text whose further lines cannot be taken for lines of the log.
fn indented(text: &str) -> String {
    text.trim_end_matches('\n').replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_lines_of_a_text_are_indented() {
        assert_eq!(indented("a\n2026-01-01 00:00:00  pay  info   b\n"), "a\n    2026-01-01 00:00:00  pay  info   b");
    }
}
