//! Names of the definitions that enclose a range of code.

use super::{MAX_DEPTH, language::is_annotation};
use std::ops::Range;
use tree_sitter::{Node, Tree};

/// Maximum length of a definition's name in characters.
const MAX_NAME_CHARS: usize = 120;

/// Kinds of nodes that are named definitions if they have a body, in all languages.
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
/// Kinds of nodes before the name of a definition.
const MODIFIERS: [&str; 5] = ["accessibility_modifier", "attribute", "decorator", "modifiers", "visibility_modifier"];
/// Kinds of nodes that wrap a definition.
const WRAPPERS: [&str; 6] = [
    "decorated_definition",
    "export_statement",
    "lexical_declaration",
    "template_declaration",
    "variable_declaration",
    "ambient_declaration",
];

/// Whether a node wraps a definition.
pub(super) fn is_wrapper(node: Node<'_>) -> bool {
    WRAPPERS.contains(&node.kind())
}

/// Whether a node is a definition or wraps one.
pub(super) fn is_definition(node: Node<'_>) -> bool {
    let mut inside = Some(node);
    for _ in 0..WRAPPERS.len() {
        let Some(node) = inside else { return false };
        if name_end(node).is_some() {
            return true;
        }
        inside = node.named_children(&mut node.walk()).filter(|_| is_wrapper(node)).last();
    }
    false
}

/// Whether a node is the body of a definition.
pub(super) fn is_body(node: Node<'_>) -> bool {
    let parent = node.parent().filter(|parent| name_end(*parent).is_some());
    parent.and_then(|parent| parent.child_by_field_name("body")) == Some(node)
}

/// End of the name of a definition; `None` if the node is no definition.
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

/// The parameter list; in C it is in the declarator, below pointers and references.
fn parameters(node: Node<'_>) -> Option<Node<'_>> {
    let mut declarator = node;
    for _ in 0..MAX_DEPTH {
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
fn definition_name(text: &str, node: Node<'_>) -> Option<String> {
    let end = name_end(node)?;
    let mut cursor = node.walk();
    let mut children = node.children(&mut cursor);
    let first = children.find(|child| !MODIFIERS.contains(&child.kind()) && !is_annotation(*child))?;
    let annotation = children.find(|child| is_annotation(*child)).map_or(end, |annotation| annotation.start_byte());
    let words: Vec<&str> = text.get(first.start_byte()..end.min(annotation))?.split_whitespace().collect();
    let name = words.join(" ");
    let name: String = name.trim_end_matches(['{', ':', '(', ' ']).chars().take(MAX_NAME_CHARS).collect();
    (!name.is_empty()).then_some(name)
}

/// Names of the definitions that enclose a range, or equal it, outermost first.
pub(crate) fn enclosing_names(text: &str, tree: &Tree, range: &Range<usize>) -> Vec<String> {
    let mut enclosing_names = Vec::new();
    let mut cursor = tree.walk();
    for _ in 0..MAX_DEPTH {
        if cursor.goto_first_child_for_byte(range.start).is_none() {
            break;
        }
        let mut only = None;
        loop {
            let node = cursor.node();
            if node.start_byte() >= range.end {
                break;
            }
            if node.is_named() && !is_annotation(node) && node.end_byte() > range.start {
                if only.is_some() {
                    return enclosing_names;
                }
                only = Some(node);
            }
            if !cursor.goto_next_sibling() {
                break;
            }
        }
        let Some(node) = only else { break };
        enclosing_names.extend(definition_name(text, node));
        cursor.reset(node);
    }
    enclosing_names
}
