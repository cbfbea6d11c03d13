//! Text models: one row of numbers per tokenized text.

use crate::{
    batcher::{BatchLimits, Batcher, CallRounds, Engine, Job, JobError, JobHandle, StopSignal},
    files::ModelError,
    head::{Head, Pooling},
    session::SessionConfig,
    spec::TextSpec,
    tokens::{ModelTokenizer, Tokens},
};
use half::f16;
use ort::{
    session::{RunOptions, Session, SessionInputValue},
    value::{DynValue, Tensor, TensorElementType},
};
use std::{borrow::Cow, path::Path, sync::Arc};
use tokio_util::task::TaskTracker;

/// Batch limits with the highest measured throughput for short and mixed texts on two cores; larger batches exceed a
/// core's cache and are slower.
const BATCH_LIMITS: BatchLimits = BatchLimits { jobs: 16, tokens: 1024, padding: 10, queue: 0 };

/// A loaded text model.
pub(crate) struct TextModel {
    pub(crate) spec: Arc<TextSpec>,
    pub(crate) tokenizer: Arc<ModelTokenizer>,
    batcher: Batcher<TextJob, Vec<f32>>,
}

/// A tokenized text or pair of texts.
#[derive(Debug)]
pub(crate) struct TextJob {
    pub(crate) tokens: Tokens,
    /// Pooling, instead of the model's own.
    pub(crate) pooling: Option<Pooling>,
}

impl Job for TextJob {
    fn length(&self) -> usize {
        self.tokens.len()
    }

    fn group(&self) -> u64 {
        0
    }
}

/// Parts of a text model.
pub(crate) struct TextParts<'p> {
    pub(crate) name: &'p str,
    pub(crate) root: &'p Path,
    pub(crate) spec: TextSpec,
    pub(crate) session_config: SessionConfig,
    /// Number of sessions, each with a thread.
    pub(crate) sessions: usize,
    pub(crate) queue: usize,
}

impl TextModel {
    /// Loads the tokenizer and the sessions.
    pub(crate) fn load(parts: TextParts<'_>, tasks: &TaskTracker) -> Result<Self, ModelError> {
        let TextParts { name, root, spec, session_config, sessions, queue } = parts;
        let spec = Arc::new(spec);
        let shared = spec.clone();
        let make = move || {
            let mut session = session_config.open()?;
            let spec = shared.clone();
            let engine: Engine<TextJob, Vec<f32>> = Box::new(move |jobs, stop| run(&mut session, &spec, jobs, stop));
            Ok(engine)
        };
        let plan = BatchLimits { queue, ..BATCH_LIMITS };
        let batcher = Batcher::start(name, sessions, plan, tasks, Arc::new(make)).map_err(ModelError)?;
        Self::with_batcher(batcher, root, spec)
    }

    fn with_batcher(batcher: Batcher<TextJob, Vec<f32>>, root: &Path, spec: Arc<TextSpec>) -> Result<Self, ModelError> {
        let tokenizer = Arc::new(ModelTokenizer::read(root, &spec)?);
        Ok(Self { spec, tokenizer, batcher })
    }

    /// A model whose batches run on engines from `make`.
    #[cfg(test)]
    pub(crate) fn with_engine(
        root: &Path,
        spec: TextSpec,
        make: Arc<crate::engine::EngineFactory<crate::batcher::Engine<TextJob, Vec<f32>>>>,
    ) -> Result<Self, ModelError> {
        let plan = BatchLimits { queue: 64, ..BATCH_LIMITS };
        let batcher = Batcher::start("test", 1, plan, &TaskTracker::new(), make).map_err(ModelError)?;
        Self::with_batcher(batcher, root, Arc::new(spec))
    }

    /// Waits for queue capacity, then queues a job.
    pub(crate) async fn submit(&self, job: TextJob, rounds: &mut CallRounds) -> JobHandle<Vec<f32>> {
        self.batcher.submit(job, rounds).await
    }

    /// Whether the queue has capacity for one more job.
    ///
    /// # Errors
    /// [`JobError::Busy`] if it has none.
    pub(crate) fn check_capacity(&self) -> Result<(), JobError> {
        self.batcher.check_capacity()
    }
}

