//! Extractive answers: sentences of the documents, quoted and cited, without a language model.

mod sentences;

use nerve_events::{answers::Citation, retrieval::Hit};
pub use sentences::{Sentence, sentences};
use std::collections::BTreeSet;
use unicode_segmentation::UnicodeSegmentation;

/// Weight of the similarity in a sentence's score; the rest is the word overlap.
const SIMILARITY_WEIGHT: f32 = 0.8;
/// Minimum score of a sentence, relative to the best one.
const MIN_RELATIVE_SCORE: f32 = 0.8;
/// Similarity above which two sentences are duplicates.
const DUPLICATE_SIMILARITY: f32 = 0.92;
/// Text of the answer if the documents do not answer the question.
pub const NO_ANSWER: &str = "The documents do not answer this question.";

/// An answer in which every sentence is cited.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtractiveAnswer {
    /// The sentences, in the order of the documents.
    pub answer: String,
    /// The sentences, one by one.
    pub sentences: Vec<String>,
    /// Whether the documents answer the question.
    pub answered: bool,
    /// Score of the best sentence, from 0 to 1.
    pub confidence: f32,
    /// One citation per sentence.
    pub citations: Vec<Citation>,
}

/// Limits of an extractive answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerLimits {
    /// Maximum number of sentences.
    pub sentences: usize,
    /// Minimum score of the best sentence, from 0 to 1.
    pub threshold: f32,
}

/// Selects and orders the sentences of the answer. `vectors` has one unit vector per sentence; `question` is the text
/// and its unit vector.
pub fn answer(
    hits: &[Hit],
    sentences: &[Sentence],
    vectors: &[Vec<f32>],
    (question, vector): (&str, &[f32]),
    limits: AnswerLimits,
) -> ExtractiveAnswer {
    let question_words = words(question);
    let mut scored: Vec<(f32, usize)> = sentences
        .iter()
        .zip(vectors)
        .enumerate()
        .map(|(index, (sentence, other))| {
            let similarity = dot(vector, other).clamp(0.0, 1.0);
            (
                SIMILARITY_WEIGHT * similarity
                    + (1.0 - SIMILARITY_WEIGHT) * word_overlap(&question_words, &words(&sentence.text)),
                index,
            )
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let best = scored.first().map_or(0.0, |(score, _)| *score);
    if best < limits.threshold {
        let (answer, citations) = (NO_ANSWER.to_owned(), Vec::new());
        return ExtractiveAnswer { answer, sentences: Vec::new(), answered: false, confidence: best, citations };
    }
    let mut selected_indices: Vec<usize> = Vec::new();
    for (score, index) in scored {
        if score < best * MIN_RELATIVE_SCORE || selected_indices.len() == limits.sentences {
            break;
        }
        let is_duplicate = |other: &usize| match (vectors.get(*other), vectors.get(index)) {
            (Some(other), Some(this)) => dot(other, this) > DUPLICATE_SIMILARITY,
            _ => false,
        };
        if !selected_indices.iter().any(is_duplicate) {
            selected_indices.push(index);
        }
    }
    // In document order, related sentences are adjacent.
    selected_indices.sort_unstable();
    let selected: Vec<&Sentence> = selected_indices.iter().filter_map(|index| sentences.get(*index)).collect();
    let texts: Vec<String> = selected.iter().map(|sentence| with_terminator(&sentence.text)).collect();
    let citations = selected.iter().filter_map(|sentence| cite(hits.get(sentence.rank)?, sentence)).collect();
    ExtractiveAnswer { answer: texts.join(" "), sentences: texts, answered: true, confidence: best, citations }
}

/// Selects at most `limit` sentences by word overlap with the question and by rank of their chunk, before they are
/// embedded. Keeps their order.
pub fn preselect(sentences: Vec<Sentence>, question: &str, limit: usize) -> Vec<Sentence> {
    if sentences.len() <= limit {
        return sentences;
    }
    let question_words = words(question);
    // Ranks are far below the integer precision of an f32.
    #[expect(clippy::cast_precision_loss)]
    let score = |sentence: &Sentence| {
        word_overlap(&question_words, &words(&sentence.text)) + 0.5 / (1.0 + sentence.rank as f32)
    };
    let mut scored: Vec<(f32, usize)> = sentences.iter().map(score).zip(0..).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let kept: BTreeSet<usize> = scored.into_iter().take(limit).map(|(_, index)| index).collect();
    sentences.into_iter().enumerate().filter(|(index, _)| kept.contains(index)).map(|(_, sentence)| sentence).collect()
}

/// Cites the sentence of a chunk with the best word overlap with `claim`, as `number`; the whole chunk if it has no
/// sentence.
pub fn cite_nearest(hit: &Hit, claim: &str, number: usize) -> Citation {
    let question_words = words(claim);
    let sentences = sentences(std::slice::from_ref(hit), usize::MAX);
    let scored = sentences.iter().map(|sentence| word_overlap(&question_words, &words(&sentence.text))).zip(&sentences);
    // The first of equal scores.
    let best = scored.rev().max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, sentence)| sentence);
    let whole = Sentence { rank: 0, range: 0..hit.chunk.text.len(), text: hit.chunk.text.clone() };
    let citation = cite(hit, best.unwrap_or(&whole)).unwrap_or_default();
    Citation { number: Some(number), ..citation }
}

