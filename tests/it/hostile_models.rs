//! What a hostile model may do to a server: nothing but to end the helper process that tries it.

use nerve_broker::bus::Bus;
use nerve_config::Config;
use nerve_core::ModelName;
use nerve_registry::{ArtifactRef, ModelInfo, ModelRecord, Registry};
use nerve_tests::{
    Folder, Nerve, Streams, eventually,
    models::{copy_folder, fixture},
    nerve::{self, Options},
    seconds,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long a trial may take in these tests.
const TRIAL_TIMEOUT: &str = "4s";

/// A good function, and requests that it answers between hostile ones.
const GOOD: &str = "[function.good]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\nmodel = \"./model\"\n\
                    on = [\"events.asked\"]\nemits = [\"answered\"]\n";

async fn server() -> Nerve {
    let envs = vec![("NERVE_SANDBOX_MODEL_TIMEOUT".to_owned(), TRIAL_TIMEOUT.to_owned())];
    Nerve::up_with(Options { envs, ..Options::default() }).await
}

async fn deploy_good(nerve: &Nerve) {
    let folder = Folder::new(GOOD);
    copy_folder(&fixture("pooling-cls"), &folder.file("model"));
    nerve.cli().deploy(folder.path()).await;
}

/// Has the good function answer one more event.
async fn answers(nerve: &Nerve, streams: &Streams, count: usize) {
    nerve.cli().run(&["publish", "asked", "--data", "{\"text\": \"a late invoice\"}"]).await.ok();
    streams.reaches("EVENTS", "events.answered", count, seconds(30)).await;
}

// onnx.proto, written by its field numbers.

fn varint(mut number: u64, into: &mut Vec<u8>) {
    while number > 127 {
        into.push(number as u8 | 128);
        number >>= 7;
    }
    into.push(number as u8);
}

fn int(field: u64, number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(number, &mut out);
    out
}

fn message(field: u64, parts: &[&[u8]]) -> Vec<u8> {
    let (mut out, content) = (Vec::new(), parts.concat());
    varint((field << 3) | 2, &mut out);
    varint(content.len() as u64, &mut out);
    out.extend(content);
    out
}

fn text(field: u64, text: &str) -> Vec<u8> {
    message(field, &[text.as_bytes()])
}

const FLOAT: u64 = 1;
const INT64: u64 = 7;
const BOOL: u64 = 9;

fn tensor(field: u64, name: &str, ty: u64, dims: &[u64], raw: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|dim| int(1, *dim)).collect();
    let raw = if raw.is_empty() { Vec::new() } else { message(9, &[raw]) };
    message(field, &[&dims, &int(2, ty), &text(8, name), &raw])
}

/// A port of a graph: a scalar, or one dimension that varies.
fn port(field: u64, name: &str, ty: u64, is_scalar: bool) -> Vec<u8> {
    let dimension = message(1, &[&text(2, "n")]);
    let shape = message(2, &[if is_scalar { &[] } else { dimension.as_slice() }]);
    message(field, &[&text(1, name), &message(2, &[&message(1, &[&int(1, ty), &shape])])])
}

fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[u8]) -> Vec<u8> {
    let names = |field, names: &[&str]| names.iter().flat_map(|name| text(field, name)).collect::<Vec<u8>>();
    message(1, &[&names(1, inputs), &names(2, outputs), &text(4, op), attributes])
}

/// A folder with a model of numbers, `x` to `y`, whose graph has this in it.
fn numbers(graph: &[Vec<u8>]) -> TempDir {
    let parts = graph.concat();
    let graph = message(7, &[&text(2, "g"), &port(11, "x", FLOAT, false), &port(12, "y", FLOAT, false), &parts]);
    let model = [int(1, 8), message(8, &[&int(2, 17)]), graph].concat();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.onnx"), model).unwrap();
    folder
}

/// `y` is `x` times numbers without end.
fn endless_shape() -> TempDir {
    numbers(&[
        node("ConstantOfShape", &["size"], &["zeros"], &[]),
        node("Add", &["x", "zeros"], &["y"], &[]),
        tensor(5, "size", INT64, &[1], &(1_u64 << 35).to_le_bytes()),
    ])
}

/// `y` is `x` after 2^40 rounds.
fn endless_loop() -> TempDir {
    let body = [
        node("Identity", &["going"], &["goes"], &[]),
        node("Identity", &["before"], &["after"], &[]),
        text(2, "body"),
        port(11, "round", INT64, true),
        port(11, "going", BOOL, true),
        port(11, "before", FLOAT, false),
        port(12, "goes", BOOL, true),
        port(12, "after", FLOAT, false),
    ]
    .concat();
    let attribute = message(5, &[&text(1, "body"), &message(6, &[&body]), &int(20, 5)]);
    numbers(&[
        node("Loop", &["rounds", "true", "x"], &["y"], &attribute),
        tensor(5, "rounds", INT64, &[], &(1_u64 << 40).to_le_bytes()),
        tensor(5, "true", BOOL, &[], &[1]),
    ])
}

