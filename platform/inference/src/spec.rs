//! Use of a model, from the files that Hugging Face and sentence-transformers store beside it.

use crate::{
    causal::spec::CausalSpec,
    files::{ModelError, is_there, read_json},
    head::{Activation, Head, Pooling, SparsePooling},
    signature::{GraphSignature, Port},
    task::{Description, Task},
};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

/// Possible inputs of a text model.
const TEXT_INPUTS: [&str; 4] = ["input_ids", "attention_mask", "token_type_ids", "position_ids"];
/// Outputs with one vector per text.
const POOLED_OUTPUTS: [&str; 3] = ["sentence_embedding", "text_embeds", "pooled_embedding"];
/// Outputs with one vector per token.
const HIDDEN_OUTPUTS: [&str; 2] = ["last_hidden_state", "token_embeddings"];
/// Maximum number of tokens of a model that declares no limit.
const DEFAULT_MAX_TOKENS: usize = 512;

/// Specification of a model: task and use of its graph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelSpec {
    pub(crate) task: Task,
    pub(crate) kind: ModelKind,
    width: Option<usize>,
}

/// Kind of model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ModelKind {
    /// A text model.
    Text(TextSpec),
    /// A causal language model.
    Causal(CausalSpec),
    /// A tabular model: names of its graph's inputs and outputs.
    Tabular(Vec<String>, Vec<String>),
}

/// Inputs and output head of a text model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TextSpec {
    /// The output to read.
    pub(crate) output: String,
    pub(crate) head: Head,
    /// Maximum number of tokens of a text, including special tokens.
    pub(crate) max_tokens: usize,
    pub(crate) pad_id: i64,
    /// Whether to convert texts to lower case before tokenizing.
    pub(crate) lower_case: bool,
    pub(crate) prompts: Prompts,
}

