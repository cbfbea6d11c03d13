//! The standard error of a server process: passed on line by line, the last lines kept.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::ChildStderr,
};

/// Lines that are kept.
const LAST_LINES: usize = 5;
/// Bytes of a line that are kept.
const LAST_LINE_BYTES: usize = 400;
/// Bytes that are passed on at once, where a line is longer.
const PIECE_BYTES: u64 = 64 << 10;

/// The last lines of a process; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    /// Passes everything that comes on to this process's standard error, until it ends.
    pub(super) async fn pass_on(self, from: ChildStderr) -> io::Result<()> {
        let (mut from, mut to) = (BufReader::new(from), tokio::io::stderr());
        let mut piece = Vec::new();
        loop {
            piece.clear();
            if (&mut from).take(PIECE_BYTES).read_until(b'\n', &mut piece).await? == 0 {
                return Ok(());
            }
            self.keep(&piece);
            to.write_all(&piece).await?;
            to.flush().await?;
        }
    }

    fn keep(&self, piece: &[u8]) {
        let text = String::from_utf8_lossy(piece.get(..LAST_LINE_BYTES).unwrap_or(piece));
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(text.to_owned());
    }

    /// The lines, the oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept_each_of_bounded_length() {
        let last = LastLines::default();
        for number in 0..9 {
            last.keep(format!("line {number} {}\n", "x".repeat(1000)).as_bytes());
        }
        last.keep(b"\n");
        let lines = last.lines();
        assert_eq!(lines.len(), LAST_LINES);
        assert!(lines[0].starts_with("line 4 ") && lines.iter().all(|line| line.len() <= LAST_LINE_BYTES), "{lines:?}");
    }
}
