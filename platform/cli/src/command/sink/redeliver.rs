//! `nerve sink redeliver`

use super::deployed;
use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
    moment::Since,
};
use clap::Args;
use nerve_broker::bus::{Bus, BusError, SinkAttempt, SinkOutcome, Start, TIMERS, WhichAttempts};
use nerve_core::Name;
use nerve_registry::Registry;
use serde::Serialize;
use std::collections::BTreeMap;

/// The most attempts that are looked through at once.
const MOST: usize = 200_000;

#[derive(Debug, Args)]
pub(crate) struct Redeliver {
    /// The sink
    name: Name,
    /// Events: ids, the endpoint's ids (msg_…), or sequences in the stream
    #[arg(required_unless_present = "since")]
    ids: Vec<String>,
    /// All that were given up since a time (RFC 3339) or how long ago
    #[arg(long, value_name = "WHEN", conflicts_with = "ids")]
    since: Option<Since>,
    /// The delivered ones too
    #[arg(long, requires = "since")]
    all: bool,
    /// Only tell which
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: DataFolder,
}

/// An event's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Place {
    /// Its id, where an attempt tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    stream: String,
    sequence: u64,
}

impl Place {
    fn key(&self) -> (String, u64) {
        (self.stream.clone(), self.sequence)
    }
}

#[derive(Serialize)]
struct Report {
    sink: Name,
    dry_run: bool,
    redelivered: Vec<Place>,
    /// No longer in their stream, and no dead letters.
    gone: Vec<Place>,
}

impl Redeliver {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        let stream = deployed(&registry, &self.name).await?.record.stream;
        let bus = &connection.bus;
        let places = match self.since {
            Some(since) => {
                let which = WhichAttempts { sink: &self.name, id: None, since: since.start(), limit: MOST };
                let attempts = bus.sink_attempts(which, |_| true).await?;
                chosen(&attempts, self.all)
            }
            None => self.named(bus, &stream).await?,
        };
        let mut report = Report { sink: self.name, dry_run: self.dry_run, redelivered: Vec::new(), gone: Vec::new() };
        let letters = match self.dry_run {
            true => BTreeMap::new(),
            false => bus.dead_letters_about(&report.sink, &places.iter().map(Place::key).collect()).await?,
        };
        for place in places {
            if self.dry_run {
                report.redelivered.push(place);
                continue;
            }
            let letters = letters.get(&place.key()).map(Vec::as_slice).unwrap_or_default();
            match redeliver((bus, &registry), &report.sink, &place, letters).await {
                Ok(()) => report.redelivered.push(place),
                Err(BusError::NotFound(_)) => report.gone.push(place),
                Err(error) => return Err(error.into()),
            }
        }
        globals.output.show(&report, text)?;
        match self.ids.is_empty() || report.gone.is_empty() {
            true => Ok(()),
            false => Err(Failure::new("not all could be posted once more")
                .cause("they are no longer in their stream, and are no dead letters either")
                .next(format!("`nerve sink attempts {}` shows what was posted of them", report.sink))
                .into()),
        }
    }

    async fn named(&self, bus: &Bus, stream: &str) -> anyhow::Result<Vec<Place>> {
        let mut places = Vec::new();
        for id in &self.ids {
            let place = match id.parse() {
                Ok(sequence) => Some(Place { event: None, stream: stream.to_owned(), sequence }),
                Err(_) => {
                    let msg = Some(id.as_str()).filter(|id| id.starts_with("msg_"));
                    let is_it = |attempt: &SinkAttempt| attempt.id == *id || attempt.event == *id;
                    let which = WhichAttempts { sink: &self.name, id: msg, since: Start::First, limit: 1 };
                    bus.sink_attempts(which, is_it).await?.first().map(place_of)
                }
            };
            places.push(place.ok_or_else(|| {
                Failure::new(format!("no event `{id}` was posted to {}", self.name)).next(
                    "`nerve sink attempts` shows which were; any event can be named by its sequence (`nerve tail`)",
                )
            })?);
        }
        Ok(places)
    }
}

/// Posts one event once more: out of its newest dead letter, where it has one, and then it has none; else out of its stream.
async fn redeliver(
    (bus, registry): (&Bus, &Registry),
    sink: &Name,
    place: &Place,
    letters: &[u64],
) -> Result<(), BusError> {
    let Some((newest, older)) = letters.split_last() else {
        return bus.redeliver(sink, &place.stream, place.sequence).await;
    };
    match registry.redrive(*newest).await {
        Ok(_) => {}
        // Somebody else was faster.
        Err(BusError::NotFound(_)) => bus.redeliver(sink, &place.stream, place.sequence).await?,
        Err(error) => return Err(error),
    }
    for letter in older {
        bus.drop_dead_letter(*letter).await?;
    }
    Ok(())
}

fn place_of(attempt: &SinkAttempt) -> Place {
    Place { event: Some(attempt.event.clone()), stream: attempt.stream.clone(), sequence: attempt.sequence }
}

/// What attempts say of each event last: those that were given up, or all but those that are tried again anyway.
fn chosen(attempts: &[SinkAttempt], all: bool) -> Vec<Place> {
    let mut last: BTreeMap<(&str, u64), &SinkAttempt> = BTreeMap::new();
    // A trial was never in a stream of events.
    for attempt in attempts.iter().filter(|attempt| attempt.stream != TIMERS) {
        last.insert((&attempt.stream, attempt.sequence), attempt);
    }
    let wanted = |attempt: &&SinkAttempt| match attempt.outcome {
        SinkOutcome::Dead => true,
        SinkOutcome::Delivered => all,
        SinkOutcome::Retry | SinkOutcome::Failed => false,
    };
    last.into_values().filter(wanted).map(place_of).collect()
}

fn text(report: &Report) -> String {
    let Report { sink, dry_run, redelivered, gone } = report;
    let said = match (dry_run, redelivered.len()) {
        (false, 1) => format!("1 event is posted to {sink} once more"),
        (false, count) => format!("{count} events are posted to {sink} once more"),
        (true, 1) => format!("1 event would be posted to {sink} once more"),
        (true, count) => format!("{count} events would be posted to {sink} once more"),
    };
    match gone.len() {
        0 => said,
        count => format!("{said}; {count} are no longer in their stream"),
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
    fn the_last_attempt_says_what_became_of_an_event() {
        use SinkOutcome::{Dead, Delivered, Failed, Retry};
        let attempts =
            [(1, Retry), (2, Dead), (1, Delivered), (3, Retry), (4, Retry), (4, Dead), (5, Failed), (2, Delivered)];
        let mut attempts: Vec<SinkAttempt> = attempts.map(|(sequence, outcome)| attempt(sequence, outcome)).into();
        attempts.push(SinkAttempt { stream: TIMERS.to_owned(), ..attempt(6, Delivered) });
        let sequences = |all| chosen(&attempts, all).into_iter().map(|place| place.sequence).collect::<Vec<_>>();
        assert_eq!((sequences(false), sequences(true)), (vec![4], vec![1, 2, 4]));
    }
}
