//! `POST /v1/chat/completions`: an answer in OpenAI's shape (Chat Completions API), whole or streamed.

use crate::{
    Gateway,
    api::{
        answers::{
            ANSWER_PROBLEMS, QUESTION_PROBLEMS, failure, json,
            prompt::{Question, QuestionRequest},
            stream::{AnswerStream, Step},
        },
        auth::Caller,
        idempotency::{Keyed, Once},
        openapi::Docs,
        sse::{self, Frame, Frames, HEARTBEAT},
    },
    http::problem::{HttpResult, Problem},
};
use axum::{
    body::Body,
    extract::{Extension, Request, State},
};
use bytes::Bytes;
use http::StatusCode;
use nerve_core::answer::Part;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// Model options that are passed through to the generating function.
const MODEL_OPTIONS: [&str; 6] = ["temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop"];

/// A request for a chat completion; other fields are options of the model, or ignored.
#[derive(Debug, Deserialize, ToSchema)]
struct ChatRequest {
    /// The last message of the user is the question.
    messages: Vec<Message>,
    #[serde(default)]
    model: String,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    stream_options: StreamOptions,
    /// OpenAI's field for custom data: here `collection` and `conversation`.
    #[serde(default)]
    #[schema(value_type = HashMap<String, Value>)]
    metadata: Map<String, Value>,
    /// The number of choices: 1.
    #[serde(default)]
    n: Option<u32>,
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    rest: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
struct StreamOptions {
    /// Whether the last chunk has the token counts.
    #[serde(default)]
    include_usage: bool,
}

/// A message of the conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatMessage)]
struct Message {
    role: String,
    /// A text, or a list of parts.
    #[serde(default)]
    content: Value,
}

impl Message {
    /// The text of a message, whose content is a string or a list of parts.
    fn text(&self) -> String {
        match &self.content {
            Value::String(text) => text.clone(),
            Value::Array(parts) => {
                let texts = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
                texts.collect::<Vec<_>>().join("\n")
            }
            _ => String::new(),
        }
    }
}

/// Answers the last message of the user, with the messages before it as the conversation.
pub(crate) async fn post(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> HttpResult {
    let (parts, body) = gateway.read_api(request).await?;
    let request: ChatRequest = body.json("request")?;
    let (stream, usage) = (request.stream, request.stream_options.include_usage);
    let (model, question) = request.question()?;
    let question = Question::of(question, &caller)?;
    let keyed = Keyed { caller: &caller, route: "POST /v1/chat/completions", head: &parts, body: &body.bytes };
    let once = Once::open(gateway.bus(), keyed).await?;
    let prompt = question.prompt(once.id())?;
    let answer_stream = super::start(&gateway, &caller, &prompt, once).await?;
    let head = Head { id: prompt.event.id, model, created: OffsetDateTime::now_utc().unix_timestamp() };
    if stream {
        return Ok(sse::response(ChatStream { head, answer_stream, usage, state: Progress::Begin, has_text: false }));
    }
    Ok(json(StatusCode::OK, &head.completion(&answer_stream.whole().await?)))
}

impl ChatRequest {
    /// The model's name and the question.
    fn question(self) -> HttpResult<(String, QuestionRequest)> {
        if self.n.is_some_and(|n| n != 1) {
            return Err(Problem::invalid_request("`n` must be 1"));
        }
        let Some(last) = self.messages.iter().rposition(|message| message.role == "user") else {
            return Err(Problem::invalid_request("`messages` has no message with the role `user`"));
        };
        let message_of = |message: &Message| json!({"role": message.role, "content": message.text()});
        let before: Vec<Value> = self.messages.iter().take(last).map(message_of).collect();
        let question = self.messages.get(last).map(Message::text).unwrap_or_default();
        let mut rest = Map::new();
        if !before.is_empty() {
            rest.insert("messages".to_owned(), before.into());
        }
        if let Some(conversation) = self.metadata.get("conversation") {
            rest.insert("conversation".to_owned(), conversation.clone());
        }
        let options =
            self.rest.into_iter().filter(|(name, value)| MODEL_OPTIONS.contains(&name.as_str()) && !value.is_null());
        let options: Map<String, Value> = options.collect();
        if !options.is_empty() {
            rest.insert("options".to_owned(), options.into());
        }
        let collection = self.metadata.get("collection").and_then(Value::as_str).map(str::to_owned);
        Ok((self.model, QuestionRequest { question, collection, limit: None, stream: None, rest }))
    }
}

/// A complete answer in OpenAI's shape.
#[derive(Serialize, ToSchema)]
struct ChatCompletion<'a> {
    id: String,
    object: &'static str,
    /// Seconds since 1970.
    created: i64,
    /// The model of the request.
    model: &'a str,
    #[schema(value_type = Vec<Choice>)]
    choices: [Choice<'a>; 1],
    usage: Usage,
    /// The documents that the answer cites.
    citations: Vec<Value>,
}

#[derive(Serialize, ToSchema)]
struct Choice<'a> {
    index: u32,
    message: CompletionMessage<'a>,
    finish_reason: &'a str,
    /// Always null.
    logprobs: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct CompletionMessage<'a> {
    role: &'static str,
    content: &'a str,
    /// Always null.
    refusal: Option<&'a str>,
}

/// Token counts.
#[derive(Serialize, ToSchema)]
#[schema(as = ChatUsage)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

/// The documentation of [`post`].
pub(crate) fn docs(docs: Docs) -> Docs {
    let described = "The completion, or its chunks with `stream`";
    docs.body::<ChatRequest>()
        .json::<ChatCompletion<'_>>(200, described)
        .stream(200, described)
        .problems(ANSWER_PROBLEMS)
        .problems(QUESTION_PROBLEMS)
        .idempotent()
}

/// The fields that all chunks of a completion share.
struct Head {
    id: String,
    model: String,
    created: i64,
}

impl Head {
    fn object(&self, kind: &str, choice: Value) -> Value {
        json!({
            "id": format!("chatcmpl-{}", self.id), "object": kind, "created": self.created, "model": self.model,
            "choices": [choice],
        })
    }

