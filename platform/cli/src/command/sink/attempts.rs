//! `nerve sink attempts`

use super::deployed;
use crate::{
    connection::Connection,
    globals::{DataFolder, Globals},
    output::{self, Format, truncated},
    time_arg::Since,
};
use clap::Args;
use nerve_broker::bus::{SinkAttempt, SinkAttemptFilter, SinkOutcome};
use nerve_core::Name;

#[derive(Debug, Args)]
pub(crate) struct Attempts {
    /// The sink
    name: Name,
    /// Only attempts of one event: its ID, or its webhook ID (msg_…)
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// Only failed attempts
    #[arg(long)]
    failed: bool,
    /// Start: a time (RFC 3339) or an age
    #[arg(long, value_name = "WHEN", default_value = "24h")]
    since: Since,
    /// Maximum number of attempts, newest first
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Follow new attempts
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    folder: DataFolder,
}

impl Attempts {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        deployed(&connection.registry().await?, &self.name).await?;
        let bus = &connection.bus;
        let id = self.event.as_deref().filter(|id| id.starts_with("msg_"));
        let which = SinkAttemptFilter { sink: &self.name, id, since: self.since.start(), limit: self.limit };
        let keep = |attempt: &SinkAttempt| {
            let of_event = self.event.as_ref().is_none_or(|event| attempt.event == *event || attempt.id == *event);
            of_event && !(self.failed && attempt.outcome == SinkOutcome::Delivered)
        };
        // Subscribed before the existing attempts are read, so that none is missed.
        let following = match self.follow {
            true => Some(bus.follow_sink_attempts(&self.name, id).await?),
            false => None,
        };
        let found = bus.sink_attempts(which, keep).await?;
        let Some(mut following) = following else {
            return globals.output.show(&found, |found| match found.is_empty() {
                true => format!("no attempts of {} since then", self.name),
                false => table(found),
            });
        };
        for attempt in &found {
            show(attempt, globals.output)?;
        }
        let last = found.last().map(|attempt| attempt.time);
        loop {
            let attempt = following.next().await;
            if keep(&attempt) && last.is_none_or(|last| attempt.time > last) {
                show(&attempt, globals.output)?;
            }
        }
    }
}

fn show(attempt: &SinkAttempt, format: Format) -> anyhow::Result<()> {
    format.show(attempt, |attempt| row(attempt).join("  "))
}

fn row(attempt: &SinkAttempt) -> [String; 8] {
    let outcome = match attempt.outcome {
        SinkOutcome::Delivered => "delivered",
        SinkOutcome::Retry => "retry",
        SinkOutcome::Dead => "dead",
        SinkOutcome::Failed => "failed",
    };
    let response = match &attempt.error {
        Some(error) if attempt.answer.is_empty() => error.clone(),
        Some(error) => format!("{error}: {}", attempt.answer),
        None => attempt.answer.clone(),
    };
    [
        output::timestamp(attempt.time),
        attempt.event.clone(),
        attempt.ty.clone(),
        attempt.attempt.to_string(),
        attempt.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
        format!("{} ms", attempt.duration_ms),
        attempt.next.map_or_else(|| outcome.to_owned(), |next| format!("{outcome} at {}", output::timestamp(next))),
        truncated(&response, 80),
    ]
}

/// Formats attempts as a table.
pub(super) fn table(attempts: &[SinkAttempt]) -> String {
    let heading = ["TIME (UTC)", "EVENT", "TYPE", "ATTEMPT", "STATUS", "TOOK", "OUTCOME", "ANSWER"];
    output::table(heading, attempts.iter().map(row))
}
