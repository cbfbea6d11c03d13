//! `nerve replay`

use super::describe::no_function;
use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
    output,
    time_arg::Position,
};
use clap::Args;
use nerve_broker::bus::{self, BusError, Retention, Start};
use nerve_core::Name;
use serde::Serialize;

/// Replay past events to a function, from a sequence or time
#[derive(Debug, Args)]
#[command(after_help = "\
The deployed version of the function receives all of its events since that position again, and then new events. Unfinished
earlier events are redelivered too, so none is skipped. A stream with the retention workqueue or interest does not keep
acknowledged events, so a function on it cannot be replayed.

Each replay publishes the function's results again with new IDs, so the functions that consume them run again. Unfinished
events keep their IDs: results of such an event that are already stored are not published twice. A replay removes no dead
letters, and an event that fails again becomes another one.

Examples:
  nerve replay index --since first                     rebuild the index of documents from the log
  nerve replay summarise --since 2h --dry-run          only count the events
  nerve replay summarise --since 2026-01-31T12:00:00Z --output json")]
pub(crate) struct Replay {
    /// The function
    function: Name,
    /// Start of the replay: first, a sequence, a time (RFC 3339) or an age (10m)
    #[arg(long, value_name = "WHEN", value_parser = parse_since)]
    since: Position,
    /// Print the events to replay without replaying them
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Serialize)]
struct ReplayReport {
    #[serde(flatten)]
    replay: bus::Replay,
    dry_run: bool,
}

impl Replay {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let (bus, registry, name) = (&connection.bus, connection.registry().await?, &self.function);
        let Some(deployed) = registry.function(name).await? else {
            return Err(no_function(name, &registry).await.into());
        };
        let record = deployed.record;
        if let Some(why) = no_history(bus.retention_of(&record.stream).await.map_err(|error| failed(name, error))?) {
            let failure =
                Failure::new(format!("cannot replay `{name}`")).cause(format!("its stream {} {why}", record.stream));
            return Err(failure.next("publish the messages again, to the same subjects").into());
        }
        let start: Start = self.since.start();
        let replay = bus.plan_replay(name, &record.stream, &record.spec.on, start).await;
        let replay = replay.map_err(|error| failed(name, error))?;
        if let Some((first, last)) = replay.gone {
            output::hint(&format!("the sequences {first} to {last} are no longer in {}", replay.stream));
        }
        if !self.dry_run {
            bus.replay(&replay).await.map_err(|error| failed(name, error))?;
        }
        globals.output.show(&ReplayReport { replay, dry_run: self.dry_run }, text)
    }
}

/// Returns the reason why a stream with this retention cannot be replayed.
fn no_history(retention: Retention) -> Option<&'static str> {
    match retention {
        Retention::Limits => None,
        Retention::Interest => Some(
            "has the retention `interest`: the broker deletes a message when all consumers have acknowledged it, so \
             finished events cannot be replayed",
        ),
        Retention::WorkQueue => Some(
            "is a work queue: the broker deletes a message when it is acknowledged, so finished events cannot be \
             replayed",
        ),
    }
}

/// Parses a position of an existing event.
fn parse_since(text: &str) -> Result<Position, &'static str> {
    match text.parse() {
        Ok(Position::New) | Err(_) => {
            Err("use `first`, a sequence, a time such as 2026-01-31T12:00:00Z, or an age such as 10m")
        }
        Ok(position) => Ok(position),
    }
}

fn failed(name: &Name, error: BusError) -> Failure {
    let failure = Failure::new(format!("cannot replay `{name}`"));
    let failure = match &error {
        BusError::NotFound(_) => failure.next("deploy the function again, which creates its consumer"),
        _ => failure,
    };
    failure.because(error)
}

fn text(report: &ReplayReport) -> String {
    let ReplayReport { replay, dry_run } = report;
    let (name, stream) = (&replay.function, &replay.stream);
    let (Some(from), Some(time)) = (replay.from, replay.time) else {
        return format!("{stream} has no events of {name} since then: nothing to replay");
    };
    let events = match (dry_run, replay.events) {
        (false, 1) => "1 event is replayed".to_owned(),
        (false, events) => format!("{events} events are replayed"),
        (true, 1) => "1 event would be replayed".to_owned(),
        (true, events) => format!("{events} events would be replayed"),
    };
    let unfinished = match replay.unfinished {
        true => ", earlier than requested, because earlier events are unfinished",
        false => "",
    };
    format!("{name}: {events}, from {from} of {stream} ({} UTC){unfinished}", output::timestamp(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(events: u64, dry_run: bool) -> ReplayReport {
        let replay = bus::Replay {
            function: Name::parse("f").unwrap(),
            stream: "EVENTS".to_owned(),
            events,
            from: (events > 0).then_some(7),
            time: (events > 0).then_some(time::OffsetDateTime::UNIX_EPOCH),
            gone: None,
            unfinished: events > 1,
            asked: None,
        };
        ReplayReport { replay, dry_run }
    }

    #[test]
    fn report_is_text_and_json() {
        assert_eq!(text(&report(1, false)), "f: 1 event is replayed, from 7 of EVENTS (1970-01-01 00:00:00 UTC)");
        let many = text(&report(2, true));
        assert!(many.starts_with("f: 2 events would be replayed, from 7") && many.contains("earlier than"), "{many}");
        assert!(text(&report(0, false)).ends_with("nothing to replay"));
        let json = serde_json::to_value(report(1, true)).unwrap();
        assert_eq!(
            (json["events"].as_u64(), json["from"].as_u64(), &json["dry_run"]),
            (Some(1), Some(7), &true.into())
        );
    }

    #[test]
    fn replay_starts_at_an_existing_event() {
        assert_eq!(parse_since("first"), Ok(Position::First));
        assert_eq!(parse_since("17"), Ok(Position::Sequence(17)));
        assert!(parse_since("new").is_err() && parse_since("yesterday").is_err());
    }
}
