//! Causal language models, compared with the output of transformers (make_writers.py).

use crate::{Rig, expected, fixtures, models::copy_of, probe};
use futures::StreamExt;
use nerve_core::{
    Inference,
    inference::{EmbedRequest, Finish, GenerateRequest, InferenceError, Message, Model, Piece, Role, Sampling},
};
use nerve_inference::{ModelFolder, OnnxInference, Task};
use serde::Deserialize;
use std::{fs, path::Path, time::Duration};

#[derive(Debug, Clone, Deserialize)]
struct Expected {
    cases: Vec<Case>,
    #[serde(default)]
    continued: Vec<Case>,
}

#[derive(Debug, Clone, Deserialize)]
struct Case {
    messages: Vec<Message>,
    max_tokens: usize,
    prompt_tokens: usize,
    tokens: Vec<u32>,
    text: String,
    finish: Finish,
}

impl Case {
    fn request(&self) -> GenerateRequest {
        let (messages, max_tokens) = (self.messages.clone(), Some(self.max_tokens));
        GenerateRequest { messages, max_tokens, ..GenerateRequest::default() }
    }

    fn written(&self) -> Written {
        Written {
            text: self.text.trim_end_matches('\u{FFFD}').to_owned(),
            finish: self.finish,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.tokens.len(),
        }
    }
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    text: String,
    finish: Finish,
    prompt_tokens: usize,
    completion_tokens: usize,
}

async fn pieces(onnx: &OnnxInference, model: &Model, request: GenerateRequest) -> Result<Vec<Piece>, InferenceError> {
    let pieces: Vec<_> = onnx.generate(model, request).await?.collect().await;
    pieces.into_iter().collect()
}

async fn write(onnx: &OnnxInference, model: &Model, request: GenerateRequest) -> Result<Written, InferenceError> {
    let mut pieces = pieces(onnx, model, request).await?;
    let Some(Piece::End { finish, prompt_tokens, completion_tokens }) = pieces.pop() else { panic!("{pieces:?}") };
    let text = |piece| match piece {
        Piece::Text(text) => {
            assert!(!text.is_empty() && !text.contains('\u{FFFD}'), "{text:?}");
            text
        }
        end => panic!("{end:?} in the middle"),
    };
    Ok(Written { text: pieces.into_iter().map(text).collect(), finish, prompt_tokens, completion_tokens })
}

fn asking(question: &str) -> Vec<Message> {
    vec![Message { role: Role::User, content: question.to_owned() }]
}

/// The longest case that ends at the token limit.
fn endless(expected: &Expected) -> Case {
    let cut = expected.cases.iter().filter(|case| case.finish == Finish::Length);
    cut.max_by_key(|case| case.tokens.len()).unwrap().clone()
}

#[tokio::test]
async fn generated_text_matches_transformers() {
    let rig = Rig::start();
    for name in ["writer", "writer-spaces"] {
        let model = rig.model(name).await;
        for case in expected::<Expected>(name).cases {
            let written = write(&rig.onnx, &model, case.request()).await.unwrap();
            assert_eq!(written, case.written(), "{name}: {:?}", case.messages);
        }
    }
    rig.close().await;
}

/// A folder with another graph for the same weights.
fn with_graph(graph: &str) -> tempfile::TempDir {
    let folder = copy_of("writer");
    fs::rename(folder.path().join(graph), folder.path().join("model.onnx")).unwrap();
    folder
}

#[tokio::test]
async fn every_graph_format_generates_the_same_text() {
    for graph in ["no-cache.onnx", "merged.onnx", "half.onnx"] {
        let folder = with_graph(graph);
        assert_eq!(ModelFolder::read(folder.path()).unwrap().description.task, Task::Generate, "{graph}");
        probe(folder.path()).unwrap();
        let other = Rig::with(|settings| {
            settings.bundled.insert("other".to_owned(), folder.path().to_owned());
        });
        let model = other.model("other").await;
        for case in expected::<Expected>("writer").cases {
            let written = write(&other.onnx, &model, case.request()).await.unwrap();
            assert_eq!(written, case.written(), "{graph}: {:?}", case.messages);
        }
    }
}

