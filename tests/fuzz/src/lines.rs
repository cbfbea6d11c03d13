//! What a process function writes on its stdout.

use nerve_runtime::fuzzing::{LineEnd, LineReading, read_line};
use serde_json::{Map, Value};

/// The longest quotation: 200 bytes, each of which may be no UTF-8, and an ellipsis.
const MAX_QUOTE_BYTES: usize = 3 * 200 + 3;

/// Reads a line, whose first byte says how it ended; panics where an answer is lost or made up.
pub fn run(data: &[u8]) {
    let Some((first, line)) = data.split_first() else { return };
    let (end, complete) = match first {
        b'l' => (LineEnd::Limit, false),
        b'p' => (LineEnd::Pipe, false),
        _ => (LineEnd::Newline, true),
    };
    let LineReading { answers, mistakes, has_text, quote } = read_line(line.to_vec(), end);
    assert!(quote.len() <= MAX_QUOTE_BYTES, "{quote}");
    let trimmed = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii();
    let Ok(object) = serde_json::from_slice::<Map<String, Value>>(trimmed) else { return };
    let known = ["events", "error", "emit"].iter().any(|key| object.contains_key(*key));
    if complete && known && object.contains_key("id") {
        assert!(!has_text && answers.len() + mistakes.len() == 1, "an answer is taken for other text: {object:?}");
    }
    if let [id] = answers.as_slice() {
        assert_eq!(object.get("id"), Some(&Value::from(*id)), "{object:?}");
        assert!(known, "{object:?}");
    }
}
