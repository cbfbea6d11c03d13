//! An engine that the tests make, in place of ONNX Runtime: it writes one letter for ever, and panics when it is told.

use super::{
    CausalModel, CausalParts,
    decoder::{Engine, State},
    layout::CausalLayout,
};
use crate::{engine::MakeEngine, proto::Outline};
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

/// How often the engine was made, and steps that it took.
#[derive(Default)]
struct Seen {
    made: AtomicUsize,
    steps: AtomicUsize,
}

/// A model that writes `a` after whatever was said, and panics where a step reads `panic_at` tokens.
fn model(queue: usize, panic_at: usize) -> (CausalModel, Arc<Seen>, TaskTracker) {
    let outline = Outline::read(&std::fs::read(root().join("model.onnx")).unwrap()).unwrap();
    let layout = CausalLayout::read(&root(), &outline).unwrap();
    let words = Tokenizer::from_file(root().join("tokenizer.json")).unwrap();
    let (letter, size) = (words.token_to_id("a").unwrap(), words.get_vocab_size(true));
    let seen = Arc::new(Seen::default());
    let shared = seen.clone();
    let make: Arc<MakeEngine<Engine>> = Arc::new(move || {
        shared.made.fetch_add(1, Ordering::Relaxed);
        let seen = shared.clone();
        let step = move |_: &mut State, tokens: &[u32]| {
            seen.steps.fetch_add(1, Ordering::Relaxed);
            assert_ne!(tokens.len(), panic_at, "the engine panics");
            std::thread::sleep(Duration::from_millis(1));
            let mut logits = vec![0.0; size];
            logits[letter as usize] = 1.0;
            Ok(logits)
        };
        Ok(Engine { step: Box::new(step), chunk: 100 })
    });
    let tasks = TaskTracker::new();
    let parts = CausalParts { name: "test", root: &root(), layout, queue, context: 1024, helpers: None };
    let model = CausalModel::with_engine(parts, &tasks, make).unwrap();
    (model, seen, tasks)
}

fn asks(said: &str, max_tokens: usize) -> GenerateRequest {
    let messages = vec![Message { role: Role::User, content: said.to_owned() }];
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

/// The tokens of a question as the model reads it.
async fn length(model: &CausalModel, said: &str) -> usize {
    model.prompt(asks(said, 1).messages).await.unwrap().asked()
}

#[tokio::test]
async fn a_panic_costs_one_answer_and_the_others_go_on() {
    let (probe, ..) = model(8, usize::MAX);
    let poison = length(&probe, "x x x x x").await;
    let (model, seen, _) = model(8, poison);
    let long = model.write(asks("b", 300)).await.unwrap();
    let poisoned = model.write(asks("x x x x x", 5)).await.unwrap();
    let error = read(poisoned).await.unwrap_err();
    assert!(matches!(&error, InferenceError::Failed(why) if why.contains("panicked")), "{error:?}");
    assert_eq!(read(long).await.unwrap(), "a".repeat(300));
    assert_eq!(read(model.write(asks("c", 3)).await.unwrap()).await.unwrap(), "aaa");
    assert_eq!(seen.made.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn answers_are_written_by_turns() {
    let (model, ..) = model(8, usize::MAX);
    let mut long = Box::pin(model.write(asks("b", 900)).await.unwrap());
    long.next().await.unwrap().unwrap();
    let short = model.write(asks("c", 10)).await.unwrap();
    assert_eq!(read(short).await.unwrap(), "a".repeat(10));
    assert!(model.line_is_busy(), "the long one is still being written");
    assert_eq!(read(long).await.unwrap(), "a".repeat(899));
}

#[tokio::test]
async fn who_leaves_makes_room_and_ends_the_writing() {
    let (model, seen, tasks) = model(2, usize::MAX);
    let mut first = Box::pin(model.write(asks("b", 900)).await.unwrap());
    let second = model.write(asks("b", 900)).await.unwrap();
    let busy = model.write(asks("b", 1)).await.err().unwrap();
    assert!(matches!(&busy, InferenceError::Busy(why) if why.contains("2 answers")), "{busy:?}");
    first.next().await.unwrap().unwrap();
    drop((first, second));
    assert_eq!(read(model.write(asks("c", 1)).await.unwrap()).await.unwrap(), "a");
    let steps = seen.steps.load(Ordering::Relaxed);
    assert!(steps < 900, "{steps} steps, though nobody read");
    tasks.close();
    drop(model);
    tokio::time::timeout(Duration::from_secs(10), tasks.wait()).await.expect("the thread ends with its model");
}
