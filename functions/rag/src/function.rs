//! What every function here shares.

use nerve_core::{Emission, Event, EventType, Fault, FunctionError, Outcome, inference::InferenceError};
use nerve_index::IndexError;
use serde::Serialize;
use std::time::Duration;

/// What every function has.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// The type of its results.
    pub(crate) emits: EventType,
    /// Further types that it may emit.
    pub(crate) side_events: Vec<EventType>,
    /// For one event.
    pub(crate) timeout: Duration,
}

impl Frame {
    /// One event that is published.
    pub(crate) fn emission<T: Serialize>(&self, event: &Event, data: &T) -> Outcome {
        let data = serde_json::to_vec(data).map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
        Ok(vec![Emission {
            ty: self.emits.clone(),
            data: data.into(),
            content_type: None,
            subject: event.subject.clone(),
            partition_key: None,
        }])
    }

    /// The further type of this name, if nerve.toml lets the function emit it.
    pub(crate) fn side_event(&self, ty: &str) -> Option<&EventType> {
        self.side_events.iter().find(|side| side.as_str() == ty)
    }

    pub(crate) async fn within(&self, work: impl Future<Output = Outcome>) -> Outcome {
        tokio::time::timeout(self.timeout, work).await.unwrap_or_else(|_| {
            let message = format!("it was not done within {:?} (`timeout` in nerve.toml)", self.timeout);
            Err(FunctionError::new(Fault::Timeout, message))
        })
    }
}

pub(crate) fn invalid(why: impl Into<String>) -> FunctionError {
    FunctionError::new(Fault::Invalid, why)
}

/// A failed index says which file or call failed too.
pub(crate) fn index_failed(error: &IndexError) -> FunctionError {
    let fault = match error {
        IndexError::Invalid(_) | IndexError::QuotaExceeded(_) => Fault::Invalid,
        IndexError::Unavailable { .. } => Fault::Retry { after: None },
        IndexError::Failed { .. } => Fault::Crash,
    };
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    FunctionError::new(fault, message)
}

/// Runs what blocks where it may; a panic there is a crash of this event.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FunctionError> + Send + 'static,
) -> Result<T, FunctionError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(FunctionError::new(Fault::Crash, error.to_string())))
}

pub(crate) fn inference_failed(error: &InferenceError) -> FunctionError {
    let fault = match error {
        InferenceError::Invalid(_) => Fault::Invalid,
        InferenceError::Busy(_) | InferenceError::Unavailable(_) => Fault::Retry { after: None },
        InferenceError::Timeout(_) => Fault::Timeout,
        InferenceError::Failed(_) => Fault::Crash,
    };
    FunctionError::new(fault, error.to_string())
}
