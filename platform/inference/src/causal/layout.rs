//! What a causal language model's graph takes and gives, and what the files beside it say.
//!
//! Graphs are as Hugging Face's Optimum, transformers.js and ONNX Runtime's own builder export them: `input_ids`, and
//! of each layer `past_key_values.N.key` and `.value`, which come back longer as `present.N.key` and `.value`.

use super::template::{ChatTemplate, Template};
use crate::{
    files::{FolderError, read_json},
    proto::{Element, Outline, Port},
};
use serde_json::{Map, Value};
use std::path::Path;

/// Inputs beside the caches.
const INPUTS: [&str; 6] =
    ["input_ids", "attention_mask", "position_ids", "use_cache_branch", "num_logits_to_keep", "logits_to_keep"];
const PAST: &str = "past_key_values.";
const PRESENT: &str = "present.";
pub(super) const LOGITS: &str = "logits";
/// Names of the most tokens that a model reads.
const WINDOWS: [&str; 6] =
    ["max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length"];
/// The most tokens of a model that names no limit.
const WINDOW: usize = 2048;

/// How a causal language model is used.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CausalLayout {
    pub(super) graph: Graph,
    pub(super) template: ChatTemplate,
    /// The most tokens of conversation and answer together.
    pub(crate) window: usize,
    /// Tokens that end an answer; the tokenizer's own is another.
    pub(super) ends: Vec<u32>,
    /// What the likelihood of a token is divided by once it was said.
    pub(super) penalty: f32,
}

/// How the graph is fed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Graph {
    /// In the order of its inputs; none where it has to read everything again at each step.
    pub(super) caches: Vec<Cache>,
    /// Whether it has a branch of its own for the first step.
    pub(super) branches: bool,
}

/// What a layer keeps of the tokens that it has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cache {
    pub(super) input: String,
    pub(super) output: String,
    pub(super) heads: usize,
    /// Numbers a head.
    pub(super) width: usize,
    pub(super) half: bool,
}

impl CausalLayout {
    /// Whether a graph that takes `input_ids` is one.
    pub(crate) fn describes(outline: &Outline, architecture: &str) -> bool {
        let has_past = outline.inputs.iter().any(|port| port.name.starts_with("past"));
        let writes = architecture.ends_with("ForCausalLM") || architecture.ends_with("LMHeadModel");
        has_past || (writes && outline.outputs.iter().any(|port| port.name == LOGITS))
    }

    /// What the files in `root` say of it.
    pub(crate) fn read(root: &Path, outline: &Outline) -> Result<Self, FolderError> {
        let wrong = |why: String| FolderError(format!("the model in {} cannot be used: {why}", root.display()));
        let config: Map<String, Value> = read_json(root, "config.json")?
            .ok_or_else(|| wrong("there is no config.json: put the model's own beside it".to_owned()))?;
        let generation: Map<String, Value> = read_json(root, "generation_config.json")?.unwrap_or_default();
        let graph = Graph::read(outline, &config).map_err(wrong)?;
        let template = ChatTemplate::read(root)?;
        let mut ends = tokens(generation.get("eos_token_id"));
        ends.extend(tokens(config.get("eos_token_id")));
        if ends.is_empty() && template.eos_token().is_none() {
            return Err(wrong(
                "neither generation_config.json nor config.json says which token ends a text (eos_token_id)".to_owned(),
            ));
        }
        let window = WINDOWS.iter().filter_map(|name| size(&config, name)).min().unwrap_or(WINDOW);
        // A number that is read from JSON as text of a few digits.
        #[expect(clippy::cast_possible_truncation)]
        let penalty =
            generation.get("repetition_penalty").and_then(Value::as_f64).map_or(1.0, |penalty| penalty as f32);
        if !(0.1..=10.0).contains(&penalty) {
            return Err(wrong(format!(
                "generation_config.json: a repetition_penalty of {penalty} is not from 0.1 to 10"
            )));
        }
        Ok(Self { graph, template, window, ends, penalty })
    }

    /// Renders a question, as every template must. Not for a server: the template is a program of a stranger.
    pub(crate) fn try_template(&self) -> Result<(), String> {
        let tried = Template::compile(&self.template).and_then(|template| template.try_out());
        tried.map_err(|why| format!("its chat template cannot be used: {why}"))
    }
}

impl Graph {
    fn read(outline: &Outline, config: &Map<String, Value>) -> Result<Self, String> {
        let named = |ports: &[Port], name: &str| ports.iter().any(|port| port.name == name);
        match outline.outputs.iter().find(|port| port.name == LOGITS) {
            None => return Err(format!("it gives no `{LOGITS}`: export it for text generation")),
            Some(port) if port.rank().is_some_and(|rank| rank != 3) => {
                return Err(format!(
                    "its `{LOGITS}` have {} dimensions: a language model's have 3",
                    port.rank().unwrap_or(0)
                ));
            }
            Some(_) => {}
        }
        let (past, others): (Vec<&Port>, Vec<&Port>) =
            outline.inputs.iter().partition(|port| port.name.starts_with(PAST));
        if let Some(port) = others.iter().find(|port| !INPUTS.contains(&port.name.as_str())) {
            return Err(format!(
                "it wants the input `{}`; a language model has {}, {PAST}N.key, {PAST}N.value and nothing else",
                port.name,
                INPUTS.join(", ")
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
            if !named(&outline.outputs, &cache.output) {
                return Err(format!("it takes `{}` and does not give `{}`", cache.input, cache.output));
            }
            caches.push(cache);
        }
        let branches = named(&outline.inputs, "use_cache_branch");
        Ok(Self { caches, branches })
    }
}

impl Cache {
    fn read(port: &Port, config: &Map<String, Value>) -> Result<Self, String> {
        let input = port.name.clone();
        let half = match port.element {
            Element::Float32 => false,
            Element::Float16 => true,
            Element::Other => return Err(format!("`{input}` is neither of 32-bit nor of 16-bit floats")),
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
                "neither the graph nor config.json says how many heads `{input}` has, and of what size"
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

/// One token or several.
fn tokens(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match value {
        Some(Value::Array(several)) => several.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}
