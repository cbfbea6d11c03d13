//! `rag/agent`: a question → `agent.step` → `tool.called.NAME` → `tool.returned` → `agent.step` → … →
//! `answer.generated`.
//!
//! # Layout
//! - `chat`: chat completion requests and decisions of the model.
//! - `state`: the agent's state, carried in its events.
//! - `tools`: validation of tool calls.
//!
//! # Flow
//! A question starts a conversation with the model. Each `agent.step` calls the model once; the model answers or names
//! tools. Tools are called one after another, one event each. The next step passes each result or error to the model.
//! The state is carried in the events, so any worker can run the next step, and a step interrupted by a crash runs
//! again.

mod chat;
mod state;
mod tools;

use crate::{
    function::{FunctionContext, invalid},
    generate::{self, Endpoint},
    usage::UsageTracker,
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{
    Context, Emission, Event, EventType, Fault, Function, FunctionError, Name, Outcome, Pattern,
    function::Emitter,
    tool::{self, Tool},
};
use nerve_events::{
    EventData,
    agent::{AgentState, AgentStep, PendingCall, ToolCalled, ToolReturned},
    answers::{AnswerGenerated, AnswerToken},
    documents::DEFAULT_COLLECTION,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::time::Duration;
use time::OffsetDateTime;
pub(crate) use tools::check_parameters;

/// Reads a chat completion and returns its number of tool calls and its reported token usage.
///
/// # Errors
/// If the completion cannot be read or has no choice.
pub(crate) fn read_completion(body: &[u8]) -> Result<(usize, usize), FunctionError> {
    let chat::Decision { calls, usage, .. } = chat::Decision::read(body, 1)?;
    Ok((calls.len(), usage.total()))
}

/// Event types that this function emits in addition to its result.
pub(crate) const AUXILIARY_OUTPUTS: &[&str] = &[AgentStep::TYPE, ToolCalled::TYPE, AnswerToken::TYPE];
/// Default of `system`.
const DEFAULT_SYSTEM_PROMPT: &str = "Answer the question. Use the tools where they tell more than you know, and say so where they do \
    not tell enough. Be brief.";
/// Maximum number of tool calls in one step.
const MAX_CALLS_PER_STEP: usize = 16;

/// `with` of `rag/agent`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AgentOptions {
    /// URL of an OpenAI-compatible endpoint, up to and including `/v1`.
    pub(crate) endpoint: String,
    /// Model to request from the endpoint.
    pub(crate) chat_model: String,
    pub(crate) system: String,
    /// Maximum number of tokens per step.
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f32,
    /// Names of the tools that the agent may call; `None` for every tool that `emits` covers.
    pub(crate) tools: Option<Vec<String>>,
    pub(crate) budget: Budget,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            chat_model: String::new(),
            system: DEFAULT_SYSTEM_PROMPT.to_owned(),
            max_tokens: 1024,
            temperature: 0.0,
            tools: None,
            budget: Budget::default(),
        }
    }
}

/// Limits of one question.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Budget {
    /// Maximum number of model calls.
    pub(crate) steps: usize,
    /// Maximum number of prompt and completion tokens.
    pub(crate) tokens: usize,
    /// Maximum time since the question.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub(crate) time: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { steps: 8, tokens: 20_000, time: Duration::from_secs(120) }
    }
}

impl AgentOptions {
    /// Checks the range of each option.
    ///
    /// # Errors
    /// Names the first option that is out of range.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Budget { steps, tokens, time } = self.budget;
        let checks = [
            (
                !self.endpoint.is_empty() && !self.chat_model.is_empty(),
                "`endpoint` and `chat_model` are required: the language model's URL and name".to_owned(),
            ),
            (
                (1..=32_768).contains(&self.max_tokens),
                format!("`max_tokens` is {}: it must be from 1 to 32768", self.max_tokens),
            ),
            ((0.0..=2.0).contains(&self.temperature), "`temperature` must be from 0 to 2".to_owned()),
            ((1..=100).contains(&steps), format!("`budget.steps` is {steps}: it must be from 1 to 100")),
            ((1..=10_000_000).contains(&tokens), format!("`budget.tokens` is {tokens}: it must be from 1 to 10000000")),
            (
                time <= Duration::from_secs(24 * 3600) && !time.is_zero(),
                "`budget.time` must be from above 0 to one day".to_owned(),
            ),
        ];
        checks
            .into_iter()
            .find(|(right, _)| !right)
            .map_or_else(|| generate::check_endpoint_url(&self.endpoint), |(_, why)| Err(why))
    }
}

