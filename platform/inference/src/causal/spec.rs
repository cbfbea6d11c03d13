//! Graph inputs, outputs and settings of a causal language model.
//!
//! Graphs follow the exports of Hugging Face's Optimum, transformers.js and ONNX Runtime's builder: `input_ids`, and
//! per layer `past_key_values.N.key` and `.value`, returned extended as `present.N.key` and `.value`.

use super::template::{ChatTemplate, Template};
use crate::{
    files::{ModelError, read_json},
    signature::{ElementType, GraphSignature, Port},
};
use serde_json::{Map, Value};
use std::path::Path;

/// Inputs other than caches.
const OTHER_INPUTS: [&str; 6] =
    ["input_ids", "attention_mask", "position_ids", "use_cache_branch", "num_logits_to_keep", "logits_to_keep"];
const PAST: &str = "past_key_values.";
const PRESENT: &str = "present.";
pub(super) const LOGITS: &str = "logits";
/// Configuration keys of the context window.
const WINDOW_KEYS: [&str; 6] =
    ["max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length"];
/// Context window of a model that declares none, in tokens.
const DEFAULT_WINDOW_TOKENS: usize = 2048;

/// Specification of a causal language model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CausalSpec {
    pub(super) graph: CausalGraph,
    pub(super) template: ChatTemplate,
    /// Maximum number of tokens of a conversation with its answer.
    pub(crate) window: usize,
    /// End-of-text tokens in addition to the tokenizer's.
    pub(super) end_tokens: Vec<u32>,
    /// Repetition penalty.
    pub(super) penalty: f32,
}

/// Inputs and outputs of the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CausalGraph {
    /// Caches in the order of inputs; empty if each step must process all tokens again.
    pub(super) caches: Vec<Cache>,
    /// Whether the graph has a separate branch for the first step.
    pub(super) branches: bool,
}

/// Key or value cache of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cache {
    pub(super) input: String,
    pub(super) output: String,
    pub(super) heads: usize,
    /// Size of a head.
    pub(super) width: usize,
    pub(super) half: bool,
}

impl CausalSpec {
    /// Whether a graph with `input_ids` is a causal language model.
    pub(crate) fn describes(signature: &GraphSignature, architecture: &str) -> bool {
        let has_past = signature.inputs.iter().any(|port| port.name.starts_with("past"));
        let writes = architecture.ends_with("ForCausalLM") || architecture.ends_with("LMHeadModel");
        has_past || (writes && signature.outputs.iter().any(|port| port.name == LOGITS))
    }

    /// Reads the specification from the files in `root`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the graph is not supported.
    pub(crate) fn read(root: &Path, signature: &GraphSignature) -> Result<Self, ModelError> {
        let unusable = |why: String| ModelError(format!("the model in {} cannot be used: {why}", root.display()));
        let config: Map<String, Value> = read_json(root, "config.json")?
            .ok_or_else(|| unusable("it has no config.json: put the model's own beside it".to_owned()))?;
        let generation: Map<String, Value> = read_json(root, "generation_config.json")?.unwrap_or_default();
        let graph = CausalGraph::read(signature, &config).map_err(unusable)?;
        let template = ChatTemplate::read(root)?;
        let mut end_tokens = tokens(generation.get("eos_token_id"));
        end_tokens.extend(tokens(config.get("eos_token_id")));
        if end_tokens.is_empty() && template.eos_token().is_none() {
            return Err(unusable(
                "neither generation_config.json nor config.json has the end-of-text token (eos_token_id)".to_owned(),
            ));
        }
        let window = WINDOW_KEYS.iter().filter_map(|name| size(&config, name)).min().unwrap_or(DEFAULT_WINDOW_TOKENS);
        // The JSON number has few digits.
        #[expect(clippy::cast_possible_truncation)]
        let penalty =
            generation.get("repetition_penalty").and_then(Value::as_f64).map_or(1.0, |penalty| penalty as f32);
        if !(0.1..=10.0).contains(&penalty) {
            return Err(unusable(format!(
                "generation_config.json: a repetition_penalty of {penalty} is not from 0.1 to 10"
            )));
        }
        Ok(Self { graph, template, window, end_tokens, penalty })
    }

