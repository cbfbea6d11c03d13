//! The API: a file per resource, and what its requests share.

pub(crate) mod answers;
pub(crate) mod auth;
pub(crate) mod caller_limits;
pub(crate) mod cloudevents;
pub(crate) mod documents;
pub(crate) mod events;
pub(crate) mod functions;
pub(crate) mod health;
pub(crate) mod idempotency;
pub(crate) mod inference;
pub(crate) mod openapi;
pub(crate) mod problems;
pub(crate) mod quotas;
pub(crate) mod sse;
pub(crate) mod tail;
pub(crate) mod traces;
