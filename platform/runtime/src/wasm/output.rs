//! Standard output and error of a component, as limited log lines.

use bytes::Bytes;
use nerve_core::function::{LogLevel, LogSink};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError},
};

/// Maximum log lines per call; one more reports that the rest is dropped.
const LINES: usize = 1000;
/// Maximum length of a line; the rest is dropped.
const LINE: usize = 8 * 1024;
/// Lines of stderr quoted for a trap.
const TAIL: usize = 20;
/// Maximum bytes per write of a component.
const CHUNK: usize = 64 * 1024;

/// Collects the output of one call; cheap to clone.
#[derive(Clone)]
pub(super) struct Output {
    logs: LogSink,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    logged: usize,
    out: Vec<u8>,
    err: Vec<u8>,
    tail: VecDeque<String>,
}

impl Output {
    pub(super) fn new(logs: LogSink) -> Self {
        Self { logs, state: Arc::default() }
    }

    /// Standard output, or standard error.
    pub(super) fn stream(&self, stderr: bool) -> Stream {
        Stream { output: self.clone(), stderr }
    }

    /// Logs one line, within the limits of the call.
    pub(super) fn log(&self, level: LogLevel, message: &str) {
        self.line(&mut self.state.lock(), level, message);
    }

    /// Logs an incomplete last line.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock();
        for stderr in [false, true] {
            let rest = std::mem::take(if stderr { &mut state.err } else { &mut state.out });
            if !rest.is_empty() {
                self.end(&mut state, stderr, &rest);
            }
        }
    }

    /// `message`, followed by the last lines of stderr, if any.
    pub(super) fn explain(&self, mut message: String) -> String {
        let state = self.state.lock();
        if !state.tail.is_empty() {
            message.push_str("\nstderr:");
        }
        for line in &state.tail {
            message.push_str("\n  ");
            message.push_str(line);
        }
        message
    }

    fn take(&self, stderr: bool, bytes: &[u8]) {
        let mut state = self.state.lock();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let text = piece.strip_suffix(b"\n");
            let open = if stderr { &mut state.err } else { &mut state.out };
            let room = LINE.saturating_sub(open.len());
            open.extend(text.unwrap_or(piece).iter().take(room));
            if text.is_some() {
                let line = std::mem::take(open);
                self.end(&mut state, stderr, &line);
            }
        }
    }

    fn end(&self, state: &mut State, stderr: bool, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches('\r');
        if stderr {
            if state.tail.len() == TAIL {
                state.tail.pop_front();
            }
            state.tail.push_back(line.to_owned());
        }
        self.line(state, LogLevel::Info, line);
    }

    fn line(&self, state: &mut State, level: LogLevel, message: &str) {
        state.logged = state.logged.saturating_add(1);
        if state.logged <= LINES {
            let end = message.floor_char_boundary(LINE);
            self.logs.log(level, message.get(..end).unwrap_or_default());
        } else if state.logged == LINES + 1 {
            self.logs.log(LogLevel::Warn, format!("more than {LINES} lines from one event; the rest is dropped"));
        }
    }
}

/// One of the two streams. Writes never block, so that nothing is lost if the component traps next.
pub(super) struct Stream {
    output: Output,
    stderr: bool,
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.output.stream(self.stderr))
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.output.stream(self.stderr))
    }
}

#[async_trait::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.output.take(self.stderr, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(CHUNK)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.output.take(self.stderr, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
