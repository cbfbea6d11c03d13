//! The built-in functions with real models and a real ONNX Runtime.
//!
//! A missing part (the library or the default model) fails the test with instructions to install it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests panic")]
#![allow(clippy::cast_possible_truncation, reason = "of numbers that the tests chose")]

mod builtins;
#[path = "../../../../platform/inference/tests/it/rig.rs"]
#[allow(dead_code, reason = "the tests of nerve-inference use all of it")]
mod rig;

pub(crate) use rig::{Rig, cosine, expected};
