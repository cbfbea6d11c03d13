//! Tokens to text, a whole character at a time, up to the first text that ends it.

use std::sync::Arc;
use tokenizers::Tokenizer;

/// What a decoder puts where bytes are no character (yet).
const UNFINISHED: char = char::REPLACEMENT_CHARACTER;

/// What comes of one more token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Spelled {
    /// What can be told of the text; empty where nothing can yet.
    Goes(String),
    /// The last of the text: one that ends it came.
    Ends(String),
}

/// The text of one answer.
pub(super) struct Spelling {
    tokenizer: Arc<Tokenizer>,
    /// The latest tokens: those of a text that is told, and of what follows it.
    tokens: Vec<u32>,
    /// How many of them are told already.
    told: usize,
    tail: Tail,
}

impl Spelling {
    /// For an answer whose text goes on after these tokens, and ends before the first of `stop`.
    pub(super) fn new(tokenizer: Arc<Tokenizer>, before: &[u32], stop: Vec<String>) -> Self {
        Self { tokenizer, tokens: before.to_vec(), told: before.len(), tail: Tail::new(stop) }
    }

    /// Adds a token.
    pub(super) fn push(&mut self, token: u32) -> Result<Spelled, String> {
        self.tokens.push(token);
        let text = self.untold()?;
        if text.is_empty() || text.ends_with(UNFINISHED) {
            return Ok(Spelled::Goes(String::new()));
        }
        // How a token is spelled depends on the one before it, and no others.
        self.tokens.drain(..self.told);
        self.told = self.tokens.len();
        Ok(self.tail.push(&text))
    }

    /// What is still to be told at the end; a character that is not whole never is.
    pub(super) fn finish(mut self) -> Result<String, String> {
        let text = self.untold()?;
        Ok(match self.tail.push(text.trim_end_matches(UNFINISHED)) {
            Spelled::Goes(text) => text + &self.tail.held,
            Spelled::Ends(text) => text,
        })
    }

    fn untold(&self) -> Result<String, String> {
        let decode = |tokens: &[u32]| {
            let text = self.tokenizer.decode(tokens, true);
            text.map_err(|error| format!("its tokens are no text: {error}"))
        };
        let told = decode(self.tokens.get(..self.told).unwrap_or_default())?;
        let all = decode(&self.tokens)?;
        Ok(all.get(told.len()..).unwrap_or_default().to_owned())
    }
}

/// Holds back what may become a text that ends the answer.
#[derive(Debug, Default)]
struct Tail {
    stop: Vec<String>,
    held: String,
}

impl Tail {
    fn new(stop: Vec<String>) -> Self {
        Self { stop: stop.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    fn push(&mut self, text: &str) -> Spelled {
        self.held.push_str(text);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return Spelled::Ends(std::mem::take(&mut self.held));
        }
        let may_grow = |(at, _): &(usize, char)| {
            let rest = self.held.get(*at..).unwrap_or_default();
            self.stop.iter().any(|stop| stop.starts_with(rest))
        };
        let longest = self.stop.iter().map(String::len).max().unwrap_or_default();
        let from = self.held.floor_char_boundary(self.held.len().saturating_sub(longest));
        let late = self.held.char_indices().skip_while(|(at, _)| *at < from);
        let keep = late.into_iter().find(may_grow).map_or(self.held.len(), |(at, _)| at);
        let kept = self.held.split_off(keep);
        Spelled::Goes(std::mem::replace(&mut self.held, kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn spell(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut tail = Tail::new(stop.iter().map(|stop| (*stop).to_owned()).collect());
        let mut told = Vec::new();
        for piece in pieces {
            match tail.push(piece) {
                Spelled::Goes(text) => told.push(text),
                Spelled::Ends(text) => {
                    told.push(text);
                    return (told, true);
                }
            }
        }
        told.push(tail.held);
        (told, false)
    }

    #[test]
    fn a_character_that_is_several_tokens_comes_whole() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx/models/writer/tokenizer.json");
        let tokenizer = Arc::new(Tokenizer::from_file(file).unwrap());
        // The bytes of `é日!`, as byte-level tokenizers name them, and one that begins another character.
        let tokens = ["Ã", "©", "æ", "Ĺ", "¥", "!", "æ"].map(|name| tokenizer.token_to_id(name).unwrap());
        let mut spelling = Spelling::new(tokenizer, &[], Vec::new());
        let told = tokens.map(|token| spelling.push(token).unwrap());
        assert_eq!(told, ["", "é", "", "", "日", "!", ""].map(|text| Spelled::Goes(text.to_owned())));
        assert_eq!(spelling.finish().unwrap(), "");
    }

    #[test]
    fn what_may_end_the_text_is_held_back() {
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
        for (stop, pieces, told, ends) in cases {
            assert_eq!(
                spell(stop, pieces),
                (told.iter().map(|text| (*text).to_owned()).collect(), ends),
                "{stop:?} {pieces:?}"
            );
        }
    }
}
