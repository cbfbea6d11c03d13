//! Source code to ranges: whole definitions with what is written above them, as many together as fit.
//!
//! Syntax trees come from tree-sitter, which reads broken code too. Beside each other, nodes are gathered as long as
//! they fit; one that is too large is opened and its children are gathered in its place. A definition that must be
//! opened shares its pieces with no other one, so that what a piece says has one name above it.

mod heading;
mod language;
#[cfg(test)]
mod tests;

pub use language::Language;

pub(crate) use heading::path;

use heading::{is_around, is_body, is_definition};
use language::is_note;
use std::{
    ops::{ControlFlow, Range},
    time::{Duration, Instant},
};
use tree_sitter::{Node, ParseOptions, Parser, Tree};

/// How long one document may be parsed; some broken ones take the parser very long.
const PARSE: Duration = Duration::from_secs(10);
/// How deep a tree is opened; what lies deeper is cut as text.
const DEEPEST: usize = 200;
/// Less than this share of a chunk goes along with a definition that is too large, instead of being a chunk itself.
const GOES_ALONG: usize = 4;
/// What is no larger than this is no chunk of its own, where there is room for it in the one before.
const LITTLE: usize = 3;

/// Parses a text; `None` where that takes too long.
pub(crate) fn parse(text: &str, language: Language) -> Option<Tree> {
    let mut parser = Parser::new();
    parser.set_language(&language.grammar()).ok()?;
    let started = Instant::now();
    let mut stop = |_: &tree_sitter::ParseState| match started.elapsed() > PARSE {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let bytes = text.as_bytes();
    let options = ParseOptions::new().progress_callback(&mut stop);
    parser.parse_with_options(&mut |at, _| bytes.get(at..).unwrap_or_default(), None, Some(options))
}

/// Cuts a text at its definitions and statements: ranges in order, which leave nothing out but space. One is larger
/// than `most` only where it is a single token, as `size` measures.
pub(crate) fn cut(text: &str, tree: &Tree, most: usize, size: impl Fn(&Range<usize>) -> usize) -> Vec<Range<usize>> {
    let mut cutter = Cutter { text, most, size, start: 0, end: 0, whole: false, notes: None, done: Vec::new() };
    cutter.take(&[tree.root_node()], 0);
    cutter.take_up_to(text.len());
    cutter.flush();
    cutter.done
}

struct Cutter<'t, S> {
    text: &'t str,
    most: usize,
    size: S,
    /// Where the piece begins that is being gathered.
    start: usize,
    /// Where it ends, so far.
    end: usize,
    /// Whether it has a whole definition.
    whole: bool,
    /// Where the comments begin that it ends with.
    notes: Option<usize>,
    done: Vec<Range<usize>>,
}

impl<S: Fn(&Range<usize>) -> usize> Cutter<'_, S> {
    /// Takes nodes that belong together.
    fn take(&mut self, group: &[Node<'_>], depth: usize) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return };
        let end = last.end_byte();
        if end <= self.end {
            return;
        }
        let above = self.above(first.start_byte());
        let defines = group.iter().any(|node| is_definition(*node));
        let fits = |start: usize| (self.size)(&(start..end)) <= self.most;
        if fits(self.start) {
            self.end = end;
            self.whole |= defines;
        } else if fits(self.end) && !group.iter().any(|node| is_body(*node)) {
            self.flush_up_to(if fits(above) { above } else { self.end });
            self.end = end;
            self.whole = defines;
        } else {
            return self.open(group, depth, above, defines);
        }
        self.notes = group.iter().all(|node| is_note(*node)).then_some(above.max(self.start));
    }

    /// Where what is written right above `start` begins, if it is all that was taken last.
    fn above(&self, start: usize) -> usize {
        let space = self.text.get(self.end..start).unwrap_or_default();
        self.notes.filter(|_| space.matches('\n').count() <= 1).unwrap_or(self.end)
    }

    /// Takes the parts of nodes that are too large together.
    fn open(&mut self, group: &[Node<'_>], depth: usize, above: usize, defines: bool) {
        let gathered = (self.size)(&(self.start..above));
        let inner = group.iter().any(|node| node.parent().is_some_and(is_around));
        if defines && !inner && (self.whole || gathered * GOES_ALONG > self.most) {
            self.flush_up_to(above);
        }
        for node in group {
            let alone = (self.size)(&(self.end..node.end_byte()));
            match group.len() {
                // What stands above a definition goes with the beginning of it.
                2.. if alone <= self.most => self.take(&[*node], depth),
                _ => self.parts(*node, depth),
            }
        }
        if defines {
            self.flush();
        }
    }

    fn parts(&mut self, node: Node<'_>, depth: usize) {
        if depth < DEEPEST {
            for group in groups(self.text, node) {
                self.take(&group, depth + 1);
            }
        }
        self.take_up_to(node.end_byte());
    }

    /// Takes text that no node has.
    fn take_up_to(&mut self, end: usize) {
        if self.text.get(self.end..end).is_none_or(|rest| rest.trim().is_empty()) {
            return;
        }
        if (self.size)(&(self.start..end)) > self.most {
            self.flush();
        }
        (self.end, self.notes) = (end, None);
    }

    /// Ends the piece at `at`; what was taken after that begins the next one.
    fn flush_up_to(&mut self, at: usize) {
        let end = std::mem::replace(&mut self.end, at);
        self.flush();
        self.end = end;
    }

    /// Ends the piece. The closing brackets of what was opened go with the piece before.
    fn flush(&mut self) {
        let piece = self.text.get(self.start..self.end).unwrap_or_default();
        let (led, said) = (piece.len() - piece.trim_start().len(), piece.trim());
        let start = self.start + led;
        let range = start..start + said.len();
        (self.start, self.whole, self.notes) = (self.end, false, None);
        if said.is_empty() {
            return;
        }
        let little = (self.size)(&range) <= LITTLE;
        match self.done.last_mut().filter(|last| little && (self.size)(&(last.start..range.end)) <= self.most) {
            Some(last) => last.end = range.end,
            None => self.done.push(range),
        }
    }
}

/// The children of a node; comments and attributes are with what they stand above, or behind on the same line.
fn groups<'n>(text: &str, node: Node<'n>) -> Vec<Vec<Node<'n>>> {
    let mut groups: Vec<Vec<Node<'n>>> = Vec::new();
    for child in node.children(&mut node.walk()) {
        match groups.last_mut().filter(|group| belongs(text, group, child)) {
            Some(group) => group.push(child),
            None => groups.push(vec![child]),
        }
    }
    groups
}

fn belongs(text: &str, group: &[Node<'_>], next: Node<'_>) -> bool {
    let Some(last) = group.last() else { return false };
    let between = text.get(last.start_byte()..next.start_byte()).unwrap_or_default();
    // Some grammars count the end of the line to a comment, and some do not.
    let space = between.get(between.trim_end().len()..).unwrap_or_default();
    let lines = space.matches('\n').count();
    if is_note(*last) && group.iter().all(|node| is_note(*node)) { lines <= 1 } else { is_note(next) && lines == 0 }
}