/// The loaded function.
pub(crate) struct Agent {
    /// Name of the function.
    pub(crate) name: Name,
    pub(crate) context: FunctionContext,
    /// Event types that it may emit; they determine the tools that it may call.
    pub(crate) emits: Vec<Pattern>,
    pub(crate) endpoint: Endpoint,
    pub(crate) options: AgentOptions,
}

#[async_trait]
impl Function for Agent {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let (emitter, usage) = (context.emitter.as_ref(), &UsageTracker::of(&context));
        let each = batch.iter().enumerate().map(|(index, event)| {
            self.context.with_timeout(async move {
                match event.ty.as_str() {
                    AgentStep::TYPE => self.decide(event, (index, emitter), usage).await,
                    ToolReturned::TYPE => self.handle_result(event),
                    _ => self.start(event),
                }
            })
        });
        join_all(each).await
    }
}

impl Agent {
    /// Starts the conversation for a question.
    fn start(&self, event: &Event) -> Outcome {
        let data: Result<Map<String, Value>, _> = serde_json::from_slice(&event.data);
        let data = data.map_err(|error| invalid(format!("its data is not a question: {error}")))?;
        let state = state::initial(
            self.name.as_str(),
            data,
            &self.options.system,
            event.time.unwrap_or_else(OffsetDateTime::now_utc),
        );
        self.step(state.map_err(invalid)?)
    }

    fn step(&self, agent: AgentState) -> Outcome {
        let question = agent.question().to_owned();
        let step = AgentStep { question, agent: serde_json::to_value(&agent).map_err(crash)?, ..AgentStep::default() };
        Ok(vec![output(AgentStep::TYPE, &step)?])
    }

    /// Calls the model for its next decision.
    async fn decide(&self, event: &Event, (index, emitter): (usize, &dyn Emitter), usage: &UsageTracker) -> Outcome {
        let step: Result<AgentStep, _> = serde_json::from_slice(&event.data);
        let step = step.map_err(|error| invalid(format!("its data is not a step of an agent: {error}")))?;
        let Some(mut agent) = self.own_state(step.agent) else { return Ok(Vec::new()) };
        let budget = self.options.budget;
        if let Some(exhausted) = state::exhausted_budget(&agent, budget, OffsetDateTime::now_utc()) {
            let message = format!("The budget of {exhausted} was spent before the question was answered.");
            return self.finish(agent, (&message, false, "budget"), (index, emitter)).await;
        }
        let collection =
            agent.question_data.get("collection").and_then(Value::as_str).unwrap_or(DEFAULT_COLLECTION).to_owned();
        usage.check_tokens(&collection).await?;
        let tools = self.tools(emitter);
        let remaining_tokens = budget.tokens.saturating_sub(agent.usage.total()).max(1);
        let decision = self.endpoint.complete(&self.request(&agent, &tools, remaining_tokens)).await?;
        let decision = chat::Decision::read(&decision, agent.steps)?;
        agent.steps += 1;
        agent.usage.add(decision.usage);
        usage.count_tokens(&collection, decision.usage.total()).await;
        if decision.calls.is_empty() {
            let answered = !decision.text.trim().is_empty();
            return self.finish(agent, (&decision.text, answered, &decision.finish), (index, emitter)).await;
        }
        agent.messages.push(decision.message());
        for (position, call) in decision.calls.into_iter().enumerate() {
            let checked = match position < MAX_CALLS_PER_STEP {
                true => tools::check_call(&tools, &call),
                false => Err(format!("only {MAX_CALLS_PER_STEP} tool calls are allowed per step")),
            };
            match checked {
                Ok(arguments) => agent.pending.push(PendingCall { call: call.id, tool: call.name, arguments }),
                // The model receives the error as if the tool had returned it.
                Err(why) => agent.messages.push(chat::tool_message(&call.id, &format!("Error: {why}"))),
            }
        }
        self.call_next_tool(agent)
    }

