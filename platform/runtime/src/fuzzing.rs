//! The parser that the fuzz target `lines` in `tests/fuzz` calls. Not a part of the API.

pub use crate::process::wire::{LineEnd, LineReading, read_line};
