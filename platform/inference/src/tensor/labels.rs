//! The labels in what a tabular model gives for one sample, each with the score that is its own.

use super::graph::{Choice, Columns, Origins};
use nerve_core::inference::Label;
use ort::value::{TensorElementType, ValueType};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// What an output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// The class that was chosen.
    Label,
    Numbers,
    /// A number for each class, by the class.
    NumbersByClass,
}

/// Which outputs name and score classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labelling {
    label: Option<String>,
    by_class: Option<ByClass>,
    /// Outputs of numbers, in the graph's order, with what their columns are of, where it is known.
    numbers: Vec<(String, Option<Columns>)>,
    /// Whether the class with the smallest number is chosen.
    smallest: bool,
}

/// An output of scores by class.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ByClass {
    output: String,
    /// The class of each key, where it may be another than the key.
    keys: Option<HashMap<String, String>>,
}

impl Labelling {
    /// Reads what a graph declares of its outputs, and how it comes by them.
    pub(crate) fn of<'o>(outputs: impl IntoIterator<Item = (&'o str, &'o ValueType)>, origins: &Origins) -> Self {
        let outputs: Vec<(&str, Holds)> =
            outputs.into_iter().filter_map(|(name, ty)| Some((name, Holds::of(ty)?))).collect();
        let first = |holds: Holds| outputs.iter().find(|(_, held)| *held == holds).map(|(name, _)| (*name).to_owned());
        let label = first(Holds::Label);
        let choice = label.as_ref().and_then(|label| origins.labels.get(label));
        let columns = |name: &str| match (origins.scores.get(name), choice, &label) {
            (Some(columns), ..) | (None, Some(Choice { columns, .. }), _) => Some(columns.clone()),
            // Without a label, columns have nothing but their numbers.
            (None, None, None) => Some(Columns::Positions),
            (None, None, Some(_)) => None,
        };
        let numbers = outputs.iter().filter(|(_, holds)| *holds == Holds::Numbers);
        let by_class = |output: String| ByClass { keys: origins.keys.get(&output).cloned(), output };
        Self {
            by_class: first(Holds::NumbersByClass).map(by_class),
            numbers: numbers.map(|(name, _)| ((*name).to_owned(), columns(name))).collect(),
            smallest: choice.is_some_and(|choice| choice.smallest),
            label,
        }
    }

    /// The labels of one sample: first the class that the model has chosen, then the others, the best first.
    ///
    /// Where the model gives no score of a class, or does not say which column is of which class, the chosen class
    /// stands alone, with 1.
    pub(crate) fn labels(&self, row: &Map<String, Value>) -> Vec<Label> {
        let choice = self.label.as_ref().and_then(|label| row.get(label));
        let chosen = choice.and_then(single).map(text);
        if let Some(labels) = self.by_class.as_ref().and_then(|by_class| by_class.labels(row)) {
            return self.ordered(labels, chosen);
        }
        let mut cells = self.numbers.iter().filter_map(|(output, columns)| Some((output, columns, row.get(output)?)));
        let table = cells.clone().find_map(|(_, columns, cell)| {
            let scores = cell.as_array().filter(|scores| scores.len() > 1)?;
            // A model of several labels says of each column whether it applies.
            let several = choice.and_then(Value::as_array).is_some_and(|flags| flags.len() == scores.len());
            let columns = if several { Some(&Columns::Positions) } else { columns.as_ref() };
            Some(table(columns, scores))
        });
        if let Some(labels) = table {
            return self.ordered(labels, chosen);
        }
        match chosen {
            // One number for a sample: how sure a detector of outliers or a decision between two classes is.
            Some(chosen) => {
                let score = cells.find_map(|(.., cell)| number(single(cell)?));
                vec![Label { label: chosen, score: score.unwrap_or(1.0) }]
            }
            None => cells.filter_map(|(output, _, cell)| label(output, single(cell)?)).collect(),
        }
    }

    fn ordered(&self, mut labels: Vec<Label>, chosen: Option<String>) -> Vec<Label> {
        labels.sort_by(|a, b| b.score.total_cmp(&a.score));
        let Some(chosen) = chosen else { return labels };
        let place = labels.iter().position(|label| label.label == chosen);
        match place {
            // A graph may choose by distance and give its scores with the other sign.
            Some(place) if self.smallest && place > 0 => labels.reverse(),
            Some(_) => {}
            None => return vec![Label { label: chosen, score: 1.0 }],
        }
        // The model may choose otherwise than by its scores, as support vectors do.
        if let Some(place) = labels.iter().position(|label| label.label == chosen) {
            labels.get_mut(..=place).unwrap_or_default().rotate_right(1);
        }
        labels
    }
}

impl ByClass {
    fn labels(&self, row: &Map<String, Value>) -> Option<Vec<Label>> {
        let scores = row.get(&self.output)?.as_object()?;
        let class = |key: &String| match &self.keys {
            Some(keys) => keys.get(key).cloned(),
            None => Some(key.clone()),
        };
        Some(scores.iter().filter_map(|(key, score)| label(&class(key)?, score)).collect())
    }
}

