//! Incremental detokenization with whole characters and stop texts.

use std::sync::Arc;
use tokenizers::Tokenizer;

/// Replacement character of a decoder for incomplete bytes.
const INCOMPLETE_CHAR: char = char::REPLACEMENT_CHARACTER;

/// Result of one more token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DecodedText {
    /// Text to send; empty if the token is incomplete.
    Partial(String),
    /// The final text: a stop text was generated.
    Final(String),
}

/// Text of one answer.
pub(super) struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// The latest tokens: those of the last sent text and those after it.
    tokens: Vec<u32>,
    /// Number of these tokens whose text was sent.
    sent: usize,
    stop_buffer: StopBuffer,
}

impl Detokenizer {
    /// Continues after the tokens `before`; stops at the first text of `stop`.
    ///
    /// # Errors
    /// If `before` cannot be decoded.
    pub(super) fn new(tokenizer: Arc<Tokenizer>, before: &[u32], stop: Vec<String>) -> Self {
        Self { tokenizer, tokens: before.to_vec(), sent: before.len(), stop_buffer: StopBuffer::new(stop) }
    }

    /// Adds a token.
    pub(super) fn push(&mut self, token: u32) -> Result<DecodedText, String> {
        self.tokens.push(token);
        let text = self.unsent()?;
        if text.is_empty() || text.ends_with(INCOMPLETE_CHAR) {
            return Ok(DecodedText::Partial(String::new()));
        }
        // A token's text depends only on the preceding token.
        self.tokens.drain(..self.sent);
        self.sent = self.tokens.len();
        Ok(self.stop_buffer.push(&text))
    }

    /// The held-back text at the end, without an incomplete character.
    pub(super) fn finish(mut self) -> Result<String, String> {
        let text = self.unsent()?;
        Ok(match self.stop_buffer.push(text.trim_end_matches(INCOMPLETE_CHAR)) {
            DecodedText::Partial(text) => text + &self.stop_buffer.buffered,
            DecodedText::Final(text) => text,
        })
    }

    fn unsent(&self) -> Result<String, String> {
        let decode = |tokens: &[u32]| {
            let text = self.tokenizer.decode(tokens, true);
            text.map_err(|error| format!("its tokens cannot be decoded: {error}"))
        };
        let sent = decode(self.tokens.get(..self.sent).unwrap_or_default())?;
        let all = decode(&self.tokens)?;
        Ok(all.get(sent.len()..).unwrap_or_default().to_owned())
    }
}

/// Holds back a possible start of a stop text.
#[derive(Debug, Default)]
struct StopBuffer {
    stop: Vec<String>,
    buffered: String,
}

impl StopBuffer {
    fn new(stop: Vec<String>) -> Self {
        Self { stop: stop.into_iter().filter(|stop| !stop.is_empty()).collect(), buffered: String::new() }
    }

    fn push(&mut self, text: &str) -> DecodedText {
        self.buffered.push_str(text);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.buffered.find(stop)).min() {
            self.buffered.truncate(at);
            return DecodedText::Final(std::mem::take(&mut self.buffered));
        }
        let may_grow = |(at, _): &(usize, char)| {
            let rest = self.buffered.get(*at..).unwrap_or_default();
            self.stop.iter().any(|stop| stop.starts_with(rest))
        };
        let longest = self.stop.iter().map(String::len).max().unwrap_or_default();
        let from = self.buffered.floor_char_boundary(self.buffered.len().saturating_sub(longest));
        let late = self.buffered.char_indices().skip_while(|(at, _)| *at < from);
        let keep = late.into_iter().find(may_grow).map_or(self.buffered.len(), |(at, _)| at);
        let kept = self.buffered.split_off(keep);
        DecodedText::Partial(std::mem::replace(&mut self.buffered, kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn decode_pieces(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stop_buffer = StopBuffer::new(stop.iter().map(|stop| (*stop).to_owned()).collect());
        let mut sent = Vec::new();
        for piece in pieces {
            match stop_buffer.push(piece) {
                DecodedText::Partial(text) => sent.push(text),
                DecodedText::Final(text) => {
                    sent.push(text);
                    return (sent, true);
                }
            }
        }
        sent.push(stop_buffer.buffered);
        (sent, false)
    }

    #[test]
    fn multi_token_character_is_sent_whole() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx/models/writer/tokenizer.json");
        let tokenizer = Arc::new(Tokenizer::from_file(file).unwrap());
        // The bytes of `é日!` in the byte-level alphabet, and the first byte of another character.
        let tokens = ["Ã", "©", "æ", "Ĺ", "¥", "!", "æ"].map(|name| tokenizer.token_to_id(name).unwrap());
        let mut detokenizer = Detokenizer::new(tokenizer, &[], Vec::new());
        let sent = tokens.map(|token| detokenizer.push(token).unwrap());
        assert_eq!(sent, ["", "é", "", "", "日", "!", ""].map(|text| DecodedText::Partial(text.to_owned())));
        assert_eq!(detokenizer.finish().unwrap(), "");
    }

    #[test]
    fn possible_stop_text_is_held_back() {
        type Case<'c> = (&'c [&'c str], &'c [&'c str], &'c [&'c str], bool);
        let cases: [Case<'_>; 8] = [
            (&[], &["a", "b"], &["a", "b", ""], false),
            (&[""], &["a"], &["a", ""], false),
            (&["END"], &["an E", "N", "D of"], &["an ", "", ""], true),
            (&["END"], &["an E", "N", "V"], &["an ", "", "ENV", ""], false),
            (&["END"], &["the E", "E", "ND"], &["the ", "E", ""], true),
            (&["\n\n", "."], &["a\n", "b.", "c"], &["a", "\nb"], true),
            (&["bc", "b"], &["abc"], &["a"], true),
            (&["é!"], &["caf", "é", "?"], &["caf", "", "é?", ""], false),
        ];
        for (stop, pieces, sent, ends) in cases {
            assert_eq!(
                decode_pieces(stop, pieces),
                (sent.iter().map(|text| (*text).to_owned()).collect(), ends),
                "{stop:?} {pieces:?}"
            );
        }
    }
}
