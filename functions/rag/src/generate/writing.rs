//! What a language model writes, and which documents it names meanwhile: `[2]` cites the second.

use super::{Made, Usage};
use crate::extract::{self, Citation};
use nerve_core::{Emission, answer, inference::Finish};
use nerve_index::Hit;
use serde::Deserialize;
use std::collections::BTreeSet;

/// The longest mark that names documents, in bytes.
const LONGEST_MARK: usize = 32;

/// An answer while it is written.
pub(super) struct Writing<'d> {
    documents: &'d [Hit],
    text: String,
    /// Up to where marks were looked for.
    scanned: usize,
    cited: BTreeSet<(usize, String)>,
    citations: Vec<Citation>,
}

impl<'d> Writing<'d> {
    /// What an earlier attempt has written, to be gone on with.
    pub(super) fn resumed(documents: &'d [Hit], before: &[Emission]) -> Self {
        #[derive(Deserialize)]
        struct Token {
            text: String,
        }
        let mut writing =
            Self { documents, text: String::new(), scanned: 0, cited: BTreeSet::new(), citations: Vec::new() };
        for emission in before.iter().filter(|emission| emission.ty.as_str() == answer::TOKEN) {
            if let Ok(Token { text }) = serde_json::from_slice(&emission.data) {
                writing.add(&text);
            }
        }
        writing
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Adds a piece; says which citations it completes.
    pub(super) fn add(&mut self, piece: &str) -> Vec<Citation> {
        self.text.push_str(piece);
        let mut completed = Vec::new();
        while let Some(rest) = self.text.get(self.scanned..) {
            let Some(open) = rest.find('[') else {
                self.scanned = self.text.len();
                break;
            };
            let mark = rest.get(open + 1..).unwrap_or_default();
            let Some(close) = mark.find(']') else {
                // What may still become a mark is looked at again.
                let over = mark.len() > LONGEST_MARK;
                self.scanned += open + usize::from(over);
                if over {
                    continue;
                }
                break;
            };
            let numbers = mark.get(..close).unwrap_or_default().split([',', ';']);
            let numbers: Vec<usize> = numbers.filter_map(|number| number.trim().parse().ok()).collect();
            let claim = sentence_before(self.text.get(..self.scanned + open).unwrap_or_default()).to_owned();
            for number in numbers {
                completed.extend(self.cite(number, &claim));
            }
            self.scanned += open + close + 2;
        }
        completed
    }

    /// The sentence of the document that says most of what is claimed.
    fn cite(&mut self, number: usize, claim: &str) -> Option<Citation> {
        let rank = number.checked_sub(1)?;
        let hit = self.documents.get(rank)?;
        let citation = extract::nearest(hit, claim, number);
        if !self.cited.insert((rank, citation.text.clone())) {
            return None;
        }
        self.citations.push(citation.clone());
        Some(citation)
    }

    /// The whole answer.
    pub(super) fn finish(self, finish: Finish, usage: Usage) -> Made {
        let answered = !self.text.trim().is_empty() && !self.citations.is_empty();
        Made {
            answer: self.text,
            answered,
            confidence: None,
            citations: self.citations,
            finish: Some(finish),
            usage: Some(usage),
        }
    }
}

/// The last sentence of a text, without the marks at its end.
fn sentence_before(text: &str) -> &str {
    let text = text.trim_end_matches(|c: char| c.is_whitespace() || c.is_ascii_digit() || "[],;.".contains(c));
    let start = text.rfind(['.', '!', '?', '\n', ']']).map_or(0, |at| at + 1);
    text.get(start..).unwrap_or(text).trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;
    use nerve_text::chunk::Chunk;

    fn documents() -> Vec<Hit> {
        let hit = |id: &str, text: &str| Hit {
            id: id.into(),
            document: id.into(),
            chunk: Chunk { text: text.into(), start: 10, end: 10 + text.len(), ..Chunk::default() },
            ..Hit::default()
        };
        vec![
            hit("a", "Late invoices cost ten percent more. Refunds take one week."),
            hit("b", "Trains are slow today."),
        ]
    }

    #[test]
    fn a_mark_cites_the_sentence_that_says_it_however_it_arrives() {
        let documents = documents();
        let mut writing = Writing::resumed(&documents, &[]);
        let pieces =
            ["Refunds take a week", " [", "1", "]. Trains are", " slow [2][9] [x]. Refunds take a week [1, 2]."];
        let found: Vec<Vec<String>> =
            pieces.iter().map(|piece| writing.add(piece).into_iter().map(|one| one.text).collect()).collect();
        assert_eq!(found[3], ["Refunds take one week."]);
        assert_eq!(found[4], ["Trains are slow today."], "what was cited is not cited again, and [9] is nobody");
        assert!(found[..3].iter().all(Vec::is_empty));
        let citation = &writing.citations[0];
        assert_eq!((citation.source.as_str(), citation.number, citation.start), ("a", Some(1), 10 + 37));
    }

    #[test]
    fn it_goes_on_where_it_was_cut_off() {
        let documents = documents();
        let token = |text: &str| Emission {
            ty: EventType::parse(answer::TOKEN).unwrap(),
            data: serde_json::json!({ "text": text }).to_string().into(),
            content_type: None,
            subject: None,
            partition_key: None,
        };
        let mut writing = Writing::resumed(&documents, &[token("Trains are slow"), token(" [2")]);
        assert_eq!(writing.text(), "Trains are slow [2");
        assert_eq!(writing.add("].").len(), 1);
        assert_eq!(writing.text(), "Trains are slow [2].");
    }
}
