//! `nerve sink attempts`

use super::deployed;
use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    moment::{self, Since},
    output::{self, Format, shortened},
};
use clap::Args;
use nerve_broker::bus::{SinkAttempt, SinkOutcome, WhichAttempts};
use nerve_core::Name;

#[derive(Debug, Args)]
pub(crate) struct Attempts {
    /// The sink
    name: Name,
    /// Only those at one event: its id, or the one that the endpoint knows (msg_…)
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// Only those that failed
    #[arg(long)]
    failed: bool,
    /// Since a time (RFC 3339) or how long ago
    #[arg(long, value_name = "WHEN", default_value = "24h")]
    since: Since,
    /// At most this many, the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Go on with those that come
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
        let which = WhichAttempts { sink: &self.name, id, since: self.since.start(), limit: self.limit };
        let keep = |attempt: &SinkAttempt| {
            let of_event = self.event.as_ref().is_none_or(|event| attempt.event == *event || attempt.id == *event);
            of_event && !(self.failed && attempt.outcome == SinkOutcome::Delivered)
        };
        // Before what there is, so that nothing falls between the two.
        let following = match self.follow {
            true => Some(bus.follow_sink_attempts(&self.name, id).await?),
            false => None,
        };
        let found = bus.sink_attempts(which, keep).await?;
        let Some(mut following) = following else {
            return globals.output.show(&found, |found| match found.is_empty() {
                true => format!("nothing was posted to {} since then", self.name),
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
    let told = match &attempt.error {
        Some(error) if attempt.answer.is_empty() => error.clone(),
        Some(error) => format!("{error}: {}", attempt.answer),
        None => attempt.answer.clone(),
    };
    [
        moment::shown(attempt.time),
        attempt.event.clone(),
        attempt.ty.clone(),
        attempt.attempt.to_string(),
        attempt.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
        format!("{} ms", attempt.duration_ms),
        attempt.next.map_or_else(|| outcome.to_owned(), |next| format!("{outcome} at {}", moment::shown(next))),
        shortened(&told, 80),
    ]
}

/// Attempts for people.
pub(super) fn table(attempts: &[SinkAttempt]) -> String {
    let heading = ["TIME (UTC)", "EVENT", "TYPE", "ATTEMPT", "STATUS", "TOOK", "OUTCOME", "ANSWER"];
    output::table(heading, attempts.iter().map(row))
}
