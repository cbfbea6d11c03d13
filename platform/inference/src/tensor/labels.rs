//! Labels of a tabular model's outputs for one sample, each with its score.

use super::graph::{Columns, LabelOrigin, OutputOrigins};
use nerve_core::inference::Label;
use ort::value::{TensorElementType, ValueType};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Content of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutputContent {
    /// The predicted class.
    Label,
    Numbers,
    /// A number per class.
    NumbersByClass,
}

/// Label and score outputs of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labeling {
    label: Option<String>,
    scores_by_key: Option<ScoresByKey>,
    /// Numeric outputs in the graph's order, with the meaning of their columns, if known.
    numbers: Vec<(String, Option<Columns>)>,
    /// Whether the class with the smallest number is predicted.
    smallest: bool,
}

/// An output with scores by key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ScoresByKey {
    output: String,
    /// Class of each key, if it may differ from the key.
    keys: Option<HashMap<String, String>>,
}

impl Labeling {
    /// Derives the labeling from the graph's outputs and their origins.
    pub(crate) fn of<'o>(
        outputs: impl IntoIterator<Item = (&'o str, &'o ValueType)>,
        output_origins: &OutputOrigins,
    ) -> Self {
        let outputs: Vec<(&str, OutputContent)> =
            outputs.into_iter().filter_map(|(name, ty)| Some((name, OutputContent::of(ty)?))).collect();
        let first =
            |holds: OutputContent| outputs.iter().find(|(_, held)| *held == holds).map(|(name, _)| (*name).to_owned());
        let label = first(OutputContent::Label);
        let label_origin = label.as_ref().and_then(|label| output_origins.labels.get(label));
        let columns = |name: &str| match (output_origins.scores.get(name), label_origin, &label) {
            (Some(columns), ..) | (None, Some(LabelOrigin { columns, .. }), _) => Some(columns.clone()),
            // Without a label output, columns are only numbered.
            (None, None, None) => Some(Columns::Positions),
            (None, None, Some(_)) => None,
        };
        let numbers = outputs.iter().filter(|(_, holds)| *holds == OutputContent::Numbers);
        let scores_by_key = |output: String| ScoresByKey { keys: output_origins.keys.get(&output).cloned(), output };
        Self {
            scores_by_key: first(OutputContent::NumbersByClass).map(scores_by_key),
            numbers: numbers.map(|(name, _)| ((*name).to_owned(), columns(name))).collect(),
            smallest: label_origin.is_some_and(|label_origin| label_origin.smallest),
            label,
        }
    }

    /// Labels of one sample: the predicted class, then the others, best first.
    ///
    /// If the model has no score per class, or the classes of its columns are unknown, returns only the predicted
    /// class, with score 1.
    pub(crate) fn labels(&self, row: &Map<String, Value>) -> Vec<Label> {
        let label_origin = self.label.as_ref().and_then(|label| row.get(label));
        let chosen = label_origin.and_then(single).map(text);
        if let Some(labels) = self.scores_by_key.as_ref().and_then(|scores_by_key| scores_by_key.labels(row)) {
            return self.ordered(labels, chosen);
        }
        let mut cells = self.numbers.iter().filter_map(|(output, columns)| Some((output, columns, row.get(output)?)));
        let table = cells.clone().find_map(|(_, columns, cell)| {
            let scores = cell.as_array().filter(|scores| scores.len() > 1)?;
            // A multi-label model has one decision per column.
            let several = label_origin.and_then(Value::as_array).is_some_and(|flags| flags.len() == scores.len());
            let columns = if several { Some(&Columns::Positions) } else { columns.as_ref() };
            Some(table(columns, scores))
        });
        if let Some(labels) = table {
            return self.ordered(labels, chosen);
        }
        match chosen {
            // A single number per sample: the confidence of an outlier detector or a binary decision.
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
            // A graph may predict by distance but return negated scores.
            Some(place) if self.smallest && place > 0 => labels.reverse(),
            Some(_) => {}
            None => return vec![Label { label: chosen, score: 1.0 }],
        }
        // The prediction may differ from the best score, as in support vector machines.
        if let Some(place) = labels.iter().position(|label| label.label == chosen) {
            labels.get_mut(..=place).unwrap_or_default().rotate_right(1);
        }
        labels
    }
}

