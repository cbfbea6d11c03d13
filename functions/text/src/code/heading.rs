//! The names of the definitions that a piece of code stands in.

use super::{DEEPEST, language::is_note};
use std::ops::Range;
use tree_sitter::{Node, Tree};

/// The longest name of a definition, in characters.
const LONGEST: usize = 120;

/// Nodes that define something with a name, where they have a body; all languages share the list.
const DEFINITIONS: [&str; 32] = [
    "abstract_class_declaration",
    "annotation_type_declaration",
    "class",
    "class_declaration",
    "class_definition",
    "class_specifier",
    "constructor_declaration",
    "enum_declaration",
    "enum_item",
    "enum_specifier",
    "function_declaration",
    "function_definition",
    "function_item",
    "generator_function_declaration",
    "impl_item",
    "interface_declaration",
    "internal_module",
    "method",
    "method_declaration",
    "method_definition",
    "mod_item",
    "module",
    "namespace_definition",
    "record_declaration",
    "singleton_method",
    "struct_item",
    "struct_specifier",
    "trait_item",
    "type_declaration",
    "union_item",
    "union_specifier",
    "variable_declarator",
];
/// What stands before a definition's own words.
const MODIFIERS: [&str; 5] = ["accessibility_modifier", "attribute", "decorator", "modifiers", "visibility_modifier"];
/// Nodes around a definition that define nothing themselves.
const AROUND: [&str; 6] = [
    "decorated_definition",
    "export_statement",
    "lexical_declaration",
    "template_declaration",
    "variable_declaration",
    "ambient_declaration",
];

/// Whether a node only stands around what it has.
pub(super) fn is_around(node: Node<'_>) -> bool {
    AROUND.contains(&node.kind())
}

/// Whether a node defines something, or is what stands around one that does.
pub(super) fn is_definition(node: Node<'_>) -> bool {
    let mut inside = Some(node);
    for _ in 0..AROUND.len() {
        let Some(node) = inside else { return false };
        if name_end(node).is_some() {
            return true;
        }
        inside = node.named_children(&mut node.walk()).filter(|_| is_around(node)).last();
    }
    false
}

/// Whether a node is what a definition consists of, below its name.
pub(super) fn is_body(node: Node<'_>) -> bool {
    let parent = node.parent().filter(|parent| name_end(*parent).is_some());
    parent.and_then(|parent| parent.child_by_field_name("body")) == Some(node)
}

/// Where the words end that name a definition; `None` where a node defines nothing.
fn name_end(node: Node<'_>) -> Option<usize> {
    if !node.is_named() || !DEFINITIONS.contains(&node.kind()) {
        return None;
    }
    let field = |name| node.child_by_field_name(name);
    match node.kind() {
        // `type A struct {…}`
        "type_declaration" => return Some(node.named_child(0)?.child_by_field_name("name")?.end_byte()),
        // `const a = () => {…}`
        "variable_declarator" => {
            let function = ["arrow_function", "function_expression", "generator_function"];
            field("value").filter(|value| function.contains(&value.kind()))?;
            return Some(field("name")?.end_byte());
        }
        _ => {}
    }
    let body = field("body")?;
    Some(parameters(node).map_or(body.start_byte(), |node| node.start_byte()).min(body.start_byte()))
}

/// The list of parameters; in C it is in the declarator, below pointers and references.
fn parameters(node: Node<'_>) -> Option<Node<'_>> {
    let mut declarator = node;
    for _ in 0..DEEPEST {
        if let Some(found) = declarator.child_by_field_name("parameters") {
            return Some(found);
        }
        let deeper = declarator.child_by_field_name("declarator");
        declarator =
            deeper.or_else(|| declarator.named_child(0).filter(|_| declarator.kind().contains("reference")))?;
    }
    None
}

/// `fn bar` of `pub fn bar(&self) -> u8 {…}`.
fn name_of(text: &str, node: Node<'_>) -> Option<String> {
    let end = name_end(node)?;
    let mut cursor = node.walk();
    let mut children = node.children(&mut cursor);
    let own = children.find(|child| !MODIFIERS.contains(&child.kind()) && !is_note(*child))?;
    let note = children.find(|child| is_note(*child)).map_or(end, |note| note.start_byte());
    let words: Vec<&str> = text.get(own.start_byte()..end.min(note))?.split_whitespace().collect();
    let name = words.join(" ");
    let name: String = name.trim_end_matches(['{', ':', '(', ' ']).chars().take(LONGEST).collect();
    (!name.is_empty()).then_some(name)
}

/// The names of the definitions that a range is in, the outermost first; that of the one it consists of is the last.
pub(crate) fn path(text: &str, tree: &Tree, range: &Range<usize>) -> Vec<String> {
    let mut path = Vec::new();
    let mut cursor = tree.walk();
    for _ in 0..DEEPEST {
        if cursor.goto_first_child_for_byte(range.start).is_none() {
            break;
        }
        let mut only = None;
        loop {
            let node = cursor.node();
            if node.start_byte() >= range.end {
                break;
            }
            if node.is_named() && !is_note(node) && node.end_byte() > range.start {
                if only.is_some() {
                    return path;
                }
                only = Some(node);
            }
            if !cursor.goto_next_sibling() {
                break;
            }
        }
        let Some(node) = only else { break };
        path.extend(name_of(text, node));
        cursor.reset(node);
    }
    path
}
