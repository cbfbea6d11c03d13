//! A stub engine instead of ONNX Runtime: it generates one letter indefinitely and panics on request.

use super::{
    CausalModel, CausalParts,
    decoder::{DecodingState, StepEngine},
    spec::CausalSpec,
};
use crate::{engine::EngineFactory, signature::GraphSignature};
use futures::{Stream, StreamExt};
use nerve_core::inference::{Finish, GenerateRequest, InferenceError, Message, Piece, Role};
use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokenizers::Tokenizer;
use tokio_util::task::TaskTracker;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx/models/writer")
}

/// Number of created engines and of steps.
#[derive(Default)]
struct EngineCounts {
    created: AtomicUsize,
    steps: AtomicUsize,
}

/// A model that generates `a` and panics when a step processes `panic_at` tokens.
fn model(queue: usize, panic_at: usize) -> (CausalModel, Arc<EngineCounts>, TaskTracker) {
    let signature = GraphSignature::read(&std::fs::read(root().join("model.onnx")).unwrap()).unwrap();
    let spec = CausalSpec::read(&root(), &signature).unwrap();
    let words = Tokenizer::from_file(root().join("tokenizer.json")).unwrap();
    let (letter, size) = (words.token_to_id("a").unwrap(), words.get_vocab_size(true));
    let seen = Arc::new(EngineCounts::default());
    let shared = seen.clone();
    let make: Arc<EngineFactory<StepEngine>> = Arc::new(move || {
        shared.created.fetch_add(1, Ordering::Relaxed);
        let seen = shared.clone();
        let step = move |_: &mut DecodingState, tokens: &[u32]| {
            seen.steps.fetch_add(1, Ordering::Relaxed);
            assert_ne!(tokens.len(), panic_at, "the engine panics");
            std::thread::sleep(Duration::from_millis(1));
            let mut logits = vec![0.0; size];
            logits[letter as usize] = 1.0;
            Ok(logits)
        };
        Ok(StepEngine { step: Box::new(step), max_step_tokens: 100 })
    });
    let tasks = TaskTracker::new();
    let parts = CausalParts { name: "test", root: &root(), spec, queue, context: 1024, helpers: None };
    let model = CausalModel::with_engine(parts, &tasks, make).unwrap();
    (model, seen, tasks)
}

fn request(question: &str, max_tokens: usize) -> GenerateRequest {
    let messages = vec![Message { role: Role::User, content: question.to_owned() }];
    GenerateRequest { messages, max_tokens: Some(max_tokens), ..GenerateRequest::default() }
}

async fn read(pieces: impl Stream<Item = Result<Piece, InferenceError>>) -> Result<String, InferenceError> {
    let mut pieces = pin!(pieces);
    let mut text = String::new();
    while let Some(piece) = pieces.next().await {
        match piece? {
            Piece::Text(more) => text.push_str(&more),
            Piece::End { finish, .. } => assert_eq!(finish, Finish::Length),
        }
    }
    Ok(text)
}

/// Number of tokens of a question.
async fn length(model: &CausalModel, question: &str) -> usize {
    model.prompt(request(question, 1).messages).await.unwrap().conversation_tokens()
}

#[tokio::test]
async fn panic_fails_only_its_generation() {
    let (probe, ..) = model(8, usize::MAX);
    let poison = length(&probe, "x x x x x").await;
    let (model, seen, _) = model(8, poison);
    let long = model.generate(request("b", 300)).await.unwrap();
    let poisoned = model.generate(request("x x x x x", 5)).await.unwrap();
    let error = read(poisoned).await.unwrap_err();
    assert!(matches!(&error, InferenceError::Failed(why) if why.contains("panicked")), "{error:?}");
    assert_eq!(read(long).await.unwrap(), "a".repeat(300));
    assert_eq!(read(model.generate(request("c", 3)).await.unwrap()).await.unwrap(), "aaa");
    assert_eq!(seen.created.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn generations_are_interleaved() {
    let (model, ..) = model(8, usize::MAX);
    let mut long = Box::pin(model.generate(request("b", 900)).await.unwrap());
    long.next().await.unwrap().unwrap();
    let short = model.generate(request("c", 10)).await.unwrap();
    assert_eq!(read(short).await.unwrap(), "a".repeat(10));
    assert!(model.scheduler_is_busy(), "the long one is still being written");
    assert_eq!(read(long).await.unwrap(), "a".repeat(899));
}

#[tokio::test]
async fn dropped_stream_stops_its_generation() {
    let (model, seen, tasks) = model(2, usize::MAX);
    let mut first = Box::pin(model.generate(request("b", 900)).await.unwrap());
    let second = model.generate(request("b", 900)).await.unwrap();
    let busy = model.generate(request("b", 1)).await.err().unwrap();
    assert!(matches!(&busy, InferenceError::Busy(why) if why.contains("2 generations")), "{busy:?}");
    first.next().await.unwrap().unwrap();
    drop((first, second));
    assert_eq!(read(model.generate(request("c", 1)).await.unwrap()).await.unwrap(), "a");
    let steps = seen.steps.load(Ordering::Relaxed);
    assert!(steps < 900, "{steps} steps, though nobody read");
    tasks.close();
    drop(model);
    tokio::time::timeout(Duration::from_secs(10), tasks.wait()).await.expect("the thread ends with its model");
}
