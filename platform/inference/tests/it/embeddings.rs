//! Dense and sparse vectors.

use crate::{Rig, assert_near, cosine, expected, fixtures, floats};
use nerve_core::{
    Inference,
    inference::{EmbedRequest, InferenceError, Precision, Purpose, Vector},
};
use serde::Deserialize;
use std::{collections::BTreeMap, fs};

/// Reference vectors of sentence-transformers for the default model: short, long, Unicode, empty and truncated texts.
fn thousand() -> (Vec<String>, Vec<Vec<f32>>) {
    let texts: Vec<String> = serde_json::from_slice(&fs::read(fixtures().join("texts.json")).unwrap()).unwrap();
    let bytes = fs::read(fixtures().join("minilm.f32")).unwrap();
    let numbers: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    let vectors: Vec<Vec<f32>> = numbers.chunks(384).map(<[f32]>::to_vec).collect();
    assert_eq!((texts.len(), vectors.len()), (1000, 1000));
    (texts, vectors)
}

fn request(texts: &[String]) -> EmbedRequest {
    EmbedRequest { texts: texts.to_vec(), ..EmbedRequest::default() }
}

#[tokio::test]
async fn vectors_match_sentence_transformers() {
    let (texts, vectors) = thousand();
    let rig = Rig::start();
    let model = rig.model("all-MiniLM-L6-v2").await;
    let embeddings = rig.onnx.embed(&model, request(&texts)).await.unwrap();
    let mut worst = (1.0, "");
    for ((embedding, vector), text) in embeddings.iter().zip(&vectors).zip(&texts) {
        let similarity = cosine(floats(embedding), vector);
        if similarity < worst.0 {
            worst = (similarity, text);
        }
    }
    assert!(worst.0 >= 0.9999, "{worst:?}");
    let truncated = embeddings.iter().filter(|embedding| embedding.truncated).count();
    assert!(truncated >= 60, "{truncated} are marked as cut");
    assert!(embeddings.iter().all(|embedding| embedding.tokens <= 256));
    drop(model);
    rig.close().await;
}

#[tokio::test]
async fn int8_model_is_similar_to_the_original() {
    let (texts, vectors) = thousand();
    let rig = Rig::start();
    let model = rig.model("all-MiniLM-L6-v2-int8").await;
    let embeddings = rig.onnx.embed(&model, request(&texts)).await.unwrap();
    let similarity = embeddings.iter().zip(&vectors).map(|(embedding, vector)| cosine(floats(embedding), vector));
    let mean = similarity.sum::<f64>() / 1000.0;
    assert!(mean > 0.97, "{mean}");
}

#[derive(Deserialize)]
struct Pooled {
    texts: Vec<String>,
    plain: Vec<Vec<f32>>,
    query: Vec<Vec<f32>>,
    truncated_16_normalised: Vec<Vec<f32>>,
}

#[tokio::test]
async fn pooling_and_prompts_match_sentence_transformers() {
    let rig = Rig::start();
    for name in ["pooling-cls", "pooling-max", "pooling-last", "external"] {
        let wanted: Pooled = expected(name);
        let model = rig.model(name).await;
        let plain = rig.onnx.embed(&model, request(&wanted.texts)).await.unwrap();
        let asked = EmbedRequest { purpose: Some(Purpose::Query), ..request(&wanted.texts) };
        let query = rig.onnx.embed(&model, asked).await.unwrap();
        let asked = EmbedRequest { dimensions: Some(16), ..request(&wanted.texts) };
        let short = rig.onnx.embed(&model, asked).await.unwrap();
        for (index, text) in wanted.texts.iter().enumerate() {
            assert_near(floats(&plain[index]), &wanted.plain[index], 1e-4, &format!("{name} {text:?}"));
            assert_near(floats(&query[index]), &wanted.query[index], 1e-4, &format!("{name} query {text:?}"));
            // Without a Normalize module, truncated vectors are not normalized again.
            let (short, wanted) = (floats(&short[index]), &wanted.truncated_16_normalised[index]);
            assert!(cosine(short, wanted) > 0.9999, "{name} shortened {text:?}");
        }
    }
}

