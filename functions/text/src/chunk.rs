//! A text to chunks: by its structure, sized in tokens.

use crate::{
    code::{self, Language},
    extract::Format,
};
use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};
use tokenizers::Tokenizer;

/// A part of a document that is embedded, found and cited as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Its place among the document's chunks, from 0.
    pub index: usize,
    /// What it says, as it stands in the document's text.
    pub text: String,
    /// The headings above it, or the definitions that it is in, the outermost first.
    #[serde(default)]
    pub heading: Vec<String>,
    /// Where it begins in the document's text, in bytes.
    pub start: usize,
    /// Where it ends, in bytes.
    pub end: usize,
}

/// How large chunks are, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The most that one has.
    pub most: usize,
    /// How many of them are in the chunk before too.
    pub overlap: usize,
}

#[derive(Clone, Copy)]
struct Tokens<'t>(&'t Tokenizer);

impl ChunkSizer for Tokens<'_> {
    fn size(&self, chunk: &str) -> usize {
        // What cannot be tokenised is taken to be as long as it can be, so that it is cut smaller.
        self.0.encode(chunk, false).map_or(chunk.len(), |encoding| encoding.len())
    }
}

/// Cuts a text into chunks of at most `size` tokens: at the largest units of its structure that fit, and never across
/// a heading, so that what stands above a chunk stands above all of it. Chunks of code do not overlap.
///
/// The error is that the overlap is not smaller than the chunk.
pub fn split(text: &str, format: Format, size: Size, tokenizer: &Tokenizer) -> Result<Vec<Chunk>, String> {
    let config = ChunkConfig::new(size.most).with_sizer(Tokens(tokenizer));
    let config = config.with_overlap(size.overlap).map_err(|error| error.to_string())?;
    let mut chunks = Vec::new();
    let mut keep = |section: &Section, (start, piece): (usize, &str)| {
        if piece.chars().any(char::is_alphanumeric) {
            let start = section.start + start;
            let (text, heading) = (piece.to_owned(), section.heading.clone());
            chunks.push(Chunk { index: chunks.len(), text, heading, start, end: start + piece.len() });
        }
    };
    match format {
        Format::Plain => {
            let whole = Section { start: 0, end: text.len(), heading: Vec::new() };
            TextSplitter::new(config).chunk_indices(text).for_each(|piece| keep(&whole, piece));
        }
        Format::Code(language) => {
            let splitter = TextSplitter::new(config);
            for section in definitions(text, language, size.most, tokenizer) {
                let piece = text.get(section.start..section.end).unwrap_or_default();
                // Cut out of its text, a piece may have a token more.
                match Tokens(tokenizer).size(piece) <= size.most {
                    true => keep(&section, (0, piece)),
                    false => splitter.chunk_indices(piece).for_each(|part| keep(&section, part)),
                }
            }
        }
        Format::Markdown => {
            let splitter = MarkdownSplitter::new(config);
            for section in sections(text) {
                let body = text.get(section.start..section.end).unwrap_or_default();
                splitter.chunk_indices(body).for_each(|piece| keep(&section, piece));
            }
        }
    }
    Ok(chunks)
}

/// A part of the text that has the same headings above all of it, or a piece of code.
struct Section {
    start: usize,
    end: usize,
    heading: Vec<String>,
}

/// Pieces of code, and the definitions that each is in; one piece where the code cannot be parsed in time.
fn definitions(text: &str, language: Language, most: usize, tokenizer: &Tokenizer) -> Vec<Section> {
    let Some(tree) = code::parse(text, language) else {
        return vec![Section { start: 0, end: text.len(), heading: Vec::new() }];
    };
    // Tokenised once: the tree's nodes lie in one another, and each would be tokenised as often as it is deep.
    let starts: Vec<usize> = match tokenizer.encode(text, false) {
        Ok(encoding) => encoding.get_offsets().iter().map(|(start, _)| *start).collect(),
        Err(_) => (0..text.len()).collect(),
    };
    let before = |at: usize| starts.partition_point(|start| *start < at);
    let pieces = code::cut(text, &tree, most, |range| before(range.end) - before(range.start));
    let section =
        |range: Range<usize>| Section { heading: code::path(text, &tree, &range), start: range.start, end: range.end };
    pieces.into_iter().map(section).collect()
}

