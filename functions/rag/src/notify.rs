//! `rag/notify`: `memory.updated`, or any other event of an answer → `notification.sent`.

use crate::{
    client::new_client,
    function::{FunctionContext, invalid},
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{Context, Event, Fault, Function, FunctionError, Outcome, answer};
use nerve_events::answers::NotificationSent;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};

/// Answers that cause a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NotifyWhen {
    /// All answers.
    #[default]
    Always,
    /// Flagged answers, and answers without support in the documents.
    Flagged,
}

/// `with` of `rag/notify`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NotifyOptions {
    /// URL that receives a JSON object with `text`, the format of chat services; `None` for an event only.
    pub(crate) url: Option<String>,
    pub(crate) when: NotifyWhen,
}

impl NotifyOptions {
    /// Checks the URL.
    ///
    /// # Errors
    /// If it is not an HTTP or HTTPS URL.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Some(url) = &self.url else { return Ok(()) };
        let url = Url::parse(url).map_err(|error| format!("`url` is not a URL: {error}"))?;
        match url.scheme() {
            "http" | "https" => Ok(()),
            other => Err(format!("`url` has the scheme {other}: it must be http or https")),
        }
    }
}

/// The loaded function.
pub(crate) struct Notifier {
    context: FunctionContext,
    when: NotifyWhen,
    target: Option<(reqwest::Client, Url)>,
}

impl Notifier {
    pub(crate) fn new(context: FunctionContext, options: NotifyOptions) -> Result<Self, String> {
        let target = match options.url {
            None => None,
            Some(url) => Some((
                new_client(context.timeout)?,
                Url::parse(&url).map_err(|error| format!("`url` is not a URL: {error}"))?,
            )),
        };
        Ok(Self { context, when: options.when, target })
    }

    async fn notify(&self, event: &Event) -> Outcome {
        let data: Value =
            serde_json::from_slice(&event.data).map_err(|error| invalid(format!("its data is not JSON: {error}")))?;
        let flagged = data.get("flags").and_then(Value::as_array).is_some_and(|flags| !flags.is_empty());
        let unanswered = data.get("answered") == Some(&Value::Bool(false));
        if self.when == NotifyWhen::Flagged && !flagged && !unanswered {
            return Ok(Vec::new());
        }
        let notification = NotificationSent {
            answer: answer::id_of(event).to_owned(),
            text: text(&data, flagged),
            flagged,
            to: self.target.as_ref().and_then(|(_, url)| url.host_str().map(str::to_owned)),
        };
        if let Some((client, url)) = &self.target {
            send(client, url, &notification, event).await?;
        }
        self.context.output(event, &notification)
    }
}

#[async_trait]
impl Function for Notifier {
    async fn invoke(&self, batch: Vec<Event>, _context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.context.with_timeout(self.notify(event)))).await
    }
}

async fn send(
    client: &reqwest::Client,
    url: &Url,
    notification: &NotificationSent,
    event: &Event,
) -> Result<(), FunctionError> {
    let body = json!({"text": notification.text, "answer": notification.answer, "flagged": notification.flagged});
    // A receiver that supports the header accepts a repeated delivery once.
    let sent = client.post(url.clone()).json(&body).header("Idempotency-Key", event.id.as_str()).send().await;
    // The URL may contain a token, so no error includes it.
    let response = sent.map_err(|error| {
        let fault = if error.is_timeout() { Fault::Timeout } else { Fault::Retry { after: None } };
        FunctionError::new(fault, format!("the receiver cannot be reached: {}", error.without_url()))
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let message = format!("the receiver answered {status}");
    let is_transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    Err(if is_transient { FunctionError::new(Fault::Retry { after: None }, message) } else { invalid(message) })
}

/// Text of the notification: question, answer and flags.
fn text(data: &Value, flagged: bool) -> String {
    let field = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or_default().trim().to_owned();
    let mut text = format!("{}\n{}", field("question"), field("answer"));
    if flagged {
        let flags = data.get("flags").and_then(Value::as_array).into_iter().flatten();
        let measures: Vec<&str> = flags.filter_map(|flag| flag.get("measure").and_then(Value::as_str)).collect();
        text.push_str(&format!("\n(flagged: {})", measures.join(", ")));
    }
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notification_contains_question_answer_and_flags() {
        let data =
            json!({"question": "Why?", "answer": "So.", "flags": [{"measure": "relevance"}, {"measure": "cost"}]});
        assert_eq!(text(&data, true), "Why?\nSo.\n(flagged: relevance, cost)");
        assert_eq!(text(&data, false), "Why?\nSo.");
    }

    #[test]
    fn invalid_urls_are_rejected() {
        let check = |url: &str| NotifyOptions { url: Some(url.into()), ..NotifyOptions::default() }.check();
        assert!(check("https://h/x").is_ok() && check("h").is_err() && check("ftp://h").is_err());
    }
}
