//! Chat templates of language models, in Jinja.

use nerve_core::inference::{Message, Role};
use nerve_inference::fuzzing::render_chat_template;

/// Begins what the system, the user and the assistant say, after the template.
const ROLES: [(&str, Role); 3] = [("\n\x01s", Role::System), ("\n\x01u", Role::User), ("\n\x01a", Role::Assistant)];

/// Compiles a template, and renders the conversation that follows it.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let source = text.split("\n\x01").next().unwrap_or_default();
    let turns = text.split("\n\x01").skip(1);
    let turn = |turn: &str| {
        let (_, role) = ROLES.iter().find(|(mark, _)| turn.starts_with(&mark[2..]))?;
        Some(Message { role: *role, content: turn[1..].to_owned() })
    };
    let mut messages: Vec<Message> = turns.filter_map(turn).collect();
    if messages.is_empty() {
        messages.push(Message { role: Role::User, content: "a probe".to_owned() });
    }
    let special = ["<s>".to_owned(), "</s>".to_owned(), "<|im_start|>".to_owned()];
    drop(render_chat_template(source, &messages, &special));
}
