//! Answers without a language model: the sentences of the documents that answer a question, quoted and cited.

mod sentences;

use nerve_index::Hit;
pub use sentences::{Sentence, sentences};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use unicode_segmentation::UnicodeSegmentation;

/// How much likeness by meaning counts; the rest is the share of the question's words that are said.
const MEANING: f32 = 0.8;
/// A sentence this far below the best one has less to do with the question.
const NEAR_THE_BEST: f32 = 0.8;
/// Sentences more alike than this say the same.
const SAME: f32 = 0.92;
/// What is answered where the documents say nothing of it.
pub const NO_ANSWER: &str = "The documents do not answer this question.";

/// Where a sentence of the answer comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Citation {
    /// The number that the answer names the document by; none where each sentence of it is a quotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<usize>,
    /// The chunk's id in the index.
    pub chunk: String,
    /// The document.
    pub source: String,
    /// The document's name.
    pub name: String,
    /// The headings above it.
    pub heading: Vec<String>,
    /// What it says, word for word.
    pub text: String,
    /// Where it begins in the document's text, in bytes.
    pub start: usize,
    /// Where it ends, in bytes.
    pub end: usize,
}

/// An answer, every sentence of which is cited.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// The sentences, in the documents' order.
    pub answer: String,
    /// The same, one by one.
    #[serde(skip)]
    pub sentences: Vec<String>,
    /// Whether the documents answer the question.
    pub answered: bool,
    /// How near the best sentence is to the question, from 0 to 1.
    pub confidence: f32,
    /// One a sentence.
    pub citations: Vec<Citation>,
}

/// How answers are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The most sentences.
    pub sentences: usize,
    /// The least that the best sentence must have to do with the question, from 0 to 1.
    pub threshold: f32,
}

/// Picks and orders the sentences that answer. `vectors` has one of length one a sentence, `question` the question's.
pub fn answer(
    hits: &[Hit],
    sentences: &[Sentence],
    vectors: &[Vec<f32>],
    (question, vector): (&str, &[f32]),
    limits: Limits,
) -> Answer {
    let wanted = words(question);
    let mut scored: Vec<(f32, usize)> = sentences
        .iter()
        .zip(vectors)
        .enumerate()
        .map(|(index, (sentence, other))| {
            let meaning = dot(vector, other).clamp(0.0, 1.0);
            (MEANING * meaning + (1.0 - MEANING) * share(&wanted, &words(&sentence.text)), index)
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let best = scored.first().map_or(0.0, |(score, _)| *score);
    if best < limits.threshold {
        let (answer, citations) = (NO_ANSWER.to_owned(), Vec::new());
        return Answer { answer, sentences: Vec::new(), answered: false, confidence: best, citations };
    }
    let mut chosen: Vec<usize> = Vec::new();
    for (score, index) in scored {
        if score < best * NEAR_THE_BEST || chosen.len() == limits.sentences {
            break;
        }
        let again = |other: &usize| match (vectors.get(*other), vectors.get(index)) {
            (Some(other), Some(this)) => dot(other, this) > SAME,
            _ => false,
        };
        if !chosen.iter().any(again) {
            chosen.push(index);
        }
    }
    // Read in the order of the documents, what belongs together stands together.
    chosen.sort_unstable();
    let picked: Vec<&Sentence> = chosen.iter().filter_map(|index| sentences.get(*index)).collect();
    let said: Vec<String> = picked.iter().map(|sentence| ended(&sentence.text)).collect();
    let citations = picked.iter().filter_map(|sentence| cite(hits.get(sentence.rank)?, sentence)).collect();
    Answer { answer: said.join(" "), sentences: said, answered: true, confidence: best, citations }
}

/// The sentences that have most to do with a question by their words and their chunk's rank, at most `most`, in their
/// order: what is worth comparing by meaning.
pub fn promising(sentences: Vec<Sentence>, question: &str, most: usize) -> Vec<Sentence> {
    if sentences.len() <= most {
        return sentences;
    }
    let wanted = words(question);
    // Ranks are far below where an f32 loses whole numbers.
    #[expect(clippy::cast_precision_loss)]
    let promise = |sentence: &Sentence| share(&wanted, &words(&sentence.text)) + 0.5 / (1.0 + sentence.rank as f32);
    let mut scored: Vec<(f32, usize)> = sentences.iter().map(promise).zip(0..).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let kept: BTreeSet<usize> = scored.into_iter().take(most).map(|(_, index)| index).collect();
    sentences.into_iter().enumerate().filter(|(index, _)| kept.contains(index)).map(|(_, sentence)| sentence).collect()
}

/// The sentence of a chunk that says most of `claim`, cited as `number`; the whole chunk where it has no sentence.
pub fn nearest(hit: &Hit, claim: &str, number: usize) -> Citation {
    let wanted = words(claim);
    let sentences = sentences(std::slice::from_ref(hit), usize::MAX);
    let scored = sentences.iter().map(|sentence| share(&wanted, &words(&sentence.text))).zip(&sentences);
    // Of equals the first.
    let best = scored.rev().max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, sentence)| sentence);
    let whole = Sentence { rank: 0, range: 0..hit.chunk.text.len(), text: hit.chunk.text.clone() };
    let citation = cite(hit, best.unwrap_or(&whole)).unwrap_or_default();
    Citation { number: Some(number), ..citation }
}

/// A sentence of an answer, and the documents that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What it says, without the numbers.
    pub text: String,
    /// The numbers.
    pub numbers: BTreeSet<usize>,
}