/// Prompts of an embedding model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prompts {
    pub(crate) query: String,
    pub(crate) document: String,
    /// Prompt of a text without a purpose.
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
    // Some files have 1e30 for no limit.
    model_max_length: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptConfig {
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

/// Folders of sentence-transformers modules.
pub(crate) fn module_paths(root: &Path) -> Vec<String> {
    let modules: Vec<Module> = read_json(root, "modules.json").ok().flatten().unwrap_or_default();
    let inside = |path: &String| !path.is_empty() && !path.starts_with('/') && !path.contains("..");
    modules.into_iter().map(|module| module.path).filter(inside).collect()
}

impl ModelSpec {
    /// Reads the specification of the graph from the files in `root`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the model is not supported.
    pub(crate) fn read(root: &Path, signature: &GraphSignature) -> Result<Self, ModelError> {
        if !signature.inputs.iter().any(|port| port.name == "input_ids") {
            let width = signature.outputs.last().and_then(Port::width);
            let names = |ports: &[Port]| ports.iter().map(|port| port.name.clone()).collect();
            let kind = ModelKind::Tabular(names(&signature.inputs), names(&signature.outputs));
            return Ok(Self { task: Task::Tensor, kind, width });
        }
        let unusable = |why: String| ModelError(format!("the model in {} cannot be used: {why}", root.display()));
        if !is_there(root, "tokenizer.json")? {
            return Err(unusable("it has no tokenizer.json: save the model's fast tokenizer beside it".to_owned()));
        }
        let config: Config = read_json(root, "config.json")?.unwrap_or_default();
        if CausalSpec::describes(signature, config.architecture()) {
            let kind = ModelKind::Causal(CausalSpec::read(root, signature)?);
            return Ok(Self { task: Task::Generate, kind, width: None });
        }
        if let Some(port) = signature.inputs.iter().find(|port| !TEXT_INPUTS.contains(&port.name.as_str())) {
            return Err(unusable(format!(
                "it requires the input `{}`; a text model may only have {}",
                port.name,
                TEXT_INPUTS.join(", ")
            )));
        }
        let (task, output, head) = read_head(root, signature, &config).map_err(unusable)?;
        let sbert: SbertConfig = read_json(root, "sentence_bert_config.json")?.unwrap_or_default();
        let text = TextSpec {
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
        Ok(Self { task, kind: ModelKind::Text(text), width })
    }

    pub(crate) fn description(&self) -> Description {
        let (max_tokens, inputs, outputs) = match &self.kind {
            ModelKind::Text(text) => (Some(text.max_tokens), Vec::new(), Vec::new()),
            ModelKind::Causal(causal) => (Some(causal.window), Vec::new(), Vec::new()),
            ModelKind::Tabular(inputs, outputs) => (None, inputs.clone(), outputs.clone()),
        };
        Description { task: self.task, dimensions: self.width, max_tokens, inputs, outputs }
    }
}

/// The task, the output to read, and the output head.
fn read_head<'o>(
    root: &Path,
    signature: &'o GraphSignature,
    config: &Config,
) -> Result<(Task, &'o Port, Head), String> {
    let output = |names: &[&str]| signature.outputs.iter().find(|port| names.contains(&port.name.as_str()));
    let modules: Vec<Module> = read_json(root, "modules.json").map_err(|error| error.0)?.unwrap_or_default();
    if let Some(module) = modules.iter().find(|module| module.kind() == "SpladePooling") {
        let logits = output(&["logits"]).ok_or("a SPLADE model needs the output `logits`")?;
        return Ok((Task::Sparse, logits, read_splade(root, module)?));
    }
    if let Some(logits) = output(&["logits"]) {
        if config.architecture().ends_with("ForMaskedLM") && logits.rank().is_none_or(|rank| rank == 3) {
            return Ok((Task::Sparse, logits, Head::Sparse { pooling: SparsePooling::Max, double_log: false }));
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
    let normalize = modules.is_empty() || modules.iter().any(|module| module.kind() == "Normalize");
    if let Some(pooled) = output(&POOLED_OUTPUTS) {
        return Ok((Task::Embed, pooled, Head::Vector { pooling: Vec::new(), normalize }));
    }
    let Some(hidden) = output(&HIDDEN_OUTPUTS).or_else(|| signature.outputs.iter().find(|port| port.rank() == Some(3)))
    else {
        let names: Vec<&str> = signature.outputs.iter().map(|port| port.name.as_str()).collect();
        return Err(format!(
            "none of its outputs ({}) is one of last_hidden_state, sentence_embedding or logits",
            names.join(", ")
        ));
    };
    if let Some(module) = modules.iter().find(|m| !["Transformer", "Pooling", "Normalize"].contains(&m.kind())) {
        return Err(format!(
            "its module {} is not part of the graph: export the whole model with the output sentence_embedding",
            module.kind()
        ));
    }
    let pooling = match modules.iter().find(|module| module.kind() == "Pooling") {
        Some(module) => read_pooling(root, module)?,
        None => vec![Pooling::Mean],
    };
    Ok((Task::Embed, hidden, Head::Vector { pooling, normalize }))
}

fn read_pooling(root: &Path, module: &Module) -> Result<Vec<Pooling>, String> {
    let name = format!("{}/config.json", module.path);
    let config: Option<BTreeMap<String, serde_json::Value>> = read_json(root, &name).map_err(|error| error.0)?;
    let config = config.ok_or_else(|| format!("modules.json names {name}, which is missing"))?;
    if config.get("include_prompt") == Some(&serde_json::Value::Bool(false)) {
        return Err(format!("{name} excludes the prompt from pooling, which is not supported"));
    }
    // Newer releases name the mode; older ones set one flag per mode.
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
        Ok(pooling) if pooling.is_empty() => Err(format!("{name} has no pooling mode")),
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
        Some(other) => return Err(format!("{name}: `{other}` is not a pooling strategy: it must be max or sum")),
    };
    let double_log = match config.activation_function.as_deref() {
        None | Some("relu") => false,
        Some("log1p_relu") => true,
        Some(other) => {
            return Err(format!("{name}: the activation `{other}` is not supported: it must be relu or log1p_relu"));
        }
    };
    Ok(Head::Sparse { pooling, double_log })
}

fn read_classifier<'o>(config: &Config, logits: &'o Port) -> Result<(Task, &'o Port, Head), String> {
    let named = config.id2label.as_ref().map(BTreeMap::len);
    let count = named.or(config.num_labels).or(logits.width());
    let Some(count) = count.filter(|count| *count > 0) else {
        return Err("config.json has no labels (id2label), and the graph does not declare their number".to_owned());
    };
    if logits.width().is_some_and(|width| width != count) {
        let width = logits.width().unwrap_or_default();
        return Err(format!("config.json has {count} labels, but the graph has {width}"));
    }
    if count == 1 {
        let own = config.sentence_transformers.as_ref().and_then(|config| config.activation_fn.as_deref());
        let function = own.or(config.sbert_ce_default_activation_function.as_deref()).unwrap_or("Sigmoid");
        let activation = match function.rsplit('.').next() {
            Some("Sigmoid") => Activation::Sigmoid,
            Some("Identity") => Activation::Identity,
            _ => return Err(format!("its activation `{function}` is not supported: it must be Sigmoid or Identity")),
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

/// The lowest declared limit.
fn max_tokens(root: &Path, config: &Config, sbert: &SbertConfig) -> Result<usize, ModelError> {
    let tokenizer: TokenizerConfig = read_json(root, "tokenizer_config.json")?.unwrap_or_default();
    // RoBERTa's positions start after the padding token's, which reserves two.
    let roberta = config.model_type.as_deref().is_some_and(|ty| ty.contains("roberta") || ty == "camembert");
    let positions = config.max_position_embeddings.map(|count| count - if roberta { 2.min(count) } else { 0 });
    let tokens = tokenizer.model_max_length.filter(|&length| (1.0..1e6).contains(&length));
    // Exact: the number is between 1 and a million, and rounds down.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let tokens = tokens.map(|length| length as usize);
    let limits = [sbert.max_seq_length, tokens, positions];
    Ok(limits.into_iter().flatten().filter(|&limit| limit > 2).min().unwrap_or(DEFAULT_MAX_TOKENS))
}

impl Prompts {
    fn read(root: &Path) -> Result<Self, ModelError> {
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
