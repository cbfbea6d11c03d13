//! Direct calls of functions, by request-reply to any worker.

use super::error::ResultExt as _;
use super::{Bus, BusError};
use async_nats::{HeaderMap, Subscriber};
use futures::StreamExt;
use nerve_core::{Event, FunctionError, Name};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The reply to a direct call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum InvokeReply {
    /// The function's output events, which were not published.
    Events(Vec<serde_json::Value>),
    /// The function failed.
    Failed(FunctionError),
}

/// The reason why a direct call has no result.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// No worker runs the function.
    #[error("no worker is running the function `{0}`")]
    NoWorker(Name),
    /// The function did not reply in time; it may still be running.
    #[error("the function `{0}` did not answer within {wait}", wait = humantime::format_duration(*.1))]
    Timeout(Name, Duration),
    /// The function failed.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The broker failed or refused.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// A direct call that waits for its reply.
pub struct Invocation {
    bus: Bus,
    message: async_nats::Message,
}

fn subject(function: &Name) -> String {
    format!("nerve.invoke.{function}")
}

impl Bus {
    /// Calls a function with `event` and returns its output events, which are not published.
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
        match serde_json::from_slice(&reply.payload).refused(what)? {
            InvokeReply::Failed(error) => Err(error.into()),
            InvokeReply::Events(events) => {
                let read = |event: serde_json::Value| Event::from_json(event.to_string().as_bytes());
                let events: Result<Vec<_>, _> = events.into_iter().map(read).collect();
                Ok(events.refused(what)?)
            }
        }
    }

    /// Subscribes to the direct calls of a function; each call goes to one worker.
    pub async fn invocations(&self, function: &Name) -> Result<Subscriber, BusError> {
        self.client
            .queue_subscribe(subject(function), format!("nerve-{function}"))
            .await
            .unavailable(|| format!("subscribing to direct calls of {function}"))
    }

    /// The next direct call; `None` if the subscription has ended.
    pub async fn next_invocation(&self, calls: &mut Subscriber) -> Option<Invocation> {
        let message = calls.next().await?;
        Some(Invocation { bus: self.clone(), message })
    }
}

impl Invocation {
    /// The input event of the call.
    pub async fn event(&self) -> Result<Event, FunctionError> {
        let invalid = |why: String| FunctionError::new(nerve_core::Fault::Invalid, why);
        let mut event = super::delivery::event_of(&self.message, "invoke", 0);
        self.bus.restore_body(&mut event).await.map_err(|error| invalid(error.to_string()))?;
        Ok(event)
    }

    /// Sends the reply to the caller.
    pub async fn answer(self, outcome: Result<Vec<Event>, FunctionError>) {
        let Some(reply) = self.message.reply else { return };
        let body = match outcome {
            Ok(events) => {
                let events: Result<Vec<_>, _> = events.iter().map(serde_json::to_value).collect();
                events.and_then(|events| serde_json::to_vec(&InvokeReply::Events(events)))
            }
            Err(error) => serde_json::to_vec(&InvokeReply::Failed(error)),
        };
        let mut body = body.unwrap_or_default();
        if body.len() > self.bus.max_body_bytes() {
            let message = format!("the reply has {} bytes, which exceeds the maximum message size", body.len());
            let error = FunctionError::new(nerve_core::Fault::Invalid, message);
            body = serde_json::to_vec(&InvokeReply::Failed(error)).unwrap_or_default();
        }
        if let Err(error) = self.bus.client.publish_with_headers(reply, HeaderMap::new(), body.into()).await {
            tracing::warn!(%error, "cannot send the reply to a direct call");
        }
    }
}
