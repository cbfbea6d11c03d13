//! `POST /v1/chat/completions`: an answer in OpenAI's shape (Chat Completions API), whole or streamed.

use super::{
    super::{
        Gateway,
        access::Caller,
        idempotency::{Keyed, Once},
        problem::{Answer, Problem},
        sse::{self, Frame, HEARTBEAT},
    },
    failure, json,
    prompt::{Asked, Question},
    reading::{Reading, Step},
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

/// Options of the model that go along to whatever generates.
const OPTIONS: [&str; 6] = ["temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop"];

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Vec<Message>,
    #[serde(default)]
    model: String,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    stream_options: StreamOptions,
    /// OpenAI's own place for what is not of the API: here `collection` and `conversation`.
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
    /// The text of a message, whose content is one or a list of parts.
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

/// Answers the last message of the user; those before it go along as the conversation so far.
pub(crate) async fn post(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Answer {
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_api_body).await?;
    let request: ChatRequest = serde_json::from_slice(&body.bytes)
        .map_err(|error| Problem::bad_request(format!("the request cannot be read: {error}")))?;
    let (stream, usage) = (request.stream, request.stream_options.include_usage);
    let (model, asked) = request.asked()?;
    let question = Question::of(asked, &caller)?;
    let keyed = Keyed { caller: &caller, route: "POST /v1/chat/completions", head: &parts, body: &body.bytes };
    let once = Once::open(gateway.bus(), keyed).await?;
    let prompt = question.prompt(once.id())?;
    let reading = super::start(&gateway, &caller, &prompt, once).await?;
    let head = Head { id: prompt.event.id, model, created: OffsetDateTime::now_utc().unix_timestamp() };
    if stream {
        return Ok(sse::response(Chunks { head, reading, usage, state: Progress::Begin, said: false }.frames()));
    }
    Ok(json(StatusCode::OK, &head.completion(&reading.whole().await?)))
}

impl ChatRequest {
    /// The model's name, and the question.
    fn asked(self) -> Answer<(String, Asked)> {
        if self.n.is_some_and(|n| n != 1) {
            return Err(Problem::bad_request("`n` must be 1: a question has one answer"));
        }
        let Some(last) = self.messages.iter().rposition(|message| message.role == "user") else {
            return Err(Problem::bad_request("`messages` has no message of the user"));
        };
        let said = |message: &Message| json!({"role": message.role, "content": message.text()});
        let before: Vec<Value> = self.messages.iter().take(last).map(said).collect();
        let question = self.messages.get(last).map(Message::text).unwrap_or_default();
        let mut rest = Map::new();
        if !before.is_empty() {
            rest.insert("messages".to_owned(), before.into());
        }
        if let Some(conversation) = self.metadata.get("conversation") {
            rest.insert("conversation".to_owned(), conversation.clone());
        }
        let options =
            self.rest.into_iter().filter(|(name, value)| OPTIONS.contains(&name.as_str()) && !value.is_null());
        let options: Map<String, Value> = options.collect();
        if !options.is_empty() {
            rest.insert("options".to_owned(), options.into());
        }
        let collection = self.metadata.get("collection").and_then(Value::as_str).map(str::to_owned);
        Ok((self.model, Asked { question, collection, stream: None, rest }))
    }
}

/// What every chunk of one completion repeats.
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

/// Tokens of a language model; none were used where an answer is quoted.
fn usage_of(answer: &Value) -> Value {
    let count = |name: &str| answer.pointer(&format!("/usage/{name}")).and_then(Value::as_u64).unwrap_or_default();
    let (prompt, completion) = (count("prompt_tokens"), count("completion_tokens"));
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

/// Where a stream of chunks is.
enum Progress {
    Begin,
    Parts,
    /// The last chunk of the answer is sent; these follow.
    Rest(Vec<Bytes>),
}

struct Chunks {
    head: Head,
    reading: Reading,
    /// Whether the last chunk tells the tokens.
    usage: bool,
    state: Progress,
    /// Whether any of the text was sent.
    said: bool,
}

fn frame(value: &Value) -> Bytes {
    Frame { data: &value.to_string(), ..Frame::default() }.to_bytes()
}

impl Chunks {
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
            let part = match self.reading.step().await? {
                Step::Silence => return Some(HEARTBEAT),
                Step::Gap(..) => continue,
                Step::Part(part) => part,
            };
            let data: Value = serde_json::from_slice(&part.event.data).unwrap_or_default();
            match part.part {
                Part::Token => {
                    self.said = true;
                    return Some(frame(&self.head.chunk(json!({"content": data.get("text")}), None)));
                }
                Part::Done => return Some(self.finish(&data)),
                Part::Error => {
                    self.state = Progress::Rest(vec![Bytes::from_static(b"data: [DONE]\n\n")]);
                    let message = failure(&data).detail_text();
                    return Some(frame(&json!({"error": {"message": message, "type": "server_error"}})));
                }
                Part::Opened | Part::Retrieved | Part::Citation => {}
            }
        }
    }

    /// The chunks that end an answer; the text itself is among them where no function streamed it.
    fn finish(&mut self, answer: &Value) -> Bytes {
        let mut rest = Vec::new();
        if !self.said {
            rest.push(frame(&self.head.chunk(json!({"content": answer.get("answer")}), None)));
        }
        let mut last = self.head.chunk(json!({}), Some(finish_of(answer)));
        if let Value::Object(fields) = &mut last {
            fields.insert("citations".to_owned(), answer.get("citations").cloned().unwrap_or_else(|| json!([])));
        }
        rest.push(frame(&last));
        if self.usage {
            let mut told = self.head.object("chat.completion.chunk", Value::Null);
            if let Value::Object(fields) = &mut told {
                fields.insert("choices".to_owned(), json!([]));
                fields.insert("usage".to_owned(), usage_of(answer));
            }
            rest.push(frame(&told));
        }
        rest.push(Bytes::from_static(b"data: [DONE]\n\n"));
        let first = rest.remove(0);
        self.state = Progress::Rest(rest);
        first
    }
}