/// A label a column, if it is known which class that is.
fn table(columns: Option<&Columns>, scores: &[Value]) -> Vec<Label> {
    let name = |index: usize| match columns {
        Some(Columns::Classes(classes)) if classes.len() == scores.len() => classes.get(index).cloned(),
        Some(Columns::Positions) => Some(index.to_string()),
        _ => None,
    };
    scores.iter().enumerate().filter_map(|(index, score)| label(&name(index)?, score)).collect()
}

impl Holds {
    fn of(ty: &ValueType) -> Option<Self> {
        match ty {
            ValueType::Tensor { ty, .. } => match ty {
                TensorElementType::Float16 | TensorElementType::Float32 | TensorElementType::Float64 => {
                    Some(Self::Numbers)
                }
                _ => Some(Self::Label),
            },
            ValueType::Sequence(inner) if matches!(**inner, ValueType::Map { .. }) => Some(Self::NumbersByClass),
            _ => None,
        }
    }
}

/// The only value of a cell, through lists of one.
fn single(cell: &Value) -> Option<&Value> {
    match cell {
        Value::Array(items) => match items.as_slice() {
            [only] => single(only),
            _ => None,
        },
        Value::Null | Value::Object(_) => None,
        value => Some(value),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The models' numbers are mostly 32-bit floats, and none needs more than one.
#[expect(clippy::cast_possible_truncation)]
fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|number| number as f32)
}

fn label(name: &str, value: &Value) -> Option<Label> {
    Some(Label { label: name.to_owned(), score: number(value)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The labels of one sample, with their scores; a label output is `label`.
    fn labels(labelling: &Labelling, row: Value) -> Vec<(String, f32)> {
        let Value::Object(row) = row else { panic!("a row is an object") };
        labelling.labels(&row).into_iter().map(|label| (label.label, label.score)).collect()
    }

    fn labelling(label: bool, columns: Option<Columns>) -> Labelling {
        let numbers = vec![("scores".to_owned(), columns), ("more".to_owned(), None)];
        Labelling { label: label.then(|| "label".to_owned()), by_class: None, numbers, smallest: false }
    }

    fn own(pairs: &[(&str, f32)]) -> Vec<(String, f32)> {
        pairs.iter().map(|(name, score)| ((*name).to_owned(), *score)).collect()
    }

    #[test]
    fn chosen_class_stands_first_with_its_own_score() {
        let named = labelling(true, Some(Columns::Classes(vec!["a".into(), "b".into(), "c".into()])));
        let row = json!({"label": ["b"], "scores": [0.5, 0.4, 0.1], "more": [7.0]});
        assert_eq!(labels(&named, row), own(&[("b", 0.4), ("a", 0.5), ("c", 0.1)]));
        let by_class = ByClass { output: "map".into(), keys: None };
        let maps = Labelling { by_class: Some(by_class), ..labelling(true, None) };
        let row = json!({"label": 3, "map": {"3": 0.2, "9": 0.8}});
        assert_eq!(labels(&maps, row), own(&[("3", 0.2), ("9", 0.8)]));
    }

    #[test]
    fn nearest_cluster_is_first_by_either_sign_of_distance() {
        let clusters = Labelling { smallest: true, ..labelling(true, Some(Columns::Positions)) };
        let row = json!({"label": 2, "scores": [3.8, 3.4, 1.9]});
        assert_eq!(labels(&clusters, row), own(&[("2", 1.9), ("1", 3.4), ("0", 3.8)]));
        let row = json!({"label": 2, "scores": [-3.8, -3.4, -1.9]});
        assert_eq!(labels(&clusters, row), own(&[("2", -1.9), ("1", -3.4), ("0", -3.8)]));
    }

    #[test]
    fn columns_of_unknown_classes_give_no_scores() {
        for columns in [None, Some(Columns::Pairs), Some(Columns::Classes(vec!["a".into()]))] {
            let row = json!({"label": "b", "scores": [0.1, 0.2, 0.7]});
            assert_eq!(labels(&labelling(true, columns), row), own(&[("b", 1.0)]));
        }
        let beyond = labelling(true, Some(Columns::Positions));
        assert_eq!(labels(&beyond, json!({"label": 7, "scores": [0.4, 0.6]})), own(&[("7", 1.0)]));
    }

    #[test]
    fn outputs_without_a_choice_go_by_their_columns_and_names() {
        let several = json!({"label": [1, 0], "scores": [0.8, 0.3]});
        assert_eq!(labels(&labelling(true, None), several), own(&[("0", 0.8), ("1", 0.3)]));
        let unnamed = labelling(false, Some(Columns::Positions));
        assert_eq!(labels(&unnamed, json!({"scores": [0.2, 0.8]})), own(&[("1", 0.8), ("0", 0.2)]));
        let regression = json!({"scores": [[1.5]], "more": 2.0});
        assert_eq!(labels(&unnamed, regression), own(&[("scores", 1.5), ("more", 2.0)]));
        assert_eq!(labels(&labelling(true, None), json!({"label": -1, "scores": [-0.2]})), own(&[("-1", -0.2)]));
    }
}
