//! Any endpoint with OpenAI's chat completions, streamed (Chat Completions API, server-sent events).

use super::Pieces;
use crate::{client::client, function::invalid};
use backon::{ExponentialBuilder, Retryable};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream::BoxStream};
use nerve_core::{
    Fault, FunctionError, Secret,
    inference::{Finish, GenerateRequest, Message, Piece, Role},
    limits, redact,
};
use reqwest::{StatusCode, Url, header};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// The longest that a stream may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// Tries within one attempt at an event, and the waits between them.
const TRIES: usize = 3;
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// The longest line of a stream, and of an error's body, in bytes.
const LONGEST: usize = 1 << 20;
const LONGEST_ERROR: usize = 2048;
/// How a model that cannot go on with a message of its own is asked to.
const GO_ON: &str = "Your answer was cut off. Go on exactly where it stopped, and repeat nothing of it.";

/// An endpoint, and the model to ask for there.
pub(crate) struct Endpoint {
    client: reqwest::Client,
    url: Url,
    model: String,
    key: Option<Secret>,
}

/// Says what is wrong with an endpoint's address.
pub(crate) fn check(endpoint: &str) -> Result<(), String> {
    completions(endpoint).map(drop)
}

fn completions(endpoint: &str) -> Result<Url, String> {
    let url = format!("{}/chat/completions", endpoint.trim_end_matches('/'));
    let url = Url::parse(&url).map_err(|error| format!("`endpoint` is no URL: {error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("`endpoint` is {other}: it must be http or https")),
    }
}

/// One message of the stream.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<super::Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

impl Endpoint {
    /// An endpoint up to and with `/v1`, and the key that it asks for.
    pub(crate) fn new(endpoint: &str, model: String, key: Option<Secret>) -> Result<Self, String> {
        let client = client(SILENCE)?;
        Ok(Self { client, url: completions(endpoint)?, model, key })
    }

    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Has the model write; `resumed` when the last message is the beginning of what it is to write.
    pub(super) async fn write(&self, mut request: GenerateRequest, resumed: bool) -> Result<Pieces, FunctionError> {
        if resumed {
            request.messages.push(Message { role: Role::User, content: GO_ON.to_owned() });
        }
        let body = self.body(&request);
        let send = || self.send(&body);
        // What the endpoint asks to wait for is the broker's business.
        let response = send.retry(waits()).when(|error| matches!(error.fault, Fault::Retry { after: None })).await?;
        let pieces = pieces(response.bytes_stream().map(|chunk| chunk.map_err(|error| broken(&error))));
        let key = self.key.clone();
        let hidden =
            move |error: FunctionError| FunctionError { message: without_key(error.message, key.as_ref()), ..error };
        Ok(pieces.map(move |piece| piece.map_err(&hidden)).boxed())
    }

    fn body(&self, request: &GenerateRequest) -> Value {
        let mut body = json!({
            "model": self.model, "messages": request.messages, "stream": true,
            "stream_options": {"include_usage": true},
            "temperature": request.sampling.temperature, "top_p": request.sampling.top_p,
        });
        if let Value::Object(fields) = &mut body {
            if let Some(most) = request.max_tokens {
                fields.insert("max_tokens".to_owned(), most.into());
            }
            if request.sampling.seed != 0 {
                fields.insert("seed".to_owned(), request.sampling.seed.into());
            }
            if !request.stop.is_empty() {
                fields.insert("stop".to_owned(), request.stop.clone().into());
            }
        }
        body
    }

    /// The answer to a request as a whole, at most 1 MiB of it.
    pub(crate) async fn complete(&self, request: &Value) -> Result<Bytes, FunctionError> {
        let send = || self.send(request);
        let mut response =
            send.retry(waits()).when(|error| matches!(error.fault, Fault::Retry { after: None })).await?;
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST {
                return Err(invalid("the endpoint's answer is longer than 1 MiB"));
            }
        }
        Ok(body.freeze())
    }

    async fn send(&self, body: &Value) -> Result<reqwest::Response, FunctionError> {
        let streamed = body.get("stream").and_then(Value::as_bool).unwrap_or_default();
        let accept = if streamed { "text/event-stream" } else { "application/json" };
        let mut request = self.client.post(self.url.clone()).json(body).header(header::ACCEPT, accept);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        let response = request.send().await.map_err(|error| broken(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = asked.and_then(|value| limits::retry_after(value, SystemTime::now()));
        let said = self.said(response).await;
        let told = format!("the endpoint {} answered {status}: {}", redact::urls(self.url.as_str()), said.trim());
        let later =
            status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
        Err(match later {
            true => FunctionError::new(Fault::Retry { after }, told),
            false => invalid(told),
        })
    }

    /// The beginning of an error's body.
    async fn said(&self, mut response: reqwest::Response) -> String {
        // A key that begins within the limit is read to its end, so as to be known.
        let enough = LONGEST_ERROR + self.key.as_ref().map_or(0, |key| key.expose().len());
        let mut body = Vec::new();
        while body.len() < enough
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk);
        }
        let mut said = without_key(String::from_utf8_lossy(&body).into_owned(), self.key.as_ref());
        let cut = (0..=LONGEST_ERROR.min(said.len())).rev().find(|at| said.is_char_boundary(*at)).unwrap_or_default();
        said.truncate(cut);
        said
    }
}

