//! Splits texts into chunks: by their structure, measured in tokens.

use crate::{
    code::{self, Language},
    extract::Format,
};
use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};
use tokenizers::Tokenizer;

/// A part of a document that is embedded, retrieved and cited as one unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Index among the document's chunks, from 0.
    pub index: usize,
    /// Text, verbatim from the document's text.
    pub text: String,
    /// Headings above it, or enclosing definitions, outermost first.
    #[serde(default)]
    pub heading: Vec<String>,
    /// Start offset in the document's text, in bytes.
    pub start: usize,
    /// End offset in the document's text, in bytes.
    pub end: usize,
}

/// Size of chunks in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSize {
    /// Maximum number of tokens per chunk.
    pub max: usize,
    /// Number of tokens shared with the preceding chunk.
    pub overlap: usize,
}

#[derive(Clone, Copy)]
struct TokenSizer<'t>(&'t Tokenizer);

impl ChunkSizer for TokenSizer<'_> {
    fn size(&self, chunk: &str) -> usize {
        // Text that cannot be tokenized counts as many tokens as bytes, so that it is split further.
        self.0.encode(chunk, false).map_or(chunk.len(), |encoding| encoding.len())
    }
}

/// Splits a text into chunks of at most `size.max` tokens, at the largest structural units that fit, and never across
/// a heading, so that the headings apply to the whole chunk. Chunks of code do not overlap.
///
/// # Errors
/// If the overlap is not smaller than the chunk.
pub fn split(text: &str, format: Format, size: ChunkSize, tokenizer: &Tokenizer) -> Result<Vec<Chunk>, String> {
    let config = ChunkConfig::new(size.max).with_sizer(TokenSizer(tokenizer));
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
            for section in definitions(text, language, size.max, tokenizer) {
                let piece = text.get(section.start..section.end).unwrap_or_default();
                // Tokenized alone, a piece may have one more token.
                match TokenSizer(tokenizer).size(piece) <= size.max {
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

/// A part of the text under the same headings, or a piece of code.
struct Section {
    start: usize,
    end: usize,
    heading: Vec<String>,
}

/// Pieces of code with their enclosing definitions; a single piece if parsing takes too long.
fn definitions(text: &str, language: Language, max: usize, tokenizer: &Tokenizer) -> Vec<Section> {
    let Some(tree) = code::parse(text, language) else {
        return vec![Section { start: 0, end: text.len(), heading: Vec::new() }];
    };
    // Tokenized once: nodes are nested, and each would be tokenized once per level.
    let starts: Vec<usize> = match tokenizer.encode(text, false) {
        Ok(encoding) => encoding.get_offsets().iter().map(|(start, _)| *start).collect(),
        Err(_) => (0..text.len()).collect(),
    };
    let before = |offset: usize| starts.partition_point(|start| *start < offset);
    let pieces = code::split_at_definitions(text, &tree, max, |range| before(range.end) - before(range.start));
    let section = |range: Range<usize>| Section {
        heading: code::enclosing_names(text, &tree, &range),
        start: range.start,
        end: range.end,
    };
    pieces.into_iter().map(section).collect()
}

/// The sections of a text. A heading followed only by another heading belongs to that heading's section.
fn sections(markdown: &str) -> Vec<Section> {
    let headings = headings(markdown);
    let mut sections = vec![Section { start: 0, end: markdown.len(), heading: Vec::new() }];
    for (index, heading) in headings.iter().enumerate() {
        let path = headings_at(&headings, heading.start);
        let before = index.checked_sub(1).and_then(|before| headings.get(before)).map_or(0, |before| before.end);
        let nothing_between = markdown.get(before..heading.start).unwrap_or_default().trim().is_empty();
        match sections.last_mut().filter(|_| nothing_between) {
            Some(section) => section.heading = path,
            None => sections.push(Section { start: heading.start, end: markdown.len(), heading: path }),
        }
    }
    let starts: Vec<usize> = sections.iter().skip(1).map(|section| section.start).collect();
    for (section, end) in sections.iter_mut().zip(starts) {
        section.end = end;
    }
    sections
}

/// A heading with its position and level.
struct Heading {
    start: usize,
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
                found.push(Heading { start: range.start, end: range.end, level, text: String::new() });
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

/// The headings that apply to the text at `start`.
fn headings_at(headings: &[Heading], start: usize) -> Vec<String> {
    let mut path: Vec<&Heading> = Vec::new();
    for heading in headings.iter().take_while(|heading| heading.start <= start) {
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
    fn chunk_has_its_headings_and_offsets() {
        let chunks = split(MARKDOWN, Format::Markdown, ChunkSize { max: 24, overlap: 0 }, &tokenizer()).unwrap();
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
    fn empty_section_is_merged_into_the_next() {
        let text = "# Orders\n\n## Refund\n\nThe refund is fast.\n";
        let chunks = split(text, Format::Markdown, ChunkSize { max: 24, overlap: 0 }, &tokenizer()).unwrap();
        assert_eq!(
            (chunks.len(), chunks[0].heading.as_slice()),
            (1, ["Orders".to_owned(), "Refund".to_owned()].as_slice())
        );
    }

    #[test]
    fn chunks_respect_the_limit_and_cover_the_text() {
        let tokenizer = tokenizer();
        let text = "The coffee is good.\nThe train was late, and the doctor was happy.\n".repeat(40);
        for overlap in [0, 20] {
            let size = ChunkSize { max: 30, overlap };
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
        assert!(split(&text, Format::Plain, ChunkSize { max: 5, overlap: 5 }, &tokenizer).is_err());
        assert!(
            split(" \n\n--- \n", Format::Markdown, ChunkSize { max: 5, overlap: 0 }, &tokenizer).unwrap().is_empty()
        );
    }
}