/// The sections of a text. A heading with nothing below it but another heading begins the other's section.
fn sections(markdown: &str) -> Vec<Section> {
    let headings = headings(markdown);
    let mut sections = vec![Section { start: 0, end: markdown.len(), heading: Vec::new() }];
    for (index, heading) in headings.iter().enumerate() {
        let path = path_at(&headings, heading.at);
        let before = index.checked_sub(1).and_then(|before| headings.get(before)).map_or(0, |before| before.end);
        let nothing_between = markdown.get(before..heading.at).unwrap_or_default().trim().is_empty();
        match sections.last_mut().filter(|_| nothing_between) {
            Some(section) => section.heading = path,
            None => sections.push(Section { start: heading.at, end: markdown.len(), heading: path }),
        }
    }
    let starts: Vec<usize> = sections.iter().skip(1).map(|section| section.start).collect();
    for (section, end) in sections.iter_mut().zip(starts) {
        section.end = end;
    }
    sections
}

/// A heading, where it begins and ends, and how deep it lies.
struct Heading {
    at: usize,
    end: usize,
    level: HeadingLevel,
    text: String,
}

fn headings(markdown: &str) -> Vec<Heading> {
    let mut found: Vec<Heading> = Vec::new();
    let mut inside = false;
    for (event, range) in Parser::new(markdown).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                inside = true;
                found.push(Heading { at: range.start, end: range.end, level, text: String::new() });
            }
            Event::End(TagEnd::Heading(_)) => inside = false,
            Event::Text(text) | Event::Code(text) if inside => {
                if let Some(heading) = found.last_mut() {
                    heading.text.push_str(&text);
                }
            }
            _ => {}
        }
    }
    found
}

/// The headings under which the text at `start` stands.
fn path_at(headings: &[Heading], start: usize) -> Vec<String> {
    let mut path: Vec<&Heading> = Vec::new();
    for heading in headings.iter().take_while(|heading| heading.at <= start) {
        path.retain(|above| above.level < heading.level);
        path.push(heading);
    }
    path.into_iter().map(|heading| heading.text.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx/models");
        Tokenizer::from_file(models.join("pooling-cls/tokenizer.json")).unwrap()
    }

    const MARKDOWN: &str = "# Orders\n\nAn order is paid late.\n\n## Refund\n\nThe refund is fast. The old train was slow.\n\n\
                            ```\n# not a heading\n```\n\n# Garden\n\nA river of coffee.\n";

    #[test]
    fn chunks_follow_the_headings_and_say_where_they_stand() {
        let chunks = split(MARKDOWN, Format::Markdown, Size { most: 24, overlap: 0 }, &tokenizer()).unwrap();
        for (index, chunk) in chunks.iter().enumerate() {
            assert_eq!((chunk.index, &MARKDOWN[chunk.start..chunk.end]), (index, chunk.text.as_str()));
        }
        let with = |text: &str| chunks.iter().find(|chunk| chunk.text.contains(text)).unwrap();
        assert_eq!(with("paid late").heading, ["Orders"]);
        assert_eq!(with("refund is fast").heading, ["Orders", "Refund"]);
        assert_eq!(with("river of coffee").heading, ["Garden"]);
        assert!(chunks.iter().all(|chunk| !chunk.heading.contains(&"not a heading".to_owned())));
    }

    #[test]
    fn a_heading_with_nothing_below_it_goes_with_the_next() {
        let text = "# Orders\n\n## Refund\n\nThe refund is fast.\n";
        let chunks = split(text, Format::Markdown, Size { most: 24, overlap: 0 }, &tokenizer()).unwrap();
        assert_eq!(
            (chunks.len(), chunks[0].heading.as_slice()),
            (1, ["Orders".to_owned(), "Refund".to_owned()].as_slice())
        );
    }

    #[test]
    fn no_chunk_has_more_tokens_than_it_may_and_nothing_is_left_out() {
        let tokenizer = tokenizer();
        let text = "The coffee is good.\nThe train was late, and the doctor was happy.\n".repeat(40);
        for overlap in [0, 20] {
            let size = Size { most: 30, overlap };
            let chunks = split(&text, Format::Plain, size, &tokenizer).unwrap();
            let tokens = |chunk: &Chunk| tokenizer.encode(chunk.text.as_str(), false).unwrap().len();
            assert!(chunks.len() > 10 && chunks.iter().all(|chunk| tokens(chunk) <= 30));
            let mut covered = 0;
            for chunk in &chunks {
                assert!(text[covered.min(chunk.start)..chunk.start].trim().is_empty(), "a gap before {}", chunk.start);
                covered = chunk.end;
            }
            assert!(text[covered..].trim().is_empty());
            let overlaps = chunks.windows(2).filter(|two| two[1].start < two[0].end).count();
            assert_eq!(overlaps > 0, overlap > 0);
        }
        assert!(split(&text, Format::Plain, Size { most: 5, overlap: 5 }, &tokenizer).is_err());
        assert!(split(" \n\n--- \n", Format::Markdown, Size { most: 5, overlap: 0 }, &tokenizer).unwrap().is_empty());
    }
}