impl ScoresByKey {
    fn labels(&self, row: &Map<String, Value>) -> Option<Vec<Label>> {
        let scores = row.get(&self.output)?.as_object()?;
        let class = |key: &String| match &self.keys {
            Some(keys) => keys.get(key).cloned(),
            None => Some(key.clone()),
        };
        Some(scores.iter().filter_map(|(key, score)| label(&class(key)?, score)).collect())
    }
}

/// One label per column, if the classes are known.
fn table(columns: Option<&Columns>, scores: &[Value]) -> Vec<Label> {
    let name = |index: usize| match columns {
        Some(Columns::Classes(classes)) if classes.len() == scores.len() => classes.get(index).cloned(),
        Some(Columns::Positions) => Some(index.to_string()),
        _ => None,
    };
    scores.iter().enumerate().filter_map(|(index, score)| label(&name(index)?, score)).collect()
}

impl OutputContent {
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

/// The single value of a cell, through nested lists of one.
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

/// A number as `f32`, the usual precision of models.
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

    /// The labels of one sample with their scores; the label output is `label`.
    fn labels(labeling: &Labeling, row: Value) -> Vec<(String, f32)> {
        let Value::Object(row) = row else { panic!("a row is an object") };
        labeling.labels(&row).into_iter().map(|label| (label.label, label.score)).collect()
    }

    fn labeling(label: bool, columns: Option<Columns>) -> Labeling {
        let numbers = vec![("scores".to_owned(), columns), ("more".to_owned(), None)];
        Labeling { label: label.then(|| "label".to_owned()), scores_by_key: None, numbers, smallest: false }
    }

    fn own(pairs: &[(&str, f32)]) -> Vec<(String, f32)> {
        pairs.iter().map(|(name, score)| ((*name).to_owned(), *score)).collect()
    }

    #[test]
    fn predicted_class_is_first_with_its_own_score() {
        let named = labeling(true, Some(Columns::Classes(vec!["a".into(), "b".into(), "c".into()])));
        let row = json!({"label": ["b"], "scores": [0.5, 0.4, 0.1], "more": [7.0]});
        assert_eq!(labels(&named, row), own(&[("b", 0.4), ("a", 0.5), ("c", 0.1)]));
        let scores_by_key = ScoresByKey { output: "map".into(), keys: None };
        let maps = Labeling { scores_by_key: Some(scores_by_key), ..labeling(true, None) };
        let row = json!({"label": 3, "map": {"3": 0.2, "9": 0.8}});
        assert_eq!(labels(&maps, row), own(&[("3", 0.2), ("9", 0.8)]));
    }

    #[test]
    fn nearest_cluster_is_first_for_both_distance_signs() {
        let clusters = Labeling { smallest: true, ..labeling(true, Some(Columns::Positions)) };
        let row = json!({"label": 2, "scores": [3.8, 3.4, 1.9]});
        assert_eq!(labels(&clusters, row), own(&[("2", 1.9), ("1", 3.4), ("0", 3.8)]));
        let row = json!({"label": 2, "scores": [-3.8, -3.4, -1.9]});
        assert_eq!(labels(&clusters, row), own(&[("2", -1.9), ("1", -3.4), ("0", -3.8)]));
    }

    #[test]
    fn columns_of_unknown_classes_have_no_scores() {
        for columns in [None, Some(Columns::Pairs), Some(Columns::Classes(vec!["a".into()]))] {
            let row = json!({"label": "b", "scores": [0.1, 0.2, 0.7]});
            assert_eq!(labels(&labeling(true, columns), row), own(&[("b", 1.0)]));
        }
        let beyond = labeling(true, Some(Columns::Positions));
        assert_eq!(labels(&beyond, json!({"label": 7, "scores": [0.4, 0.6]})), own(&[("7", 1.0)]));
    }

    #[test]
    fn outputs_without_labels_use_column_names() {
        let several = json!({"label": [1, 0], "scores": [0.8, 0.3]});
        assert_eq!(labels(&labeling(true, None), several), own(&[("0", 0.8), ("1", 0.3)]));
        let unnamed = labeling(false, Some(Columns::Positions));
        assert_eq!(labels(&unnamed, json!({"scores": [0.2, 0.8]})), own(&[("1", 0.8), ("0", 0.2)]));
        let regression = json!({"scores": [[1.5]], "more": 2.0});
        assert_eq!(labels(&unnamed, regression), own(&[("scores", 1.5), ("more", 2.0)]));
        assert_eq!(labels(&labeling(true, None), json!({"label": -1, "scores": [-0.2]})), own(&[("-1", -0.2)]));
    }
}
