//! Tensors, and sequences of maps from scikit-learn exports, to JSON.

use half::f16;
use ort::value::{DynMap, DynValue, TensorElementType, ValueRef, ValueType};
use serde_json::{Map, Number, Value};

/// Values of an output for each of `count` samples.
pub(super) fn rows(output: ValueRef<'_>, count: usize) -> Result<Vec<Value>, String> {
    let cells = match output.dtype() {
        ValueType::Tensor { .. } => tensor_rows(&output, count)?,
        ValueType::Sequence(inner) if matches!(**inner, ValueType::Map { .. }) => {
            let sequence = output.downcast::<ort::value::DynSequenceValueType>().map_err(text)?;
            let maps = sequence.try_extract_sequence::<ort::value::DynMapValueType>().map_err(text)?;
            maps.iter().map(map_cell).collect::<Result<_, _>>()?
        }
        other => return Err(format!("is {other:?}, which is not supported")),
    };
    if cells.len() == count { Ok(cells) } else { Err(format!("has {} rows for {count} samples", cells.len())) }
}

fn text(error: ort::Error) -> String {
    format!("cannot be read: {error}")
}

fn tensor_rows(output: &DynValue, count: usize) -> Result<Vec<Value>, String> {
    macro_rules! leaves {
        ($ty:ty, $json:expr) => {{
            let (shape, elements) = output.try_extract_tensor::<$ty>().map_err(text)?;
            (shape.to_vec(), elements.iter().map($json).collect::<Vec<Value>>())
        }};
    }
    let (shape, leaves) = match output.dtype().tensor_type() {
        Some(TensorElementType::Float32) => leaves!(f32, |number| float(*number)),
        Some(TensorElementType::Float64) => {
            leaves!(f64, |number| Number::from_f64(*number).map_or(Value::Null, Value::Number))
        }
        Some(TensorElementType::Float16) => leaves!(f16, |number| float(number.to_f32())),
        Some(TensorElementType::Int64) => leaves!(i64, |number| Value::from(*number)),
        Some(TensorElementType::Int32) => leaves!(i32, |number| Value::from(*number)),
        Some(TensorElementType::Bool) => leaves!(bool, |flag| Value::from(*flag)),
        Some(TensorElementType::String) => {
            let (shape, strings) = output.try_extract_strings().map_err(text)?;
            (shape.to_vec(), strings.into_iter().map(Value::String).collect())
        }
        other => return Err(format!("is {other:?}, which is not supported")),
    };
    let shape: Vec<usize> = shape.iter().map(|&size| usize::try_from(size).unwrap_or_default()).collect();
    let mut leaves = leaves.into_iter();
    match shape.split_first() {
        Some((&rows, inner)) if rows == count => Ok((0..rows).map(|_| nest(inner, &mut leaves)).collect()),
        // A result for the whole batch is recognizable only with one sample.
        _ if count == 1 => Ok(vec![nest(&shape, &mut leaves)]),
        _ => Err(format!("has the shape {shape:?} for {count} samples")),
    }
}

/// The shortest decimal that reads back as the same `f32`.
fn float(number: f32) -> Value {
    let shortest = number.to_string().parse::<f64>().ok();
    shortest.and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

fn nest(shape: &[usize], leaves: &mut impl Iterator<Item = Value>) -> Value {
    match shape.split_first() {
        None => leaves.next().unwrap_or_default(),
        Some((&size, inner)) => Value::Array((0..size).map(|_| nest(inner, leaves)).collect()),
    }
}

fn map_cell(map: &DynMap) -> Result<Value, String> {
    let ValueType::Map { key, .. } = map.dtype() else {
        return Err("contains an element that is not a map".to_owned());
    };
    let entries: Vec<(String, f32)> = match key {
        TensorElementType::String => map.try_extract_key_values::<String, f32>().map_err(text)?,
        _ => {
            let entries = map.try_extract_key_values::<i64, f32>().map_err(text)?;
            entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
        }
    };
    Ok(Value::Object(entries.into_iter().map(|(key, value)| (key, float(value))).collect::<Map<_, _>>()))
}
