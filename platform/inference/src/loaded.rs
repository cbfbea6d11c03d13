//! A loaded model.

use crate::{
    batcher::{CallKind, CallRounds, JobError, JobHandle},
    causal::CausalModel,
    head::{Head, Pooling},
    task::{Description, Task},
    tensor::TensorModel,
    text::{TextJob, TextModel},
    tokens::Tokens,
};
use nerve_core::inference::InferenceError;

/// A loaded model, shared by all users.
pub struct LoadedModel {
    /// Name in the request or manifest.
    pub name: String,
    /// Description from its folder.
    pub description: Description,
    pub(crate) kind: LoadedKind,
}

pub(crate) enum LoadedKind {
    Text(TextModel),
    Causal(CausalModel),
    Tensor(TensorModel),
}

/// Behavior if the model's queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Wait for capacity (backpressure on the caller).
    Wait,
    /// Fail immediately.
    Refuse,
}

impl From<Admission> for CallKind {
    fn from(admission: Admission) -> Self {
        match admission {
            Admission::Wait => Self::Events,
            Admission::Refuse => Self::Request,
        }
    }
}

pub(crate) type InferenceResult<T> = Result<T, InferenceError>;

impl From<JobError> for InferenceError {
    fn from(error: JobError) -> Self {
        let text = error.to_string();
        match error {
            JobError::Busy(_) => Self::Busy(text),
            JobError::Failed(_) | JobError::Panicked => Self::Failed(text),
            JobError::Closed => Self::Unavailable(text),
        }
    }
}

impl LoadedModel {
    pub(crate) fn text(&self, tasks: &[Task], operation: &str) -> InferenceResult<&TextModel> {
        match &self.kind {
            LoadedKind::Text(model) if tasks.contains(&self.description.task) => Ok(model),
            _ => Err(self.unsupported(operation)),
        }
    }

    /// Tokenizes a text as a request does, if the model reads text.
    pub(crate) fn tokenize(&self, text: &str) -> Result<(), String> {
        match &self.kind {
            LoadedKind::Text(model) => model.tokenizer.text(text).map(drop),
            LoadedKind::Causal(model) => model.tokenize(text),
            LoadedKind::Tensor(_) => Ok(()),
        }
    }

    pub(crate) fn unsupported(&self, operation: &str) -> InferenceError {
        let task = self.description.task.as_str();
        InferenceError::Invalid(format!("`{}` is a model for {task}, which cannot {operation}", self.name))
    }
}

/// Runs tokenized texts through a text model. Returns one row per text.
pub(crate) async fn run_text(
    model: &TextModel,
    tokens: Vec<Tokens>,
    pooling: Option<Pooling>,
    admission: Admission,
) -> InferenceResult<Vec<Vec<f32>>> {
    if admission == Admission::Refuse {
        model.check_capacity()?;
    }
    let mut handles = Vec::with_capacity(tokens.len());
    let mut rounds = CallRounds::of(admission.into());
    for tokens in tokens {
        handles.push(model.submit(TextJob { tokens, pooling }, &mut rounds).await);
    }
    collect(handles).await
}

/// Awaits the results of jobs, in order.
pub(crate) async fn collect<R>(handles: Vec<JobHandle<R>>) -> InferenceResult<Vec<R>> {
    let mut rows = Vec::with_capacity(handles.len());
    for ticket in handles {
        rows.push(ticket.await?);
    }
    Ok(rows)
}

/// Applies the activation of the head, unless raw logits are requested.
pub(crate) fn activate(head: &Head, raw: bool, row: &mut [f32]) {
    if let Head::Relevance { activation } | Head::Labels { activation, .. } = head
        && !raw
    {
        activation.apply(row);
    }
}
