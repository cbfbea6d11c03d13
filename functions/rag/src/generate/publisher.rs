//! Publication of an answer's parts.

use crate::function::FunctionContext;
use nerve_core::{Emission, Fault, FunctionError, function::Emitter};
use nerve_events::{
    EventData,
    answers::{AnswerCitation, AnswerToken, Citation},
};
use serde::Serialize;

/// Publishes parts of one answer to its readers.
pub(crate) struct AnswerPublisher<'c> {
    pub(super) context: &'c FunctionContext,
    pub(super) emitter: &'c dyn Emitter,
    pub(super) index: usize,
}

impl AnswerPublisher<'_> {
    /// Publishes a part if `emits` allows its type.
    ///
    /// # Errors
    /// If the event cannot be published.
    async fn publish<T: EventData + Serialize + Sync>(&self, data: &T) -> Result<(), FunctionError> {
        let Some(ty) = self.context.auxiliary_output(T::TYPE) else { return Ok(()) };
        let data = serde_json::to_vec(data).map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
        let output =
            Emission { ty: ty.clone(), data: data.into(), content_type: None, subject: None, partition_key: None };
        self.emitter.emit(self.index, output).await
    }

    pub(super) async fn text(&self, text: &str) -> Result<(), FunctionError> {
        self.publish(&AnswerToken { text: text.to_owned() }).await
    }

    pub(super) async fn citation(&self, citation: &Citation) -> Result<(), FunctionError> {
        self.publish(&AnswerCitation { citation: citation.clone() }).await
    }
}
