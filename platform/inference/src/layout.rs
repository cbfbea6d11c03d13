//! How a model is used, out of the files that Hugging Face and sentence-transformers keep beside it.

use crate::{
    causal::layout::CausalLayout,
    files::{FolderError, is_there, read_json},
    head::{Activation, Head, Pooling, SparsePooling},
    proto::{Outline, Port},
    task::{Description, Task},
};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

/// Inputs that a text model may have.
const TEXT_INPUTS: [&str; 4] = ["input_ids", "attention_mask", "token_type_ids", "position_ids"];
/// Outputs that hold one vector a text already.
const POOLED: [&str; 3] = ["sentence_embedding", "text_embeds", "pooled_embedding"];
/// Outputs that hold one vector a token.
const HIDDEN: [&str; 2] = ["last_hidden_state", "token_embeddings"];
/// The most tokens of a model that names no limit.
const MAX_TOKENS: usize = 512;

/// How a model is used.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    pub(crate) task: Task,
    pub(crate) kind: Kind,
    width: Option<usize>,
}

/// What a model reads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// Texts.
    Text(TextLayout),
    /// Conversations, which it goes on with.
    Causal(CausalLayout),
    /// Numbers and strings: the names of what its graph takes and gives.
    Ports(Vec<String>, Vec<String>),
}

/// How a text model is fed, and what is made of what it gives.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TextLayout {
    /// The output that is read.
    pub(crate) output: String,
    pub(crate) head: Head,
    /// The most tokens of one text, special ones too.
    pub(crate) max_tokens: usize,
    pub(crate) pad_id: i64,
    /// Whether texts are put in lower case before the tokenizer has them.
    pub(crate) lower_case: bool,
    pub(crate) prompts: Prompts,
}

/// What is put before a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prompts {
    pub(crate) query: String,
    pub(crate) document: String,
    /// For a text whose purpose nobody says.
    pub(crate) default: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
    problem_type: Option<String>,
    max_position_embeddings: Option<usize>,
    pad_token_id: Option<i64>,
    sbert_ce_default_activation_function: Option<String>,
    sentence_transformers: Option<CrossEncoderConfig>,
}

