//! `nerve dlq`

use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
    output::{self, truncated},
};
use clap::{Args, Subcommand};
use nerve_broker::bus::{Bus, BusError, DeadLetter, DeadLetterFilter, DeadLetterState};
use nerve_core::Name;
use nerve_registry::Registry;
use serde_json::json;
use time::OffsetDateTime;

/// Dead letters read at a time when all are selected.
const MAX_BATCH_DEAD_LETTERS: usize = 100;

/// The dead-letter queue
#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// List dead letters, oldest first
    #[command(after_help = "\
Examples:
  nerve dlq list
  nerve dlq list github-labels --limit 20")]
    List(List),
    /// Show one dead letter: the whole event, and the error of each attempt
    #[command(after_help = "\
Examples:
  nerve dlq show 7
  nerve dlq show 7 --output json")]
    Show(Show),
    /// Redeliver dead letters to the deployed version of the function that failed
    #[command(after_help = "\
Examples:
  nerve dlq redrive 7 8
  nerve dlq redrive --function github-labels
  nerve dlq redrive --all")]
    Redrive(Selection),
    /// Delete dead letters permanently
    #[command(after_help = "\
Examples:
  nerve dlq drop 7
  nerve dlq drop --function github-labels")]
    Drop(Selection),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The function [default: all]
    function: Option<Name>,
    /// Maximum number of dead letters
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Dead-letter ID
    id: u64,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Dead-letter IDs
    #[arg(required_unless_present_any = ["function", "all"])]
    ids: Vec<u64>,
    /// All dead letters of this function
    #[arg(long, value_name = "NAME", conflicts_with_all = ["ids", "all"])]
    function: Option<Name>,
    /// All dead letters
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    folder: DataFolder,
}

/// The stream of dead letters and the registry of their functions.
#[derive(Clone, Copy)]
struct Target<'c> {
    bus: &'c Bus,
    registry: &'c Registry,
}

/// The action on the selected dead letters.
#[derive(Debug, Clone, Copy)]
enum DeadLetterAction {
    Redrive,
    Drop,
}

impl Dlq {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::List(list) => list.run(globals).await,
            Self::Show(show) => show.run(globals).await,
            Self::Redrive(selection) => selection.run(globals, DeadLetterAction::Redrive).await,
            Self::Drop(selection) => selection.run(globals, DeadLetterAction::Drop).await,
        }
    }
}

impl List {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let letters = connection.bus.dead_letters(selector(self.function.as_ref()), self.limit).await?;
        globals.output.show(&letters, |letters| {
            if letters.is_empty() {
                return "no dead letters".to_owned();
            }
            let row = |letter: &DeadLetter| {
                let error = letter.errors.last().map(|attempt| attempt.error.message.as_str()).unwrap_or_default();
                [
                    letter.id.to_string(),
                    state(letter.state).to_owned(),
                    output::timestamp(letter.time),
                    letter.function.clone(),
                    letter.event.ty.to_string(),
                    letter.attempts.to_string(),
                    truncated(error, 80),
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
            let next = "see `nerve dlq list`";
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
        ("dead-lettered", format!("{} UTC", output::timestamp(letter.time))),
        ("event", format!("{} {}", letter.event.ty, letter.event.id)),
        ("source", letter.event.source.clone()),
        ("stream", letter.stream.clone()),
        ("sequence", letter.sequence.to_string()),
        ("attempts", letter.attempts.to_string()),
    ]);
    let errors = letter.errors.iter().map(|attempt| {
        let message = attempt.error.message.replace('\n', "\n    ");
        format!("\n  {}. {} UTC  {message}", attempt.attempt, output::timestamp(attempt.time))
    });
    let body = String::from_utf8_lossy(&letter.event.data);
    format!("{head}\n\nerrors{}\n\ndata\n{body}", errors.collect::<String>())
}

impl Selection {
    async fn run(self, globals: &Globals, action: DeadLetterAction) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        let target = Target { bus: &connection.bus, registry: &registry };
        let mut done = Vec::new();
        let result = if self.ids.is_empty() {
            action.apply_to_all(target, selector(self.function.as_ref()), &mut done).await
        } else {
            action.apply_to_each(target, self.ids, &mut done).await
        };
        let past = action.past_participle();
        globals.output.show(&json!({ past: done }), |_| match done.as_slice() {
            [] => format!("nothing was {past}"),
            some => format!("{past} {}", some.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
        })?;
        Ok(result?)
    }
}

impl DeadLetterAction {
    /// Applies the action to the current dead letters. Events that become dead letters again meanwhile are not
    /// included, which prevents a loop.
    async fn apply_to_all(
        self,
        target: Target<'_>,
        selector: DeadLetterFilter<'_>,
        done: &mut Vec<u64>,
    ) -> Result<(), Failure> {
        let started = OffsetDateTime::now_utc();
        loop {
            let letters = target
                .bus
                .dead_letters(selector, MAX_BATCH_DEAD_LETTERS)
                .await
                .map_err(|error| Failure::new("cannot read the dead letters").because(error))?;
            let is_selected = |letter: &&DeadLetter| letter.state == DeadLetterState::Dead && letter.time <= started;
            let ids: Vec<u64> = letters.iter().filter(is_selected).map(|letter| letter.id).collect();
            if ids.is_empty() {
                return Ok(());
            }
            self.apply_to_each(target, ids, done).await?;
        }
    }

    async fn apply_to_each(self, target: Target<'_>, ids: Vec<u64>, done: &mut Vec<u64>) -> Result<(), Failure> {
        for id in ids {
            self.apply_to(target, id).await.map_err(|error| self.failure(id).because(error))?;
            done.push(id);
        }
        Ok(())
    }

    fn failure(self, id: u64) -> Failure {
        Failure::new(format!("cannot {} dead letter {id}", self.verb())).next("see `nerve dlq list`")
    }

    async fn apply_to(self, Target { bus, registry }: Target<'_>, id: u64) -> Result<(), BusError> {
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

    fn past_participle(self) -> &'static str {
        match self {
            Self::Redrive => "redriven",
            Self::Drop => "dropped",
        }
    }
}

fn selector(function: Option<&Name>) -> DeadLetterFilter<'_> {
    function.map_or(DeadLetterFilter::All, DeadLetterFilter::Of)
}