#[tokio::test]
async fn partial_answer_is_resumed() {
    let rig = Rig::start();
    let model = rig.model("writer").await;
    let expected: Expected = expected("writer");
    assert!(!expected.continued.is_empty());
    for case in &expected.continued {
        // transformers counts the existing part of an answer as conversation; here it is part of the answer.
        let begun = 25;
        let request = GenerateRequest { max_tokens: Some(begun + case.max_tokens), ..case.request() };
        let written = write(&rig.onnx, &model, request).await.unwrap();
        let wanted = Written {
            prompt_tokens: case.prompt_tokens - begun,
            completion_tokens: begun + case.tokens.len(),
            ..case.written()
        };
        assert_eq!(written, wanted, "{:?}", case.messages);
    }
    // Interrupted anywhere and resumed, the text is the same, also with sampling.
    let case = endless(&expected);
    let chance = Sampling { temperature: 0.4, top_p: 0.95, top_k: 0, seed: 11 };
    for sampling in [Sampling::default(), chance] {
        let request = GenerateRequest { max_tokens: Some(80), sampling, ..case.request() };
        let all = pieces(&rig.onnx, &model, request.clone()).await.unwrap();
        let whole = write(&rig.onnx, &model, request.clone()).await.unwrap();
        for at in [1, 7, 20, 41] {
            let begun: String =
                all[..at].iter().map(|piece| if let Piece::Text(text) = piece { text } else { "" }).collect();
            let mut messages = request.messages.clone();
            messages.push(Message { role: Role::Assistant, content: begun.clone() });
            let rest = write(&rig.onnx, &model, GenerateRequest { messages, ..request.clone() }).await.unwrap();
            assert_eq!(Written { text: begun + &rest.text, ..rest }, whole);
        }
    }
    // The answer is already complete.
    let mut messages = case.messages.clone();
    messages.push(Message { role: Role::Assistant, content: case.text.clone() });
    let over = write(&rig.onnx, &model, GenerateRequest { messages, ..case.request() }).await.unwrap();
    assert_eq!(over, Written { text: String::new(), ..case.written() });
}

#[tokio::test]
async fn sampling_is_reproducible_by_seed() {
    let rig = Rig::start();
    let model = rig.model("writer").await;
    let case = endless(&expected("writer"));
    let with = |sampling| GenerateRequest { sampling, max_tokens: Some(60), ..case.request() };
    let chance = |seed| with(Sampling { temperature: 1.0, top_p: 0.95, top_k: 40, seed });
    let first = write(&rig.onnx, &model, chance(1)).await.unwrap();
    assert_eq!(write(&rig.onnx, &model, chance(1)).await.unwrap(), first);
    let mut texts = std::collections::BTreeSet::from([first.text]);
    for seed in 2..6 {
        texts.insert(write(&rig.onnx, &model, chance(seed)).await.unwrap().text);
    }
    assert!(texts.len() > 2, "{texts:?}");
    let greedy = write(&rig.onnx, &model, with(Sampling::default())).await.unwrap();
    for sampling in [
        Sampling { temperature: 2.0, top_k: 1, top_p: 1.0, seed: 5 },
        Sampling { temperature: 2.0, top_k: 0, top_p: 0.0, seed: 5 },
    ] {
        assert_eq!(write(&rig.onnx, &model, with(sampling)).await.unwrap(), greedy);
    }
}