    fn chunk(&self, delta: Value, finish: Option<&str>) -> Value {
        self.object("chat.completion.chunk", json!({"index": 0, "delta": delta, "finish_reason": finish}))
    }

    fn completion<'a>(&'a self, answer: &'a Value) -> ChatCompletion<'a> {
        let content = answer.get("answer").and_then(Value::as_str).unwrap_or_default();
        let message = CompletionMessage { role: "assistant", content, refusal: None };
        ChatCompletion {
            id: format!("chatcmpl-{}", self.id),
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: [Choice { index: 0, message, finish_reason: finish_of(answer), logprobs: None }],
            usage: usage_of(answer),
            citations: citations_of(answer),
        }
    }
}

fn finish_of(answer: &Value) -> &str {
    answer.get("finish").and_then(Value::as_str).unwrap_or("stop")
}

fn citations_of(answer: &Value) -> Vec<Value> {
    answer.get("citations").and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Token counts; zero for an extractive answer.
fn usage_of(answer: &Value) -> Usage {
    let count = |name: &str| answer.pointer(&format!("/usage/{name}")).and_then(Value::as_u64).unwrap_or_default();
    let (prompt, completion) = (count("prompt_tokens"), count("completion_tokens"));
    Usage { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion }
}

/// The state of a stream of chunks.
enum Progress {
    Begin,
    Parts,
    /// The answer is complete; these frames follow.
    Rest(Vec<Bytes>),
}

struct ChatStream {
    head: Head,
    answer_stream: AnswerStream,
    /// Whether the last chunk has the token counts.
    usage: bool,
    state: Progress,
    /// Whether any text was sent.
    has_text: bool,
}

fn frame(value: &Value) -> Bytes {
    Frame { data: &value.to_string(), ..Frame::default() }.to_bytes()
}

impl Frames for ChatStream {
    async fn next_frame(&mut self) -> Option<Bytes> {
        match &mut self.state {
            Progress::Begin => {
                self.state = Progress::Parts;
                return Some(frame(&self.head.chunk(json!({"role": "assistant", "content": ""}), None)));
            }
            Progress::Rest(rest) => return if rest.is_empty() { None } else { Some(rest.remove(0)) },
            Progress::Parts => {}
        }
        loop {
            let part = match self.answer_stream.step().await? {
                Step::Idle => return Some(HEARTBEAT),
                Step::Gap(..) => continue,
                Step::Part(part) => part,
            };
            let data: Value = serde_json::from_slice(&part.event.data).unwrap_or_default();
            match part.part {
                Part::Token => {
                    self.has_text = true;
                    return Some(frame(&self.head.chunk(json!({"content": data.get("text")}), None)));
                }
                Part::Done => return Some(self.finish(&data)),
                Part::Error => {
                    self.state = Progress::Rest(vec![Bytes::from_static(b"data: [DONE]\n\n")]);
                    return Some(frame(&json!(failure(&part.event.data).to_openai())));
                }
                Part::Opened | Part::Retrieved | Part::Citation => {}
            }
        }
    }
}

impl ChatStream {
    /// The last chunks of an answer, with its text if no function streamed it.
    fn finish(&mut self, answer: &Value) -> Bytes {
        let mut rest = Vec::new();
        if !self.has_text {
            rest.push(frame(&self.head.chunk(json!({"content": answer.get("answer")}), None)));
        }
        let mut last = self.head.chunk(json!({}), Some(finish_of(answer)));
        if let Value::Object(fields) = &mut last {
            fields.insert("citations".to_owned(), citations_of(answer).into());
        }
        rest.push(frame(&last));
        if self.usage {
            let mut counts = self.head.object("chat.completion.chunk", Value::Null);
            if let Value::Object(fields) = &mut counts {
                fields.insert("choices".to_owned(), json!([]));
                fields.insert("usage".to_owned(), json!(usage_of(answer)));
            }
            rest.push(frame(&counts));
        }
        rest.push(Bytes::from_static(b"data: [DONE]\n\n"));
        let first = rest.remove(0);
        self.state = Progress::Rest(rest);
        first
    }
}
