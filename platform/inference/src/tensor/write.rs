//! JSON to tensors.

use super::{Input, TensorSignature};
use half::f16;
use ort::{
    session::SessionInputValue,
    value::{Tensor, TensorElementType},
};
use serde_json::Value;
use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Maximum number of elements of one input per sample.
const MAX_INPUT_ELEMENTS: usize = 16 << 20;

/// One sample: a column per input, in the graph's order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Feed {
    pub(crate) columns: Vec<Column>,
    /// Hash of the shapes of the columns; equal shapes can be stacked.
    pub(crate) group: u64,
}

/// Value of one input: its elements, and its shape with a leading 1 if rows are stacked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Column {
    pub(crate) shape: Vec<usize>,
    pub(crate) elements: Elements,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Elements {
    Numbers(Vec<f64>),
    Integers(Vec<i64>),
    Strings(Vec<String>),
}

impl Feed {
    /// Converts one value per input, in the graph's order.
    ///
    /// # Errors
    /// Names the input whose value does not fit.
    pub(crate) fn of(signature: &TensorSignature, values: &[Cow<'_, Value>]) -> Result<Self, String> {
        let columns: Result<Vec<Column>, String> =
            signature.inputs.iter().zip(values).map(|(input, value)| Column::of(input, value)).collect();
        let columns = columns?;
        let mut hasher = DefaultHasher::new();
        columns.iter().for_each(|column| column.shape.hash(&mut hasher));
        Ok(Self { columns, group: hasher.finish() })
    }
}

impl Column {
    /// Converts one sample's value for `input`.
    ///
    /// Arrays may be nested as in the shape, with or without the batch dimension; a flat array, or a single number or
    /// string, fills a shape of known size.
    ///
    /// # Errors
    /// If the value does not fit.
    pub(crate) fn of(input: &Input, value: &Value) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{}` takes {}, {why}", input.name, input.expected_description());
        let mut leaves = Vec::new();
        let nested = flatten(value, &mut leaves, 0).map_err(|why| wrong(&why))?;
        let elements = Elements::of(input.ty, &leaves).map_err(|why| wrong(&why))?;
        let shape = input.fit(&nested, leaves.len()).ok_or_else(|| wrong(&format!("not the shape {nested:?}")))?;
        Ok(Self { shape, elements })
    }
}

impl Input {
    fn expected_description(&self) -> String {
        let size = |size: &i64| if *size < 0 { "any".to_owned() } else { size.to_string() };
        let shape: Vec<String> = self.shape.iter().map(size).collect();
        format!("{:?} of the shape [{}]", self.ty, shape.join(", ")).to_lowercase()
    }

    /// The shape of one sample, given as arrays of the shape `nested`.
    fn fit(&self, nested: &[usize], count: usize) -> Option<Vec<usize>> {
        let matches = |shape: &[usize]| {
            let same = |(size, declared): (&usize, &i64)| {
                usize::try_from(*declared).map_or(true, |declared| declared == *size)
            };
            shape.len() == self.shape.len() && shape.iter().zip(&self.shape).all(same)
        };
        // One sample is one row, whatever the first dimension.
        let one_row = |shape: &[usize]| self.shape.first().is_none_or(|rows| *rows >= 0) || shape.first() == Some(&1);
        if matches(nested) && one_row(nested) {
            return Some(nested.to_vec());
        }
        let below: Vec<usize> = std::iter::once(1).chain(nested.iter().copied()).collect();
        if matches(&below) {
            return Some(below);
        }
        // A flat array or a single value determines the one dimension that varies.
        if nested.len() > 1 {
            return None;
        }
        let rows = usize::from(self.shape.first().is_some_and(|rows| *rows < 0));
        let fixed: usize = self.shape.iter().filter_map(|size| usize::try_from(*size).ok()).product();
        let varying = self.shape.iter().skip(rows).filter(|size| **size < 0).count();
        let left = match varying {
            0 => (fixed == count).then_some(1),
            1 => (fixed > 0 && count.is_multiple_of(fixed)).then(|| count / fixed),
            _ => None,
        }?;
        let size = |(index, size): (usize, &i64)| match usize::try_from(*size) {
            Ok(size) => size,
            Err(_) if index < rows => 1,
            Err(_) => left,
        };
        Some(self.shape.iter().enumerate().map(size).collect())
    }
}

/// Leaves of nested arrays, and the shape of the arrays.
fn flatten<'v>(value: &'v Value, leaves: &mut Vec<&'v Value>, depth: usize) -> Result<Vec<usize>, String> {
    let Value::Array(items) = value else {
        leaves.push(value);
        return if leaves.len() <= MAX_INPUT_ELEMENTS {
            Ok(Vec::new())
        } else {
            Err(format!("at most {MAX_INPUT_ELEMENTS} elements"))
        };
    };
    if depth > 16 {
        return Err("not arrays nested deeper than 16".to_owned());
    }
    let mut shape: Option<Vec<usize>> = None;
    for item in items {
        let inner = flatten(item, leaves, depth + 1)?;
        if shape.as_ref().is_some_and(|shape| *shape != inner) {
            return Err("and these arrays differ in length".to_owned());
        }
        shape = Some(inner);
    }
    Ok(std::iter::once(items.len()).chain(shape.unwrap_or_default()).collect())
}

impl Elements {
    fn of(ty: TensorElementType, leaves: &[&Value]) -> Result<Self, String> {
        let not = |leaf: &Value| format!("not {}", brief(leaf));
        match ty {
            TensorElementType::String => {
                let text = |leaf: &&Value| match leaf {
                    Value::String(text) => Ok(text.clone()),
                    Value::Number(number) => Ok(number.to_string()),
                    Value::Bool(flag) => Ok(flag.to_string()),
                    other => Err(not(other)),
                };
                leaves.iter().map(text).collect::<Result<_, _>>().map(Self::Strings)
            }
            TensorElementType::Float32 | TensorElementType::Float64 | TensorElementType::Float16 => {
                let number = |leaf: &&Value| match leaf {
                    // NaN is the usual encoding of missing values.
                    Value::Null => Ok(f64::NAN),
                    Value::Bool(flag) => Ok(f64::from(u8::from(*flag))),
                    other => other.as_f64().ok_or_else(|| not(other)),
                };
                leaves.iter().map(number).collect::<Result<_, _>>().map(Self::Numbers)
            }
            TensorElementType::Int64 | TensorElementType::Int32 | TensorElementType::Bool => {
                let whole = |leaf: &&Value| match leaf {
                    Value::Bool(flag) => Ok(i64::from(*flag)),
                    other => other.as_i64().ok_or_else(|| not(other)),
                };
                leaves.iter().map(whole).collect::<Result<_, _>>().map(Self::Integers)
            }
            other => Err(format!("which is not supported ({other:?})")),
        }
    }
}

fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 40 { text } else { format!("{}…", text.chars().take(40).collect::<String>()) }
}

type Inputs<'s> = Vec<(Cow<'s, str>, SessionInputValue<'s>)>;

/// Stacks the samples into one tensor per input.
pub(super) fn stack(signature: &TensorSignature, feeds: &[Feed]) -> Result<Inputs<'static>, String> {
    let mut inputs = Vec::with_capacity(signature.inputs.len());
    for (index, input) in signature.inputs.iter().enumerate() {
        let columns: Vec<&Column> = feeds.iter().filter_map(|feed| feed.columns.get(index)).collect();
        let mut shape = columns.first().map(|column| column.shape.clone()).unwrap_or_default();
        if let Some(rows) = shape.first_mut().filter(|_| feeds.len() > 1) {
            *rows = feeds.len();
        }
        let value = tensor(input.ty, shape, &columns).map_err(|error| error.to_string())?;
        inputs.push((Cow::Owned(input.name.clone()), value));
    }
    Ok(inputs)
}

fn tensor(
    ty: TensorElementType,
    shape: Vec<usize>,
    columns: &[&Column],
) -> Result<SessionInputValue<'static>, ort::Error> {
    let numbers = || {
        columns.iter().flat_map(|column| match &column.elements {
            Elements::Numbers(numbers) => numbers.as_slice(),
            _ => &[],
        })
    };
    let integers = || {
        columns.iter().flat_map(|column| match &column.elements {
            Elements::Integers(integers) => integers.as_slice(),
            _ => &[],
        })
    };
    // The graph declares the narrower type.
    #[expect(clippy::cast_possible_truncation)]
    Ok(match ty {
        TensorElementType::Float32 => {
            Tensor::from_array((shape, numbers().map(|number| *number as f32).collect::<Vec<_>>()))?.into()
        }
        TensorElementType::Float64 => Tensor::from_array((shape, numbers().copied().collect::<Vec<_>>()))?.into(),
        TensorElementType::Float16 => {
            Tensor::from_array((shape, numbers().map(|number| f16::from_f64(*number)).collect::<Vec<_>>()))?.into()
        }
        TensorElementType::Int32 => {
            Tensor::from_array((shape, integers().map(|number| *number as i32).collect::<Vec<_>>()))?.into()
        }
        TensorElementType::Bool => {
            Tensor::from_array((shape, integers().map(|number| *number != 0).collect::<Vec<_>>()))?.into()
        }
        TensorElementType::String => {
            let mut strings: Vec<String> = Vec::new();
            for column in columns {
                if let Elements::Strings(column) = &column.elements {
                    strings.extend_from_slice(column);
                }
            }
            Tensor::from_string_array((shape, strings.as_slice()))?.into()
        }
        _ => Tensor::from_array((shape, integers().copied().collect::<Vec<_>>()))?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn column(ty: TensorElementType, shape: &[i64], value: Value) -> Result<Column, String> {
        Column::of(&Input { name: "x".into(), ty, shape: shape.to_vec() }, &value)
    }

    fn shape_of(shape: &[i64], value: Value) -> Result<Vec<usize>, String> {
        column(TensorElementType::Float32, shape, value).map(|column| column.shape)
    }

    #[test]
    fn single_sample_is_one_row() {
        assert_eq!(shape_of(&[-1, 3], json!([1, 2, 3])), Ok(vec![1, 3]));
        assert_eq!(shape_of(&[-1, 3], json!([[1, 2, 3]])), Ok(vec![1, 3]));
        assert_eq!(shape_of(&[-1, 1], json!(5)), Ok(vec![1, 1]));
        assert_eq!(shape_of(&[-1], json!(5)), Ok(vec![1]));
        assert_eq!(shape_of(&[1, 2, 2], json!([[1, 2], [3, 4]])), Ok(vec![1, 2, 2]));
        assert_eq!(shape_of(&[-1, 2, 2], json!([1, 2, 3, 4])), Ok(vec![1, 2, 2]));
        assert_eq!(shape_of(&[-1, -1], json!([1, 2, 3, 4])), Ok(vec![1, 4]));
        assert_eq!(shape_of(&[], json!(1)), Ok(vec![]));
    }

    #[test]
    fn unsuitable_value_error_names_the_expected_shape() {
        let short = shape_of(&[-1, 3], json!([1, 2])).unwrap_err();
        assert!(short.contains("`x` takes float32 of the shape [any, 3]") && short.contains("[2]"), "{short}");
        assert!(shape_of(&[-1, 3], json!([[1, 2, 3], [4, 5, 6]])).is_err(), "two rows are two samples");
        assert!(shape_of(&[-1, 2], json!([1, "a"])).unwrap_err().contains("not \"a\""));
        assert!(shape_of(&[-1, 2], json!([[1, 2], [3]])).unwrap_err().contains("differ in length"));
        assert!(column(TensorElementType::Int64, &[-1, 1], json!(1.5)).is_err());
    }

    #[test]
    fn string_and_missing_values_are_converted() {
        let strings = column(TensorElementType::String, &[-1, 2], json!(["a", 7])).unwrap();
        assert_eq!(strings.elements, Elements::Strings(vec!["a".into(), "7".into()]));
        let Elements::Numbers(numbers) =
            column(TensorElementType::Float32, &[-1, 2], json!([null, true])).unwrap().elements
        else {
            panic!()
        };
        assert!(numbers[0].is_nan() && numbers[1] == 1.0);
    }
}