#[tokio::test]
async fn stop_text_is_not_part_of_the_answer() {
    let rig = Rig::start();
    let model = rig.model("writer").await;
    let case = endless(&expected("writer"));
    // Stop texts within a token, across tokens, and without a match.
    let middle = case.text.char_indices().nth(40).unwrap().0;
    let over: String = case.text[middle..].chars().take(12).collect();
    for stop in [vec![over.clone()], vec!["nowhere".to_owned(), String::new(), over.clone()]] {
        let request = GenerateRequest { stop, ..case.request() };
        let written = write(&rig.onnx, &model, request).await.unwrap();
        let at = case.text.find(&over).unwrap();
        assert_eq!((written.text.as_str(), written.finish), (&case.text[..at], Finish::Stop));
        assert!(written.completion_tokens < case.tokens.len());
    }
    let request = GenerateRequest { stop: vec!["nowhere".to_owned()], ..case.request() };
    assert_eq!(write(&rig.onnx, &model, request).await.unwrap(), case.written());
}

#[tokio::test]
async fn concurrent_generations_match_single_ones() {
    let rig = Rig::start();
    let model = rig.model("writer").await;
    let expected: Expected = expected("writer");
    let each = expected.cases.iter().map(|case| write(&rig.onnx, &model, case.request()));
    let written = futures::future::join_all(each).await;
    for (written, case) in written.into_iter().zip(&expected.cases) {
        assert_eq!(written.unwrap(), case.written());
    }
}

#[tokio::test]
async fn invalid_generation_request_is_rejected() {
    let rig = Rig::with(|settings| (settings.context, settings.queue) = (100, 2));
    let model = rig.model("writer").await;
    let refused = async |request| match write(&rig.onnx, &model, request).await {
        Err(InferenceError::Invalid(why)) => why,
        other => panic!("{other:?}"),
    };
    let request = |question: &str| GenerateRequest { messages: asking(question), ..GenerateRequest::default() };
    let sampled = |temperature, top_p| GenerateRequest {
        sampling: Sampling { temperature, top_p, ..Sampling::default() },
        ..request("a")
    };
    let long = "why ".repeat(200);
    for (wrong, said) in [
        (request(&long), "onnx.context"),
        (GenerateRequest { max_tokens: Some(0), ..request("a") }, "max_tokens"),
        (sampled(f32::NAN, 1.0), "temperature"),
        (sampled(1.0, 1.5), "top_p"),
        (request(&"x".repeat(2 << 20)), "bytes"),
    ] {
        let why = refused(wrong).await;
        assert!(why.contains(said), "{said}: {why}");
    }
    // Up to the context limit.
    let case = endless(&expected("writer"));
    let written =
        write(&rig.onnx, &model, GenerateRequest { max_tokens: None, ..request("Tell me of old trains.") }).await;
    let written = written.unwrap();
    assert_eq!((written.prompt_tokens + written.completion_tokens, written.finish), (100, Finish::Length));
    // Two generations may wait; a third is refused until one is dropped.
    let first = rig.onnx.generate(&model, GenerateRequest { max_tokens: None, ..request("a") }).await.unwrap();
    let second = rig.onnx.generate(&model, request("b")).await.unwrap();
    let busy = rig.onnx.generate(&model, request("c")).await.err().unwrap();
    assert!(matches!(&busy, InferenceError::Busy(why) if why.contains("2 generations")), "{busy:?}");
    drop(first);
    let short = GenerateRequest { max_tokens: Some(3), ..request("c") };
    assert_eq!(write(&rig.onnx, &model, short).await.unwrap().completion_tokens, 3);
    drop((second, case));
    // A model has one task.
    let request = EmbedRequest { texts: vec!["a".into()], ..EmbedRequest::default() };
    let why = rig.onnx.embed(&model, request).await.unwrap_err().to_string();
    assert!(why.contains("is a model for generate, which cannot embed"), "{why}");
    let embeds = rig.model("pooling-cls").await;
    let why = rig.onnx.generate(&embeds, GenerateRequest::default()).await.err().unwrap().to_string();
    assert!(why.contains("is a model for embed, which cannot generate text"), "{why}");
}

