//! `nerve logs`

use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    moment::{self, Since},
    output::Format,
};
use clap::Args;
use nerve_core::Name;
use nerve_server::bus::{LogRecord, Start};

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
        for record in connection.bus.read_logs(self.name.as_ref(), start, self.lines).await? {
            print(&record, globals.output)?;
        }
        Ok(())
    }
}

fn print(record: &LogRecord, format: Format) -> anyhow::Result<()> {
    format.show(record, |record| {
        let level = format!("{:?}", record.level).to_lowercase();
        let event = record.event.as_ref().map(|id| format!("  (event {id})")).unwrap_or_default();
        format!("{}  {}  {level:5}  {}{event}", moment::shown(record.time), record.function, record.message)
    })
}
