//! Accepted and refused folders, and the lifetime of loaded models.

use crate::{Rig, fixtures, probe, settings};
use nerve_core::{Inference, inference::EmbedRequest};
use nerve_inference::{ModelFolder, OnnxInference, Task};
use std::{fs, path::Path, time::Duration};

pub(crate) fn copy_of(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixtures().join("models").join(model), folder.path());
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn refusal(folder: &Path) -> String {
    ModelFolder::read(folder).unwrap_err().to_string()
}

#[test]
fn task_is_detected_from_the_folder() {
    for (name, task, dimensions, max_tokens) in [
        ("pooling-cls", Task::Embed, Some(32), Some(64)),
        ("splade", Task::Sparse, Some(218), Some(64)),
        ("cross-encoder", Task::Rerank, None, Some(64)),
        ("classifier", Task::Classify, Some(3), Some(64)),
        ("mixed", Task::Tensor, None, None),
    ] {
        let read = ModelFolder::read(&fixtures().join("models").join(name)).unwrap().description;
        assert_eq!((read.task, read.dimensions, read.max_tokens), (task, dimensions, max_tokens), "{name}");
    }
    let mixed = ModelFolder::read(&fixtures().join("models/mixed/model.onnx")).unwrap();
    assert_eq!(
        (mixed.files, mixed.description.inputs),
        (vec!["model.onnx".to_owned()], vec!["amount".into(), "country".into()])
    );
}

#[test]
fn only_required_files_are_listed() {
    let folder = copy_of("external");
    fs::write(folder.path().join("pytorch_model.bin"), "large").unwrap();
    let files = ModelFolder::read(folder.path()).unwrap().files;
    assert!(
        files.contains(&"model.onnx_data".to_owned()) && files.contains(&"1_Pooling/config.json".to_owned()),
        "{files:?}"
    );
    assert!(!files.contains(&"pytorch_model.bin".to_owned()) && !files.contains(&"expected.json".to_owned()));
}

#[test]
fn non_onnx_file_is_rejected() {
    let folder = copy_of("pooling-cls");
    for content in ["not a model", "", "<html>404</html>"] {
        fs::write(folder.path().join("model.onnx"), content).unwrap();
        let why = refusal(folder.path());
        assert!(why.contains("model.onnx cannot be used"), "{content:?}: {why}");
    }
    fs::remove_file(folder.path().join("model.onnx")).unwrap();
    assert!(refusal(folder.path()).contains("no .onnx file: export the model"), "{}", refusal(folder.path()));
}

#[test]
fn model_without_tokenizer_or_weights_is_rejected() {
    let folder = copy_of("external");
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(refusal(folder.path()).contains("no tokenizer.json"), "{}", refusal(folder.path()));
    let folder = copy_of("external");
    fs::remove_file(folder.path().join("model.onnx_data")).unwrap();
    assert!(refusal(folder.path()).contains("`model.onnx_data`, which is missing"), "{}", refusal(folder.path()));
}

#[test]
fn model_with_unsupported_inputs_is_rejected() {
    let folder = copy_of("pooling-cls");
    // A name of the same length keeps the file valid.
    let file = folder.path().join("model.onnx");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, replaced(&bytes, b"token_type_ids", b"pixel_values__")).unwrap();
    let why = refusal(folder.path());
    assert!(why.contains("requires the input `pixel_values__`"), "{why}");
}

pub(crate) fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let mut at = 0;
    while let Some(found) = out[at..].windows(from.len()).position(|window| window == from) {
        at += found;
        out[at..at + to.len()].copy_from_slice(to);
    }
    out
}

#[test]
fn probe_detects_errors_of_onnx_runtime() {
    let folder = copy_of("pooling-cls");
    probe(folder.path()).unwrap();
    let file = folder.path().join("model.onnx");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, replaced(&bytes, b"Softmax", b"Softmix")).unwrap();
    ModelFolder::read(folder.path()).unwrap();
    let why = probe(folder.path()).unwrap_err();
    assert!(why.contains("ONNX Runtime cannot load the model") && why.contains("Softmix"), "{why}");
    for model in ["cross-encoder", "classifier", "splade", "mixed"] {
        probe(&fixtures().join("models").join(model)).unwrap();
    }
}

#[tokio::test]
async fn unused_model_is_dropped_with_its_threads() {
    let rig = Rig::with(|settings| settings.idle = Duration::from_millis(200));
    let model = rig.model("pooling-cls").await;
    let request = || EmbedRequest { texts: vec!["a".into()], ..EmbedRequest::default() };
    rig.onnx.embed(&model, request()).await.unwrap();
    assert_eq!(rig.tasks.len(), 1 + 2, "a thread for each of two sessions, beside the sweeper");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while rig.tasks.len() > 1 {
        assert!(std::time::Instant::now() < deadline, "the model is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.onnx.embed(&model, request()).await.unwrap();
}

#[tokio::test]
async fn optimized_graph_is_cached_and_reused() {
    let cache = tempfile::tempdir().unwrap();
    let mut sizes = Vec::new();
    for _ in 0..2 {
        let rig = Rig::with(|settings| settings.cache = cache.path().to_owned());
        let model = rig.model("pooling-cls").await;
        let request = EmbedRequest { texts: vec!["late order".into()], ..EmbedRequest::default() };
        sizes.push(rig.onnx.embed(&model, request).await.unwrap());
        rig.close().await;
        let kept: Vec<_> = fs::read_dir(cache.path())
            .unwrap()
            .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
            .collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
    }
    assert_eq!(sizes[0], sizes[1]);
}

#[tokio::test]
async fn unavailable_provider_is_reported() {
    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings(cache.path());
    settings.providers = vec!["cuda".parse().unwrap()];
    let onnx = OnnxInference::start(settings, Default::default(), Default::default());
    let model = onnx.bundled("pooling-cls").await.unwrap();
    let request = EmbedRequest { texts: vec!["a".into()], ..EmbedRequest::default() };
    let why = onnx.embed(&model, request).await.unwrap_err().to_string();
    assert!(why.contains("cargo build --features cuda"), "{why}");
}
