//! `nerve dlq`

use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
    moment,
    output::{self, shortened},
};
use clap::{Args, Subcommand};
use nerve_broker::bus::{Bus, BusError, DeadLetter, DeadLetterState, DeadLetters};
use nerve_core::Name;
use nerve_registry::Registry;
use serde_json::json;
use time::OffsetDateTime;

/// How many letters are held in memory where all are meant.
const BATCH: usize = 100;

/// Events that failed for good
#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// List dead letters, oldest first
    #[command(after_help = "\
Examples:
  nerve dlq list
  nerve dlq list github-labels --limit 20")]
    List(List),
    /// Show one dead letter: the event whole, and each attempt's error
    #[command(after_help = "\
Examples:
  nerve dlq show 7
  nerve dlq show 7 --output json")]
    Show(Show),
    /// Send dead letters back to the function that failed on them, as it is deployed now
    #[command(after_help = "\
Examples:
  nerve dlq redrive 7 8
  nerve dlq redrive --function github-labels
  nerve dlq redrive --all")]
    Redrive(Chosen),
    /// Delete dead letters for good
    #[command(after_help = "\
Examples:
  nerve dlq drop 7
  nerve dlq drop --function github-labels")]
    Drop(Chosen),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The function [default: all]
    function: Option<Name>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The letter's number
    id: u64,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Debug, Args)]
pub(crate) struct Chosen {
    /// The letters' numbers
    #[arg(required_unless_present_any = ["function", "all"])]
    ids: Vec<u64>,
    /// All letters of this function
    #[arg(long, value_name = "NAME", conflicts_with_all = ["ids", "all"])]
    function: Option<Name>,
    /// All letters
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    folder: DataFolder,
}

/// Where dead letters are, and what they go back to.
#[derive(Clone, Copy)]
struct Target<'c> {
    bus: &'c Bus,
    registry: &'c Registry,
}

/// What is done with the chosen.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Redrive,
    Drop,
}

impl Dlq {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::List(list) => list.run(globals).await,
            Self::Show(show) => show.run(globals).await,
            Self::Redrive(chosen) => chosen.run(globals, Deed::Redrive).await,
            Self::Drop(chosen) => chosen.run(globals, Deed::Drop).await,
        }
    }
}

impl List {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let letters = connection.bus.dead_letters(which(self.function.as_ref()), self.limit).await?;
        globals.output.show(&letters, |letters| {
            if letters.is_empty() {
                return "there are no dead letters".to_owned();
            }
            let row = |letter: &DeadLetter| {
                let error = letter.errors.last().map(|attempt| attempt.error.message.as_str()).unwrap_or_default();
                [
                    letter.id.to_string(),
                    state(letter.state).to_owned(),
                    moment::shown(letter.time),
                    letter.function.clone(),
                    letter.event.ty.to_string(),
                    letter.attempts.to_string(),
                    shortened(error, 80),
                ]
            };
            output::table(
                ["ID", "STATE", "TIME (UTC)", "FUNCTION", "TYPE", "ATTEMPTS", "LAST ERROR"],
                letters.iter().map(row),
            )
        })
    }
}

impl Show {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let letter = connection.bus.dead_letter(self.id).await.map_err(|error| {
            let next = "`nerve dlq list` shows which there are";
            Failure::new(format!("cannot show dead letter {}", self.id)).because(error).next(next)
        })?;
        globals.output.show(&letter, text)
    }
}

fn state(state: DeadLetterState) -> &'static str {
    match state {
        DeadLetterState::Dead => "dead",
        DeadLetterState::Redriven => "redriven",
    }
}

fn text(letter: &DeadLetter) -> String {
    let head = output::pairs([
        ("dead letter", letter.id.to_string()),
        ("state", state(letter.state).to_owned()),
        ("function", format!("{} (revision {})", letter.function, letter.revision)),
        ("given up", format!("{} UTC", moment::shown(letter.time))),
        ("event", format!("{} {}", letter.event.ty, letter.event.id)),
        ("source", letter.event.source.clone()),
        ("from", format!("{} at {}", letter.stream, letter.sequence)),
        ("attempts", letter.attempts.to_string()),
    ]);
    let errors = letter.errors.iter().map(|attempt| {
        let message = attempt.error.message.replace('\n', "\n    ");
        format!("\n  {}. {} UTC  {message}", attempt.attempt, moment::shown(attempt.time))
    });
    let body = String::from_utf8_lossy(&letter.event.data);
    format!("{head}\n\nerrors{}\n\ndata\n{body}", errors.collect::<String>())
}

impl Chosen {
    async fn run(self, globals: &Globals, deed: Deed) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        let target = Target { bus: &connection.bus, registry: &registry };
        let mut done = Vec::new();
        let result = if self.ids.is_empty() {
            deed.do_to_all(target, which(self.function.as_ref()), &mut done).await
        } else {
            deed.do_to_each(target, self.ids, &mut done).await
        };
        let past = deed.past();
        globals.output.show(&json!({ past: done }), |_| match done.as_slice() {
            [] => format!("nothing was {past}"),
            some => format!("{past} {}", some.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
        })?;
        Ok(result?)
    }
}

impl Deed {
    /// Does it to the letters that there are at this moment: what dies again meanwhile is not sent round in circles.
    async fn do_to_all(self, target: Target<'_>, which: DeadLetters<'_>, done: &mut Vec<u64>) -> Result<(), Failure> {
        let started = OffsetDateTime::now_utc();
        loop {
            let letters = target
                .bus
                .dead_letters(which, BATCH)
                .await
                .map_err(|error| Failure::new("cannot read the dead letters").because(error))?;
            let chosen = |letter: &&DeadLetter| letter.state == DeadLetterState::Dead && letter.time <= started;
            let ids: Vec<u64> = letters.iter().filter(chosen).map(|letter| letter.id).collect();
            if ids.is_empty() {
                return Ok(());
            }
            self.do_to_each(target, ids, done).await?;
        }
    }

    async fn do_to_each(self, target: Target<'_>, ids: Vec<u64>, done: &mut Vec<u64>) -> Result<(), Failure> {
        for id in ids {
            self.do_to(target, id).await.map_err(|error| self.failure(id).because(error))?;
            done.push(id);
        }
        Ok(())
    }

    fn failure(self, id: u64) -> Failure {
        Failure::new(format!("cannot {} dead letter {id}", self.verb())).next("`nerve dlq list` shows which there are")
    }

    async fn do_to(self, Target { bus, registry }: Target<'_>, id: u64) -> Result<(), BusError> {
        match self {
            Self::Redrive => drop(registry.redrive(id).await?),
            Self::Drop => {
                bus.dead_letter(id).await?;
                bus.drop_dead_letter(id).await?;
            }
        }
        Ok(())
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Redrive => "redrive",
            Self::Drop => "drop",
        }
    }

    fn past(self) -> &'static str {
        match self {
            Self::Redrive => "redriven",
            Self::Drop => "dropped",
        }
    }
}

fn which(function: Option<&Name>) -> DeadLetters<'_> {
    function.map_or(DeadLetters::All, DeadLetters::Of)
}
