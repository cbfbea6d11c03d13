//! One decoding step of a language model: tokens and cache in, next-token logits and cache out.

use super::spec::{CausalGraph, LOGITS};
use crate::session::SessionConfig;
use half::f16;
use ort::{
    memory::Allocator,
    session::{Session, SessionInputValue},
    value::{DynTensor, DynValue, Tensor, TensorElementType},
};
use std::{borrow::Cow, sync::Arc};

/// Number of prompt tokens processed per step; other generations run between steps.
const MAX_STEP_TOKENS: usize = 256;
/// Number of tokens in the probe of a graph.
const PROBE_TOKENS: usize = 4;
/// Minimum cosine similarity of the logits from one step and from two steps; quantized graphs differ slightly.
const MIN_PROBE_SIMILARITY: f64 = 0.98;

/// Runs decoding steps.
pub(super) struct StepEngine {
    pub(super) step: Box<StepFn>,
    /// Maximum number of tokens per step.
    pub(super) max_step_tokens: usize,
}

/// Processes tokens after those in the state. Returns the next-token logits.
pub(super) type StepFn = dyn FnMut(&mut DecodingState, &[u32]) -> Result<Vec<f32>, String>;

/// Decoding state of one generation.
#[derive(Default)]
pub(super) struct DecodingState {
    /// Key-value caches, in the graph's order; empty before the first step.
    past: Vec<DynValue>,
    /// All processed tokens, for graphs without caches.
    all_tokens: Vec<u32>,
    /// Number of processed tokens.
    length: usize,
}

/// Source of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputSource {
    Ids,
    Mask,
    Positions,
    Branch,
    /// Number of tokens whose logits are requested.
    Keep {
        scalar: bool,
    },
    /// The cache with this index.
    Cache(usize),
}

struct Input {
    name: String,
    source: InputSource,
    /// Whether it is a 32-bit integer input.
    is_int32: bool,
}

/// Session of a language model.
pub(super) struct Decoder {
    session: Session,
    graph: Arc<CausalGraph>,
    inputs: Vec<Input>,
    max_step_tokens: usize,
}

impl Decoder {
    /// Creates the session and probes it.
    ///
    /// # Errors
    /// If the graph cannot be loaded or run.
    pub(super) fn open(session_config: &SessionConfig, graph: Arc<CausalGraph>) -> Result<Self, String> {
        let session = session_config.open()?;
        let input = |port: &ort::value::Outlet| {
            let source = match port.name() {
                "input_ids" => InputSource::Ids,
                "attention_mask" => InputSource::Mask,
                "position_ids" => InputSource::Positions,
                "use_cache_branch" => InputSource::Branch,
                "num_logits_to_keep" | "logits_to_keep" => {
                    InputSource::Keep { scalar: port.dtype().tensor_shape().is_none_or(|shape| shape.is_empty()) }
                }
                name => InputSource::Cache(graph.caches.iter().position(|cache| cache.input == name)?),
            };
            let is_int32 = port.dtype().tensor_type() == Some(TensorElementType::Int32);
            Some(Input { name: port.name().to_owned(), source, is_int32 })
        };
        let inputs = session.inputs().iter().filter_map(input).collect();
        let max_step_tokens = if graph.caches.is_empty() || graph.branches { usize::MAX } else { MAX_STEP_TOKENS };
        let mut decoder = Self { session, graph, inputs, max_step_tokens };
        decoder.probe()?;
        Ok(decoder)
    }

    pub(super) fn into_engine(mut self) -> StepEngine {
        StepEngine {
            max_step_tokens: self.max_step_tokens,
            step: Box::new(move |state, tokens| self.step(state, tokens)),
        }
    }

    /// Runs a few tokens, and detects whether the graph can process a conversation in parts: some traced graphs accept
    /// several tokens only at the start.
    fn probe(&mut self) -> Result<(), String> {
        let tokens: Vec<u32> = (0..PROBE_TOKENS).filter_map(|token| u32::try_from(token).ok()).collect();
        let (first, rest) = tokens.split_at(PROBE_TOKENS / 2);
        let mut single_step_state = DecodingState::default();
        let single_step_logits = self.step(&mut single_step_state, &tokens)?;
        self.step(&mut single_step_state, first.get(..1).unwrap_or_default())?;
        if self.max_step_tokens == usize::MAX {
            return Ok(());
        }
        let mut split_state = DecodingState::default();
        let split_logits = self.step(&mut split_state, first).and_then(|_| self.step(&mut split_state, rest));
        if !split_logits.is_ok_and(|split_logits| cosine(&single_step_logits, &split_logits) >= MIN_PROBE_SIMILARITY) {
            self.max_step_tokens = usize::MAX;
        }
        Ok(())
    }