#[tokio::test]
async fn lower_precision_preserves_the_vector() {
    let rig = Rig::start();
    let model = rig.model("all-MiniLM-L6-v2").await;
    let texts = ["an invoice that was paid late".to_owned()];
    let whole = rig.onnx.embed(&model, request(&texts)).await.unwrap().remove(0);
    let whole = floats(&whole);
    for precision in [Precision::F16, Precision::Int8, Precision::Uint8, Precision::Binary, Precision::Ubinary] {
        let asked = EmbedRequest { precision, ..request(&texts) };
        let numbers: Vec<f32> = match rig.onnx.embed(&model, asked).await.unwrap().remove(0).vector {
            Vector::F16(halves) => halves.into_iter().map(half::f16::to_f32).collect(),
            Vector::I8(bytes) if bytes.len() == 384 => bytes.into_iter().map(f32::from).collect(),
            Vector::U8(bytes) if bytes.len() == 384 => bytes.into_iter().map(|byte| f32::from(byte) - 128.0).collect(),
            Vector::I8(bytes) => signs(bytes.into_iter().map(|byte| (i16::from(byte) + 128) as u8)),
            Vector::U8(bytes) => signs(bytes.into_iter()),
            other => panic!("{other:?}"),
        };
        let least = if matches!(precision, Precision::Binary | Precision::Ubinary) { 0.75 } else { 0.999 };
        assert!(cosine(&numbers, whole) > least, "{precision:?}");
    }
}

fn signs(bytes: impl Iterator<Item = u8>) -> Vec<f32> {
    bytes.flat_map(|byte| (0..8).map(move |bit| if byte >> (7 - bit) & 1 == 1 { 1.0 } else { -1.0 })).collect()
}

#[derive(Deserialize)]
struct Splade {
    texts: Vec<String>,
    sparse: Vec<BTreeMap<u32, f32>>,
}

#[tokio::test]
async fn splade_weights_match_torch() {
    let rig = Rig::start();
    let model = rig.model("splade").await;
    let wanted: Splade = expected("splade");
    let embeddings = rig.onnx.embed(&model, request(&wanted.texts)).await.unwrap();
    for (embedding, wanted) in embeddings.into_iter().zip(wanted.sparse) {
        let Vector::Sparse { indices, values } = embedding.vector else { panic!("{embedding:?}") };
        assert!(indices.is_sorted());
        let got: BTreeMap<u32, f32> = indices.into_iter().zip(values).collect();
        for index in got.keys().chain(wanted.keys()) {
            let weight = |map: &BTreeMap<u32, f32>| map.get(index).copied().unwrap_or_default();
            assert!((weight(&got) - weight(&wanted)).abs() < 1e-4, "token {index}");
        }
    }
}

#[tokio::test]
async fn failing_text_does_not_fail_its_batch() {
    let rig = Rig::start();
    let model = rig.model("all-MiniLM-L6-v2").await;
    let plain = "an invoice that was paid late".to_owned();
    let wanted = rig.onnx.embed(&model, request(std::slice::from_ref(&plain))).await.unwrap().remove(0);
    let poisons = ["word ".repeat(2 << 20), "x".repeat(10 << 20), "\0".repeat(1 << 20), "🏴".repeat(1 << 20)];
    for poison in poisons {
        let size = poison.len();
        let texts = [plain.clone(), poison, plain.clone()];
        let started = std::time::Instant::now();
        let embeddings = rig.onnx.embed(&model, request(&texts)).await.unwrap();
        assert!(started.elapsed().as_secs() < 20, "{size} bytes took {:?}", started.elapsed());
        assert!(cosine(floats(&embeddings[0]), floats(&wanted)) > 0.99999);
        assert!(cosine(floats(&embeddings[2]), floats(&wanted)) > 0.99999);
        assert!(floats(&embeddings[1]).iter().all(|number| number.is_finite()));
    }
    let long = EmbedRequest { texts: vec!["word ".repeat(2 << 20)], ..EmbedRequest::default() };
    let long = rig.onnx.embed(&model, long).await.unwrap().remove(0);
    assert!(long.truncated && long.tokens == 256, "{} tokens", long.tokens);
}

#[tokio::test]
async fn unsupported_operation_is_rejected() {
    let rig = Rig::start();
    let texts = ["a".to_owned()];
    let refused = |error: InferenceError| match error {
        InferenceError::Invalid(why) => why,
        other => panic!("{other:?}"),
    };
    let dense = rig.model("pooling-cls").await;
    let asked = EmbedRequest { dimensions: Some(33), ..request(&texts) };
    assert!(refused(rig.onnx.embed(&dense, asked).await.unwrap_err()).contains("from 1 to 32"));
    let scorer = rig.model("cross-encoder").await;
    let why = refused(rig.onnx.embed(&scorer, request(&texts)).await.unwrap_err());
    assert!(why.contains("`cross-encoder` is a model for rerank, which cannot embed"), "{why}");
}