impl Config {
    fn architecture(&self) -> &str {
        self.architectures.iter().flatten().next().map(String::as_str).unwrap_or_default()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CrossEncoderConfig {
    activation_fn: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Module {
    #[serde(rename = "type")]
    ty: String,
    #[serde(default)]
    path: String,
}

impl Module {
    fn kind(&self) -> &str {
        self.ty.rsplit('.').next().unwrap_or_default()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SbertConfig {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    // Some say 1e30 for "no limit".
    model_max_length: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptConfig {
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

/// The folders of sentence-transformers' modules.
pub(crate) fn module_paths(root: &Path) -> Vec<String> {
    let modules: Vec<Module> = read_json(root, "modules.json").ok().flatten().unwrap_or_default();
    let inside = |path: &String| !path.is_empty() && !path.starts_with('/') && !path.contains("..");
    modules.into_iter().map(|module| module.path).filter(inside).collect()
}

impl Layout {
    /// What the files in `root` say of the graph that `outline` draws.
    pub(crate) fn read(root: &Path, outline: &Outline) -> Result<Self, FolderError> {
        if !outline.inputs.iter().any(|port| port.name == "input_ids") {
            let width = outline.outputs.last().and_then(Port::width);
            let names = |ports: &[Port]| ports.iter().map(|port| port.name.clone()).collect();
            let kind = Kind::Ports(names(&outline.inputs), names(&outline.outputs));
            return Ok(Self { task: Task::Tensor, kind, width });
        }
        let wrong = |why: String| FolderError(format!("the model in {} cannot be used: {why}", root.display()));
        if !is_there(root, "tokenizer.json")? {
            return Err(wrong("there is no tokenizer.json: save the model's fast tokenizer beside it".to_owned()));
        }
        let config: Config = read_json(root, "config.json")?.unwrap_or_default();
        if CausalLayout::describes(outline, config.architecture()) {
            let kind = Kind::Causal(CausalLayout::read(root, outline)?);
            return Ok(Self { task: Task::Generate, kind, width: None });
        }
        if let Some(port) = outline.inputs.iter().find(|port| !TEXT_INPUTS.contains(&port.name.as_str())) {
            return Err(wrong(format!(
                "it wants the input `{}`; a text model has {} and nothing else",
                port.name,
                TEXT_INPUTS.join(", ")
            )));
        }
        let (task, output, head) = read_head(root, outline, &config).map_err(wrong)?;
        let sbert: SbertConfig = read_json(root, "sentence_bert_config.json")?.unwrap_or_default();
        let text = TextLayout {
            max_tokens: max_tokens(root, &config, &sbert)?,
            pad_id: config.pad_token_id.unwrap_or(0),
            lower_case: sbert.do_lower_case,
            prompts: Prompts::read(root)?,
            output: output.name.clone(),
            head,
        };
        let width = match &text.head {
            Head::Labels { names, .. } => Some(names.len()),
            Head::Relevance { .. } => None,
            Head::Vector { .. } | Head::Sparse { .. } => output.width(),
        };
        Ok(Self { task, kind: Kind::Text(text), width })
    }

    pub(crate) fn description(&self) -> Description {
        let (max_tokens, inputs, outputs) = match &self.kind {
            Kind::Text(text) => (Some(text.max_tokens), Vec::new(), Vec::new()),
            Kind::Causal(causal) => (Some(causal.window), Vec::new(), Vec::new()),
            Kind::Ports(inputs, outputs) => (None, inputs.clone(), outputs.clone()),
        };
        Description { task: self.task, dimensions: self.width, max_tokens, inputs, outputs }
    }
}

/// The task, the output that serves it, and what is made of that output.
fn read_head<'o>(root: &Path, outline: &'o Outline, config: &Config) -> Result<(Task, &'o Port, Head), String> {
    let output = |names: &[&str]| outline.outputs.iter().find(|port| names.contains(&port.name.as_str()));
    let modules: Vec<Module> = read_json(root, "modules.json").map_err(|error| error.0)?.unwrap_or_default();
    if let Some(module) = modules.iter().find(|module| module.kind() == "SpladePooling") {
        let logits = output(&["logits"]).ok_or("a SPLADE model needs the output `logits`")?;
        return Ok((Task::Sparse, logits, read_splade(root, module)?));
    }
    if let Some(logits) = output(&["logits"]) {
        if config.architecture().ends_with("ForMaskedLM") && logits.rank().is_none_or(|rank| rank == 3) {
            return Ok((Task::Sparse, logits, Head::Sparse { pooling: SparsePooling::Max, twice: false }));
        }
        if logits.rank().is_some_and(|rank| rank != 2) {
            return Err(format!(
                "its output `logits` has {} dimensions: Nerve runs embedding models, cross-encoders, \
                                sequence classifiers, SPLADE and causal language models",
                logits.rank().unwrap_or_default()
            ));
        }
        return read_classifier(config, logits);
    }
    let normalise = modules.is_empty() || modules.iter().any(|module| module.kind() == "Normalize");
    if let Some(pooled) = output(&POOLED) {
        return Ok((Task::Embed, pooled, Head::Vector { pooling: Vec::new(), normalise }));
    }
    let Some(hidden) = output(&HIDDEN).or_else(|| outline.outputs.iter().find(|port| port.rank() == Some(3))) else {
        let names: Vec<&str> = outline.outputs.iter().map(|port| port.name.as_str()).collect();
        return Err(format!(
            "none of its outputs ({}) is one of last_hidden_state, sentence_embedding or logits",
            names.join(", ")
        ));
    };
    if let Some(module) = modules.iter().find(|m| !["Transformer", "Pooling", "Normalize"].contains(&m.kind())) {
        return Err(format!(
            "its module {} is not in the graph: export the whole model with the output sentence_embedding",
            module.kind()
        ));
    }
    let pooling = match modules.iter().find(|module| module.kind() == "Pooling") {
        Some(module) => read_pooling(root, module)?,
        None => vec![Pooling::Mean],
    };
    Ok((Task::Embed, hidden, Head::Vector { pooling, normalise }))
}

fn read_pooling(root: &Path, module: &Module) -> Result<Vec<Pooling>, String> {
    let name = format!("{}/config.json", module.path);
    let config: Option<BTreeMap<String, serde_json::Value>> = read_json(root, &name).map_err(|error| error.0)?;
    let config = config.ok_or_else(|| format!("modules.json names {name}, which is not there"))?;
    if config.get("include_prompt") == Some(&serde_json::Value::Bool(false)) {
        return Err(format!("{name} leaves the prompt out of pooling, which Nerve does not do"));
    }
    // Newer releases name the mode; older ones set a flag a mode.
    let named = config.get("pooling_mode").map(|mode| match mode {
        serde_json::Value::Array(modes) => modes.iter().filter_map(|mode| mode.as_str()).collect(),
        mode => mode.as_str().into_iter().collect::<Vec<_>>(),
    });
    let flagged = || {
        let set = |(key, value): (&'static str, _)| {
            config.get(key).and_then(|v| v.as_bool()).unwrap_or(false).then_some(value)
        };
        let flags = [
            ("pooling_mode_cls_token", "cls"),
            ("pooling_mode_max_tokens", "max"),
            ("pooling_mode_mean_tokens", "mean"),
            ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
            ("pooling_mode_weightedmean_tokens", "weightedmean"),
            ("pooling_mode_lasttoken", "lasttoken"),
        ];
        flags.into_iter().filter_map(set).collect::<Vec<&str>>()
    };
    let modes = named.unwrap_or_else(flagged);
    let pooling: Result<Vec<Pooling>, String> = modes.iter().map(|mode| mode.parse()).collect();
    match pooling {
        Ok(pooling) if pooling.is_empty() => Err(format!("{name} names no way of pooling")),
        other => other.map_err(|why| format!("{name}: {why}")),
    }
}

fn read_splade(root: &Path, module: &Module) -> Result<Head, String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Splade {
        pooling_strategy: Option<String>,
        activation_function: Option<String>,
    }
    let name = format!("{}/config.json", module.path);
    let config: Splade = read_json(root, &name).map_err(|error| error.0)?.unwrap_or_default();
    let pooling = match config.pooling_strategy.as_deref() {
        None | Some("max") => SparsePooling::Max,
        Some("sum") => SparsePooling::Sum,
        Some(other) => return Err(format!("{name}: `{other}` is not a pooling strategy: it is max or sum")),
    };
    let twice = match config.activation_function.as_deref() {
        None | Some("relu") => false,
        Some("log1p_relu") => true,
        Some(other) => return Err(format!("{name}: the activation `{other}` is not known: it is relu or log1p_relu")),
    };
    Ok(Head::Sparse { pooling, twice })
}

fn read_classifier<'o>(config: &Config, logits: &'o Port) -> Result<(Task, &'o Port, Head), String> {
    let named = config.id2label.as_ref().map(BTreeMap::len);
    let count = named.or(config.num_labels).or(logits.width());
    let Some(count) = count.filter(|count| *count > 0) else {
        return Err("config.json names no labels (id2label), and the graph does not say how many there are".to_owned());
    };
    if logits.width().is_some_and(|width| width != count) {
        let width = logits.width().unwrap_or_default();
        return Err(format!("config.json names {count} labels, and the graph gives {width}"));
    }
    if count == 1 {
        let own = config.sentence_transformers.as_ref().and_then(|config| config.activation_fn.as_deref());
        let function = own.or(config.sbert_ce_default_activation_function.as_deref()).unwrap_or("Sigmoid");
        let activation = match function.rsplit('.').next() {
            Some("Sigmoid") => Activation::Sigmoid,
            Some("Identity") => Activation::Identity,
            _ => return Err(format!("its activation `{function}` is not known: it is Sigmoid or Identity")),
        };
        return Ok((Task::Rerank, logits, Head::Relevance { activation }));
    }
    let name = |index: usize| {
        let label = config.id2label.as_ref().and_then(|labels| labels.get(&index.to_string()));
        label.cloned().unwrap_or_else(|| format!("LABEL_{index}"))
    };
    let many = config.problem_type.as_deref() == Some("multi_label_classification");
    let activation = if many { Activation::Sigmoid } else { Activation::Softmax };
    Ok((Task::Classify, logits, Head::Labels { names: (0..count).map(name).collect(), activation }))
}

/// The lowest of the limits that the files name.
fn max_tokens(root: &Path, config: &Config, sbert: &SbertConfig) -> Result<usize, FolderError> {
    let tokenizer: TokenizerConfig = read_json(root, "tokenizer_config.json")?.unwrap_or_default();
    // RoBERTa's positions begin after the padding token's, which takes two of them.
    let roberta = config.model_type.as_deref().is_some_and(|ty| ty.contains("roberta") || ty == "camembert");
    let positions = config.max_position_embeddings.map(|count| count - if roberta { 2.min(count) } else { 0 });
    let tokens = tokenizer.model_max_length.filter(|&length| (1.0..1e6).contains(&length));
    // The cast is exact: the number is whole or rounds down, and is between 1 and a million.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let tokens = tokens.map(|length| length as usize);
    let limits = [sbert.max_seq_length, tokens, positions];
    Ok(limits.into_iter().flatten().filter(|&limit| limit > 2).min().unwrap_or(MAX_TOKENS))
}

impl Prompts {
    fn read(root: &Path) -> Result<Self, FolderError> {
        let config: PromptConfig = read_json(root, "config_sentence_transformers.json")?.unwrap_or_default();
        let prompt =
            |names: &[&str]| names.iter().find_map(|name| config.prompts.get(*name)).cloned().unwrap_or_default();
        Ok(Self {
            query: prompt(&["query"]),
            document: prompt(&["document", "passage"]),
            default: config.default_prompt_name.as_deref().map(|name| prompt(&[name])).unwrap_or_default(),
        })
    }
}
