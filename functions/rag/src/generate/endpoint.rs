//! OpenAI-compatible chat completion endpoints, streamed by server-sent events.

use super::PieceStream;
use crate::{client::new_client, function::invalid};
use backon::{ExponentialBuilder, Retryable};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream::BoxStream};
use nerve_core::{
    Fault, FunctionError, Secret,
    inference::{Finish, GenerateRequest, Message, Piece, Role},
    limits, redact,
};
use nerve_events::answers::Usage;
use reqwest::{StatusCode, Url, header};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// Timeout between reads of a stream.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of HTTP requests per attempt at an event.
const MAX_ATTEMPTS: usize = 3;
/// Delay before the first retry.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Maximum delay before a retry.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(4);
/// Maximum size of a stream's line, and of a response, in bytes.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
/// Maximum size of a reported error body in bytes.
const MAX_ERROR_BYTES: usize = 2048;
/// Prompt that resumes an answer, because some models cannot continue their own message.
const CONTINUE_PROMPT: &str = "Your answer was cut off. Go on exactly where it stopped, and repeat nothing of it.";

/// An endpoint and its model.
pub(crate) struct Endpoint {
    client: reqwest::Client,
    url: Url,
    model: String,
    key: Option<Secret>,
}

/// Checks the URL of an endpoint.
///
/// # Errors
/// If it is not an HTTP or HTTPS URL.
pub(crate) fn check_url(endpoint: &str) -> Result<(), String> {
    completions_url(endpoint).map(drop)
}