/// A sentence of an answer, with the numbers of the documents it cites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The sentence without the numbers.
    pub text: String,
    /// The numbers.
    pub numbers: BTreeSet<usize>,
}

/// Splits an answer into at most `limit` sentences with words. A number after a full stop belongs to the preceding
/// sentence.
pub fn claims(answer: &str, limit: usize) -> Vec<Claim> {
    let mut claims: Vec<Claim> = Vec::new();
    for piece in answer.split_sentence_bounds() {
        let (mut text, mut numbers) = (String::new(), BTreeSet::new());
        let mut rest = piece;
        while let Some((before, after)) = rest.split_once('[') {
            let Some((marker, remainder)) = after.split_once(']') else { break };
            let parsed: Vec<usize> = marker.split([',', ';']).filter_map(|number| number.trim().parse().ok()).collect();
            text.push_str(before);
            if parsed.is_empty() {
                text.push_str(marker);
            }
            numbers.extend(parsed);
            rest = remainder;
        }
        text.push_str(rest);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if words.unicode_words().next().is_none() {
            claims.last_mut().into_iter().for_each(|last| last.numbers.extend(&numbers));
        } else if claims.len() < limit {
            claims.push(Claim { text: words, numbers });
        }
    }
    claims
}

/// Share of a claim's words that a text contains, from 0 to 1.
pub fn word_coverage(claim: &str, text: &str) -> f32 {
    word_overlap(&words(claim), &words(text))
}

