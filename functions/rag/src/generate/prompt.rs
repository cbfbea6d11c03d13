//! The prompt of a language model: numbered documents, conversation history and question.

use super::GenerateInput;
use nerve_core::inference::{Message, Role};
use nerve_events::retrieval;

/// Default of `system`.
pub(super) const DEFAULT_SYSTEM_PROMPT: &str = "Answer the question from the numbered documents and from nothing else. End each \
    sentence with the number of the document that says it, in brackets, like [2]. Where the documents do not answer \
    the question, say that they do not. Be brief.";

/// The messages up to the answer, and the part of the answer that is already written.
pub(super) fn messages(system: &str, input: &GenerateInput, partial: &str) -> Vec<Message> {
    let message = |role, content: String| Message { role, content };
    let mut messages = vec![message(Role::System, system.to_owned())];
    if let Some(history) = &input.history {
        if !history.summary.is_empty() {
            let earlier = format!("Earlier in this conversation:\n{}", history.summary);
            messages.push(message(Role::System, earlier));
        }
        for turn in &history.turns {
            messages.push(message(Role::User, turn.question.clone()));
            messages.push(message(Role::Assistant, turn.answer.clone()));
        }
    }
    messages.extend(input.messages.iter().filter_map(earlier_message));
    let mut prompt = String::from("Documents:\n\n");
    for (index, hit) in input.documents.iter().enumerate() {
        let location: Vec<&str> =
            std::iter::once(hit.name.as_str()).chain(hit.chunk.heading.iter().map(String::as_str)).collect();
        prompt.push_str(&format!("[{}] {}\n{}\n\n", index + 1, location.join(" › "), hit.chunk.text.trim()));
    }
    prompt.push_str(&format!("Question: {}", input.question));
    messages.push(message(Role::User, prompt));
    if !partial.is_empty() {
        messages.push(message(Role::Assistant, partial.to_owned()));
    }
    messages
}

/// A message of the caller. Those of tools and of unknown authors are left out.
fn earlier_message(earlier: &retrieval::Message) -> Option<Message> {
    let role = match earlier.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return None,
    };
    Some(Message { role, content: earlier.content.clone() })
}