    /// Passes the result or error of a tool to the model.
    fn handle_result(&self, event: &Event) -> Outcome {
        let returned: Result<ToolReturned, _> = serde_json::from_slice(&event.data);
        let returned = returned.map_err(|error| invalid(format!("its data is not a tool result: {error}")))?;
        let Some(mut agent) = self.own_state(returned.agent) else { return Ok(Vec::new()) };
        let text = match (returned.error, returned.result) {
            (Some(why), _) => format!("Error: {why}"),
            (None, Some(Value::String(text))) => text,
            (None, result) => result.unwrap_or_default().to_string(),
        };
        agent.messages.push(chat::tool_message(&returned.call, &text));
        self.call_next_tool(agent)
    }

    /// The state, if it is this agent's. Other agents take steps and call tools too.
    fn own_state(&self, state: Value) -> Option<AgentState> {
        let state = serde_json::from_value::<AgentState>(state).ok();
        state.filter(|state| state.agent_name == self.name.as_str())
    }

    /// Calls the next pending tool, or starts the next step if none is pending.
    fn call_next_tool(&self, mut agent: AgentState) -> Outcome {
        if agent.pending.is_empty() {
            return self.step(agent);
        }
        let PendingCall { call, tool, arguments } = agent.pending.remove(0);
        agent.called.push(tool.clone());
        let agent = serde_json::to_value(&agent).map_err(crash)?;
        Ok(vec![output(&format!("{}{tool}", tool::CALL_TYPE_PREFIX), &ToolCalled { call, tool, arguments, agent })?])
    }

    async fn finish(
        &self,
        agent: AgentState,
        (text, answered, finish): (&str, bool, &str),
        (index, emitter): (usize, &dyn Emitter),
    ) -> Outcome {
        if self.emits.iter().any(|pattern| pattern.covers(AnswerToken::TYPE)) && !text.is_empty() {
            let token = AnswerToken { text: text.to_owned() };
            emitter.emit(index, output(AnswerToken::TYPE, &token)?).await?;
        }
        // The data of the question as it came, without fields that describe an answer.
        let mut rest = agent.question_data;
        AnswerGenerated::remove_own_fields(&mut rest);
        rest.insert("steps".to_owned(), agent.steps.into());
        rest.insert("tools".to_owned(), agent.called.into());
        let answer = AnswerGenerated {
            question: match rest.remove("question") {
                Some(Value::String(question)) => Some(question),
                _ => None,
            },
            answer: text.to_owned(),
            answered,
            generator: Some(self.endpoint.model().to_owned()),
            finish: Some(finish.to_owned()),
            usage: Some(agent.usage),
            rest,
            ..AnswerGenerated::default()
        };
        Ok(vec![output(self.context.emits.as_str(), &answer)?])
    }

    /// Deployed tools that `emits` and `tools` allow.
    fn tools(&self, emitter: &dyn Emitter) -> Vec<Tool> {
        let mut tools = emitter.tools();
        tools.retain(|tool| {
            let may =
                self.emits.iter().any(|pattern| pattern.covers(&format!("{}{}", tool::CALL_TYPE_PREFIX, tool.name)));
            may && self.options.tools.as_ref().is_none_or(|named| named.contains(&tool.name))
        });
        tools
    }

    fn request(&self, agent: &AgentState, tools: &[Tool], remaining_tokens: usize) -> Value {
        let mut request = json!({
            "model": self.endpoint.model(), "messages": agent.messages, "stream": false,
            "temperature": self.options.temperature, "max_tokens": self.options.max_tokens.min(remaining_tokens),
        });
        if let (Value::Object(fields), false) = (&mut request, tools.is_empty()) {
            fields.insert("tools".to_owned(), tools.iter().map(chat::tool_definition).collect());
        }
        request
    }
}

fn crash(error: impl std::fmt::Display) -> FunctionError {
    FunctionError::new(Fault::Crash, error.to_string())
}

fn output(ty: &str, data: &impl Serialize) -> Result<Emission, FunctionError> {
    let data = serde_json::to_vec(data).map_err(crash)?;
    let ty = EventType::parse(ty).map_err(crash)?;
    Ok(Emission { ty, data: data.into(), content_type: None, subject: None, partition_key: None })
}

#[cfg(test)]
mod tests;
