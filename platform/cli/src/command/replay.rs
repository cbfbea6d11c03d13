//! `nerve replay`

use super::describe::no_function;
use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
    moment::{self, Position},
    output,
};
use clap::Args;
use nerve_broker::bus::{self, BusError, Retention, Start};
use nerve_core::Name;
use serde::Serialize;

/// Give a function the events of its stream again, from a moment on
#[derive(Debug, Args)]
#[command(after_help = "\
The function goes back to that moment and takes each of its events since then once more, as it is deployed now, and then
what is new. What it had not finished before that moment comes again too. A stream with the retention workqueue or interest
keeps nothing that is acknowledged, so a function on it cannot be sent back.

Each replay publishes the function's results again, under new ids, and the functions that take them run again. What it had not
finished keeps its ids: results of such an event that are stored already are not published twice. A replay removes no dead letter,
and an event that fails again becomes another one.

Examples:
  nerve replay index --since first                     rebuild the index of documents from the log
  nerve replay summarise --since 2h --dry-run          only tell how many events would come again
  nerve replay summarise --since 2026-01-31T12:00:00Z --output json")]
pub(crate) struct Replay {
    /// The function
    function: Name,
    /// From where on: first, a sequence, a time (RFC 3339) or how long ago (10m)
    #[arg(long, value_name = "WHEN", value_parser = parse_since)]
    since: Position,
    /// Only tell what would come again
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Serialize)]
struct Told {
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
        globals.output.show(&Told { replay, dry_run: self.dry_run }, text)
    }
}

/// Why a stream of this retention has nothing that could be given again.
fn no_history(retention: Retention) -> Option<&'static str> {
    match retention {
        Retention::Limits => None,
        Retention::Interest => Some(
            "has the retention `interest`: the broker deletes a message once all consumers have acknowledged it, so \
             nothing that the function has finished is there any more",
        ),
        Retention::WorkQueue => Some(
            "is a work queue: the broker deletes a message once it is acknowledged, so nothing that the function has \
             finished is there any more",
        ),
    }
}

/// A place in what is there already.
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
        BusError::NotFound(_) => failure.next("deploy the function again, which makes its consumer"),
        _ => failure,
    };
    failure.because(error)
}

fn text(told: &Told) -> String {
    let Told { replay, dry_run } = told;
    let (name, stream) = (&replay.function, &replay.stream);
    let (Some(from), Some(time)) = (replay.from, replay.time) else {
        return format!("{stream} has no events of {name} since then: nothing comes again");
    };
    let comes = match (dry_run, replay.events) {
        (false, 1) => "1 event comes again".to_owned(),
        (false, events) => format!("{events} events come again"),
        (true, 1) => "1 event would come again".to_owned(),
        (true, events) => format!("{events} events would come again"),
    };
    let unfinished = match replay.unfinished {
        true => ", earlier than asked for, since it has not finished what is before",
        false => "",
    };
    format!("{name}: {comes}, from {from} of {stream} ({} UTC){unfinished}", moment::shown(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(events: u64, dry_run: bool) -> Told {
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
        Told { replay, dry_run }
    }

    #[test]
    fn what_comes_again_is_told_in_words_and_as_json() {
        assert_eq!(text(&told(1, false)), "f: 1 event comes again, from 7 of EVENTS (1970-01-01 00:00:00 UTC)");
        let many = text(&told(2, true));
        assert!(many.starts_with("f: 2 events would come again, from 7") && many.contains("earlier than"), "{many}");
        assert!(text(&told(0, false)).ends_with("nothing comes again"));
        let json = serde_json::to_value(told(1, true)).unwrap();
        assert_eq!(
            (json["events"].as_u64(), json["from"].as_u64(), &json["dry_run"]),
            (Some(1), Some(7), &true.into())
        );
    }

    #[test]
    fn a_replay_begins_in_what_is_there() {
        assert_eq!(parse_since("first"), Ok(Position::First));
        assert_eq!(parse_since("17"), Ok(Position::Sequence(17)));
        assert!(parse_since("new").is_err() && parse_since("yesterday").is_err());
    }
}
