//! A model that reads text: tokens in, one row of numbers a text out.

use crate::{
    batcher::{Batcher, Engine, Job, JobError, Plan, Stop, Ticket, Turns},
    files::FolderError,
    head::{Head, Pooling},
    layout::TextLayout,
    session::Recipe,
    tokens::{TokenizerFile, Tokens},
};
use half::f16;
use ort::{
    session::{RunOptions, Session, SessionInputValue},
    value::{DynValue, Tensor, TensorElementType},
};
use std::{borrow::Cow, path::Path, sync::Arc};
use tokio_util::task::TaskTracker;

/// Batches as they were fastest, or as fast as any, for short texts and for mixed ones on two cores: what is larger
/// than a core's cache is slower, however few batches it saves.
const PLAN: Plan = Plan { jobs: 16, tokens: 1024, padding: 10, queue: 0 };

/// A loaded text model.
pub(crate) struct TextModel {
    pub(crate) layout: Arc<TextLayout>,
    pub(crate) tokenizer: Arc<TokenizerFile>,
    batcher: Batcher<TextJob, Vec<f32>>,
}

/// One text, or a pair, on its way through a model.
#[derive(Debug)]
pub(crate) struct TextJob {
    pub(crate) tokens: Tokens,
    /// Pools otherwise than the model's folder says.
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

/// What a text model is made of.
pub(crate) struct TextParts<'p> {
    pub(crate) name: &'p str,
    pub(crate) root: &'p Path,
    pub(crate) layout: TextLayout,
    pub(crate) recipe: Recipe,
    /// Sessions, each with a thread.
    pub(crate) sessions: usize,
    pub(crate) queue: usize,
}

impl TextModel {
    /// Loads the tokenizer and the sessions.
    pub(crate) fn load(parts: TextParts<'_>, tasks: &TaskTracker) -> Result<Self, FolderError> {
        let TextParts { name, root, layout, recipe, sessions, queue } = parts;
        let layout = Arc::new(layout);
        let shared = layout.clone();
        let make = move || {
            let mut session = recipe.open()?;
            let layout = shared.clone();
            let engine: Engine<TextJob, Vec<f32>> = Box::new(move |jobs, stop| run(&mut session, &layout, jobs, stop));
            Ok(engine)
        };
        let plan = Plan { queue, ..PLAN };
        let batcher = Batcher::start(name, sessions, plan, tasks, Arc::new(make)).map_err(FolderError)?;
        Self::around(batcher, root, layout)
    }

    fn around(batcher: Batcher<TextJob, Vec<f32>>, root: &Path, layout: Arc<TextLayout>) -> Result<Self, FolderError> {
        let tokenizer = Arc::new(TokenizerFile::read(root, &layout)?);
        Ok(Self { layout, tokenizer, batcher })
    }

    /// A model whose every batch `engine` runs.
    #[cfg(test)]
    pub(crate) fn with_engine(
        root: &Path,
        layout: TextLayout,
        make: Arc<crate::engine::MakeEngine<crate::batcher::Engine<TextJob, Vec<f32>>>>,
    ) -> Result<Self, FolderError> {
        let plan = Plan { queue: 64, ..PLAN };
        let batcher = Batcher::start("test", 1, plan, &TaskTracker::new(), make).map_err(FolderError)?;
        Self::around(batcher, root, Arc::new(layout))
    }

    /// Queues a job once there is room for it.
    pub(crate) async fn submit(&self, job: TextJob, turns: &mut Turns) -> Ticket<Vec<f32>> {
        self.batcher.submit(job, turns).await
    }

    /// Whether there is room for a job just now.
    pub(crate) fn has_room(&self) -> Result<(), JobError> {
        self.batcher.has_room()
    }
}

/// Runs one batch through a session: one row a job.
fn run(session: &mut Session, layout: &TextLayout, jobs: &[TextJob], stop: &Stop) -> Result<Vec<Vec<f32>>, String> {
    let longest = jobs.iter().map(Job::length).max().unwrap_or_default();
    let inputs = feed(session, layout, jobs, longest).map_err(|error| error.to_string())?;
    let options = Arc::new(RunOptions::new().map_err(|error| error.to_string())?);
    let asked = options.clone();
    stop.on_ask(move || drop(asked.terminate()));
    let outputs = session.run_with_options(inputs, &*options).map_err(|error| format!("the model failed: {error}"))?;
    let output = outputs.get(&layout.output).ok_or_else(|| format!("the model gave no output `{}`", layout.output))?;
    let (shape, numbers) = read(output)?;
    match (&shape[..], &layout.head) {
        (&[rows, width], _) if rows == jobs.len() => Ok(numbers.chunks(width.max(1)).map(<[f32]>::to_vec).collect()),
        (&[rows, length, width], head) if rows == jobs.len() && length == longest => {
            let texts = numbers.chunks((length * width).max(1)).zip(jobs);
            texts.map(|(numbers, job)| pool(numbers, width, head, job)).collect()
        }
        (shape, _) => {
            Err(format!("the output `{}` has the shape {shape:?}, which is not one row a text", layout.output))
        }
    }
}

fn feed<'s>(
    session: &Session,
    layout: &TextLayout,
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
            "input_ids" => padded(&|tokens| tokens.ids.clone(), layout.pad_id),
            "token_type_ids" => padded(&|tokens| tokens.types.clone(), 0),
            "position_ids" => padded(&|tokens| (0..).take(tokens.len()).collect(), 0),
            _ => padded(&|tokens| vec![1; tokens.len()], 0),
        };
        let shape = [jobs.len(), longest];
        let value: SessionInputValue<'s> = match input.dtype().tensor_type() {
            Some(TensorElementType::Int32) => {
                // Ids, types, positions and masks are all far below 2³¹.
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

/// A tensor's shape and numbers, as 32-bit floats whatever they were.
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
        other => return Err(format!("its output is {other:?}, not floats")),
    };
    Ok((shape.iter().map(|&size| usize::try_from(size).unwrap_or_default()).collect(), numbers))
}

/// One row out of one text's tokens, without those that only fill it up.
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
        Head::Sparse { pooling, twice } => Ok(pooling.pool(tokens, width, *twice)),
        Head::Relevance { .. } | Head::Labels { .. } => Err("the model gives one row a token, not a text".to_owned()),
    }
}
