//! One step of a language model's graph: new tokens and the cache in, how likely each next token is and the cache out.

use super::layout::{Graph, LOGITS};
use crate::session::Recipe;
use half::f16;
use ort::{
    memory::Allocator,
    session::{Session, SessionInputValue},
    value::{DynTensor, DynValue, Tensor, TensorElementType},
};
use std::{borrow::Cow, sync::Arc};

/// Tokens of a conversation that are read in one step: between two, others have their turn.
const CHUNK: usize = 256;
/// Tokens that are tried when a graph is loaded.
const TRIAL: usize = 4;
/// How alike the same tokens must come out in one step and in two; quantised graphs differ a little.
const ALIKE: f64 = 0.98;

/// Makes one step.
pub(super) struct Engine {
    pub(super) step: Box<Step>,
    /// The most tokens that one step reads.
    pub(super) chunk: usize,
}

/// Reads tokens after those of the state; gives the likelihood of each next token, as logits.
pub(super) type Step = dyn FnMut(&mut State, &[u32]) -> Result<Vec<f32>, String>;

/// What a model keeps of one conversation.
#[derive(Default)]
pub(super) struct State {
    /// A value a cache, in the graph's order; none before the first step.
    past: Vec<DynValue>,
    /// All that was read, where there are no caches.
    read: Vec<u32>,
    /// Tokens that were read.
    length: usize,
}

/// What an input is fed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feed {
    Ids,
    Mask,
    Positions,
    Branch,
    /// How many tokens' logits are wanted.
    Keep {
        scalar: bool,
    },
    /// The cache of this number.
    Cache(usize),
}

struct Input {
    name: String,
    feed: Feed,
    /// Whether it takes 32-bit integers.
    narrow: bool,
}

/// A language model's session.
pub(super) struct Decoder {
    session: Session,
    graph: Arc<Graph>,
    inputs: Vec<Input>,
    chunk: usize,
}

impl Decoder {
    /// Opens the graph and tries it out.
    pub(super) fn open(recipe: &Recipe, graph: Arc<Graph>) -> Result<Self, String> {
        let session = recipe.open()?;
        let input = |port: &ort::value::Outlet| {
            let feed = match port.name() {
                "input_ids" => Feed::Ids,
                "attention_mask" => Feed::Mask,
                "position_ids" => Feed::Positions,
                "use_cache_branch" => Feed::Branch,
                "num_logits_to_keep" | "logits_to_keep" => {
                    Feed::Keep { scalar: port.dtype().tensor_shape().is_none_or(|shape| shape.is_empty()) }
                }
                name => Feed::Cache(graph.caches.iter().position(|cache| cache.input == name)?),
            };
            let narrow = port.dtype().tensor_type() == Some(TensorElementType::Int32);
            Some(Input { name: port.name().to_owned(), feed, narrow })
        };
        let inputs = session.inputs().iter().filter_map(input).collect();
        let chunk = if graph.caches.is_empty() || graph.branches { usize::MAX } else { CHUNK };
        let mut decoder = Self { session, graph, inputs, chunk };
        decoder.try_out()?;
        Ok(decoder)
    }

    pub(super) fn into_engine(mut self) -> Engine {
        Engine { chunk: self.chunk, step: Box::new(move |state, tokens| self.step(state, tokens)) }
    }

    /// Reads some tokens, and finds out whether it may read a conversation in parts: graphs that were traced with one
    /// token after another read several at the beginning only.
    fn try_out(&mut self) -> Result<(), String> {
        let tokens: Vec<u32> = (0..TRIAL).filter_map(|token| u32::try_from(token).ok()).collect();
        let (first, rest) = tokens.split_at(TRIAL / 2);
        let mut whole = State::default();
        let at_once = self.step(&mut whole, &tokens)?;
        self.step(&mut whole, first.get(..1).unwrap_or_default())?;
        if self.chunk == usize::MAX {
            return Ok(());
        }
        let mut parts = State::default();
        let in_parts = self.step(&mut parts, first).and_then(|_| self.step(&mut parts, rest));
        if !in_parts.is_ok_and(|in_parts| cosine(&at_once, &in_parts) >= ALIKE) {
            self.chunk = usize::MAX;
        }
        Ok(())
    }

