//! `rag/agent`: a question → `agent.step` → `tool.called.NAME` → `tool.returned` → `agent.step` → … → `answer.generated`.
//!
//! # Layout
//! - `chat`: what a language model is asked, and what it decides.
//! - `state`: what an agent knows, as it travels in its events.
//! - `tools`: which tools it may call, and whether a call fits one.
//!
//! # Flow
//! A question begins a conversation with the model. Each `agent.step` asks the model once: it answers, or names tools.
//! Those are called one after another, each by an event; what a tool returns, or why it cannot, is told to the model
//! in the next step. Everything an agent knows is in its events, so that any worker does the next step, and after a
//! crash the step that was cut off is done again.

mod chat;
mod state;
mod tools;

use crate::{
    accounts::Accounts,
    function::{Frame, invalid},
    generate::{self, Endpoint},
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{
    Context, Emission, Event, EventType, Fault, Function, FunctionError, Name, Outcome, Pattern, answer,
    function::Emitter,
    tool::{self, Tool, ToolCall, ToolResult},
};
use nerve_index::document::DEFAULT_COLLECTION;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use state::{Knowledge, Pending};
use std::time::Duration;
use time::OffsetDateTime;
pub(crate) use tools::check_parameters;

/// Reads a chat completion: how many tool calls are in it, and how many tokens it says to have cost.
pub(crate) fn read_completion(body: &[u8]) -> Result<(usize, usize), FunctionError> {
    let chat::Decision { calls, usage, .. } = chat::Decision::read(body, 1)?;
    Ok((calls.len(), usage.prompt_tokens + usage.completion_tokens))
}

/// Type: what comes next is to be decided.
pub(crate) const STEP: &str = tool::STEP;
/// The types that this function emits besides its result.
pub(crate) const SIDE: &[&str] = &[STEP, "tool.called.*", answer::TOKEN];
/// What a model is told before anything else, where nerve.toml says nothing else.
const SYSTEM: &str = "Answer the question. Use the tools where they tell more than you know, and say so where they do \
    not tell enough. Be brief.";
/// Tools that one step may call.
const CALLS: usize = 16;

/// `with` of `rag/agent`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AgentOptions {
    /// Where an endpoint with OpenAI's chat completions is, up to and with `/v1`.
    pub(crate) endpoint: String,
    /// The model to ask for there.
    pub(crate) chat_model: String,
    pub(crate) system: String,
    /// The most tokens of one step.
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f32,
    /// The tools that it may call, by name; all that `emits` covers where none is named.
    pub(crate) tools: Option<Vec<String>>,
    pub(crate) budget: Budget,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            chat_model: String::new(),
            system: SYSTEM.to_owned(),
            max_tokens: 1024,
            temperature: 0.0,
            tools: None,
            budget: Budget::default(),
        }
    }
}

/// What one question may cost.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Budget {
    /// Times that the model is asked.
    pub(crate) steps: usize,
    /// Tokens that it reads and writes in all.
    pub(crate) tokens: usize,
    /// From the question on.
    #[serde(deserialize_with = "duration")]
    pub(crate) time: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { steps: 8, tokens: 20_000, time: Duration::from_secs(120) }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|_| serde::de::Error::custom(format!("`{text}` is not a duration")))
}

impl AgentOptions {
    /// Says which option is out of its bounds.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Budget { steps, tokens, time } = self.budget;
        let bounds = [
            (
                !self.endpoint.is_empty() && !self.chat_model.is_empty(),
                "say `endpoint` and `chat_model`: where the language model is, and which".to_owned(),
            ),
            ((1..=32_768).contains(&self.max_tokens), format!("`max_tokens` is {}: from 1 to 32768", self.max_tokens)),
            ((0.0..=2.0).contains(&self.temperature), "`temperature` must be from 0 to 2".to_owned()),
            ((1..=100).contains(&steps), format!("`budget.steps` is {steps}: from 1 to 100")),
            ((1..=10_000_000).contains(&tokens), format!("`budget.tokens` is {tokens}: from 1 to 10000000")),
            (time <= Duration::from_secs(24 * 3600) && !time.is_zero(), "`budget.time` must be up to a day".to_owned()),
        ];
        bounds
            .into_iter()
            .find(|(right, _)| !right)
            .map_or_else(|| generate::check_endpoint(&self.endpoint), |(_, why)| Err(why))
    }
}

