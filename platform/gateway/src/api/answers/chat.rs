//! `POST /v1/chat/completions`: an answer in OpenAI's shape (Chat Completions API), whole or streamed.

use crate::{
    Gateway,
    api::{
        answers::{
            failure, json,
            prompt::{Question, QuestionRequest},
            stream::{AnswerStream, Step},
        },
        auth::Caller,
        idempotency::{Keyed, Once},
        sse::{self, Frame, HEARTBEAT},
    },
    http::problem::{HttpResult, Problem},
};
use axum::{
    body::Body,
    extract::{Extension, Request, State},
};
use bytes::Bytes;
use futures::Stream;
use http::StatusCode;
use nerve_core::answer::Part;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// Model options that are passed through to the generating function.
const MODEL_OPTIONS: [&str; 6] = ["temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop"];

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Vec<Message>,
    #[serde(default)]
    model: String,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    stream_options: StreamOptions,
    /// OpenAI's field for custom data: here `collection` and `conversation`.
    #[serde(default)]
    metadata: Map<String, Value>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
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
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_api_body).await?;
    let request: ChatRequest = serde_json::from_slice(&body.bytes)
        .map_err(|error| Problem::bad_request(format!("invalid request: {error}")))?;
    let (stream, usage) = (request.stream, request.stream_options.include_usage);
    let (model, question) = request.question()?;
    let question = Question::of(question, &caller)?;
    let keyed = Keyed { caller: &caller, route: "POST /v1/chat/completions", head: &parts, body: &body.bytes };
    let once = Once::open(gateway.bus(), keyed).await?;
    let prompt = question.prompt(once.id())?;
    let answer_stream = super::start(&gateway, &caller, &prompt, once).await?;
    let head = Head { id: prompt.event.id, model, created: OffsetDateTime::now_utc().unix_timestamp() };
    if stream {
        return Ok(sse::response(
            ChatStream { head, answer_stream, usage, state: Progress::Begin, has_text: false }.frames(),
        ));
    }
    Ok(json(StatusCode::OK, &head.completion(&answer_stream.whole().await?)))
}

impl ChatRequest {
    /// The model's name and the question.
    fn question(self) -> HttpResult<(String, QuestionRequest)> {
        if self.n.is_some_and(|n| n != 1) {
            return Err(Problem::bad_request("`n` must be 1"));
        }
        let Some(last) = self.messages.iter().rposition(|message| message.role == "user") else {
            return Err(Problem::bad_request("`messages` has no message with the role `user`"));
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
        Ok((self.model, QuestionRequest { question, collection, stream: None, rest }))
    }
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

    fn completion(&self, answer: &Value) -> Value {
        let message = json!({"role": "assistant", "content": answer.get("answer"), "refusal": null});
        let choice = json!({"index": 0, "message": message, "finish_reason": finish_of(answer), "logprobs": null});
        let mut completion = self.object("chat.completion", choice);
        if let Value::Object(fields) = &mut completion {
            fields.insert("usage".to_owned(), usage_of(answer));
            fields.insert("citations".to_owned(), answer.get("citations").cloned().unwrap_or_else(|| json!([])));
        }
        completion
    }
}

fn finish_of(answer: &Value) -> &str {
    answer.get("finish").and_then(Value::as_str).unwrap_or("stop")
}

/// Token counts; zero for an extractive answer.
fn usage_of(answer: &Value) -> Value {
    let count = |name: &str| answer.pointer(&format!("/usage/{name}")).and_then(Value::as_u64).unwrap_or_default();
    let (prompt, completion) = (count("prompt_tokens"), count("completion_tokens"));
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
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

impl ChatStream {
    fn frames(self) -> impl Stream<Item = Bytes> + Send + 'static {
        futures::stream::unfold(self, |mut chunks| async move {
            let frame = chunks.next().await?;
            Some((frame, chunks))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
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
                    let message = failure(&part.event.data).detail_text();
                    return Some(frame(&json!({"error": {"message": message, "type": "server_error"}})));
                }
                Part::Opened | Part::Retrieved | Part::Citation => {}
            }
        }
    }

    /// The last chunks of an answer, with its text if no function streamed it.
    fn finish(&mut self, answer: &Value) -> Bytes {
        let mut rest = Vec::new();
        if !self.has_text {
            rest.push(frame(&self.head.chunk(json!({"content": answer.get("answer")}), None)));
        }
        let mut last = self.head.chunk(json!({}), Some(finish_of(answer)));
        if let Value::Object(fields) = &mut last {
            fields.insert("citations".to_owned(), answer.get("citations").cloned().unwrap_or_else(|| json!([])));
        }
        rest.push(frame(&last));
        if self.usage {
            let mut counts = self.head.object("chat.completion.chunk", Value::Null);
            if let Value::Object(fields) = &mut counts {
                fields.insert("choices".to_owned(), json!([]));
                fields.insert("usage".to_owned(), usage_of(answer));
            }
            rest.push(frame(&counts));
        }
        rest.push(Bytes::from_static(b"data: [DONE]\n\n"));
        let first = rest.remove(0);
        self.state = Progress::Rest(rest);
        first
    }
}
