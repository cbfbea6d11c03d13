//! Texts to token ids, cut at the model's limit.

use crate::{folder::FolderError, layout::TextLayout};
use std::path::Path;
use tokenizers::{EncodeInput, Encoding, Tokenizer, TruncationParams, TruncationStrategy};

/// Bytes of a long text that are looked at first, a token that the model reads.
const BYTES_A_TOKEN: usize = 16;
/// Tokens past the limit that a cut text must have, so that the cut cannot have changed those within.
const MARGIN: usize = 64;
/// Texts longer than this, in bytes, are not tokenised on an async thread.
pub(crate) const LONG: usize = 16 << 10;

/// One text, or a pair of them, as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<i64>,
    /// Which of a pair a token belongs to.
    pub(crate) types: Vec<i64>,
    /// Whether something was cut off.
    pub(crate) truncated: bool,
}

/// A model's tokenizer.
pub(crate) struct TokenizerFile {
    tokenizer: Tokenizer,
    max_tokens: usize,
    lower_case: bool,
}

impl TokenizerFile {
    pub(crate) fn read(root: &Path, layout: &TextLayout) -> Result<Self, FolderError> {
        let file = root.join("tokenizer.json");
        let wrong = |error: tokenizers::Error| FolderError(format!("{} cannot be used: {error}", file.display()));
        let mut tokenizer = Tokenizer::from_file(&file).map_err(wrong)?;
        let truncation = TruncationParams {
            max_length: layout.max_tokens,
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        tokenizer.with_truncation(Some(truncation)).map_err(wrong)?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, max_tokens: layout.max_tokens, lower_case: layout.lower_case })
    }

    /// The tokens of a text, cut at the limit.
    ///
    /// Of a text far longer than the model reads only a part is tokenised: pieces that end at white space, longer and
    /// longer until one has more tokens than are read, or the text is over.
    pub(crate) fn text(&self, text: &str) -> Result<Tokens, String> {
        let text = self.cased(text);
        let mut budget = self.max_tokens.saturating_mul(BYTES_A_TOKEN);
        loop {
            let piece = leading(&text, budget);
            let encoding = self.encode(piece.into())?;
            let beyond: usize = encoding.get_overflowing().iter().map(Encoding::len).sum();
            if piece.len() == text.len() || beyond > MARGIN {
                return Ok(Tokens::of(&encoding));
            }
            budget = budget.saturating_mul(4);
        }
    }

    /// The tokens of a pair; of the two the longer is cut first.
    pub(crate) fn pair(&self, first: &str, second: &str) -> Result<Tokens, String> {
        let (first, second) = (self.cased(first), self.cased(second));
        let mut budget = self.max_tokens.saturating_mul(BYTES_A_TOKEN);
        loop {
            let pieces = (leading(&first, budget), leading(&second, budget));
            let encoding = self.encode(pieces.into())?;
            let whole = pieces.0.len() == first.len() && pieces.1.len() == second.len();
            let beyond: usize = encoding.get_overflowing().iter().map(Encoding::len).sum();
            if whole || beyond > MARGIN {
                return Ok(Tokens::of(&encoding));
            }
            budget = budget.saturating_mul(4);
        }
    }

    fn cased<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        if self.lower_case { text.to_lowercase().into() } else { text.into() }
    }

    fn encode(&self, input: EncodeInput<'_>) -> Result<Encoding, String> {
        self.tokenizer.encode(input, true).map_err(|error| format!("the text cannot be tokenised: {error}"))
    }
}

impl Tokens {
    fn of(encoding: &Encoding) -> Self {
        Self {
            ids: encoding.get_ids().iter().map(|&id| i64::from(id)).collect(),
            types: encoding.get_type_ids().iter().map(|&id| i64::from(id)).collect(),
            truncated: !encoding.get_overflowing().is_empty(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }
}

/// The whole of a text that is no longer than `budget` bytes, else what comes before its last white space within.
fn leading(text: &str, budget: usize) -> &str {
    if text.len() <= budget {
        return text;
    }
    let cut = text.get(..text.floor_char_boundary(budget)).unwrap_or(text);
    cut.rfind(char::is_whitespace).and_then(|at| cut.get(..at)).filter(|piece| !piece.is_empty()).unwrap_or(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_white_space() {
        assert_eq!(leading("one two three", 100), "one two three");
        assert_eq!(leading("one two three", 9), "one two");
        assert_eq!(leading("onetwothree", 6), "onetwo");
        assert_eq!(leading("ééé", 3), "é");
        assert_eq!(leading(" ééé", 4), " é");
    }
}
