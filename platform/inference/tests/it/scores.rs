//! Relevance, labels and tabular models.

use crate::{Rig, assert_near, expected};
use nerve_core::{
    Inference,
    inference::{InferenceError, RerankRequest, Sample},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Pairs {
    pairs: Vec<(String, String)>,
    logits: Vec<f32>,
    scores: Vec<f32>,
}

#[tokio::test]
async fn cross_encoder_matches_sentence_transformers() {
    let rig = Rig::start();
    let model = rig.model("cross-encoder").await;
    let Pairs { pairs, logits, scores } = expected("cross-encoder");
    for (index, (query, document)) in pairs.into_iter().enumerate() {
        for (raw, wanted) in [(false, scores[index]), (true, logits[index])] {
            let request = RerankRequest { query: query.clone(), documents: vec![document.clone()], raw };
            let got = rig.onnx.rerank(&model, request).await.unwrap().remove(0);
            assert_near(&[got.score], &[wanted], 1e-4, &format!("{query:?} and {document:?}, raw {raw}"));
        }
    }
}

#[derive(Deserialize)]
struct Texts {
    texts: Vec<String>,
    labels: Vec<String>,
    logits: Vec<Vec<f32>>,
    scores: Vec<Vec<f32>>,
}

#[tokio::test]
async fn classifier_matches_transformers() {
    let rig = Rig::start();
    for name in ["classifier", "multi-label"] {
        let wanted: Texts = expected(name);
        let model = rig.model(name).await;
        for (raw, wanted_scores) in [(false, &wanted.scores), (true, &wanted.logits)] {
            let samples = wanted.texts.iter().cloned().map(Sample::Text).collect();
            let classified = rig.onnx.classify(&model, samples, raw).await.unwrap();
            for (one, scores) in classified.iter().zip(wanted_scores) {
                assert!(one.labels.is_sorted_by(|a, b| a.score >= b.score));
                let by_name = |label: &String| one.labels.iter().find(|one| one.label == *label).unwrap().score;
                assert_near(&wanted.labels.iter().map(by_name).collect::<Vec<_>>(), scores, 1e-4, name);
            }
        }
        assert!(rig.onnx.classify(&model, vec![Sample::Features(json!([1]))], false).await.is_err());
    }
}

#[derive(Deserialize)]
struct Table {
    /// Columns by input name; each row is a list.
    inputs: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    classes: Vec<Value>,
    #[serde(default)]
    label: Vec<Value>,
    #[serde(default)]
    probabilities: Vec<Vec<f32>>,
    #[serde(default)]
    values: Vec<f32>,
}

impl Table {
    fn rows(&self) -> Vec<Map<String, Value>> {
        let count = self.inputs.values().map(Vec::len).max().unwrap_or_default();
        let row = |index: usize| self.inputs.iter().map(|(name, rows)| (name.clone(), rows[index].clone())).collect();
        (0..count).map(row).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[tokio::test]
async fn tabular_classifier_matches_scikit_learn_and_xgboost() {
    let rig = Rig::start();
    for name in ["iris", "iris-no-zipmap", "mixed", "xgboost"] {
        let wanted: Table = expected(name);
        let model = rig.model(name).await;
        let rows = wanted.rows();
        assert_eq!(rows.len(), 20);
        let samples = rows.into_iter().map(|row| Sample::Features(Value::Object(row))).collect();
        let classified = rig.onnx.classify(&model, samples, false).await.unwrap();
        for (index, one) in classified.iter().enumerate() {
            assert_eq!(one.labels[0].label, text(&wanted.label[index]), "{name}, row {index}");
            for (class, probability) in wanted.classes.iter().zip(&wanted.probabilities[index]) {
                let label = one.labels.iter().find(|label| label.label == text(class)).unwrap();
                assert_near(&[label.score], &[*probability], 1e-4, &format!("{name}, row {index}, class {class}"));
            }
        }
    }
}

#[tokio::test]
async fn label_and_score_match_in_every_output_format() {
    let rig = Rig::start();
    for name in
        ["kmeans", "linear", "network", "mixture", "svm", "svm-zipmap", "svm-pairs", "svm-pairs-zipmap", "outliers"]
    {
        let wanted: Table = expected(name);
        let model = rig.model(name).await;
        let samples = wanted.rows().into_iter().map(|row| Sample::Features(Value::Object(row))).collect();
        let classified = rig.onnx.classify(&model, samples, false).await.unwrap();
        assert_eq!(classified.len(), 20);
        for (index, one) in classified.iter().enumerate() {
            let what = format!("{name}, row {index}: {:?}", one.labels);
            assert_eq!(one.labels[0].label, text(&wanted.label[index]), "{what}");
            // Pairwise scores belong to no class, and an outlier score belongs to the sample.
            let alone = wanted.probabilities.get(index).map_or(1.0, |scores| scores[0]);
            if wanted.classes.is_empty() {
                assert_eq!(one.labels.len(), 1, "{what}");
                assert_near(&[one.labels[0].score], &[alone], 1e-4, &what);
                continue;
            }
            assert_eq!(one.labels.len(), wanted.classes.len(), "{what}");
            for (class, score) in wanted.classes.iter().zip(&wanted.probabilities[index]) {
                let own: Vec<f32> =
                    one.labels.iter().filter(|label| label.label == text(class)).map(|label| label.score).collect();
                assert_near(&own, &[*score], 1e-4, &format!("class {class} of {what}"));
            }
            let sign = if name == "kmeans" { 1.0 } else { -1.0 };
            assert!(one.labels.is_sorted_by_key(|label| label.score * sign), "the best first: {what}");
        }
    }
}

#[tokio::test]
async fn regressor_matches_scikit_learn() {
    let rig = Rig::start();
    let wanted: Table = expected("regressor");
    let model = rig.model("regressor").await;
    let ordered = wanted.inputs["X"].iter().cloned().map(Sample::Features).collect();
    let got = rig.onnx.classify(&model, ordered, false).await.unwrap();
    let values: Vec<f32> = got.iter().map(|one| one.labels[0].score).collect();
    assert_near(&values, &wanted.values, 1e-4, "regressor");
}

#[tokio::test]
async fn unsuitable_features_are_rejected_with_the_expected_shape() {
    let rig = Rig::start();
    let model = rig.model("mixed").await;
    for (features, said) in [
        (json!({"amount": 1}), "the feature `country` is missing: the model takes amount, country"),
        (json!({"amount": "much", "country": "de"}), "`amount` takes float32"),
        (json!([1]), "takes 2 features"),
        (json!({"amount": [1, 2], "country": "de"}), "shape"),
    ] {
        let error = rig.onnx.classify(&model, vec![Sample::Features(features.clone())], false).await.unwrap_err();
        let InferenceError::Invalid(why) = error else { panic!("{error:?}") };
        assert!(why.contains(said), "{features}: {why}");
    }
    let error = rig.onnx.classify(&model, vec![Sample::Text("a".into())], false).await.unwrap_err();
    assert!(error.to_string().contains("takes features, not text"), "{error}");
}
