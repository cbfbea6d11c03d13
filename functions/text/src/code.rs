//! Splits source code into ranges: whole definitions with their comments, as many as fit.
//!
//! tree-sitter parses the code, including code with syntax errors. Consecutive nodes are collected while they fit; a
//! node that is too large is replaced by its children. A definition that must be split shares its ranges with no other
//! definition, so that every range has one enclosing name.

mod definition;
mod language;
#[cfg(test)]
mod tests;

pub use language::Language;

pub(crate) use definition::enclosing_names;

use definition::{is_body, is_definition, is_wrapper};
use language::is_annotation;
use std::{
    ops::{ControlFlow, Range},
    time::{Duration, Instant},
};
use tree_sitter::{Node, ParseOptions, Parser, Tree};

/// Timeout of parsing a document; some malformed code takes very long.
const PARSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum depth of visited nodes; deeper code is split as plain text.
const MAX_DEPTH: usize = 200;
/// Preceding fragments below 1/4 chunk are merged into a definition that is too large.
const MERGE_DIVISOR: usize = 4;
/// Maximum size, in tokens, of a fragment that is merged into the preceding range.
const MAX_MERGED_TOKENS: usize = 3;

/// Parses a text; `None` if that takes too long.
pub(crate) fn parse(text: &str, language: Language) -> Option<Tree> {
    let mut parser = Parser::new();
    parser.set_language(&language.grammar()).ok()?;
    let started = Instant::now();
    let mut stop = |_: &tree_sitter::ParseState| match started.elapsed() > PARSE_TIMEOUT {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let bytes = text.as_bytes();
    let options = ParseOptions::new().progress_callback(&mut stop);
    parser.parse_with_options(&mut |at, _| bytes.get(at..).unwrap_or_default(), None, Some(options))
}

/// Splits a text at its definitions and statements into ordered ranges that cover everything but whitespace. A range
/// exceeds `max` only if it is a single token by `size`.
pub(crate) fn split_at_definitions(
    text: &str,
    tree: &Tree,
    max: usize,
    size: impl Fn(&Range<usize>) -> usize,
) -> Vec<Range<usize>> {
    let mut builder =
        RangeBuilder { text, max, size, start: 0, end: 0, has_definition: false, comments: None, ranges: Vec::new() };
    builder.add_group(&[tree.root_node()], 0);
    builder.add_text_up_to(text.len());
    builder.flush();
    builder.ranges
}

struct RangeBuilder<'t, S> {
    text: &'t str,
    max: usize,
    size: S,
    /// Start of the current range.
    start: usize,
    /// End of the current range.
    end: usize,
    /// Whether the current range contains a whole definition.
    has_definition: bool,
    /// Start of the comments at the end of the current range.
    comments: Option<usize>,
    ranges: Vec<Range<usize>>,
}

impl<S: Fn(&Range<usize>) -> usize> RangeBuilder<'_, S> {
    /// Adds a group of nodes.
    fn add_group(&mut self, group: &[Node<'_>], depth: usize) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return };
        let end = last.end_byte();
        if end <= self.end {
            return;
        }
        let comments_start = self.comments_start(first.start_byte());
        let is_definition_group = group.iter().any(|node| is_definition(*node));
        let fits = |start: usize| (self.size)(&(start..end)) <= self.max;
        if fits(self.start) {
            self.end = end;
            self.has_definition |= is_definition_group;
        } else if fits(self.end) && !group.iter().any(|node| is_body(*node)) {
            self.flush_up_to(if fits(comments_start) { comments_start } else { self.end });
            self.end = end;
            self.has_definition = is_definition_group;
        } else {
            return self.add_children(group, depth, comments_start, is_definition_group);
        }
        self.comments = group.iter().all(|node| is_annotation(*node)).then_some(comments_start.max(self.start));
    }

    /// Start of the comments directly above `start`, if the current range ends with them.
    fn comments_start(&self, start: usize) -> usize {
        let space = self.text.get(self.end..start).unwrap_or_default();
        self.comments.filter(|_| space.matches('\n').count() <= 1).unwrap_or(self.end)
    }

    /// Adds the children of a group that is too large.
    fn add_children(&mut self, group: &[Node<'_>], depth: usize, comments_start: usize, is_definition_group: bool) {
        let gathered = (self.size)(&(self.start..comments_start));
        let is_wrapped = group.iter().any(|node| node.parent().is_some_and(is_wrapper));
        if is_definition_group && !is_wrapped && (self.has_definition || gathered * MERGE_DIVISOR > self.max) {
            self.flush_up_to(comments_start);
        }
        for node in group {
            let alone = (self.size)(&(self.end..node.end_byte()));
            match group.len() {
                // Comments above a definition stay with its start.
                2.. if alone <= self.max => self.add_group(&[*node], depth),
                _ => self.add_parts(*node, depth),
            }
        }
        if is_definition_group {
            self.flush();
        }
    }

    fn add_parts(&mut self, node: Node<'_>, depth: usize) {
        if depth < MAX_DEPTH {
            for group in group_children(self.text, node) {
                self.add_group(&group, depth + 1);
            }
        }
        self.add_text_up_to(node.end_byte());
    }

    /// Adds text outside of all nodes.
    fn add_text_up_to(&mut self, end: usize) {
        if self.text.get(self.end..end).is_none_or(|rest| rest.trim().is_empty()) {
            return;
        }
        if (self.size)(&(self.start..end)) > self.max {
            self.flush();
        }
        (self.end, self.comments) = (end, None);
    }

    /// Ends the current range at `at`; the rest starts the next range.
    fn flush_up_to(&mut self, at: usize) {
        let end = std::mem::replace(&mut self.end, at);
        self.flush();
        self.end = end;
    }

    /// Ends the current range. Closing brackets are merged into the preceding range.
    fn flush(&mut self) {
        let piece = self.text.get(self.start..self.end).unwrap_or_default();
        let (leading, trimmed) = (piece.len() - piece.trim_start().len(), piece.trim());
        let start = self.start + leading;
        let range = start..start + trimmed.len();
        (self.start, self.has_definition, self.comments) = (self.end, false, None);
        if trimmed.is_empty() {
            return;
        }
        let is_small = (self.size)(&range) <= MAX_MERGED_TOKENS;
        match self.ranges.last_mut().filter(|last| is_small && (self.size)(&(last.start..range.end)) <= self.max) {
            Some(last) => last.end = range.end,
            None => self.ranges.push(range),
        }
    }
}

/// Children of a node, grouped with the comments and attributes above them or on the same line.
fn group_children<'n>(text: &str, node: Node<'n>) -> Vec<Vec<Node<'n>>> {
    let mut group_children: Vec<Vec<Node<'n>>> = Vec::new();
    for child in node.children(&mut node.walk()) {
        match group_children.last_mut().filter(|group| belongs_to_group(text, group, child)) {
            Some(group) => group.push(child),
            None => group_children.push(vec![child]),
        }
    }
    group_children
}

fn belongs_to_group(text: &str, group: &[Node<'_>], next: Node<'_>) -> bool {
    let Some(last) = group.last() else { return false };
    let between = text.get(last.start_byte()..next.start_byte()).unwrap_or_default();
    // Some grammars include the line end in a comment.
    let space = between.get(between.trim_end().len()..).unwrap_or_default();
    let lines = space.matches('\n').count();
    if is_annotation(*last) && group.iter().all(|node| is_annotation(*node)) {
        lines <= 1
    } else {
        is_annotation(next) && lines == 0
    }
}