fn waits() -> ExponentialBuilder {
    let waits = ExponentialBuilder::default().with_min_delay(WAITS.0).with_max_delay(WAITS.1);
    waits.with_max_times(TRIES - 1).with_jitter()
}

/// What an endpoint says, which may repeat the key that it was sent, is kept and shown: the key is not, and stars as
/// many stand there.
fn without_key(text: String, key: Option<&Secret>) -> String {
    match key.map(Secret::expose) {
        Some(key) if !key.is_empty() => text.replace(key, &"*".repeat(key.len())),
        _ => text,
    }
}

/// A connection that could not be made, or broke.
fn broken(error: &reqwest::Error) -> FunctionError {
    let what =
        if error.is_body() || error.is_decode() { "the endpoint broke off" } else { "the endpoint cannot be reached" };
    let mut told = format!("{what}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        told.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    let fault = if error.is_timeout() { Fault::Timeout } else { Fault::Retry { after: None } };
    FunctionError::new(fault, told)
}

/// Where reading a stream is.
struct Reader {
    chunks: BoxStream<'static, Result<Bytes, FunctionError>>,
    buffer: BytesMut,
    /// Bytes of the buffer that have no end of a line in them: a line that comes in many chunks is searched once.
    searched: usize,
    finish: Option<Finish>,
    usage: Option<super::Usage>,
    /// Pieces that were written, where nobody tells the tokens.
    pieces: usize,
    over: bool,
}

/// The pieces of a stream of server-sent events.
pub(crate) fn pieces(chunks: impl Stream<Item = Result<Bytes, FunctionError>> + Send + 'static) -> Pieces {
    let reader = Reader {
        chunks: chunks.boxed(),
        buffer: BytesMut::new(),
        searched: 0,
        finish: None,
        usage: None,
        pieces: 0,
        over: false,
    };
    futures::stream::unfold(reader, |mut reader| async move {
        let piece = reader.piece().await;
        // Nothing follows a failure.
        reader.over |= piece.is_err();
        Some((piece.transpose()?, reader))
    })
    .boxed()
}

impl Reader {
    async fn piece(&mut self) -> Result<Option<Piece>, FunctionError> {
        while !self.over {
            let Some(line) = self.line().await? else { return Ok(Some(self.end(self.finish.is_some())?)) };
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                return Ok(Some(self.end(true)?));
            }
            let chunk: Chunk = serde_json::from_str(data).map_err(|error| {
                FunctionError::new(
                    Fault::Retry { after: None },
                    format!("the endpoint's stream cannot be read: {error}"),
                )
            })?;
            if let Some(error) = chunk.error {
                return Err(FunctionError::new(Fault::Retry { after: None }, format!("the endpoint failed: {error}")));
            }
            self.usage = chunk.usage.or(self.usage);
            let Some(choice) = chunk.choices.into_iter().next() else { continue };
            if let Some(reason) = choice.finish_reason {
                self.finish = Some(if reason == "length" { Finish::Length } else { Finish::Stop });
            }
            if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                self.pieces += 1;
                return Ok(Some(Piece::Text(text)));
            }
        }
        Ok(None)
    }

    /// The end, unless the stream broke off before the model said that it was done.
    fn end(&mut self, done: bool) -> Result<Piece, FunctionError> {
        self.over = true;
        if !done {
            let told = "the endpoint's stream broke off in the middle of the answer";
            return Err(FunctionError::new(Fault::Retry { after: None }, told));
        }
        let usage = self.usage.unwrap_or(super::Usage { prompt_tokens: 0, completion_tokens: self.pieces });
        let super::Usage { prompt_tokens, completion_tokens } = usage;
        Ok(Piece::End { finish: self.finish.unwrap_or(Finish::Stop), prompt_tokens, completion_tokens })
    }

    /// The next line, without its end; none at the end of the stream.
    async fn line(&mut self) -> Result<Option<String>, FunctionError> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LONGEST {
                return Err(invalid("the endpoint sends a line that is longer than 1 MiB"));
            }
            match self.chunks.next().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk?),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(String::from_utf8_lossy(&self.buffer.split()).trim_end().to_owned())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(chunks: &[&str]) -> Vec<Result<Piece, Fault>> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from((*chunk).to_owned()))).collect();
        let pieces = pieces(futures::stream::iter(chunks));
        pieces.map(|piece| piece.map_err(|error| error.fault)).collect().await
    }

    #[tokio::test]
    async fn a_stream_is_read_however_it_is_cut() {
        let stream = ": hello\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
                      data: {\"choices\":[{\"delta\":{\"content\":\"Ärger\"}}]}\r\n\r\ndata:{\"choices\":[{\"delta\":\
                      {\"content\":\" ok\"},\"finish_reason\":\"length\"}]}\n\n\
                      data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        let wanted = vec![
            Ok(Piece::Text("Ärger".into())),
            Ok(Piece::Text(" ok".into())),
            Ok(Piece::End { finish: Finish::Length, prompt_tokens: 7, completion_tokens: 2 }),
        ];
        assert_eq!(read(&[stream]).await, wanted);
        let bytes: Vec<Bytes> = stream.as_bytes().chunks(1).map(Bytes::copy_from_slice).collect();
        let cut = pieces(futures::stream::iter(bytes.into_iter().map(Ok)));
        assert_eq!(cut.map(|piece| piece.map_err(|error| error.fault)).collect::<Vec<_>>().await, wanted);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_or_fails_is_tried_again() {
        let again = Err(Fault::Retry { after: None });
        let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
        assert_eq!(read(&[begun]).await, vec![Ok(Piece::Text("a".into())), again.clone()]);
        assert_eq!(read(&["data: {\"error\":{\"message\":\"overloaded\"}}\n\n"]).await, std::slice::from_ref(&again));
        assert_eq!(read(&["data: nonsense\n\n", begun]).await, [again]);
    }

    #[test]
    fn a_key_that_is_repeated_is_not_shown() {
        let key = Secret::new("sk-1");
        let hidden = |text: &str, key: Option<&Secret>| without_key(text.to_owned(), key);
        assert_eq!(hidden("Incorrect API key: sk-1 (sk-1)", Some(&key)), "Incorrect API key: **** (****)");
        assert_eq!(hidden("sk-2", Some(&key)), "sk-2");
        assert_eq!((hidden("ab", Some(&Secret::new(""))), hidden("ab", None)), ("ab".into(), "ab".into()));
    }

    #[test]
    fn addresses_are_checked() {
        assert_eq!(completions("http://h:1/v1/").unwrap().as_str(), "http://h:1/v1/chat/completions");
        assert!(check("h:1/v1").is_err() && check("nonsense").is_err());
    }
}