/// Graphs in graphs.
fn nested_graphs(depth: usize) -> TempDir {
    let mut graph = text(2, "innermost");
    for _ in 0..depth {
        graph =
            node("If", &["x"], &["y"], &message(5, &[&text(1, "then_branch"), &message(6, &[&graph]), &int(20, 5)]));
    }
    numbers(&[graph])
}

fn copy(model: &str, change: impl FnOnce(&Path)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixture(model), folder.path());
    change(folder.path());
    folder
}

fn tokenizer(content: &str) -> TempDir {
    copy("pooling-cls", |folder| fs::write(folder.join("tokenizer.json"), content).unwrap())
}

/// A tokenizer whose regular expression backtracks at each character of a text.
fn slow_tokenizer() -> String {
    let file = fs::read(fixture("pooling-cls").join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_slice(&file).unwrap();
    tokenizer["pre_tokenizer"] = json!({
        "type": "Split", "pattern": {"Regex": "a(?=(a+)\\1)"}, "behavior": "Removed", "invert": false
    });
    tokenizer.to_string()
}

fn template(source: &str) -> TempDir {
    copy("writer", |folder| fs::write(folder.join("chat_template.jinja"), source).unwrap())
}

/// A model that does harm, and what is said of it: one of these.
struct Hostile {
    name: &'static str,
    folder: TempDir,
    said: &'static [&'static str],
}

fn hostile() -> Vec<Hostile> {
    let truncated = copy("pooling-cls", |folder| {
        let file = folder.join("model.onnx");
        let bytes = fs::read(&file).unwrap();
        fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    });
    let doubling = "{% set ns = namespace(s='abcdefgh') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}\
                    {{ ns.s }}{{ messages[0].content }}";
    let all: [(&str, TempDir, &[&str]); 14] = [
        ("truncated", truncated, &["not an ONNX model"]),
        // Sixteen million weights of two bytes each.
        ("bomb", numbers(&[[0x2a, 0].repeat(16 << 20)]), &["MiB of memory"]),
        (
            "huge-weight",
            numbers(&[tensor(5, "w", FLOAT, &[1 << 40], &[]), node("Add", &["x", "w"], &["y"], &[])]),
            &["ONNX Runtime cannot load the model"],
        ),
        ("endless-shape", endless_shape(), &["MiB of memory"]),
        ("endless-loop", endless_loop(), &["longer than 4s"]),
        ("nested-graphs", nested_graphs(2000), &["ONNX Runtime cannot load the model"]),
        ("nested-tokenizer", tokenizer(&"[".repeat(100_000)), &["tokenizer.json cannot be used"]),
        (
            "nested-model",
            tokenizer(&format!("{{\"model\":{}", "{\"model\":".repeat(100_000))),
            &["tokenizer.json cannot be used"],
        ),
        ("slow-tokenizer", tokenizer(&slow_tokenizer()), &["longer than 4s", "its tokenizer took"]),
        ("range", template("{% for a in range(10**12) %}{% endfor %}{{ messages[0].content }}"), &["chat template"]),
        (
            "loops",
            template("{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}"),
            &["chat template"],
        ),
        (
            "recursion",
            template("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}"),
            &["chat template", "nested too deeply"],
        ),
        (
            "parentheses",
            template(&format!("{{{{ {}1 }}}}", "(".repeat(100_000))),
            &["chat template", "nested too deeply"],
        ),
        ("doubling", template(doubling), &["MiB of memory", "chat template"]),
    ];
    all.into_iter().map(|(name, folder, said)| Hostile { name, folder, said }).collect()
}

fn is_told(hostile: &Hostile, told: &str) {
    let Hostile { name, said, .. } = hostile;
    assert!(said.iter().any(|said| told.contains(said)), "{name}: none of {said:?} in {told}");
}

#[tokio::test]
async fn hostile_model_is_refused_where_it_is_added() {
    let nerve = server().await;
    deploy_good(&nerve).await;
    let (streams, server) = (Streams::connect(&nerve.nats).await, nerve.server());
    for (index, hostile) in hostile().iter().enumerate() {
        let path = hostile.folder.path().display().to_string();
        let mut command = nerve.cli().command(&["models", "add", &path, "--name", "bad"]);
        command.env("NERVE_SANDBOX_MODEL_TIMEOUT", TRIAL_TIMEOUT);
        let added = nerve::call(command, "").await.failed(1);
        is_told(hostile, &added.stderr);
        if index % 5 == 0 {
            answers(&nerve, &streams, index / 5 + 1).await;
        }
    }
    let listed = nerve.cli().run(&["models", "list", "--output", "json"]).await.ok().json();
    assert_eq!(listed, json!([]), "nothing was added");
    assert_eq!(nerve.server(), server, "the server process is the same");
}

