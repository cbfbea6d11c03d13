//! ONNX Runtime with the models of the tests.

use nerve_core::inference::Model;
use nerve_inference::{GraphOptimization, MODEL_PROBE, OnnxInference, Provider, Settings};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// ONNX Runtime with all fixture models and the two of `make setup`.
pub(crate) struct Rig {
    pub(crate) onnx: Arc<OnnxInference>,
    stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    _cache: TempDir,
}

impl Rig {
    pub(crate) fn start() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let mut settings = settings(cache.path());
        change(&mut settings);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let onnx = Arc::new(OnnxInference::start(settings, stop.clone(), tasks.clone()));
        Self { onnx, stop, tasks, _cache: cache }
    }

    pub(crate) async fn model(&self, name: &str) -> Model {
        use nerve_core::Inference;
        self.onnx.bundled(name).await.unwrap_or_else(|| panic!("there is no model {name}: run `make setup`"))
    }

    /// Stops it and waits for the threads of all models.
    pub(crate) async fn close(self) {
        drop(self.onnx);
        self.stop.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.tasks.wait()).await;
        ended.expect("models' threads end with their last user");
    }
}

pub(crate) fn settings(cache: &Path) -> Settings {
    let library = checkout().join(".tools/lib").join(format!("libonnxruntime{}", std::env::consts::DLL_SUFFIX));
    assert!(library.exists(), "{} is missing: run `make setup`", library.display());
    let bundled = [checkout().join(".tools/models"), fixtures().join("models")].into_iter().flat_map(folders);
    Settings {
        library: Some(library),
        cache: cache.join("models"),
        bundled: bundled.collect(),
        providers: vec![Provider::Cpu],
        threads: 2,
        optimization: GraphOptimization::All,
        queue: 2048,
        context: 4096,
        idle: Duration::from_secs(300),
        prober: None,
    }
}

fn folders(root: PathBuf) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(&root).unwrap_or_else(|error| panic!("{}: {error}: run `make setup`", root.display()));
    let named = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), entry.path());
    entries.map(|entry| named(entry.unwrap())).collect()
}

pub(crate) fn fixtures() -> PathBuf {
    checkout().join("tests/fixtures/onnx")
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Reference output of a fixture.
pub(crate) fn expected<T: DeserializeOwned>(model: &str) -> T {
    let file = fixtures().join("models").join(model).join("expected.json");
    serde_json::from_slice(&fs::read(&file).unwrap()).unwrap()
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
}

/// Probes a model as a helper process does, but in this process.
pub(crate) fn probe(path: &Path) -> Result<(), String> {
    let library = settings(Path::new("")).library.unwrap();
    let request = serde_json::json!({"path": path, "depth": {"run": {"optimization": "all", "context": 4096}}});
    // A helper process has no async runtime.
    let probe = std::thread::spawn(move || {
        MODEL_PROBE.load.expect("it loads ONNX Runtime")(&library);
        let mut run = (MODEL_PROBE.start)(&[])?;
        run(&serde_json::to_vec(&request).unwrap())
    });
    let result: serde_json::Value = serde_json::from_slice(&probe.join().unwrap()?).unwrap();
    assert_eq!(result["ran"], true);
    Ok(())
}
