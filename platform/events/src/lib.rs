//! The catalog of event types of Nerve: a struct for the data of each, and the JSON Schema derived from it.
//!
//! # Layout
//! - [`documents`], [`retrieval`], [`answers`], [`agent`], [`feedback`], [`control`], [`sinks`]: one struct per type,
//!   and the parts that they share.
//! - `catalog`: name, kind, producers and consumers of each type: [`known_types`]. `schema`: derives its schema.
//! - `check`: validates an event against the schema of its type.
//!
//! # Flow
//! Built-in functions, gateway, workers and CLI write and read these structs. An event of a known type whose data
//! violates the schema is refused when it is published, so that the publisher gets the error and not a consumer: what
//! passes the schema can be read as the struct. Other types are unrestricted.

pub mod agent;
pub mod answers;
mod catalog;
mod check;
pub mod control;
pub mod documents;
pub mod feedback;
pub mod retrieval;
mod schema;
pub mod sinks;
#[cfg(test)]
mod tests;

pub use catalog::{EventData, Kind, KnownType, known_types};
pub use check::{check, names_collection};
