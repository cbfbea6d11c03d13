//! Splits a chunk into sentences: finds its prose, splits it, and removes Markdown.

use nerve_events::retrieval::Hit;
use pulldown_cmark::{BrokenLink, CowStr, Event, LinkType, Options, Parser, Tag, TagEnd};
use std::ops::Range;
use unicode_segmentation::UnicodeSegmentation;

/// Number of words of a sentence.
const SENTENCE_WORDS: Range<usize> = 4..80;

/// A sentence of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Sentence {
    /// Rank of its chunk, from 0.
    pub rank: usize,
    /// Byte range in the chunk.
    pub range: Range<usize>,
    /// The sentence on one line, without Markdown.
    pub text: String,
}

/// The sentences of the best chunks, at most `limit`.
pub fn sentences(hits: &[Hit], limit: usize) -> Vec<Sentence> {
    let mut found = Vec::new();
    for (rank, hit) in hits.iter().enumerate() {
        let text = &hit.chunk.text;
        for (block_start, block) in blocks(text) {
            // UAX #29 ends a sentence at a line break; in a paragraph a line break is a space.
            let line = block.replace(['\n', '\r'], " ");
            for (offset, piece) in split_sentences(&line) {
                let trimmed = piece.trim_end_matches(|c: char| c.is_whitespace() || c == '|');
                let start = block_start + offset + marker_length(trimmed);
                let range = start..block_start + offset + trimmed.len();
                let plain = plain_text(text.get(range.clone()).unwrap_or_default());
                if !SENTENCE_WORDS.contains(&plain.unicode_words().count()) || plain.ends_with(['?', ':']) {
                    continue;
                }
                found.push(Sentence { rank, range, text: plain });
                if found.len() == limit {
                    return found;
                }
            }
        }
    }
    found
}

/// Splits a line into sentences. UAX #29 splits within `![A` and `[What? Read](`; such parts are joined again.
fn split_sentences(line: &str) -> Vec<(usize, &str)> {
    let has_open_bracket = |piece: &str| piece.matches('[').count() > piece.matches(']').count();
    let mut whole: Vec<(usize, &str)> = Vec::new();
    let mut joined = false;
    for (at, piece) in line.split_sentence_bound_indices() {
        // Joined once, because an unclosed bracket is not a link.
        match whole.last_mut().filter(|(_, last)| !joined && has_open_bracket(last)) {
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

/// Paragraphs and list items that are prose, without headings, tables and fenced code.
fn blocks(text: &str) -> Vec<(usize, &str)> {
    let mut blocks: Vec<(usize, &str)> = Vec::new();
    let (mut start, mut at, mut fenced) = (None, 0, false);
    for line in text.split_inclusive('\n') {
        let bare = line.trim();
        let fence = bare.starts_with("```") || bare.starts_with("~~~");
        fenced ^= fence;
        let plain_text = !(fence || fenced || bare.is_empty() || bare.starts_with('#') || is_table_row(bare));
        if (!plain_text || list_marker_length(bare).is_some())
            && let Some(open_block) = start.take()
        {
            blocks.extend(text.get(open_block..at).map(|block| (open_block, block)));
        }
        if plain_text && start.is_none() {
            start = Some(at);
        }
        at += line.len();
    }
    if let Some(open_block) = start {
        blocks.extend(text.get(open_block..).map(|block| (open_block, block)));
    }
    blocks
}

/// Whether a line is a table row; the table may start in another chunk.
fn is_table_row(line: &str) -> bool {
    line.starts_with('|') || line.ends_with('|') || line.matches(" | ").nth(1).is_some()
}

/// Length of the marker that starts a list item: `- `, `12. `.
fn list_marker_length(line: &str) -> Option<usize> {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let marker_length: &[&str] = if digits == 0 { &["- ", "* ", "+ "] } else { &[". ", ") "] };
    let marker =
        marker_length.iter().find(|marker| line.get(digits..).is_some_and(|rest| rest.starts_with(**marker)))?;
    // A longer number is a year.
    (digits < 4).then_some(digits + marker.len())
}

/// Length of the leading quote, heading, table and list markers of a sentence.
fn marker_length(text: &str) -> usize {
    let mut rest = text;
    loop {
        let bare = rest.trim_start_matches(|c: char| c.is_whitespace() || "#>|".contains(c));
        // Emphasis that ends with the preceding sentence.
        let bare = bare.strip_prefix("** ").unwrap_or(bare);
        let bare = list_marker_length(bare).and_then(|marker| bare.get(marker..)).unwrap_or(bare);
        if bare.len() == rest.len() {
            return text.len() - rest.len();
        }
        rest = bare;
    }
}

/// Markdown as text on one line: without emphasis, links and quotes; code keeps its backticks, and HTML stays.
fn plain_text(markdown: &str) -> String {
    // The target of a reference is in another chunk; `[1]` may not be a reference.
    let mut resolve = |link: BrokenLink<'_>| {
        let whole = !matches!(link.link_type, LinkType::Shortcut | LinkType::ShortcutUnknown);
        whole.then_some((CowStr::Borrowed(""), CowStr::Borrowed("")))
    };
    let parser = Parser::new_with_broken_link_callback(markdown, Options::empty(), Some(&mut resolve));
    let mut plain = String::new();
    for (event, range) in parser.into_offset_iter() {
        let raw = markdown.get(range.clone()).unwrap_or_default();
        match event {
            Event::Text(text) => plain.push_str(&text),
            Event::Code(_) | Event::InlineHtml(_) | Event::Html(_) => plain.push_str(raw),
            // `2*3*4` is not emphasis.
            Event::Start(Tag::Emphasis) | Event::End(TagEnd::Emphasis) if is_in_word(markdown, &range) => {
                plain.extend(raw.chars().next());
            }
            Event::SoftBreak | Event::HardBreak | Event::Start(Tag::Paragraph) | Event::End(TagEnd::Paragraph) => {
                plain.push(' ');
            }
            _ => {}
        }
    }
    // Emphasis that spans sentences has only one of its delimiters here.
    let words = plain.split_whitespace().map(|word| match word.trim_matches('*') {
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
