//! Post-processing of vectors: truncation, normalization and precision.

use half::f16;
use nerve_core::inference::{Precision, Vector};

/// Scales a vector to unit length, except a zero vector.
pub(crate) fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}

/// Truncates a vector to its first dimensions (Matryoshka), and normalizes it again if it was normalized.
///
/// # Errors
/// If `dimensions` is out of range.
pub(crate) fn shorten(vector: &mut Vec<f32>, dimensions: Option<usize>, is_normalized: bool) -> Result<(), String> {
    let Some(dimensions) = dimensions else { return Ok(()) };
    if dimensions == 0 || dimensions > vector.len() {
        return Err(format!("dimensions must be from 1 to {}, the dimensions of this model's vectors", vector.len()));
    }
    vector.truncate(dimensions);
    if is_normalized {
        normalize(vector);
    }
    Ok(())
}

/// Converts a vector to another precision.
pub(crate) fn convert(vector: Vec<f32>, precision: Precision) -> Vector {
    match precision {
        Precision::F32 => Vector::F32(vector),
        Precision::F16 => Vector::F16(vector.iter().map(|&x| f16::from_f32(x)).collect()),
        Precision::Int8 => Vector::I8(to_bytes(&vector).collect()),
        Precision::Uint8 => Vector::U8(to_bytes(&vector).map(shift).collect()),
        Precision::Ubinary => Vector::U8(to_bits(&vector).collect()),
        Precision::Binary => Vector::I8(to_bits(&vector).map(|byte| shift(byte.cast_signed()).cast_signed()).collect()),
    }
}

/// Adds or subtracts 128, which is the same modulo 256.
fn shift(byte: i8) -> u8 {
    byte.cast_unsigned() ^ 0x80
}

/// Each number relative to the largest, times 127: uses the full range of a byte and preserves cosine similarity.
fn to_bytes(vector: &[f32]) -> impl Iterator<Item = i8> {
    let largest = vector.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    // Between -127 and 127 by construction; NaN becomes zero.
    #[expect(clippy::cast_possible_truncation)]
    vector.iter().map(move |x| (x * scale).round() as i8)
}

/// One bit per dimension, set if positive, most significant bit first, padded with zeros.
fn to_bits(vector: &[f32]) -> impl Iterator<Item = u8> {
    let byte = |eight: &[f32]| (0..8).fold(0, |byte, i| byte << 1 | u8::from(eight.get(i).is_some_and(|x| *x > 0.0)));
    vector.chunks(8).map(byte)
}

/// Nonzero dimensions of a sparse vector, ascending; at most the `keep` largest.
pub(crate) fn sparse(weights: &[f32], keep: Option<usize>) -> Vector {
    let positions = weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
    let mut found: Vec<(u32, f32)> =
        positions.map(|(index, weight)| (u32::try_from(index).unwrap_or(u32::MAX), *weight)).collect();
    if let Some(keep) = keep.filter(|keep| *keep < found.len()) {
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        found.truncate(keep);
        found.sort_by_key(|(index, _)| *index);
    }
    let (indices, values) = found.into_iter().unzip();
    Vector::Sparse { indices, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_vector_is_normalized_again() {
        let mut vector = vec![0.6, 0.0, 0.8];
        shorten(&mut vector, Some(2), true).unwrap();
        assert_eq!(vector, [1.0, 0.0]);
        assert!(shorten(&mut vector, Some(3), true).unwrap_err().contains("from 1 to 2"));
        assert!(shorten(&mut vector, Some(0), true).is_err());
        let mut zero = vec![0.0, 0.0];
        normalize(&mut zero);
        assert_eq!(zero, [0.0, 0.0]);
    }

    #[test]
    fn vector_is_converted_to_each_precision() {
        let vector = vec![0.5, -0.25, 0.0, 0.1, 0.1, -0.1, 0.1, -0.5, 0.3];
        let whole = |precision| convert(vector.clone(), precision);
        assert_eq!(whole(Precision::Int8), Vector::I8(vec![127, -64, 0, 25, 25, -25, 25, -127, 76]));
        assert_eq!(whole(Precision::Uint8), Vector::U8(vec![255, 64, 128, 153, 153, 103, 153, 1, 204]));
        assert_eq!(whole(Precision::Ubinary), Vector::U8(vec![0b1001_1010, 0b1000_0000]));
        assert_eq!(whole(Precision::Binary), Vector::I8(vec![26, 0]));
        let Vector::F16(halves) = whole(Precision::F16) else { panic!() };
        assert_eq!(halves.iter().map(|half| half.to_f32()).collect::<Vec<_>>()[..3], [0.5, -0.25, 0.0]);
    }

    #[test]
    fn sparse_vector_keeps_its_largest_weights() {
        let weights = [0.0, 0.5, 0.0, 2.0, 1.0];
        assert_eq!(sparse(&weights, None), Vector::Sparse { indices: vec![1, 3, 4], values: vec![0.5, 2.0, 1.0] });
        assert_eq!(sparse(&weights, Some(2)), Vector::Sparse { indices: vec![3, 4], values: vec![2.0, 1.0] });
    }
}
