//! Context and helpers that all functions share.

use nerve_core::{Emission, Event, EventType, Fault, FunctionError, Outcome, inference::InferenceError};
use nerve_index::IndexError;
use serde::Serialize;
use std::time::Duration;

/// Context of a loaded function.
#[derive(Debug, Clone)]
pub(crate) struct FunctionContext {
    /// Event type of its results.
    pub(crate) emits: EventType,
    /// Event types that it may emit in addition.
    pub(crate) auxiliary_outputs: Vec<EventType>,
    /// Timeout per event.
    pub(crate) timeout: Duration,
}

impl FunctionContext {
    /// Outcome with one event of the result type.
    pub(crate) fn output<T: Serialize>(&self, event: &Event, data: &T) -> Outcome {
        let data = serde_json::to_vec(data).map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
        Ok(vec![Emission {
            ty: self.emits.clone(),
            data: data.into(),
            content_type: None,
            subject: event.subject.clone(),
            partition_key: None,
        }])
    }

    /// The additional event type `ty`, if `emits` allows it.
    pub(crate) fn auxiliary_output(&self, ty: &str) -> Option<&EventType> {
        self.auxiliary_outputs.iter().find(|side| side.as_str() == ty)
    }

    pub(crate) async fn with_timeout(&self, work: impl Future<Output = Outcome>) -> Outcome {
        tokio::time::timeout(self.timeout, work).await.unwrap_or_else(|_| {
            let message = format!("timed out after {:?} (`timeout` in nerve.toml)", self.timeout);
            Err(FunctionError::new(Fault::Timeout, message))
        })
    }
}

pub(crate) fn invalid(why: impl Into<String>) -> FunctionError {
    FunctionError::new(Fault::Invalid, why)
}

/// Converts an index error, including its causes, to a function error.
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

/// Runs blocking work on the blocking thread pool. A panic fails this event only.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FunctionError> + Send + 'static,
) -> Result<T, FunctionError> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|error| Err(FunctionError::new(Fault::Crash, error.to_string())))
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