/// Runs one batch through a session. Returns one row per job.
fn run(session: &mut Session, spec: &TextSpec, jobs: &[TextJob], stop: &StopSignal) -> Result<Vec<Vec<f32>>, String> {
    let longest = jobs.iter().map(Job::length).max().unwrap_or_default();
    let inputs = build_inputs(session, spec, jobs, longest).map_err(|error| error.to_string())?;
    let options = Arc::new(RunOptions::new().map_err(|error| error.to_string())?);
    let signaled_options = options.clone();
    stop.on_stop(move || drop(signaled_options.terminate()));
    let outputs = session.run_with_options(inputs, &*options).map_err(|error| format!("the model failed: {error}"))?;
    let output = outputs.get(&spec.output).ok_or_else(|| format!("the model returned no output `{}`", spec.output))?;
    let (shape, numbers) = read(output)?;
    match (&shape[..], &spec.head) {
        (&[rows, width], _) if rows == jobs.len() => Ok(numbers.chunks(width.max(1)).map(<[f32]>::to_vec).collect()),
        (&[rows, length, width], head) if rows == jobs.len() && length == longest => {
            let texts = numbers.chunks((length * width).max(1)).zip(jobs);
            texts.map(|(numbers, job)| pool(numbers, width, head, job)).collect()
        }
        (shape, _) => Err(format!("the output `{}` has the shape {shape:?}, not one row per text", spec.output)),
    }
}

fn build_inputs<'s>(
    session: &Session,
    spec: &TextSpec,
    jobs: &[TextJob],
    longest: usize,
) -> Result<Vec<(Cow<'s, str>, SessionInputValue<'s>)>, ort::Error> {
    let padded = |numbers: &dyn Fn(&Tokens) -> Vec<i64>, padding: i64| {
        let mut flat = Vec::with_capacity(jobs.len() * longest);
        for job in jobs {
            flat.extend(numbers(&job.tokens));
            flat.resize(flat.len() + longest - job.length(), padding);
        }
        flat
    };
    let mut inputs = Vec::with_capacity(session.inputs().len());
    for input in session.inputs() {
        let flat = match input.name() {
            "input_ids" => padded(&|tokens| tokens.ids.clone(), spec.pad_id),
            "token_type_ids" => padded(&|tokens| tokens.types.clone(), 0),
            "position_ids" => padded(&|tokens| (0..).take(tokens.len()).collect(), 0),
            _ => padded(&|tokens| vec![1; tokens.len()], 0),
        };
        let shape = [jobs.len(), longest];
        let value: SessionInputValue<'s> = match input.dtype().tensor_type() {
            Some(TensorElementType::Int32) => {
                // Ids, types, positions and masks are far below 2³¹.
                #[expect(clippy::cast_possible_truncation)]
                let narrow: Vec<i32> = flat.into_iter().map(|number| number as i32).collect();
                Tensor::from_array((shape, narrow))?.into()
            }
            _ => Tensor::from_array((shape, flat))?.into(),
        };
        inputs.push((Cow::Owned(input.name().to_owned()), value));
    }
    Ok(inputs)
}

/// Shape and numbers of a tensor, as 32-bit floats.
fn read(output: &DynValue) -> Result<(Vec<usize>, Cow<'_, [f32]>), String> {
    let (shape, numbers) = match output.dtype().tensor_type() {
        Some(TensorElementType::Float32) => {
            let (shape, numbers) = output.try_extract_tensor::<f32>().map_err(|error| error.to_string())?;
            (shape, Cow::Borrowed(numbers))
        }
        Some(TensorElementType::Float16) => {
            let (shape, numbers) = output.try_extract_tensor::<f16>().map_err(|error| error.to_string())?;
            (shape, numbers.iter().map(|number| number.to_f32()).collect())
        }
        other => return Err(format!("output type {other:?} is not supported: it must be floats")),
    };
    Ok((shape.iter().map(|&size| usize::try_from(size).unwrap_or_default()).collect(), numbers))
}

/// Pools one text's tokens into a row, without padding.
fn pool(numbers: &[f32], width: usize, head: &Head, job: &TextJob) -> Result<Vec<f32>, String> {
    let tokens = numbers.get(..job.length() * width).unwrap_or(numbers);
    match head {
        Head::Vector { pooling, .. } => {
            let mut row = Vec::with_capacity(width);
            match job.pooling {
                Some(other) => other.pool(tokens, width, &mut row),
                None => pooling.iter().for_each(|pooling| pooling.pool(tokens, width, &mut row)),
            }
            Ok(row)
        }
        Head::Sparse { pooling, double_log } => Ok(pooling.pool(tokens, width, *double_log)),
        Head::Relevance { .. } | Head::Labels { .. } => {
            Err("the model returns one row per token, not per text".to_owned())
        }
    }
}