/// The registry, as an operator has it who does without the command line's checks.
async fn registry(nerve: &Nerve) -> Registry {
    let credentials = nerve.nats.credentials.as_ref().unwrap().display().to_string();
    let settings = [("NERVE_NATS_URL", nerve.nats.url.clone()), ("NERVE_NATS_CREDS", credentials)];
    let config = Config::load(None, settings.map(|(name, value)| (name.to_owned(), value))).unwrap();
    let bus = Bus::connect(&config.nats, "tests").await.unwrap();
    Registry::open(&bus, Duration::from_secs(30)).await.unwrap()
}

async fn add_unchecked(registry: &Registry, hostile: &Hostile, task: &str) {
    let mut files: Vec<ArtifactRef> = Vec::new();
    let mut folders = vec![hostile.folder.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(hostile.folder.path()).unwrap().display().to_string();
            // The fixture has other graphs and what its library gave, too.
            if name == "expected.json" || (name.ends_with(".onnx") && name != "model.onnx") {
                continue;
            }
            files.push(registry.upload(&name, &fs::read(&path).unwrap()).await.unwrap());
        }
    }
    let info = ModelInfo { task: task.to_owned(), outputs: vec!["y".into()], ..ModelInfo::default() };
    let name = ModelName::parse(hostile.name).unwrap();
    registry.add_model(&name, ModelRecord::new(files, info)).await.unwrap();
}

/// Asks the server for a model: the status, and what it says.
async fn ask(nerve: &Nerve, model: &str) -> (u16, String) {
    let body = json!({"model": model, "input": "good"});
    let answer = reqwest::Client::new().post(nerve.url("/v1/embeddings")).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn hostile_model_in_the_registry_costs_nothing_but_itself() {
    let nerve = server().await;
    deploy_good(&nerve).await;
    let (streams, server, registry) = (Streams::connect(&nerve.nats).await, nerve.server(), registry(&nerve).await);
    let hostile = hostile();
    for model in &hostile {
        add_unchecked(&registry, model, "embed").await;
    }
    // The command line finds nothing wrong with a model that is in the registry.
    let table = "[function.bad]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\nmodel = \"endless-shape\"\n\
                 on = [\"events.asked\"]\nemits = [\"never\"]\n";
    nerve.cli().deploy(Folder::new(table).path()).await;
    for (index, model) in hostile.iter().enumerate() {
        let asked = || async {
            let (status, told) = ask(&nerve, model.name).await;
            // Until the gateway has heard of it.
            (status != 404).then_some((status, told))
        };
        let (status, told) = eventually("the gateway knows the model", seconds(20), asked).await;
        assert_eq!(status, 503, "{}: {told}", model.name);
        is_told(model, &told);
        if index % 5 == 0 {
            answers(&nerve, &streams, index / 5 + 1).await;
        }
    }
    // What was refused is not tried again for each request.
    let started = Instant::now();
    is_told(&hostile[4], &ask(&nerve, hostile[4].name).await.1);
    assert!(started.elapsed() < seconds(2), "{:?}", started.elapsed());
    nerve.daemon.logs("the worker says why", &["could not be loaded", "MiB of memory"]).await;
    assert_eq!(streams.count("EVENTS", "events.never").await, 0);
    assert_eq!(nerve.server(), server, "the server process is the same");
    assert_eq!(reqwest::get(nerve.url("/readyz")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn model_that_was_tried_is_not_tried_after_a_restart() {
    const TRIED: &str = "probed in a helper process";
    let mut nerve = Nerve::up().await;
    deploy_good(&nerve).await;
    answers(&nerve, &Streams::connect(&nerve.nats).await, 1).await;
    assert_eq!(nerve.daemon.stderr().matches(TRIED).count(), 1, "{}", nerve.daemon.stderr());
    nerve.restart().await;
    answers(&nerve, &Streams::connect(&nerve.nats).await, 2).await;
    let log = nerve.daemon.stderr();
    assert!(log.contains("loaded") && !log.contains(TRIED), "{log}");
}

#[tokio::test]
async fn model_that_comes_with_the_installation_is_not_tried() {
    let home = tempfile::tempdir().unwrap();
    let envs = vec![("HOME".to_owned(), home.path().display().to_string())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let table = "[function.good]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\non = [\"events.asked\"]\nemits = [\"answered\"]\n";
    nerve.cli().deploy(Folder::new(table).path()).await;
    answers(&nerve, &Streams::connect(&nerve.nats).await, 1).await;
    assert!(!nerve.daemon.stderr().contains("helper process"), "{}", nerve.daemon.stderr());
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "ONNX Runtime keeps no telemetry");
}