    /// Renders a probe question. Must run in a helper process, because the template is untrusted code.
    ///
    /// # Errors
    /// If the template is invalid.
    pub(crate) fn probe_template(&self) -> Result<(), String> {
        let tried = Template::compile(&self.template).and_then(|template| template.probe());
        tried.map_err(|why| format!("its chat template cannot be used: {why}"))
    }
}

impl CausalGraph {
    fn read(signature: &GraphSignature, config: &Map<String, Value>) -> Result<Self, String> {
        let named = |ports: &[Port], name: &str| ports.iter().any(|port| port.name == name);
        match signature.outputs.iter().find(|port| port.name == LOGITS) {
            None => return Err(format!("it has no output `{LOGITS}`: export it for text generation")),
            Some(port) if port.rank().is_some_and(|rank| rank != 3) => {
                return Err(format!("its `{LOGITS}` have {} dimensions: they must have 3", port.rank().unwrap_or(0)));
            }
            Some(_) => {}
        }
        let (past, others): (Vec<&Port>, Vec<&Port>) =
            signature.inputs.iter().partition(|port| port.name.starts_with(PAST));
        if let Some(port) = others.iter().find(|port| !OTHER_INPUTS.contains(&port.name.as_str())) {
            return Err(format!(
                "it requires the input `{}`; a language model may only have {}, {PAST}N.key and {PAST}N.value",
                port.name,
                OTHER_INPUTS.join(", ")
            ));
        }
        if let Some(port) =
            others.iter().find(|port| port.name == "attention_mask" && port.rank().is_some_and(|rank| rank != 2))
        {
            return Err(format!("its `attention_mask` has {} dimensions, not 2", port.rank().unwrap_or(0)));
        }
        let mut caches = Vec::with_capacity(past.len());
        for port in past {
            let cache = Cache::read(port, config)?;
            if !named(&signature.outputs, &cache.output) {
                return Err(format!("it has the input `{}` but not the output `{}`", cache.input, cache.output));
            }
            caches.push(cache);
        }
        let branches = named(&signature.inputs, "use_cache_branch");
        Ok(Self { caches, branches })
    }
}

impl Cache {
    fn read(port: &Port, config: &Map<String, Value>) -> Result<Self, String> {
        let input = port.name.clone();
        let half = match port.element {
            ElementType::Float32 => false,
            ElementType::Float16 => true,
            ElementType::Other => return Err(format!("`{input}` has neither 32-bit nor 16-bit floats")),
        };
        let shape = port.shape.as_deref().unwrap_or(&[None; 4]);
        let [_, heads, _, width] = shape else {
            return Err(format!(
                "`{input}` has {} dimensions, and not the 4 of batch, heads, tokens and numbers a head",
                shape.len()
            ));
        };
        let count = |names: &[&str]| names.iter().find_map(|name| size(config, name));
        let all_heads = count(&["num_attention_heads", "n_head"]);
        let heads = heads.or_else(|| count(&["num_key_value_heads"])).or(all_heads);
        let whole = || Some(count(&["hidden_size", "n_embd"])? / all_heads?);
        let width = width.or_else(|| count(&["head_dim"])).or_else(whole);
        let (Some(heads @ 1..=4096), Some(width @ 1..=4096)) = (heads, width) else {
            return Err(format!(
                "neither the graph nor config.json declares the number and size of heads of `{input}`"
            ));
        };
        let output = format!("{PRESENT}{}", input.trim_start_matches(PAST));
        Ok(Self { input, output, heads, width, half })
    }
}

fn size(config: &Map<String, Value>, name: &str) -> Option<usize> {
    let number = config.get(name)?.as_u64()?;
    usize::try_from(number).ok().filter(|&number| number > 0)
}

/// One token or a list.
fn tokens(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match value {
        Some(Value::Array(several)) => several.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}