/// The function, loaded.
pub(crate) struct Agent {
    /// The function's name.
    pub(crate) name: Name,
    pub(crate) frame: Frame,
    /// What it may emit, and so which tools it may call.
    pub(crate) emits: Vec<Pattern>,
    pub(crate) endpoint: Endpoint,
    pub(crate) options: AgentOptions,
}

/// The data of `agent.step`.
#[derive(Serialize, Deserialize)]
struct Step {
    question: String,
    agent: Knowledge,
}

/// The end of a question.
#[derive(Serialize)]
struct Answered<'a> {
    #[serde(flatten)]
    asked: &'a Map<String, Value>,
    answer: &'a str,
    answered: bool,
    citations: [(); 0],
    context: [(); 0],
    generator: &'a str,
    finish: &'a str,
    usage: generate::Usage,
    /// Times that the model was asked.
    steps: usize,
    /// The tools that were called, in their order.
    tools: &'a [String],
}

#[async_trait]
impl Function for Agent {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let (emitter, accounts) = (context.emitter.as_ref(), &Accounts::of(&context));
        let each = batch.iter().enumerate().map(|(index, event)| {
            self.frame.within(async move {
                match event.ty.as_str() {
                    STEP => self.decide(event, (index, emitter), accounts).await,
                    tool::RETURNED => self.observe(event),
                    _ => self.begin(event),
                }
            })
        });
        join_all(each).await
    }
}

impl Agent {
    /// A question: the conversation with the model begins.
    fn begin(&self, event: &Event) -> Outcome {
        let asked: Result<Map<String, Value>, _> = serde_json::from_slice(&event.data);
        let asked = asked.map_err(|error| invalid(format!("its data is not a question: {error}")))?;
        let knowledge = Knowledge::begun(
            self.name.as_str(),
            asked,
            &self.options.system,
            event.time.unwrap_or_else(OffsetDateTime::now_utc),
        );
        self.step(knowledge.map_err(invalid)?)
    }

    fn step(&self, agent: Knowledge) -> Outcome {
        Ok(vec![emission(STEP, &Step { question: agent.question().to_owned(), agent })?])
    }

    /// Asks the model what comes next.
    async fn decide(&self, event: &Event, (index, emitter): (usize, &dyn Emitter), accounts: &Accounts) -> Outcome {
        let step: Result<Step, _> = serde_json::from_slice(&event.data);
        let Step { mut agent, .. } =
            step.map_err(|error| invalid(format!("its data is not a step of an agent: {error}")))?;
        if agent.by != self.name.as_str() {
            return Ok(Vec::new());
        }
        let budget = self.options.budget;
        if let Some(spent) = agent.spent(budget, OffsetDateTime::now_utc()) {
            let said = format!("The budget of {spent} was spent before the question was answered.");
            return self.finish(agent, (&said, false, "budget"), (index, emitter)).await;
        }
        let collection = agent.asked.get("collection").and_then(Value::as_str).unwrap_or(DEFAULT_COLLECTION).to_owned();
        accounts.check_tokens(&collection).await?;
        let tools = self.tools(emitter);
        let left = budget.tokens.saturating_sub(agent.tokens()).max(1);
        let decided = self.endpoint.complete(&self.request(&agent, &tools, left)).await?;
        let decided = chat::Decision::read(&decided, agent.steps)?;
        agent.steps += 1;
        agent.add(decided.usage);
        let tokens = decided.usage.prompt_tokens.saturating_add(decided.usage.completion_tokens);
        accounts.count_tokens(&collection, tokens).await;
        if decided.calls.is_empty() {
            let answered = !decided.text.trim().is_empty();
            return self.finish(agent, (&decided.text, answered, &decided.finish), (index, emitter)).await;
        }
        agent.messages.push(decided.message());
        for (place, call) in decided.calls.into_iter().enumerate() {
            let checked = match place < CALLS {
                true => tools::check(&tools, &call),
                false => Err(format!("only {CALLS} tools are called in one step")),
            };
            match checked {
                Ok(arguments) => agent.pending.push(Pending { call: call.id, tool: call.name, arguments }),
                // The model is told, as it would be by the tool itself.
                Err(why) => agent.messages.push(chat::told(&call.id, &format!("Error: {why}"))),
            }
        }
        self.go_on(agent)
    }

