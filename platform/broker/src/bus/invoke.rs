//! A function called directly, past the log: a request to whichever worker is free.

use super::{Bus, BusError};
use async_nats::{HeaderMap, Subscriber};
use futures::StreamExt;
use nerve_core::{Event, FunctionError, Name};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a direct call came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// The events that the function returned; they were not published.
    Events(Vec<serde_json::Value>),
    /// The function failed.
    Failed(FunctionError),
}

/// Why a direct call has no result, split by whose turn it is.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// No worker runs the function now.
    #[error("no worker is running the function `{0}`")]
    NoWorker(Name),
    /// No answer came in time; the function may still be at work.
    #[error("the function `{0}` did not answer within {wait}", wait = humantime::format_duration(*.1))]
    Timeout(Name, Duration),
    /// The function answered that it failed.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The broker failed, or refused.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// A direct call that waits for its answer.
pub struct Invocation {
    bus: Bus,
    message: async_nats::Message,
}

fn subject(function: &Name) -> String {
    format!("nerve.invoke.{function}")
}

impl Bus {
    /// Calls a function with `event` and returns the events it answers with; they are not published.
    pub async fn invoke(&self, function: &Name, event: &Event, wait: Duration) -> Result<Vec<Event>, InvokeError> {
        let what = || format!("invoking {function}");
        let (headers, body) = self.to_message(event).await.map_err(|error| match error {
            super::PublishError::Invalid(why) => BusError::refused(what(), why),
            super::PublishError::Unavailable(source) => BusError::unavailable(what(), source),
        })?;
        let request = async_nats::Request::new().headers(headers).payload(body).timeout(Some(wait));
        let reply = self.client.send_request(subject(function), request).await.map_err(|error| match error.kind() {
            async_nats::RequestErrorKind::NoResponders => InvokeError::NoWorker(function.clone()),
            async_nats::RequestErrorKind::TimedOut => InvokeError::Timeout(function.clone(), wait),
            _ => BusError::unavailable(what(), error).into(),
        })?;
        match serde_json::from_slice(&reply.payload).map_err(|error| BusError::refused(what(), error))? {
            Answer::Failed(error) => Err(error.into()),
            Answer::Events(events) => {
                let read = |event: serde_json::Value| Event::from_json(event.to_string().as_bytes());
                let events: Result<Vec<_>, _> = events.into_iter().map(read).collect();
                Ok(events.map_err(|error| BusError::refused(what(), error))?)
            }
        }
    }

    /// The direct calls of a function that this worker takes, one of all workers each.
    pub async fn invocations(&self, function: &Name) -> Result<Subscriber, BusError> {
        let subscribed = self.client.queue_subscribe(subject(function), format!("nerve-{function}")).await;
        subscribed.map_err(|error| BusError::unavailable(format!("taking direct calls of {function}"), error))
    }

    /// The next direct call; `None` when the subscription has ended.
    pub async fn next_invocation(&self, calls: &mut Subscriber) -> Option<Invocation> {
        let message = calls.next().await?;
        Some(Invocation { bus: self.clone(), message })
    }
}

impl Invocation {
    /// The event that the function is called with.
    pub async fn event(&self) -> Result<Event, FunctionError> {
        let invalid = |why: String| FunctionError::new(nerve_core::Fault::Invalid, why);
        let mut event = super::delivery::event_of(&self.message, "invoke", 0);
        self.bus.restore_body(&mut event).await.map_err(|error| invalid(error.to_string()))?;
        Ok(event)
    }

    /// Sends the answer to whoever called.
    pub async fn answer(self, outcome: Result<Vec<Event>, FunctionError>) {
        let Some(reply) = self.message.reply else { return };
        let body = match outcome {
            Ok(events) => {
                let events: Result<Vec<_>, _> = events.iter().map(serde_json::to_value).collect();
                events.and_then(|events| serde_json::to_vec(&Answer::Events(events)))
            }
            Err(error) => serde_json::to_vec(&Answer::Failed(error)),
        };
        let mut body = body.unwrap_or_default();
        if body.len() > self.bus.largest_body() {
            let message = format!("the answer has {} bytes: more than fits into one message", body.len());
            let error = FunctionError::new(nerve_core::Fault::Invalid, message);
            body = serde_json::to_vec(&Answer::Failed(error)).unwrap_or_default();
        }
        if let Err(error) = self.bus.client.publish_with_headers(reply, HeaderMap::new(), body.into()).await {
            tracing::warn!(%error, "the answer to a direct call was lost");
        }
    }
}
