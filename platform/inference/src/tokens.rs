//! Tokenization with truncation at the model's limit.

use crate::{files::ModelError, spec::TextSpec};
use std::{borrow::Cow, fmt::Display, path::Path};
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationParams, TruncationStrategy, truncate_encodings};

/// Bytes of a long text that are tokenized first, per token of the limit.
const BYTES_PER_TOKEN: usize = 16;
/// Number of tokens beyond the limit that a shortened text must have, so that shortening cannot affect tokens within
/// it.
const TRUNCATION_MARGIN_TOKENS: usize = 64;
/// Maximum number of bytes of a text that are tokenized; the rest is truncated.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Minimum size, in bytes, of texts that are not tokenized on an async thread.
pub(crate) const MIN_BLOCKING_TEXT_BYTES: usize = 16 << 10;

/// Tokens of a text or of a pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<i64>,
    /// Index of the text in a pair, per token.
    pub(crate) types: Vec<i64>,
    /// Whether the text was truncated.
    pub(crate) truncated: bool,
}

/// Tokenizer of a model.
pub(crate) struct ModelTokenizer {
    tokenizer: Tokenizer,
    max_tokens: usize,
    lower_case: bool,
}

impl ModelTokenizer {
    pub(crate) fn read(root: &Path, spec: &TextSpec) -> Result<Self, ModelError> {
        let file = root.join("tokenizer.json");
        let unusable = |error: tokenizers::Error| ModelError(format!("{} cannot be used: {error}", file.display()));
        let mut tokenizer = Tokenizer::from_file(&file).map_err(unusable)?;
        // Its own truncation (0.23.2) limits each text of a pair separately, and so truncates the wrong one.
        tokenizer.with_truncation(None).map_err(unusable)?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, max_tokens: spec.max_tokens, lower_case: spec.lower_case })
    }

    /// Tokens of a text, truncated at the limit.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    pub(crate) fn text(&self, text: &str) -> Result<Tokens, String> {
        let (encoding, whole) = self.encode(text)?;
        self.finish(encoding, None, whole)
    }

    /// Tokens of a pair of texts; the longer one is truncated first.
    ///
    /// # Errors
    /// If a text cannot be tokenized.
    pub(crate) fn pair(&self, first: &str, second: &str) -> Result<Tokens, String> {
        let ((first, one), (second, two)) = (self.encode(first)?, self.encode(second)?);
        self.finish(first, Some(second), one && two)
    }

    /// Tokens of a text without special ones, and whether they are complete; otherwise at least as many as truncation
    /// requires.
    ///
    /// Of a text far longer than the limit only a part is tokenized: growing prefixes that end at whitespace, until
    /// one has more tokens than the limit or the text is complete.
    fn encode(&self, text: &str) -> Result<(Encoding, bool), String> {
        let text: Cow<'_, str> = if self.lower_case { text.to_lowercase().into() } else { text.into() };
        let mut budget = self.max_tokens.saturating_mul(BYTES_PER_TOKEN).min(MAX_TEXT_BYTES);
        loop {
            let piece = leading_part(&text, budget);
            let encoding = self.tokenizer.encode(piece, false).map_err(tokenization_error)?;
            let whole = piece.len() == text.len();
            if whole || encoding.len() > self.max_tokens + TRUNCATION_MARGIN_TOKENS || budget >= MAX_TEXT_BYTES {
                return Ok((encoding, whole));
            }
            budget = budget.saturating_mul(4).min(MAX_TEXT_BYTES);
        }
    }

    /// Truncates at the limit and adds special tokens.
    fn finish(&self, first: Encoding, second: Option<Encoding>, whole: bool) -> Result<Tokens, String> {
        let special = self.tokenizer.get_post_processor();
        let special = special.map_or(0, |processor| processor.added_tokens(second.is_some()));
        let cut = TruncationParams {
            max_length: self.max_tokens.saturating_sub(special),
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        let tokens = first.len() + second.as_ref().map_or(0, Encoding::len);
        let (first, second) = truncate_encodings(first, second, &cut).map_err(tokenization_error)?;
        let encoding = self.tokenizer.post_process(first, second, true).map_err(tokenization_error)?;
        Ok(Tokens::of(&encoding, !whole || tokens > cut.max_length))
    }
}

fn tokenization_error(error: impl Display) -> String {
    format!("the text cannot be tokenized: {error}")
}

impl Tokens {
    fn of(encoding: &Encoding, truncated: bool) -> Self {
        Self {
            ids: encoding.get_ids().iter().map(|&id| i64::from(id)).collect(),
            types: encoding.get_type_ids().iter().map(|&id| i64::from(id)).collect(),
            truncated,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }
}

/// The text if it has at most `budget` bytes, else its prefix before the last whitespace within.
fn leading_part(text: &str, budget: usize) -> &str {
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
    fn long_text_is_truncated_at_whitespace() {
        assert_eq!(leading_part("one two three", 100), "one two three");
        assert_eq!(leading_part("one two three", 9), "one two");
        assert_eq!(leading_part("onetwothree", 6), "onetwo");
        assert_eq!(leading_part("ééé", 3), "é");
        assert_eq!(leading_part(" ééé", 4), " é");
    }
}