    /// What a tool returned, or why it cannot, is told to the model.
    fn observe(&self, event: &Event) -> Outcome {
        let returned: Result<ToolResult, _> = serde_json::from_slice(&event.data);
        let returned = returned.map_err(|error| invalid(format!("its data is not what a tool returns: {error}")))?;
        // Others call tools too.
        let agent = serde_json::from_value::<Knowledge>(returned.agent).ok();
        let Some(mut agent) = agent.filter(|agent| agent.by == self.name.as_str()) else { return Ok(Vec::new()) };
        let text = match (returned.error, returned.result) {
            (Some(why), _) => format!("Error: {why}"),
            (None, Some(Value::String(text))) => text,
            (None, result) => result.unwrap_or_default().to_string(),
        };
        agent.messages.push(chat::told(&returned.call, &text));
        self.go_on(agent)
    }

    /// Calls the next tool that the model named, or, where none is left, asks the model again.
    fn go_on(&self, mut agent: Knowledge) -> Outcome {
        if agent.pending.is_empty() {
            return self.step(agent);
        }
        let Pending { call, tool, arguments } = agent.pending.remove(0);
        agent.called.push(tool.clone());
        let agent = serde_json::to_value(&agent).map_err(crash)?;
        Ok(vec![emission(&format!("{}{tool}", tool::CALL_TYPE_PREFIX), &ToolCall { call, tool, arguments, agent })?])
    }

    async fn finish(
        &self,
        agent: Knowledge,
        (text, answered, finish): (&str, bool, &str),
        (index, emitter): (usize, &dyn Emitter),
    ) -> Outcome {
        if self.emits.iter().any(|pattern| pattern.covers(answer::TOKEN)) && !text.is_empty() {
            emitter.emit(index, emission(answer::TOKEN, &json!({ "text": text }))?).await?;
        }
        let told = Answered {
            asked: &agent.asked,
            answer: text,
            answered,
            citations: [],
            context: [],
            generator: self.endpoint.model(),
            finish,
            usage: agent.usage,
            steps: agent.steps,
            tools: &agent.called,
        };
        Ok(vec![emission(self.frame.emits.as_str(), &told)?])
    }

    /// The tools that are deployed, as far as nerve.toml lets this function call them.
    fn tools(&self, emitter: &dyn Emitter) -> Vec<Tool> {
        let mut tools = emitter.tools();
        tools.retain(|tool| {
            let may =
                self.emits.iter().any(|pattern| pattern.covers(&format!("{}{}", tool::CALL_TYPE_PREFIX, tool.name)));
            may && self.options.tools.as_ref().is_none_or(|named| named.contains(&tool.name))
        });
        tools
    }

    fn request(&self, agent: &Knowledge, tools: &[Tool], left: usize) -> Value {
        let mut request = json!({
            "model": self.endpoint.model(), "messages": agent.messages, "stream": false,
            "temperature": self.options.temperature, "max_tokens": self.options.max_tokens.min(left),
        });
        if let (Value::Object(fields), false) = (&mut request, tools.is_empty()) {
            fields.insert("tools".to_owned(), tools.iter().map(chat::described).collect());
        }
        request
    }
}

fn crash(error: impl std::fmt::Display) -> FunctionError {
    FunctionError::new(Fault::Crash, error.to_string())
}

fn emission(ty: &str, data: &impl Serialize) -> Result<Emission, FunctionError> {
    let data = serde_json::to_vec(data).map_err(crash)?;
    let ty = EventType::parse(ty).map_err(crash)?;
    Ok(Emission { ty, data: data.into(), content_type: None, subject: None, partition_key: None })
}

#[cfg(test)]
mod tests;
