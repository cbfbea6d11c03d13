//! What a language model is asked: the documents, numbered, what was said before, and the question.

use super::Given;
use nerve_core::inference::{Message, Role};

/// What a language model is told where nerve.toml says nothing else.
pub(super) const SYSTEM: &str = "Answer the question from the numbered documents and from nothing else. End each \
    sentence with the number of the document that says it, in brackets, like [2]. Where the documents do not answer \
    the question, say that they do not. Be brief.";

/// The conversation up to the answer, and what is written of that already.
pub(super) fn messages(system: &str, given: &Given, written: &str) -> Vec<Message> {
    let message = |role, content: String| Message { role, content };
    let mut messages = vec![message(Role::System, system.to_owned())];
    if let Some(history) = &given.history {
        if !history.summary.is_empty() {
            let earlier = format!("Earlier in this conversation:\n{}", history.summary);
            messages.push(message(Role::System, earlier));
        }
        for turn in &history.turns {
            messages.push(message(Role::User, turn.question.clone()));
            messages.push(message(Role::Assistant, turn.answer.clone()));
        }
    }
    messages.extend(given.messages.iter().cloned());
    let mut asked = String::from("Documents:\n\n");
    for (index, hit) in given.documents.iter().enumerate() {
        let place: Vec<&str> =
            std::iter::once(hit.name.as_str()).chain(hit.chunk.heading.iter().map(String::as_str)).collect();
        asked.push_str(&format!("[{}] {}\n{}\n\n", index + 1, place.join(" › "), hit.chunk.text.trim()));
    }
    asked.push_str(&format!("Question: {}", given.question));
    messages.push(message(Role::User, asked));
    if !written.is_empty() {
        messages.push(message(Role::Assistant, written.to_owned()));
    }
    messages
}
