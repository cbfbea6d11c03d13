//! The answer of a language model while it is written, and its citations: `[2]` cites the second document.

use super::GeneratedAnswer;
use crate::extractive;
use nerve_core::{Emission, inference::Finish};
use nerve_events::{
    EventData,
    answers::{AnswerToken, Citation, Usage},
    retrieval::Hit,
};
use std::collections::BTreeSet;

/// Maximum length of a citation marker in bytes.
const MAX_MARKER_BYTES: usize = 32;

/// An answer that is being written.
pub(super) struct StreamedAnswer<'d> {
    documents: &'d [Hit],
    text: String,
    /// Offset up to which citation markers were parsed.
    scanned: usize,
    cited: BTreeSet<(usize, String)>,
    citations: Vec<Citation>,
}

impl<'d> StreamedAnswer<'d> {
    /// The answer that an earlier attempt started.
    pub(super) fn resumed(documents: &'d [Hit], published: &[Emission]) -> Self {
        let mut answer =
            Self { documents, text: String::new(), scanned: 0, cited: BTreeSet::new(), citations: Vec::new() };
        for output in published.iter().filter(|output| output.ty.as_str() == AnswerToken::TYPE) {
            if let Ok(AnswerToken { text }) = serde_json::from_slice(&output.data) {
                answer.add(&text);
            }
        }
        answer
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Appends a piece of text. Returns the citations that it completes.
    pub(super) fn add(&mut self, piece: &str) -> Vec<Citation> {
        self.text.push_str(piece);
        let mut completed = Vec::new();
        while let Some(rest) = self.text.get(self.scanned..) {
            let Some(open) = rest.find('[') else {
                self.scanned = self.text.len();
                break;
            };
            let marker = rest.get(open + 1..).unwrap_or_default();
            let Some(close) = marker.find(']') else {
                // A possible marker is parsed again with the next piece.
                let too_long = marker.len() > MAX_MARKER_BYTES;
                self.scanned += open + usize::from(too_long);
                if too_long {
                    continue;
                }
                break;
            };
            let numbers = marker.get(..close).unwrap_or_default().split([',', ';']);
            let numbers: Vec<usize> = numbers.filter_map(|number| number.trim().parse().ok()).collect();
            let claim = sentence_before(self.text.get(..self.scanned + open).unwrap_or_default()).to_owned();
            for number in numbers {
                completed.extend(self.cite(number, &claim));
            }
            self.scanned += open + close + 2;
        }
        completed
    }

    /// Cites the sentence of the document nearest to the claim.
    fn cite(&mut self, number: usize, claim: &str) -> Option<Citation> {
        let rank = number.checked_sub(1)?;
        let hit = self.documents.get(rank)?;
        let citation = extractive::cite_nearest(hit, claim, number);
        if !self.cited.insert((rank, citation.text.clone())) {
            return None;
        }
        self.citations.push(citation.clone());
        Some(citation)
    }

    /// The complete answer.
    pub(super) fn finish(self, finish: Finish, usage: Usage) -> GeneratedAnswer {
        let answered = !self.text.trim().is_empty() && !self.citations.is_empty();
        GeneratedAnswer {
            answer: self.text,
            answered,
            confidence: None,
            citations: self.citations,
            finish: Some(finish),
            usage: Some(usage),
        }
    }
}

/// The last sentence of a text, without trailing citation markers.
fn sentence_before(text: &str) -> &str {
    let text = text.trim_end_matches(|c: char| c.is_whitespace() || c.is_ascii_digit() || "[],;.".contains(c));
    let start = text.rfind(['.', '!', '?', '\n', ']']).map_or(0, |at| at + 1);
    text.get(start..).unwrap_or(text).trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_events::documents::Chunk;

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
    fn marker_cites_the_nearest_sentence() {
        let documents = documents();
        let mut answer = StreamedAnswer::resumed(&documents, &[]);
        let pieces =
            ["Refunds take a week", " [", "1", "]. Trains are", " slow [2][9] [x]. Refunds take a week [1, 2]."];
        let found: Vec<Vec<String>> =
            pieces.iter().map(|piece| answer.add(piece).into_iter().map(|one| one.text).collect()).collect();
        assert_eq!(found[3], ["Refunds take one week."]);
        assert_eq!(found[4], ["Trains are slow today."], "what was cited is not cited again, and [9] is nobody");
        assert!(found[..3].iter().all(Vec::is_empty));
        let citation = &answer.citations[0];
        assert_eq!((citation.source.as_str(), citation.number, citation.start), ("a", Some(1), 10 + 37));
    }

    #[test]
    fn interrupted_answer_is_resumed() {
        let documents = documents();
        let token = |text: &str| Emission {
            ty: AnswerToken::event_type(),
            data: serde_json::json!({ "text": text }).to_string().into(),
            content_type: None,
            subject: None,
            partition_key: None,
        };
        let mut answer = StreamedAnswer::resumed(&documents, &[token("Trains are slow"), token(" [2")]);
        assert_eq!(answer.text(), "Trains are slow [2");
        assert_eq!(answer.add("].").len(), 1);
        assert_eq!(answer.text(), "Trains are slow [2].");
    }
}