/// First sentence of a text, on one line.
pub fn first_sentence(text: &str) -> String {
    let first = text.split_sentence_bounds().find(|sentence| !sentence.trim().is_empty()).unwrap_or_default();
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cite(hit: &Hit, sentence: &Sentence) -> Option<Citation> {
    let text = hit.chunk.text.get(sentence.range.clone())?.to_owned();
    Some(Citation {
        number: None,
        chunk: hit.id.clone(),
        source: hit.document.clone(),
        name: hit.name.clone(),
        heading: hit.chunk.heading.clone(),
        text,
        start: hit.chunk.start + sentence.range.start,
        end: hit.chunk.start + sentence.range.end,
    })
}

/// A sentence with terminal punctuation.
fn with_terminator(text: &str) -> String {
    if text.ends_with(['.', '!', '…', ';', ')', '"']) { text.to_owned() } else { format!("{text}.") }
}

fn words(text: &str) -> BTreeSet<String> {
    text.unicode_words().map(str::to_lowercase).filter(|word| word.chars().count() > 3).collect()
}

/// Share of `expected` that is in `actual`, compared by the first letters of each word.
fn word_overlap(expected: &BTreeSet<String>, actual: &BTreeSet<String>) -> f32 {
    let stem = |word: &str| word.chars().take(5).collect::<String>();
    let actual: BTreeSet<String> = actual.iter().map(|word| stem(word)).collect();
    let found = expected.iter().filter(|word| actual.contains(&stem(word))).count();
    // Word counts are far below the integer precision of an f32.
    #[expect(clippy::cast_precision_loss)]
    if expected.is_empty() { 0.0 } else { found as f32 / expected.len() as f32 }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_events::documents::Chunk;

    const TEXT: &str = "# Fees\n\nInvoices that are paid late cost ten\npercent more. Refunds take a week.\n\n\
                        | a | table | of | four | words |\n\n```\ncode says nothing at all here.\n```\n\n\
                        - The night train is slow but cheap.\n- Is this a question with words?\n";

    fn hit(text: &str) -> Hit {
        Hit {
            id: "7".into(),
            document: "fees.md".into(),
            name: "fees.md".into(),
            chunk: Chunk {
                index: 0,
                text: text.into(),
                heading: vec!["Fees".into()],
                start: 100,
                end: 100 + text.len(),
            },
            ..Hit::default()
        }
    }

    #[test]
    fn sentences_are_prose_with_offsets() {
        let found = sentences(&[hit(TEXT)], 100);
        let texts: Vec<&str> = found.iter().map(|sentence| sentence.text.as_str()).collect();
        let expected = [
            "Invoices that are paid late cost ten percent more.",
            "Refunds take a week.",
            "The night train is slow but cheap.",
        ];
        assert_eq!(texts, expected);
        let stands = |sentence: &Sentence| TEXT[sentence.range.clone()].replace('\n', " ");
        assert!(found.iter().all(|sentence| stands(sentence) == sentence.text));
        assert_eq!(sentences(&[hit(TEXT)], 2).len(), 2);
    }

    #[test]
    fn markdown_is_kept_in_citations_only() {
        for (text, markdown, plain) in [
            (
                "1. Pay **late** invoices at [the *desk*](http://x/y).",
                "Pay **late** invoices at [the *desk*](http://x/y).",
                "Pay late invoices at the desk.",
            ),
            (
                "- `nerve up` starts it, and\n  `nerve tail` [shows][1] it.",
                "`nerve up` starts it, and\n  `nerve tail` [shows][1] it.",
                "`nerve up` starts it, and `nerve tail` shows it.",
            ),
            (
                "> Quoted words go over\n> two lines here.",
                "Quoted words go over\n> two lines here.",
                "Quoted words go over two lines here.",
            ),
            (
                "Two times 2*3*4 of snake_case_name in Vec<u8> [1].",
                "Two times 2*3*4 of snake_case_name in Vec<u8> [1].",
                "Two times 2*3*4 of snake_case_name in Vec<u8> [1].",
            ),
            (
                "* ![A picture](x.png) of Tom &amp; a \\* star.",
                "![A picture](x.png) of Tom &amp; a \\* star.",
                "A picture of Tom & a * star.",
            ),
        ] {
            let found = sentences(&[hit(text)], 10);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert_eq!((&text[found[0].range.clone()], found[0].text.as_str()), (markdown, plain));
        }
        let found =
            sentences(&[hit("**Late fees are ten percent. They are due at once.** Nobody is asked twice.")], 10);
        let texts: Vec<&str> = found.iter().map(|sentence| sentence.text.as_str()).collect();
        assert_eq!(texts, ["Late fees are ten percent.", "They are due at once.", "Nobody is asked twice."]);
        let list = "1. The first item is short.\n2. The second item is [long](x).\n\n| a | table of some words |\n\
                    the rest of a row | with words | and cells\nends here with a pipe |\n";
        let found = sentences(&[hit(list)], 10);
        let texts: Vec<&str> = found.iter().map(|sentence| sentence.text.as_str()).collect();
        assert_eq!(texts, ["The first item is short.", "The second item is long."]);
    }

    #[test]
    fn answer_quotes_each_sentence_once_with_its_citation() {
        let hits = [hit(TEXT)];
        let found = sentences(&hits, 100);
        let limits = AnswerLimits { sentences: 2, threshold: 0.4 };
        let vectors = [vec![0.9, 0.436], vec![0.1, 0.995], vec![0.0, 1.0]];
        let quoted =
            answer(&hits, &found, &vectors, ("What do invoices cost that are paid late?", &[1.0, 0.0]), limits);
        assert_eq!(quoted.answer, "Invoices that are paid late cost ten percent more.");
        assert!(quoted.answered && quoted.confidence > 0.8, "{quoted:?}");
        let citation = &quoted.citations[0];
        assert_eq!((citation.source.as_str(), citation.start), ("fees.md", 100 + TEXT.find("Invoices").unwrap()));
        let same = [vec![1.0, 0.0], vec![1.0, 0.0], vec![0.9, 0.436]];
        let quoted = answer(&hits, &found, &same, ("late trains", &[1.0, 0.0]), limits);
        assert_eq!(quoted.citations.len(), 2, "two that say the same are one");
        let nothing =
            answer(&hits, &found, &[vec![0.0, 1.0], vec![0.0, 1.0], vec![0.0, 1.0]], ("x", &[1.0, 0.0]), limits);
        assert_eq!((nothing.answer.as_str(), nothing.answered, nothing.citations.len()), (NO_ANSWER, false, 0));
        assert!(!answer(&[], &[], &[], ("x", &[1.0]), limits).answered);
    }
}
