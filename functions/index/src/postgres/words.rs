//! Texts as PostgreSQL's `tsvector`, by the analyser of the embedded index, so that both kinds know the same words.

use crate::analyzer;
use std::{collections::BTreeMap, fmt::Write};
use tantivy::tokenizer::TextAnalyzer;

pub(crate) use crate::analyzer::ANALYSER;

/// The largest position that a `tsvector` holds.
const LAST: usize = 16_383;
/// The most positions of one word that a `tsvector` holds.
const MOST: usize = 255;

/// What makes words of texts.
pub(crate) struct Words(TextAnalyzer);

impl Words {
    pub(crate) fn new() -> Self {
        Self(analyzer::analyser())
    }

    /// A chunk's words, each with where it stands; those of its headings have the label A.
    pub(crate) fn vector(&mut self, heading: &str, text: &str) -> String {
        let mut words: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut place = 0;
        for (part, label) in [(heading, "A"), (text, "")] {
            let mut stream = self.0.token_stream(part);
            while let Some(token) = stream.next() {
                place = (place + 1).min(LAST);
                let places = words.entry(token.text.clone()).or_default();
                if places.len() < MOST {
                    places.push(format!("{place}{label}"));
                }
            }
        }
        let mut vector = String::new();
        for (word, places) in words {
            // Writing to a string cannot fail.
            let _ = write!(vector, "{}:{} ", quoted(&word), places.join(","));
        }
        vector
    }

    /// The words of a question, each once.
    pub(crate) fn query(&mut self, text: &str) -> Vec<String> {
        analyzer::words(&mut self.0, text)
    }
}

/// A word as `tsvector` and `tsquery` read it.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_where_they_stand_with_those_of_headings_first() {
        let mut words = Words::new();
        assert_eq!(words.vector("Fees", "Paid fees, and paying"), "'fee':1A,3 'paid':2 'pay':4 ");
        assert_eq!(words.query("Is the café's fee paid?"), ["cafe", "s", "fee", "paid"]);
        assert_eq!(words.vector("", "the and"), "");
        assert_eq!(words.vector("", &"word ".repeat(20_000)).matches(',').count(), MOST - 1);
        assert_eq!(quoted(r"a'b\c"), r"'a''b\\c'");
    }
}
