//! The sentences of a chunk: which of its lines are prose, where a sentence ends, and what it says without its marks.

use nerve_index::Hit;
use pulldown_cmark::{BrokenLink, CowStr, Event, LinkType, Options, Parser, Tag, TagEnd};
use std::ops::Range;
use unicode_segmentation::UnicodeSegmentation;

/// Words that a sentence needs to say something, and the most that is still one sentence.
const WORDS: Range<usize> = 4..80;

/// A sentence of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Sentence {
    /// The rank of the chunk it is in, from 0.
    pub rank: usize,
    /// Where it is in the chunk, in bytes.
    pub range: Range<usize>,
    /// What it says, in one line and without the marks of Markdown.
    pub text: String,
}

/// The sentences of the best chunks, at most `most`.
pub fn sentences(hits: &[Hit], most: usize) -> Vec<Sentence> {
    let mut found = Vec::new();
    for (rank, hit) in hits.iter().enumerate() {
        let text = &hit.chunk.text;
        for (block_start, block) in blocks(text) {
            // To Unicode (UAX #29) the end of a line is the end of a sentence; in a paragraph it is a space.
            let line = block.replace(['\n', '\r'], " ");
            for (offset, piece) in whole_sentences(&line) {
                let ended = piece.trim_end_matches(|c: char| c.is_whitespace() || c == '|');
                let start = block_start + offset + marks(ended);
                let range = start..block_start + offset + ended.len();
                let said = prose(text.get(range.clone()).unwrap_or_default());
                if !WORDS.contains(&said.unicode_words().count()) || said.ends_with(['?', ':']) {
                    continue;
                }
                found.push(Sentence { rank, range, text: said });
                if found.len() == most {
                    return found;
                }
            }
        }
    }
    found
}

/// The sentences of a line. To Unicode `![A` and `[What? Read](` have the end of one within them.
fn whole_sentences(line: &str) -> Vec<(usize, &str)> {
    let is_open = |piece: &str| piece.matches('[').count() > piece.matches(']').count();
    let mut whole: Vec<(usize, &str)> = Vec::new();
    let mut joined = false;
    for (at, piece) in line.split_sentence_bound_indices() {
        // Once: a bracket that nobody closes is no link.
        match whole.last_mut().filter(|(_, last)| !joined && is_open(last)) {
            Some((start, last)) => {
                *last = line.get(*start..at + piece.len()).unwrap_or(last);
                joined = true;
            }
            None => {
                whole.push((at, piece));
                joined = false;
            }
        }
    }
    whole
}

/// The paragraphs and items of a text that are prose: no headings, no tables, no fenced code.
fn blocks(text: &str) -> Vec<(usize, &str)> {
    let mut blocks: Vec<(usize, &str)> = Vec::new();
    let (mut start, mut at, mut fenced) = (None, 0, false);
    for line in text.split_inclusive('\n') {
        let bare = line.trim();
        let fence = bare.starts_with("```") || bare.starts_with("~~~");
        fenced ^= fence;
        let prose = !(fence || fenced || bare.is_empty() || bare.starts_with('#') || is_row(bare));
        if (!prose || item_mark(bare).is_some())
            && let Some(begun) = start.take()
        {
            blocks.extend(text.get(begun..at).map(|block| (begun, block)));
        }
        if prose && start.is_none() {
            start = Some(at);
        }
        at += line.len();
    }
    if let Some(begun) = start {
        blocks.extend(text.get(begun..).map(|block| (begun, block)));
    }
    blocks
}

/// Whether a line is a row of a table, the beginning of which may be in another chunk.
fn is_row(line: &str) -> bool {
    line.starts_with('|') || line.ends_with('|') || line.matches(" | ").nth(1).is_some()
}

/// How long the mark is that begins an item of a list: `- `, `12. `.
fn item_mark(line: &str) -> Option<usize> {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let marks: &[&str] = if digits == 0 { &["- ", "* ", "+ "] } else { &[". ", ") "] };
    let mark = marks.iter().find(|mark| line.get(digits..).is_some_and(|rest| rest.starts_with(**mark)))?;
    // A longer number is a year.
    (digits < 4).then_some(digits + mark.len())
}

/// How long the marks of quotes, headings, tables and items are that a sentence begins with.
fn marks(text: &str) -> usize {
    let mut rest = text;
    loop {
        let bare = rest.trim_start_matches(|c: char| c.is_whitespace() || "#>|".contains(c));
        // Emphasis that ends with the sentence before.
        let bare = bare.strip_prefix("** ").unwrap_or(bare);
        let bare = item_mark(bare).and_then(|mark| bare.get(mark..)).unwrap_or(bare);
        if bare.len() == rest.len() {
            return text.len() - rest.len();
        }
        rest = bare;
    }
}

/// What Markdown says, in one line: without emphasis, links and quotes; code keeps its backticks, and HTML stays.
fn prose(markdown: &str) -> String {
    // What a reference refers to is elsewhere; `[1]` may be no reference at all.
    let mut referred = |link: BrokenLink<'_>| {
        let whole = !matches!(link.link_type, LinkType::Shortcut | LinkType::ShortcutUnknown);
        whole.then_some((CowStr::Borrowed(""), CowStr::Borrowed("")))
    };
    let parser = Parser::new_with_broken_link_callback(markdown, Options::empty(), Some(&mut referred));
    let mut said = String::new();
    for (event, range) in parser.into_offset_iter() {
        let raw = markdown.get(range.clone()).unwrap_or_default();
        match event {
            Event::Text(text) => said.push_str(&text),
            Event::Code(_) | Event::InlineHtml(_) | Event::Html(_) => said.push_str(raw),
            // `2*3*4` is no emphasis to whoever reads it as text.
            Event::Start(Tag::Emphasis) | Event::End(TagEnd::Emphasis) if is_in_word(markdown, &range) => {
                said.extend(raw.chars().next());
            }
            Event::SoftBreak | Event::HardBreak | Event::Start(Tag::Paragraph) | Event::End(TagEnd::Paragraph) => {
                said.push(' ');
            }
            _ => {}
        }
    }
    // Emphasis that goes on in the next sentence has only one of its marks here.
    let words = said.split_whitespace().map(|word| match word.trim_matches('*') {
        "" => word,
        _ => word.trim_start_matches("**").trim_end_matches("**"),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn is_in_word(text: &str, range: &Range<usize>) -> bool {
    let before = text.get(..range.start).and_then(|before| before.chars().next_back());
    let after = text.get(range.end..).and_then(|after| after.chars().next());
    [before, after].into_iter().flatten().any(char::is_alphanumeric)
}
