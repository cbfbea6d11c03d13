//! Forwards the standard error of a server process line by line and keeps its last lines.

use parking_lot::Mutex;
use std::{collections::VecDeque, io, sync::Arc};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::ChildStderr,
};

/// Maximum lines kept.
const MAX_LINES: usize = 5;
/// Maximum bytes kept of a line.
const MAX_LINE_BYTES: usize = 400;
/// Maximum bytes forwarded in one write.
const MAX_WRITE_BYTES: u64 = 64 << 10;

/// The last lines of a process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    /// Forwards everything to this process's standard error until the end of the stream.
    pub(super) async fn forward(self, from: ChildStderr) -> io::Result<()> {
        let (mut from, mut to) = (BufReader::new(from), tokio::io::stderr());
        let mut chunk = Vec::new();
        loop {
            chunk.clear();
            if (&mut from).take(MAX_WRITE_BYTES).read_until(b'\n', &mut chunk).await? == 0 {
                return Ok(());
            }
            self.keep(&chunk);
            to.write_all(&chunk).await?;
            to.flush().await?;
        }
    }

    fn keep(&self, chunk: &[u8]) {
        let text = String::from_utf8_lossy(chunk.get(..MAX_LINE_BYTES).unwrap_or(chunk));
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        let mut lines = self.0.lock();
        if lines.len() == MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(text.to_owned());
    }

    /// Returns the lines, oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_kept_and_truncated() {
        let last = LastLines::default();
        for number in 0..9 {
            last.keep(format!("line {number} {}\n", "x".repeat(1000)).as_bytes());
        }
        last.keep(b"\n");
        let lines = last.lines();
        assert_eq!(lines.len(), MAX_LINES);
        assert!(lines[0].starts_with("line 4 ") && lines.iter().all(|line| line.len() <= MAX_LINE_BYTES), "{lines:?}");
    }
}
