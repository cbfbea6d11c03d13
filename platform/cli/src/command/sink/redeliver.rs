//! `nerve sink redeliver`

use super::deployed;
use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
    time_arg::Since,
};
use clap::Args;
use nerve_broker::bus::{Bus, BusError, SinkAttempt, SinkAttemptFilter, SinkOutcome, Start, TIMERS};
use nerve_core::Name;
use nerve_registry::Registry;
use serde::Serialize;
use std::collections::BTreeMap;

/// Maximum attempts that are searched.
const MAX_SEARCHED_ATTEMPTS: usize = 200_000;

#[derive(Debug, Args)]
pub(crate) struct Redeliver {
    /// The sink
    name: Name,
    /// Events: IDs, webhook IDs (msg_…), or sequences in the stream
    #[arg(required_unless_present = "since")]
    ids: Vec<String>,
    /// All dead letters since a time (RFC 3339) or an age
    #[arg(long, value_name = "WHEN", conflicts_with = "ids")]
    since: Option<Since>,
    /// Delivered events too
    #[arg(long, requires = "since")]
    all: bool,
    /// Print the events without redelivering them
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: DataFolder,
}

/// The location of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct EventLocation {
    /// Its id, if known from an attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    stream: String,
    sequence: u64,
}

impl EventLocation {
    fn key(&self) -> (String, u64) {
        (self.stream.clone(), self.sequence)
    }
}

#[derive(Serialize)]
struct RedeliverReport {
    sink: Name,
    dry_run: bool,
    redelivered: Vec<EventLocation>,
    /// Neither in the stream nor dead letters.
    gone: Vec<EventLocation>,
}

impl Redeliver {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        let stream = deployed(&registry, &self.name).await?.record.stream;
        let bus = &connection.bus;
        let locations = match self.since {
            Some(since) => {
                let which = SinkAttemptFilter {
                    sink: &self.name,
                    id: None,
                    since: since.start(),
                    limit: MAX_SEARCHED_ATTEMPTS,
                };
                let attempts = bus.sink_attempts(which, |_| true).await?;
                select(&attempts, self.all)
            }
            None => self.named(bus, &stream).await?,
        };
        let mut report =
            RedeliverReport { sink: self.name, dry_run: self.dry_run, redelivered: Vec::new(), gone: Vec::new() };
        let letters = match self.dry_run {
            true => BTreeMap::new(),
            false => bus.dead_letters_about(&report.sink, &locations.iter().map(EventLocation::key).collect()).await?,
        };
        for location in locations {
            if self.dry_run {
                report.redelivered.push(location);
                continue;
            }
            let letters = letters.get(&location.key()).map(Vec::as_slice).unwrap_or_default();
            match redeliver((bus, &registry), &report.sink, &location, letters).await {
                Ok(()) => report.redelivered.push(location),
                Err(BusError::NotFound(_)) => report.gone.push(location),
                Err(error) => return Err(error.into()),
            }
        }
        globals.output.show(&report, text)?;
        match self.ids.is_empty() || report.gone.is_empty() {
            true => Ok(()),
            false => Err(Failure::new("not all events were redelivered")
                .cause("some are neither in the stream nor dead letters")
                .next(format!("see `nerve sink attempts {}`", report.sink))
                .into()),
        }
    }

    async fn named(&self, bus: &Bus, stream: &str) -> anyhow::Result<Vec<EventLocation>> {
        let mut locations = Vec::new();
        for id in &self.ids {
            let location = match id.parse() {
                Ok(sequence) => Some(EventLocation { event: None, stream: stream.to_owned(), sequence }),
                Err(_) => {
                    let msg = Some(id.as_str()).filter(|id| id.starts_with("msg_"));
                    let matches = |attempt: &SinkAttempt| attempt.id == *id || attempt.event == *id;
                    let which = SinkAttemptFilter { sink: &self.name, id: msg, since: Start::First, limit: 1 };
                    bus.sink_attempts(which, matches).await?.first().map(location_of)
                }
            };
            locations.push(location.ok_or_else(|| {
                Failure::new(format!("event `{id}` was not posted to {}", self.name))
                    .next("see `nerve sink attempts`, or use the sequence of the event (`nerve tail`)")
            })?);
        }
        Ok(locations)
    }
}