/// The sentences of an answer that say something, at most `most`. A number behind a full stop belongs to the sentence
/// before it.
pub fn claims(answer: &str, most: usize) -> Vec<Claim> {
    let mut claims: Vec<Claim> = Vec::new();
    for piece in answer.split_sentence_bounds() {
        let (mut text, mut numbers) = (String::new(), BTreeSet::new());
        let mut rest = piece;
        while let Some((before, after)) = rest.split_once('[') {
            let Some((mark, behind)) = after.split_once(']') else { break };
            let named: Vec<usize> = mark.split([',', ';']).filter_map(|number| number.trim().parse().ok()).collect();
            text.push_str(before);
            if named.is_empty() {
                text.push_str(mark);
            }
            numbers.extend(named);
            rest = behind;
        }
        text.push_str(rest);
        let said = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if said.unicode_words().next().is_none() {
            claims.last_mut().into_iter().for_each(|last| last.numbers.extend(&numbers));
        } else if claims.len() < most {
            claims.push(Claim { text: said, numbers });
        }
    }
    claims
}

/// The share of a claim's words that a text has, from 0 to 1.
pub fn covered(claim: &str, text: &str) -> f32 {
    share(&words(claim), &words(text))
}

/// The first sentence of a text, on one line.
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

/// A sentence with a mark at its end.
fn ended(text: &str) -> String {
    if text.ends_with(['.', '!', '…', ';', ')', '"']) { text.to_owned() } else { format!("{text}.") }
}

fn words(text: &str) -> BTreeSet<String> {
    text.unicode_words().map(str::to_lowercase).filter(|word| word.chars().count() > 3).collect()
}

/// The share of `wanted` that is in `said`, whatever the ends of the words are.
fn share(wanted: &BTreeSet<String>, said: &BTreeSet<String>) -> f32 {
    let stem = |word: &str| word.chars().take(5).collect::<String>();
    let said: BTreeSet<String> = said.iter().map(|word| stem(word)).collect();
    let found = wanted.iter().filter(|word| said.contains(&stem(word))).count();
    // A question has few words, far below where an f32 loses whole numbers.
    #[expect(clippy::cast_precision_loss)]
    if wanted.is_empty() { 0.0 } else { found as f32 / wanted.len() as f32 }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_text::chunk::Chunk;

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
    fn sentences_are_prose_and_know_where_they_stand() {
        let found = sentences(&[hit(TEXT)], 100);
        let said: Vec<&str> = found.iter().map(|sentence| sentence.text.as_str()).collect();
        let wanted = [
            "Invoices that are paid late cost ten percent more.",
            "Refunds take a week.",
            "The night train is slow but cheap.",
        ];
        assert_eq!(said, wanted);
        let stands = |sentence: &Sentence| TEXT[sentence.range.clone()].replace('\n', " ");
        assert!(found.iter().all(|sentence| stands(sentence) == sentence.text));
        assert_eq!(sentences(&[hit(TEXT)], 2).len(), 2);
    }

    #[test]
    fn the_marks_of_markdown_are_in_the_citation_and_not_in_the_answer() {
        for (text, stands, said) in [
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
            assert_eq!((&text[found[0].range.clone()], found[0].text.as_str()), (stands, said));
        }
        let found =
            sentences(&[hit("**Late fees are ten percent. They are due at once.** Nobody is asked twice.")], 10);
        let said: Vec<&str> = found.iter().map(|sentence| sentence.text.as_str()).collect();
        assert_eq!(said, ["Late fees are ten percent.", "They are due at once.", "Nobody is asked twice."]);
        let list = "1. The first item is short.\n2. The second item is [long](x).\n\n| a | table of some words |\n\
                    the rest of a row | with words | and cells\nends here with a pipe |\n";
        let found = sentences(&[hit(list)], 10);
        let said: Vec<&str> = found.iter().map(|sentence| sentence.text.as_str()).collect();
        assert_eq!(said, ["The first item is short.", "The second item is long."]);
    }

    #[test]
    fn an_answer_quotes_what_is_near_once_and_cites_it() {
        let hits = [hit(TEXT)];
        let found = sentences(&hits, 100);
        let limits = Limits { sentences: 2, threshold: 0.4 };
        let vectors = [vec![0.9, 0.436], vec![0.1, 0.995], vec![0.0, 1.0]];
        let made = answer(&hits, &found, &vectors, ("What do invoices cost that are paid late?", &[1.0, 0.0]), limits);
        assert_eq!(made.answer, "Invoices that are paid late cost ten percent more.");
        assert!(made.answered && made.confidence > 0.8, "{made:?}");
        let citation = &made.citations[0];
        assert_eq!((citation.source.as_str(), citation.start), ("fees.md", 100 + TEXT.find("Invoices").unwrap()));
        let same = [vec![1.0, 0.0], vec![1.0, 0.0], vec![0.9, 0.436]];
        let made = answer(&hits, &found, &same, ("late trains", &[1.0, 0.0]), limits);
        assert_eq!(made.citations.len(), 2, "two that say the same are one");
        let nothing =
            answer(&hits, &found, &[vec![0.0, 1.0], vec![0.0, 1.0], vec![0.0, 1.0]], ("x", &[1.0, 0.0]), limits);
        assert_eq!((nothing.answer.as_str(), nothing.answered, nothing.citations.len()), (NO_ANSWER, false, 0));
        assert!(!answer(&[], &[], &[], ("x", &[1.0]), limits).answered);
    }
}