fn completions_url(endpoint: &str) -> Result<Url, String> {
    let url = format!("{}/chat/completions", endpoint.trim_end_matches('/'));
    let url = Url::parse(&url).map_err(|error| format!("`endpoint` is not a URL: {error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("`endpoint` has the scheme {other}: it must be http or https")),
    }
}

/// One chunk of the stream.
#[derive(Debug, Deserialize)]
struct CompletionChunk {
    #[serde(default)]
    choices: Vec<StreamChoice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct StreamChoice {
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
    /// An endpoint at a URL up to and including `/v1`, with its API key.
    ///
    /// # Errors
    /// If the URL is invalid.
    pub(crate) fn new(endpoint: &str, model: String, key: Option<Secret>) -> Result<Self, String> {
        let client = new_client(READ_TIMEOUT)?;
        Ok(Self { client, url: completions_url(endpoint)?, model, key })
    }

    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Generates text; with `resumed`, the last message is the start of the answer.
    ///
    /// # Errors
    /// If the endpoint cannot be reached or rejects the request.
    pub(super) async fn generate(
        &self,
        mut request: GenerateRequest,
        resumed: bool,
    ) -> Result<PieceStream, FunctionError> {
        if resumed {
            request.messages.push(Message { role: Role::User, content: CONTINUE_PROMPT.to_owned() });
        }
        let body = self.body(&request);
        let send = || self.send(&body);
        // A wait that the endpoint requests is left to the broker.
        let response =
            send.retry(retry_policy()).when(|error| matches!(error.fault, Fault::Retry { after: None })).await?;
        let piece_stream =
            piece_stream(response.bytes_stream().map(|chunk| chunk.map_err(|error| request_failed(&error))));
        let key = self.key.clone();
        let redact =
            move |error: FunctionError| FunctionError { message: redact_key(error.message, key.as_ref()), ..error };
        Ok(piece_stream.map(move |piece| piece.map_err(&redact)).boxed())
    }

    fn body(&self, request: &GenerateRequest) -> Value {
        let mut body = json!({
            "model": self.model, "messages": request.messages, "stream": true,
            "stream_options": {"include_usage": true},
            "temperature": request.sampling.temperature, "top_p": request.sampling.top_p,
        });
        if let Value::Object(fields) = &mut body {
            if let Some(max_tokens) = request.max_tokens {
                fields.insert("max_tokens".to_owned(), max_tokens.into());
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

    /// Requests a complete response of at most 1 MiB.
    ///
    /// # Errors
    /// If the endpoint cannot be reached, rejects the request or sends more.
    pub(crate) async fn complete(&self, request: &Value) -> Result<Bytes, FunctionError> {
        let send = || self.send(request);
        let mut response =
            send.retry(retry_policy()).when(|error| matches!(error.fault, Fault::Retry { after: None })).await?;
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| request_failed(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_RESPONSE_BYTES {
                return Err(invalid("the endpoint's response exceeds 1 MiB"));
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
        let response = request.send().await.map_err(|error| request_failed(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let requested = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = requested.and_then(|value| limits::retry_after(value, SystemTime::now()));
        let error_body = self.error_body(response).await;
        let message =
            format!("the endpoint {} answered {status}: {}", redact::urls(self.url.as_str()), error_body.trim());
        let is_transient =
            status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
        Err(match is_transient {
            true => FunctionError::new(Fault::Retry { after: retry_after }, message),
            false => invalid(message),
        })
    }

    /// Start of an error response's body.
    async fn error_body(&self, mut response: reqwest::Response) -> String {
        // Reads far enough to find a key that starts within the limit.
        let read_limit = MAX_ERROR_BYTES + self.key.as_ref().map_or(0, |key| key.expose().len());
        let mut body = Vec::new();
        while body.len() < read_limit
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk);
        }
        let mut error_body = redact_key(String::from_utf8_lossy(&body).into_owned(), self.key.as_ref());
        let end = (0..=MAX_ERROR_BYTES.min(error_body.len()))
            .rev()
            .find(|at| error_body.is_char_boundary(*at))
            .unwrap_or_default();
        error_body.truncate(end);
        error_body
    }
}

fn retry_policy() -> ExponentialBuilder {
    let retry_policy = ExponentialBuilder::default().with_min_delay(MIN_RETRY_DELAY).with_max_delay(MAX_RETRY_DELAY);
    retry_policy.with_max_times(MAX_ATTEMPTS - 1).with_jitter()
}

/// Replaces the API key by asterisks of equal length, because an endpoint may echo it and errors are stored and shown.
fn redact_key(text: String, key: Option<&Secret>) -> String {
    match key.map(Secret::expose) {
        Some(key) if !key.is_empty() => text.replace(key, &"*".repeat(key.len())),
        _ => text,
    }
}

/// Converts the error of a connection that could not be established or was interrupted.
fn request_failed(error: &reqwest::Error) -> FunctionError {
    let what = if error.is_body() || error.is_decode() {
        "the endpoint closed the connection"
    } else {
        "the endpoint cannot be reached"
    };
    let mut message = format!("{what}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    let fault = if error.is_timeout() { Fault::Timeout } else { Fault::Retry { after: None } };
    FunctionError::new(fault, message)
}

/// State of reading a stream.
struct StreamReader {
    chunks: BoxStream<'static, Result<Bytes, FunctionError>>,
    buffer: BytesMut,
    /// Number of buffered bytes without a line end, so that a line in many network chunks is searched once.
    searched: usize,
    finish: Option<Finish>,
    usage: Option<Usage>,
    /// Number of pieces, used as the token count if the endpoint reports none.
    pieces: usize,
    finished: bool,
}

/// Reads pieces from a stream of server-sent events.
pub(crate) fn piece_stream(chunks: impl Stream<Item = Result<Bytes, FunctionError>> + Send + 'static) -> PieceStream {
    let reader = StreamReader {
        chunks: chunks.boxed(),
        buffer: BytesMut::new(),
        searched: 0,
        finish: None,
        usage: None,
        pieces: 0,
        finished: false,
    };
    futures::stream::unfold(reader, |mut reader| async move {
        let piece = reader.piece().await;
        // An error ends the stream.
        reader.finished |= piece.is_err();
        Some((piece.transpose()?, reader))
    })
    .boxed()
}

impl StreamReader {
    async fn piece(&mut self) -> Result<Option<Piece>, FunctionError> {
        while !self.finished {
            let Some(line) = self.line().await? else { return Ok(Some(self.end(self.finish.is_some())?)) };
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                return Ok(Some(self.end(true)?));
            }
            let chunk: CompletionChunk = serde_json::from_str(data).map_err(|error| {
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

    /// The final piece.
    ///
    /// # Errors
    /// If the stream ended before the model finished.
    fn end(&mut self, done: bool) -> Result<Piece, FunctionError> {
        self.finished = true;
        if !done {
            let message = "the endpoint's stream ended before the answer was complete";
            return Err(FunctionError::new(Fault::Retry { after: None }, message));
        }
        let usage = self.usage.unwrap_or(Usage { prompt_tokens: 0, completion_tokens: self.pieces });
        let Usage { prompt_tokens, completion_tokens } = usage;
        Ok(Piece::End { finish: self.finish.unwrap_or(Finish::Stop), prompt_tokens, completion_tokens })
    }

    /// The next line without its line end; `None` at the end of the stream.
    async fn line(&mut self) -> Result<Option<String>, FunctionError> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_RESPONSE_BYTES {
                return Err(invalid("the endpoint sent a line over 1 MiB"));
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
        let piece_stream = piece_stream(futures::stream::iter(chunks));
        piece_stream.map(|piece| piece.map_err(|error| error.fault)).collect().await
    }

    #[tokio::test]
    async fn stream_is_parsed_at_any_chunk_boundary() {
        let stream = ": hello\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
                      data: {\"choices\":[{\"delta\":{\"content\":\"Ärger\"}}]}\r\n\r\ndata:{\"choices\":[{\"delta\":\
                      {\"content\":\" ok\"},\"finish_reason\":\"length\"}]}\n\n\
                      data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        let expected = vec![
            Ok(Piece::Text("Ärger".into())),
            Ok(Piece::Text(" ok".into())),
            Ok(Piece::End { finish: Finish::Length, prompt_tokens: 7, completion_tokens: 2 }),
        ];
        assert_eq!(read(&[stream]).await, expected);
        let bytes: Vec<Bytes> = stream.as_bytes().chunks(1).map(Bytes::copy_from_slice).collect();
        let end = piece_stream(futures::stream::iter(bytes.into_iter().map(Ok)));
        assert_eq!(end.map(|piece| piece.map_err(|error| error.fault)).collect::<Vec<_>>().await, expected);
    }

    #[tokio::test]
    async fn interrupted_stream_is_retried() {
        let retry = Err(Fault::Retry { after: None });
        let start = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
        assert_eq!(read(&[start]).await, vec![Ok(Piece::Text("a".into())), retry.clone()]);
        assert_eq!(read(&["data: {\"error\":{\"message\":\"overloaded\"}}\n\n"]).await, std::slice::from_ref(&retry));
        assert_eq!(read(&["data: nonsense\n\n", start]).await, [retry]);
    }

    #[test]
    fn echoed_key_is_redacted() {
        let key = Secret::new("sk-1");
        let redact = |text: &str, key: Option<&Secret>| redact_key(text.to_owned(), key);
        assert_eq!(redact("Incorrect API key: sk-1 (sk-1)", Some(&key)), "Incorrect API key: **** (****)");
        assert_eq!(redact("sk-2", Some(&key)), "sk-2");
        assert_eq!((redact("ab", Some(&Secret::new(""))), redact("ab", None)), ("ab".into(), "ab".into()));
    }

    #[test]
    fn invalid_urls_are_rejected() {
        assert_eq!(completions_url("http://h:1/v1/").unwrap().as_str(), "http://h:1/v1/chat/completions");
        assert!(check_url("h:1/v1").is_err() && check_url("nonsense").is_err());
    }
}
