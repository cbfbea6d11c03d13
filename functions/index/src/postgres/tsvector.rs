//! Texts as PostgreSQL's `tsvector`, by the analyzer of the embedded index, so that both kinds of index agree.

use crate::analyzer::{new_analyzer, query_tokens};
use std::{collections::BTreeMap, fmt::Write};
use tantivy::tokenizer::TextAnalyzer;

pub(crate) use crate::analyzer::ANALYZER_NAME;

/// Maximum position in a `tsvector`.
const MAX_POSITION: usize = 16_383;
/// Maximum number of positions of one lexeme in a `tsvector`.
const MAX_POSITIONS_PER_LEXEME: usize = 255;

/// Analyzer of texts and queries.
pub(crate) struct TsvectorAnalyzer(TextAnalyzer);

impl TsvectorAnalyzer {
    pub(crate) fn new() -> Self {
        Self(new_analyzer())
    }

    /// A chunk as `tsvector`: lexemes with positions; those of headings have the label A.
    pub(crate) fn tsvector(&mut self, heading: &str, text: &str) -> String {
        let mut lexemes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut position = 0;
        for (part, label) in [(heading, "A"), (text, "")] {
            let mut stream = self.0.token_stream(part);
            while let Some(token) = stream.next() {
                position = (position + 1).min(MAX_POSITION);
                let positions = lexemes.entry(token.text.clone()).or_default();
                if positions.len() < MAX_POSITIONS_PER_LEXEME {
                    positions.push(format!("{position}{label}"));
                }
            }
        }
        let mut tsvector = String::new();
        for (lexeme, positions) in lexemes {
            // Writing to a string cannot fail.
            let _ = write!(tsvector, "{}:{} ", quote_lexeme(&lexeme), positions.join(","));
        }
        tsvector
    }

    /// The distinct lexemes of a query.
    pub(crate) fn query_lexemes(&mut self, text: &str) -> Vec<String> {
        query_tokens(&mut self.0, text)
    }
}

/// A lexeme quoted for `tsvector` and `tsquery`.
pub(crate) fn quote_lexeme(lexeme: &str) -> String {
    format!("'{}'", lexeme.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tsvector_has_positions_and_heading_labels() {
        let mut analyzer = TsvectorAnalyzer::new();
        assert_eq!(analyzer.tsvector("Fees", "Paid fees, and paying"), "'fee':1A,3 'paid':2 'pay':4 ");
        assert_eq!(analyzer.query_lexemes("Is the café's fee paid?"), ["cafe", "s", "fee", "paid"]);
        assert_eq!(analyzer.tsvector("", "the and"), "");
        assert_eq!(analyzer.tsvector("", &"word ".repeat(20_000)).matches(',').count(), MAX_POSITIONS_PER_LEXEME - 1);
        assert_eq!(quote_lexeme(r"a'b\c"), r"'a''b\\c'");
    }
}