/// Redelivers one event from its newest dead letter, and removes its dead letters; without one, from its stream.
async fn redeliver(
    (bus, registry): (&Bus, &Registry),
    sink: &Name,
    location: &EventLocation,
    letters: &[u64],
) -> Result<(), BusError> {
    let Some((newest, older)) = letters.split_last() else {
        return bus.redeliver(sink, &location.stream, location.sequence).await;
    };
    match registry.redrive(*newest).await {
        Ok(_) => {}
        // Redriven concurrently.
        Err(BusError::NotFound(_)) => bus.redeliver(sink, &location.stream, location.sequence).await?,
        Err(error) => return Err(error),
    }
    for letter in older {
        bus.drop_dead_letter(*letter).await?;
    }
    Ok(())
}

fn location_of(attempt: &SinkAttempt) -> EventLocation {
    EventLocation { event: Some(attempt.event.clone()), stream: attempt.stream.clone(), sequence: attempt.sequence }
}

/// Returns the dead-lettered events by their last attempts, and with `all` the delivered ones. Events with a pending
/// retry are excluded.
fn select(attempts: &[SinkAttempt], all: bool) -> Vec<EventLocation> {
    let mut last: BTreeMap<(&str, u64), &SinkAttempt> = BTreeMap::new();
    // A test delivery is not in a stream of events.
    for attempt in attempts.iter().filter(|attempt| attempt.stream != TIMERS) {
        last.insert((&attempt.stream, attempt.sequence), attempt);
    }
    let is_selected = |attempt: &&SinkAttempt| match attempt.outcome {
        SinkOutcome::Dead => true,
        SinkOutcome::Delivered => all,
        SinkOutcome::Retry | SinkOutcome::Failed => false,
    };
    last.into_values().filter(is_selected).map(location_of).collect()
}

fn text(report: &RedeliverReport) -> String {
    let RedeliverReport { sink, dry_run, redelivered, gone } = report;
    let summary = match (dry_run, redelivered.len()) {
        (false, 1) => format!("1 event is redelivered to {sink}"),
        (false, count) => format!("{count} events are redelivered to {sink}"),
        (true, 1) => format!("1 event would be redelivered to {sink}"),
        (true, count) => format!("{count} events would be redelivered to {sink}"),
    };
    match gone.len() {
        0 => summary,
        count => format!("{summary}; {count} are no longer in their stream"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::OffsetDateTime;

    fn attempt(sequence: u64, outcome: SinkOutcome) -> SinkAttempt {
        SinkAttempt {
            sink: Name::parse("crm").unwrap(),
            id: format!("msg_{sequence}"),
            event: sequence.to_string(),
            ty: "a".into(),
            stream: "EVENTS".into(),
            sequence,
            attempt: 1,
            time: OffsetDateTime::UNIX_EPOCH,
            duration_ms: 1,
            status: None,
            answer: String::new(),
            error: None,
            timed_out: false,
            outcome,
            next: None,
        }
    }

    #[test]
    fn last_attempt_decides_on_redelivery() {
        use SinkOutcome::{Dead, Delivered, Failed, Retry};
        let attempts =
            [(1, Retry), (2, Dead), (1, Delivered), (3, Retry), (4, Retry), (4, Dead), (5, Failed), (2, Delivered)];
        let mut attempts: Vec<SinkAttempt> = attempts.map(|(sequence, outcome)| attempt(sequence, outcome)).into();
        attempts.push(SinkAttempt { stream: TIMERS.to_owned(), ..attempt(6, Delivered) });
        let sequences = |all| select(&attempts, all).into_iter().map(|location| location.sequence).collect::<Vec<_>>();
        assert_eq!((sequences(false), sequences(true)), (vec![4], vec![1, 2, 4]));
    }
}
