//! Real models on a real ONNX Runtime, compared with torch, transformers, sentence-transformers, scikit-learn and
//! xgboost (tests/fixtures/onnx, with the generating scripts).
//!
//! A missing part (the library or the default model) fails the test with instructions to install it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests panic")]
#![allow(clippy::cast_possible_truncation, reason = "of numbers that the tests chose")]

mod embeddings;
mod faults;
mod models;
mod rig;
mod scores;
mod writing;

use nerve_core::inference::{Embedding, Vector};
pub(crate) use rig::{Rig, cosine, expected, fixtures, probe, settings};

pub(crate) fn floats(embedding: &Embedding) -> &[f32] {
    match &embedding.vector {
        Vector::F32(numbers) => numbers,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn assert_near(got: &[f32], wanted: &[f32], most: f32, what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (index, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert!((got - wanted).abs() <= most, "{what}, number {index}: {got}, not {wanted}");
    }
}
