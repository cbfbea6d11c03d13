//! A model that reads numbers and strings: scikit-learn and XGBoost exports, or whatever its graph declares.

mod graph;
mod labels;
mod read;
mod write;

pub(crate) use graph::Origins;
pub(crate) use write::Feed;

use crate::{
    batcher::{Batcher, Engine, Job, JobError, Plan, Stop, Ticket, Turns},
    files::FolderError,
    session::Recipe,
};
use labels::Labelling;
use nerve_core::inference::Label;
use ort::{
    session::{RunOptions, Session},
    value::{TensorElementType, ValueType},
};
use serde_json::{Map, Value};
use std::sync::{Arc, OnceLock};
use tokio_util::task::TaskTracker;

/// What an input of a graph takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) ty: TensorElementType,
    /// One a dimension, negative where it varies.
    pub(crate) shape: Vec<i64>,
}

/// What a graph takes, and how what it gives is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) inputs: Vec<Input>,
    labelling: Labelling,
}

/// What a model is made of.
pub(crate) struct TensorParts<'p> {
    pub(crate) name: &'p str,
    pub(crate) recipe: Recipe,
    pub(crate) origins: Origins,
    pub(crate) sessions: usize,
    pub(crate) queue: usize,
}

/// A loaded model.
pub(crate) struct TensorModel {
    pub(crate) signature: Arc<Signature>,
    batcher: Batcher<Feed, Map<String, Value>>,
}

impl Job for Feed {
    fn length(&self) -> usize {
        1
    }

    fn group(&self) -> u64 {
        self.group
    }
}

impl TensorModel {
    /// Loads the sessions.
    pub(crate) fn load(parts: TensorParts<'_>, tasks: &TaskTracker) -> Result<Self, FolderError> {
        let TensorParts { name, recipe, origins, sessions, queue } = parts;
        let signature = Arc::new(OnceLock::new());
        let known = signature.clone();
        let make = move || {
            let mut session = recipe.open()?;
            let signature = Arc::new(Signature::of(&session, &origins)?);
            known.get_or_init(|| signature.clone());
            let engine: Engine<Feed, Map<String, Value>> =
                Box::new(move |feeds, stop| run(&mut session, &signature, feeds, stop));
            Ok(engine)
        };
        let plan = Plan { jobs: 64, tokens: 64, padding: 0, queue };
        let batcher = Batcher::start(name, sessions, plan, tasks, Arc::new(make)).map_err(FolderError)?;
        let signature = signature.get().cloned().ok_or_else(|| FolderError("the model has no session".to_owned()))?;
        Ok(Self { signature, batcher })
    }

    /// Queues a job once there is room for it.
    pub(crate) async fn submit(&self, feed: Feed, turns: &mut Turns) -> Ticket<Map<String, Value>> {
        self.batcher.submit(feed, turns).await
    }

    /// The labels in what the model gave for one sample, the chosen one first.
    pub(crate) fn labels(&self, row: &Map<String, Value>) -> Vec<Label> {
        self.signature.labelling.labels(row)
    }

    /// Whether there is room for a job just now.
    pub(crate) fn has_room(&self) -> Result<(), JobError> {
        self.batcher.has_room()
    }
}

impl Signature {
    fn of(session: &Session, origins: &Origins) -> Result<Self, String> {
        let mut inputs = Vec::new();
        for input in session.inputs() {
            let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
                return Err(format!("its input `{}` is no tensor", input.name()));
            };
            inputs.push(Input { name: input.name().to_owned(), ty: *ty, shape: shape.iter().copied().collect() });
        }
        let outputs = session.outputs().iter().map(|output| (output.name(), output.dtype()));
        Ok(Self { inputs, labelling: Labelling::of(outputs, origins) })
    }

    /// Whether rows of several jobs can be put one below the other.
    fn stacks(&self) -> bool {
        self.inputs.iter().all(|input| input.shape.first().is_some_and(|rows| *rows < 0))
    }
}

/// Runs one batch: what every output says of each row.
fn run(
    session: &mut Session,
    signature: &Signature,
    feeds: &[Feed],
    stop: &Stop,
) -> Result<Vec<Map<String, Value>>, String> {
    if feeds.len() > 1 && !signature.stacks() {
        return feeds
            .iter()
            .map(|feed| Ok(run(session, signature, std::slice::from_ref(feed), stop)?.remove(0)))
            .collect();
    }
    let inputs = write::stack(signature, feeds)?;
    let options = Arc::new(RunOptions::new().map_err(|error| error.to_string())?);
    let asked = options.clone();
    stop.on_ask(move || drop(asked.terminate()));
    let outputs = session.run_with_options(inputs, &*options).map_err(|error| format!("the model failed: {error}"))?;
    let mut rows = vec![Map::new(); feeds.len()];
    for (name, value) in outputs.iter() {
        let cells = read::rows(value, feeds.len()).map_err(|error| format!("the output `{name}` {error}"))?;
        for (row, cell) in rows.iter_mut().zip(cells) {
            row.insert(name.to_owned(), cell);
        }
    }
    Ok(rows)
}
