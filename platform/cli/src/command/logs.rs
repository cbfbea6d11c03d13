//! `nerve logs`

use crate::{
    command::describe::not_deployed,
    connection::Connection,
    globals::{DataFolder, Globals},
    output::{self, Format},
    time_arg::Since,
};
use clap::Args;
use nerve_broker::bus::{LogRecord, Start};
use nerve_core::Name;

/// Show logs of functions, including failed attempts
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve logs word-count
  nerve logs word-count -f --since 10m
  nerve logs -f --output json")]
pub(crate) struct Logs {
    /// The function [default: all]
    name: Option<Name>,
    /// Follow new lines
    #[arg(short, long)]
    follow: bool,
    /// Show lines newer than a time (RFC 3339) or an age (10m)
    #[arg(long, value_name = "WHEN")]
    since: Option<Since>,
    /// Show only the last N lines (without --follow)
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

/// Returns an error if nothing with this name is deployed or has logged.
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
        format!("{}  {}  {level:5}  {message}{event}", output::timestamp(record.time), record.function)
    })
}

/// Indents further lines of a text, so that they do not look like log records.
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