#[tokio::test]
async fn stream_keeps_its_model_loaded() {
    let rig = Rig::with(|settings| settings.idle = Duration::from_millis(100));
    let model = rig.model("writer").await;
    let case = endless(&expected("writer"));
    let mut reader = rig.onnx.generate(&model, case.request()).await.unwrap();
    reader.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let rest: Vec<_> = reader.by_ref().collect().await;
    assert!(matches!(rest.last(), Some(Ok(Piece::End { .. }))), "{rest:?}");
    let left = rig.onnx.generate(&model, case.request()).await.unwrap();
    drop((reader, left));
    rig.close().await;
}

fn refusal(folder: &Path) -> String {
    ModelFolder::read(folder).unwrap_err().to_string()
}

/// Changes a JSON file in a folder.
fn change(folder: &Path, file: &str, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let path = folder.join(file);
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(value.as_object_mut().unwrap());
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn language_model_is_described() {
    for (name, template) in [("writer", true), ("writer-spaces", false)] {
        let read = ModelFolder::read(&fixtures().join("models").join(name)).unwrap();
        let description = read.description;
        assert_eq!((description.task, description.max_tokens), (Task::Generate, Some(1024)), "{name}");
        for file in ["model.onnx_data", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            assert!(read.files.contains(&file.to_owned()), "{name}: {file}");
        }
        assert_eq!(read.files.contains(&"chat_template.jinja".to_owned()), template);
        assert!(!read.files.contains(&"half.onnx".to_owned()), "another graph is not needed");
    }
}

#[test]
fn unsuitable_language_model_is_rejected() {
    type Spoil = fn(&Path);
    let cases: [(Spoil, &str); 9] = [
        (|folder| fs::remove_file(folder.join("tokenizer.json")).unwrap(), "no tokenizer.json"),
        (|folder| fs::remove_file(folder.join("config.json")).unwrap(), "no config.json"),
        (|folder| fs::remove_file(folder.join("chat_template.jinja")).unwrap(), "no chat template"),
        (|folder| fs::write(folder.join("chat_template.jinja"), "{% if %}").unwrap(), "chat template cannot be used"),
        (|folder| fs::write(folder.join("chat_template.jinja"), "{{ raise_exception('no') }}").unwrap(), "no (line 1)"),
        (
            |folder| {
                for file in ["generation_config.json", "config.json"] {
                    change(folder, file, |fields| drop(fields.remove("eos_token_id")));
                }
                change(folder, "tokenizer_config.json", |fields| drop(fields.remove("eos_token")));
                fs::remove_file(folder.join("special_tokens_map.json")).ok();
            },
            "end-of-text token",
        ),
        (|folder| spoil(folder, "position_ids", "pixel_values"), "requires the input `pixel_values`"),
        (|folder| spoil(folder, "present.1.key", "parsent.1.key"), "not the output `present.1.key`"),
        (|folder| spoil(folder, "logits", "lagits"), "has no output `logits`"),
    ];
    for (spoil, said) in cases {
        let folder = copy_of("writer");
        spoil(folder.path());
        let why = refusal(folder.path());
        assert!(why.contains(said), "{said}: {why}");
    }
}

fn spoil(folder: &Path, from: &str, to: &str) {
    let file = folder.join("model.onnx");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, crate::models::replaced(&bytes, from.as_bytes(), to.as_bytes())).unwrap();
}

#[test]
fn probe_detects_errors_of_a_step() {
    probe(&fixtures().join("models/writer")).unwrap();
    let folder = copy_of("writer");
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let why = probe(folder.path()).unwrap_err();
    assert!(why.contains("tokenizer.json cannot be used"), "{why}");
    let folder = copy_of("writer");
    let file = folder.path().join("model.onnx_data");
    fs::write(&file, &fs::read(&file).unwrap()[..100]).unwrap();
    let why = probe(folder.path()).unwrap_err();
    assert!(why.contains("ONNX Runtime cannot load the model"), "{why}");
}
