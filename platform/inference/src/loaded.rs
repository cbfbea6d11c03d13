//! A model in memory.

use crate::{
    batcher::{CallKind, JobError, Ticket, Turns},
    causal::CausalModel,
    head::{Head, Pooling},
    task::{Description, Task},
    tensor::TensorModel,
    text::{TextJob, TextModel},
    tokens::Tokens,
};
use nerve_core::inference::InferenceError;

/// A model in memory, shared by everything that names it.
pub struct Loaded {
    /// The name it was asked for by.
    pub name: String,
    /// What its folder says of it.
    pub description: Description,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Text(TextModel),
    Causal(CausalModel),
    Tensor(TensorModel),
}

/// What to do when a model has as much to do as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Wait for room: whoever calls takes no more until this is done.
    Wait,
    /// Say so at once.
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

pub(crate) type Answer<T> = Result<T, InferenceError>;

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

impl Loaded {
    pub(crate) fn text(&self, wanted: &[Task], what: &str) -> Answer<&TextModel> {
        match &self.kind {
            Kind::Text(model) if wanted.contains(&self.description.task) => Ok(model),
            _ => Err(self.unfit(what)),
        }
    }

    /// Tokenises a text as a request would have it, where the model reads text.
    pub(crate) fn tokenise(&self, text: &str) -> Result<(), String> {
        match &self.kind {
            Kind::Text(model) => model.tokenizer.text(text).map(drop),
            Kind::Causal(model) => model.tokenise(text),
            Kind::Tensor(_) => Ok(()),
        }
    }

    pub(crate) fn unfit(&self, what: &str) -> InferenceError {
        let task = self.description.task.as_str();
        InferenceError::Invalid(format!("`{}` is a model for {task}, which cannot {what}", self.name))
    }
}

/// Has a model of text run them: one row each.
pub(crate) async fn run_text(
    model: &TextModel,
    tokens: Vec<Tokens>,
    pooling: Option<Pooling>,
    admission: Admission,
) -> Answer<Vec<Vec<f32>>> {
    if admission == Admission::Refuse {
        model.has_room()?;
    }
    let mut tickets = Vec::with_capacity(tokens.len());
    let mut turns = Turns::of(admission.into());
    for tokens in tokens {
        tickets.push(model.submit(TextJob { tokens, pooling }, &mut turns).await);
    }
    collect(tickets).await
}

/// What became of jobs, in their order.
pub(crate) async fn collect<R>(tickets: Vec<Ticket<R>>) -> Answer<Vec<R>> {
    let mut rows = Vec::with_capacity(tickets.len());
    for ticket in tickets {
        rows.push(ticket.await?);
    }
    Ok(rows)
}

/// Makes scores of what the model gave, unless it is wanted raw.
pub(crate) fn activate(head: &Head, raw: bool, row: &mut [f32]) {
    if let Head::Relevance { activation } | Head::Labels { activation, .. } = head
        && !raw
    {
        activation.apply(row);
    }
}
