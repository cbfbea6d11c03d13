//! Tabular models, which read numbers and strings: exports of scikit-learn and XGBoost, and other graphs.

mod graph;
mod labels;
mod read;
mod write;

pub(crate) use graph::OutputOrigins;
pub(crate) use write::Feed;

use crate::{
    batcher::{BatchLimits, Batcher, CallRounds, Engine, Job, JobError, JobHandle, StopSignal},
    files::ModelError,
    session::SessionConfig,
};
use labels::Labeling;
use nerve_core::inference::Label;
use ort::{
    session::{RunOptions, Session},
    value::{TensorElementType, ValueType},
};
use serde_json::{Map, Value};
use std::sync::{Arc, OnceLock};
use tokio_util::task::TaskTracker;

/// An input of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) ty: TensorElementType,
    /// Size of each dimension, negative if it varies.
    pub(crate) shape: Vec<i64>,
}

/// Inputs of a graph, and the interpretation of its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorSignature {
    pub(crate) inputs: Vec<Input>,
    labeling: Labeling,
}

/// Parts of a tabular model.
pub(crate) struct TensorParts<'p> {
    pub(crate) name: &'p str,
    pub(crate) session_config: SessionConfig,
    pub(crate) output_origins: OutputOrigins,
    pub(crate) sessions: usize,
    pub(crate) queue: usize,
}

/// A loaded tabular model.
pub(crate) struct TensorModel {
    pub(crate) signature: Arc<TensorSignature>,
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
    pub(crate) fn load(parts: TensorParts<'_>, tasks: &TaskTracker) -> Result<Self, ModelError> {
        let TensorParts { name, session_config, output_origins, sessions, queue } = parts;
        let signature = Arc::new(OnceLock::new());
        let known = signature.clone();
        let make = move || {
            let mut session = session_config.open()?;
            let signature = Arc::new(TensorSignature::of(&session, &output_origins)?);
            known.get_or_init(|| signature.clone());
            let engine: Engine<Feed, Map<String, Value>> =
                Box::new(move |feeds, stop| run(&mut session, &signature, feeds, stop));
            Ok(engine)
        };
        let plan = BatchLimits { jobs: 64, tokens: 64, padding: 0, queue };
        let batcher = Batcher::start(name, sessions, plan, tasks, Arc::new(make)).map_err(ModelError)?;
        let signature = signature.get().cloned().ok_or_else(|| ModelError("the model has no session".to_owned()))?;
        Ok(Self { signature, batcher })
    }

    /// Waits for queue capacity, then queues a job.
    pub(crate) async fn submit(&self, feed: Feed, rounds: &mut CallRounds) -> JobHandle<Map<String, Value>> {
        self.batcher.submit(feed, rounds).await
    }

    /// Labels of one sample's outputs, the predicted one first.
    pub(crate) fn labels(&self, row: &Map<String, Value>) -> Vec<Label> {
        self.signature.labeling.labels(row)
    }

    /// Whether the queue has capacity for one more job.
    ///
    /// # Errors
    /// [`JobError::Busy`] if it has none.
    pub(crate) fn check_capacity(&self) -> Result<(), JobError> {
        self.batcher.check_capacity()
    }
}

impl TensorSignature {
    fn of(session: &Session, output_origins: &OutputOrigins) -> Result<Self, String> {
        let mut inputs = Vec::new();
        for input in session.inputs() {
            let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
                return Err(format!("its input `{}` is not a tensor", input.name()));
            };
            inputs.push(Input { name: input.name().to_owned(), ty: *ty, shape: shape.iter().copied().collect() });
        }
        let outputs = session.outputs().iter().map(|output| (output.name(), output.dtype()));
        Ok(Self { inputs, labeling: Labeling::of(outputs, output_origins) })
    }

    /// Whether rows of several jobs can be stacked.
    fn stacks(&self) -> bool {
        self.inputs.iter().all(|input| input.shape.first().is_some_and(|rows| *rows < 0))
    }
}

/// Runs one batch. Returns the outputs of each row by name.
fn run(
    session: &mut Session,
    signature: &TensorSignature,
    feeds: &[Feed],
    stop: &StopSignal,
) -> Result<Vec<Map<String, Value>>, String> {
    if feeds.len() > 1 && !signature.stacks() {
        return feeds
            .iter()
            .map(|feed| Ok(run(session, signature, std::slice::from_ref(feed), stop)?.remove(0)))
            .collect();
    }
    let inputs = write::stack(signature, feeds)?;
    let options = Arc::new(RunOptions::new().map_err(|error| error.to_string())?);
    let signaled_options = options.clone();
    stop.on_stop(move || drop(signaled_options.terminate()));
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