    fn step(&mut self, state: &mut DecodingState, tokens: &[u32]) -> Result<Vec<f32>, String> {
        let failed = |error: ort::Error| format!("the model failed: {error}");
        let inputs = self.inputs_of(state, tokens).map_err(failed)?;
        let mut outputs = self.session.run(inputs).map_err(failed)?;
        let logits = outputs.get(LOGITS).ok_or_else(|| format!("the model returned no `{LOGITS}`"))?;
        let logits = last_row(logits)?;
        let length = state.length + tokens.len();
        let mut past = Vec::with_capacity(self.graph.caches.len());
        for cache in &self.graph.caches {
            let name = &cache.output;
            let value = outputs.remove(name).ok_or_else(|| format!("the model returned no `{name}`"))?;
            let sizes = [1, cache.heads, length, cache.width].map(|size| i64::try_from(size).unwrap_or(i64::MAX));
            let shape = value.dtype().tensor_shape();
            if shape.is_none_or(|shape| **shape != sizes) {
                return Err(format!(
                    "after {length} tokens the model returned `{name}` with the shape {shape:?} instead of {sizes:?}"
                ));
            }
            past.push(value);
        }
        (state.past, state.length) = (past, length);
        Ok(logits)
    }

    /// Inputs of a step; caches are moved, not copied.
    fn inputs_of(
        &self,
        state: &mut DecodingState,
        tokens: &[u32],
    ) -> Result<Vec<(Cow<'static, str>, SessionInputValue<'static>)>, ort::Error> {
        let total = state.length + tokens.len();
        if self.graph.caches.is_empty() {
            state.all_tokens.extend(tokens);
        }
        let new = if self.graph.caches.is_empty() { state.all_tokens.as_slice() } else { tokens };
        let number = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        let mut past: Vec<Option<DynValue>> = std::mem::take(&mut state.past).into_iter().map(Some).collect();
        let mut inputs: Vec<(Cow<'static, str>, SessionInputValue<'static>)> = Vec::with_capacity(self.inputs.len());
        for Input { name, source, is_int32 } in &self.inputs {
            let value = match source {
                InputSource::Ids => {
                    integers(&[1, new.len()], new.iter().map(|&id| i64::from(id)).collect(), *is_int32)?
                }
                InputSource::Mask => integers(&[1, total], vec![1; total], *is_int32)?,
                InputSource::Positions => {
                    let positions = (total - new.len()..total).map(number).collect();
                    integers(&[1, new.len()], positions, *is_int32)?
                }
                InputSource::Branch => Tensor::from_array(([1_usize], vec![state.length > 0]))?.into_dyn(),
                InputSource::Keep { scalar } => integers(if *scalar { &[] } else { &[1] }, vec![1], *is_int32)?,
                InputSource::Cache(index) => match past.get_mut(*index).and_then(Option::take) {
                    Some(value) => value,
                    None => self.empty_cache(*index)?,
                },
            };
            inputs.push((Cow::Owned(name.clone()), value.into()));
        }
        Ok(inputs)
    }

    /// An empty cache.
    fn empty_cache(&self, index: usize) -> Result<DynValue, ort::Error> {
        let cache = self.graph.caches.get(index);
        let (heads, width) = cache.map_or((1, 1), |cache| (cache.heads, cache.width));
        let half = cache.is_some_and(|cache| cache.half);
        let element = if half { TensorElementType::Float16 } else { TensorElementType::Float32 };
        Ok(DynTensor::new(&Allocator::default(), element, [1, heads, 0, width])?.into_dyn())
    }
}

fn integers(shape: &[usize], numbers: Vec<i64>, is_int32: bool) -> Result<DynValue, ort::Error> {
    let shape = shape.to_vec();
    if is_int32 {
        // Ids and positions are far below 2³¹.
        #[expect(clippy::cast_possible_truncation)]
        let numbers: Vec<i32> = numbers.into_iter().map(|number| number as i32).collect();
        return Ok(Tensor::from_array((shape, numbers))?.into_dyn());
    }
    Ok(Tensor::from_array((shape, numbers))?.into_dyn())
}

/// Logits of the last token.
fn last_row(logits: &DynValue) -> Result<Vec<f32>, String> {
    fn row<T: Copy>(shape: &[i64], numbers: &[T]) -> Option<Vec<T>> {
        let width = usize::try_from(*shape.last()?).ok().filter(|&width| width > 0)?;
        numbers.rchunks_exact(width).next().map(<[T]>::to_vec)
    }
    let row_numbers = match logits.dtype().tensor_type() {
        Some(TensorElementType::Float32) => {
            let (shape, numbers) = logits.try_extract_tensor::<f32>().map_err(|error| error.to_string())?;
            row(shape, numbers)
        }
        Some(TensorElementType::Float16) => {
            let (shape, numbers) = logits.try_extract_tensor::<f16>().map_err(|error| error.to_string())?;
            row(shape, numbers).map(|row| row.into_iter().map(f16::to_f32).collect())
        }
        other => return Err(format!("its `{LOGITS}` have the type {other:?}: they must be floats")),
    };
    row_numbers.ok_or_else(|| format!("its `{LOGITS}` are empty"))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
