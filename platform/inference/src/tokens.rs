//! Texts to token ids, cut at the model's limit.

use crate::{files::FolderError, layout::TextLayout};
use std::{borrow::Cow, fmt::Display, path::Path};
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationParams, TruncationStrategy, truncate_encodings};

/// Bytes of a long text that are looked at first, a token that the model reads.
const BYTES_A_TOKEN: usize = 16;
/// Tokens past the limit that a cut text must have, so that the cut cannot have changed those within.
const MARGIN: usize = 64;
/// The most of a text that is tokenised, in bytes: what has not the tokens of a whole window by then is cut there.
const LARGEST: usize = 1 << 20;
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
        // With a limit of its own it stops in each text of a pair as if there were no other (0.23.2), and so cuts the
        // wrong one.
        tokenizer.with_truncation(None).map_err(wrong)?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, max_tokens: layout.max_tokens, lower_case: layout.lower_case })
    }

    /// The tokens of a text, cut at the limit.
    pub(crate) fn text(&self, text: &str) -> Result<Tokens, String> {
        let (encoding, whole) = self.encode(text)?;
        self.finish(encoding, None, whole)
    }

    /// The tokens of a pair; of the two the longer is cut first.
    pub(crate) fn pair(&self, first: &str, second: &str) -> Result<Tokens, String> {
        let ((first, one), (second, two)) = (self.encode(first)?, self.encode(second)?);
        self.finish(first, Some(second), one && two)
    }

    /// A text's tokens without special ones, and whether they are all: else as many as the cut needs to fall where
    /// it would.
    ///
    /// Of a text far longer than the model reads only a part is tokenised: pieces that end at white space, longer and
    /// longer until one has more tokens than are read, or the text is over.
    fn encode(&self, text: &str) -> Result<(Encoding, bool), String> {
        let text: Cow<'_, str> = if self.lower_case { text.to_lowercase().into() } else { text.into() };
        let mut budget = self.max_tokens.saturating_mul(BYTES_A_TOKEN).min(LARGEST);
        loop {
            let piece = leading(&text, budget);
            let encoding = self.tokenizer.encode(piece, false).map_err(untokenised)?;
            let whole = piece.len() == text.len();
            if whole || encoding.len() > self.max_tokens + MARGIN || budget >= LARGEST {
                return Ok((encoding, whole));
            }
            budget = budget.saturating_mul(4).min(LARGEST);
        }
    }

    /// Cuts at the limit and puts special tokens around.
    fn finish(&self, first: Encoding, second: Option<Encoding>, whole: bool) -> Result<Tokens, String> {
        let special = self.tokenizer.get_post_processor();
        let special = special.map_or(0, |processor| processor.added_tokens(second.is_some()));
        let cut = TruncationParams {
            max_length: self.max_tokens.saturating_sub(special),
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        let tokens = first.len() + second.as_ref().map_or(0, Encoding::len);
        let (first, second) = truncate_encodings(first, second, &cut).map_err(untokenised)?;
        let encoding = self.tokenizer.post_process(first, second, true).map_err(untokenised)?;
        Ok(Tokens::of(&encoding, !whole || tokens > cut.max_length))
    }
}

fn untokenised(error: impl Display) -> String {
    format!("the text cannot be tokenised: {error}")
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
