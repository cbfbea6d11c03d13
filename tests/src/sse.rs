//! A reader of server-sent events (WHATWG HTML, section 9.2) that can be cut anywhere.

use crate::seconds;
use serde_json::Value;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Its id, by which a reader goes on.
    pub id: Option<u64>,
    /// Its name; `message` when it has none.
    pub name: String,
    /// Its data, where that is JSON; else a string of it.
    pub data: Value,
}

/// One response, read event by event.
pub struct Reader {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Reader {
    /// A reader of a response that is a stream of events.
    pub fn new(response: reqwest::Response) -> Self {
        let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        assert!(content_type.is_some_and(|value| value.starts_with("text/event-stream")), "{response:?}");
        Self { response, buffer: Vec::new() }
    }

    /// The next event; `None` if the response ends or fails.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(frame) = frame(std::str::from_utf8(&block).expect("UTF-8")) {
                    return Some(frame);
                }
            }
            let chunk = tokio::time::timeout(seconds(60), self.response.chunk()).await;
            let chunk = chunk.expect("a stream is never silent for a minute").ok()??;
            // A long event comes in pieces that may be cut inside a character.
            self.buffer.extend_from_slice(&chunk);
        }
    }

    /// Every event up to the end.
    pub async fn rest(mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

/// The event in a block of lines; none in comments and in what only says when to come back.
fn frame(block: &str) -> Option<Frame> {
    let (mut id, mut name, mut data) = (None, "message".to_owned(), Vec::new());
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("id", value)) => id = value.parse().ok(),
            Some(("event", value)) => name = value.to_owned(),
            Some(("data", value)) => data.push(value),
            _ => {}
        }
    }
    if data.is_empty() {
        return None;
    }
    let data = data.join("\n");
    Some(Frame { id, name, data: serde_json::from_str(&data).unwrap_or(Value::String(data)) })
}