    fn step(&mut self, state: &mut State, tokens: &[u32]) -> Result<Vec<f32>, String> {
        let failed = |error: ort::Error| format!("the model failed: {error}");
        let inputs = self.feed(state, tokens).map_err(failed)?;
        let mut outputs = self.session.run(inputs).map_err(failed)?;
        let logits = outputs.get(LOGITS).ok_or_else(|| format!("the model gave no `{LOGITS}`"))?;
        let logits = last_row(logits)?;
        let length = state.length + tokens.len();
        let mut past = Vec::with_capacity(self.graph.caches.len());
        for cache in &self.graph.caches {
            let name = &cache.output;
            let value = outputs.remove(name).ok_or_else(|| format!("the model gave no `{name}`"))?;
            let sizes = [1, cache.heads, length, cache.width].map(|size| i64::try_from(size).unwrap_or(i64::MAX));
            let shape = value.dtype().tensor_shape();
            if shape.is_none_or(|shape| **shape != sizes) {
                return Err(format!(
                    "after {length} tokens the model gave `{name}` the shape {shape:?}, not {sizes:?}"
                ));
            }
            past.push(value);
        }
        (state.past, state.length) = (past, length);
        Ok(logits)
    }

    /// What the graph reads of these tokens; the caches are moved, not copied.
    fn feed(
        &self,
        state: &mut State,
        tokens: &[u32],
    ) -> Result<Vec<(Cow<'static, str>, SessionInputValue<'static>)>, ort::Error> {
        let total = state.length + tokens.len();
        if self.graph.caches.is_empty() {
            state.read.extend(tokens);
        }
        let new = if self.graph.caches.is_empty() { state.read.as_slice() } else { tokens };
        let number = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        let mut past: Vec<Option<DynValue>> = std::mem::take(&mut state.past).into_iter().map(Some).collect();
        let mut inputs: Vec<(Cow<'static, str>, SessionInputValue<'static>)> = Vec::with_capacity(self.inputs.len());
        for Input { name, feed, narrow } in &self.inputs {
            let value = match feed {
                Feed::Ids => integers(&[1, new.len()], new.iter().map(|&id| i64::from(id)).collect(), *narrow)?,
                Feed::Mask => integers(&[1, total], vec![1; total], *narrow)?,
                Feed::Positions => {
                    let positions = (total - new.len()..total).map(number).collect();
                    integers(&[1, new.len()], positions, *narrow)?
                }
                Feed::Branch => Tensor::from_array(([1_usize], vec![state.length > 0]))?.into_dyn(),
                Feed::Keep { scalar } => integers(if *scalar { &[] } else { &[1] }, vec![1], *narrow)?,
                Feed::Cache(index) => match past.get_mut(*index).and_then(Option::take) {
                    Some(value) => value,
                    None => self.nothing(*index)?,
                },
            };
            inputs.push((Cow::Owned(name.clone()), value.into()));
        }
        Ok(inputs)
    }

    /// A cache of no tokens.
    fn nothing(&self, index: usize) -> Result<DynValue, ort::Error> {
        let cache = self.graph.caches.get(index);
        let (heads, width) = cache.map_or((1, 1), |cache| (cache.heads, cache.width));
        let half = cache.is_some_and(|cache| cache.half);
        let element = if half { TensorElementType::Float16 } else { TensorElementType::Float32 };
        Ok(DynTensor::new(&Allocator::default(), element, [1, heads, 0, width])?.into_dyn())
    }
}

fn integers(shape: &[usize], numbers: Vec<i64>, narrow: bool) -> Result<DynValue, ort::Error> {
    let shape = shape.to_vec();
    if narrow {
        // Ids and positions are far below 2³¹.
        #[expect(clippy::cast_possible_truncation)]
        let numbers: Vec<i32> = numbers.into_iter().map(|number| number as i32).collect();
        return Ok(Tensor::from_array((shape, numbers))?.into_dyn());
    }
    Ok(Tensor::from_array((shape, numbers))?.into_dyn())
}

/// The logits of the last token.
fn last_row(logits: &DynValue) -> Result<Vec<f32>, String> {
    fn row<T: Copy>(shape: &[i64], numbers: &[T]) -> Option<Vec<T>> {
        let width = usize::try_from(*shape.last()?).ok().filter(|&width| width > 0)?;
        numbers.rchunks_exact(width).next().map(<[T]>::to_vec)
    }
    let read = match logits.dtype().tensor_type() {
        Some(TensorElementType::Float32) => {
            let (shape, numbers) = logits.try_extract_tensor::<f32>().map_err(|error| error.to_string())?;
            row(shape, numbers)
        }
        Some(TensorElementType::Float16) => {
            let (shape, numbers) = logits.try_extract_tensor::<f16>().map_err(|error| error.to_string())?;
            row(shape, numbers).map(|row| row.into_iter().map(f16::to_f32).collect())
        }
        other => return Err(format!("its `{LOGITS}` are {other:?}, not floats")),
    };
    read.ok_or_else(|| format!("its `{LOGITS}` are empty"))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
