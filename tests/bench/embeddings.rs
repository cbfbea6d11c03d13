//! Embeddings, three ways: through JetStream against the best loop in Python, over HTTP against the servers that
//! teams use, and the int8 model against the float32 one.
//!
//! Every side has the same model file (sentence-transformers and infinity its weights), the same texts, and all cores.

use crate::{ROUNDS, Side, compare, load};
use bytes::Bytes;
use futures::StreamExt;
use nerve_tests::{Cli, Folder, Nats, Nerve, Streams, checkout, daemon::Daemon, eventually, nerve, seconds};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

/// The models, float32 first.
const MODELS: [&str; 2] = ["all-MiniLM-L6-v2", "all-MiniLM-L6-v2-int8"];
/// Connections, each with one request of one text at a time.
const CONNECTIONS: usize = 64;
/// Texts that are near each other for a text's recall.
const NEAREST: usize = 10;

/// A kind of texts.
struct Texts {
    name: &'static str,
    texts: Vec<String>,
    /// The same as JSON, for the loops in Python.
    file: PathBuf,
}

/// All of it.
pub(crate) async fn compare_embeddings(nats: &Nats) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kinds = texts(folder.path());
    for texts in &kinds {
        through_jetstream(nats, texts).await;
    }
    let gateway = Nerve::gateway(&nats.url()).await;
    over_http(&gateway, &kinds[0]).await;
    recall(&gateway, &kinds[1]).await;
}

/// Short texts of 8 to 16 words, and the fixture's thousand of every length.
fn texts(folder: &Path) -> [Texts; 2] {
    let file = checkout().join("tests/fixtures/onnx/texts.json");
    let mixed: Vec<String> = serde_json::from_slice(&std::fs::read(&file).expect("the texts")).expect("an array");
    let is_short = |text: &&String| text.is_ascii() && (8..=16).contains(&text.split(' ').count()) && text.len() < 120;
    let short: Vec<String> = mixed.iter().filter(is_short).cloned().cycle().take(2000).collect();
    let short_file = folder.join("short.json");
    std::fs::write(&short_file, serde_json::to_vec(&short).expect("JSON")).expect("a file");
    [Texts { name: "short", texts: short, file: short_file }, Texts { name: "mixed", texts: mixed, file }]
}

/// A Python loop that embeds all texts once for each line it is sent.
struct PythonLoop {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
    /// Its best size of batch, and the version of what it loops over.
    about: Value,
}

impl PythonLoop {
    fn start(script: &str, texts: &Texts) -> Self {
        let mut child = Command::new(python("peers"))
            .arg(checkout().join("tests/bench/python").join(script))
            .arg(model(MODELS[0]))
            .arg(&texts.file)
            .arg(cores().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs");
        let input = child.stdin.take().expect("a piped input");
        let output = BufReader::new(child.stdout.take().expect("a piped output"));
        let mut this = Self { child, input, output, about: Value::Null };
        this.about = this.read();
        this
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn rate(&mut self) -> f64 {
        self.input.write_all(b"\n").expect("it listens");
        self.read()["rate"].as_f64().expect("a rate")
    }
}

impl Drop for PythonLoop {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn python(venv: &str) -> PathBuf {
    let python = checkout().join(".tools").join(venv).join("bin/python");
    assert!(python.exists(), "{} is missing: run `deploy/setup.sh peers`", python.display());
    python
}

fn model(name: &str) -> PathBuf {
    checkout().join(".tools/models").join(name)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Event in, embedding event out, against the loop that has nothing to do but embed.
async fn through_jetstream(nats: &Nats, texts: &Texts) {
    let data = tempfile::tempdir().expect("a temporary folder");
    let worker = nerve::worker(&nats.url(), data.path()).await;
    let cli = Cli::new(&nats.url());
    let streams = Streams::connect(&nats.url()).await;
    for (index, model) in MODELS.iter().enumerate() {
        let table = format!(
            "[function.{name}{index}]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\nmodel = \"{model}\"\n\
             on = [\"events.{name}{index}.in\"]\nemits = [\"{name}{index}.out\"]\nconcurrency = 256\n",
            name = texts.name
        );
        cli.deploy(Folder::new(&table).path()).await;
        publish(&streams, &format!("{}{index}.in", texts.name), &texts.texts[..1]).await;
        streams.reaches("EVENTS", &format!("events.{}{index}.out", texts.name), 1, seconds(60)).await;
    }
    let mut loops = [PythonLoop::start("ort_loop.py", texts), PythonLoop::start("fastembed_loop.py", texts)];
    let mut sides = [Side::default(), Side::default(), Side::default(), Side::default()];
    for _ in 0..ROUNDS {
        for (index, side) in sides.iter_mut().take(MODELS.len()).enumerate() {
            crate::functions::pause(&worker).await;
            let before = publish(&streams, &format!("{}{index}.in", texts.name), &texts.texts).await;
            kill(worker.server(), Signal::SIGCONT).expect("a server process");
            side.rates.push(crate::functions::rate_of_results(&streams, before, texts.texts.len()).await);
        }
        for (index, looping) in loops.iter_mut().enumerate() {
            sides[2 + index].rates.push(looping.rate());
        }
    }
    let [nerve, int8, raw, fastembed] = sides;
    let title = |what: &str| {
        format!(
            "{} {} texts, {} cores: event in to embedding event out, against {what}",
            texts.texts.len(),
            texts.name,
            cores()
        )
    };
    let about = |looping: &PythonLoop| format!("{} in batches of {}", looping.about["version"], looping.about["batch"]);
    let against = title(&format!("a loop over onnxruntime {}, sorted by length", about(&loops[0])));
    compare(&against, "texts/s", ("onnx/embed", &nerve), ("onnxruntime in Python", &raw));
    let against = title(&format!("fastembed {}", about(&loops[1])));
    compare(&against, "texts/s", ("onnx/embed", &nerve), ("fastembed", &fastembed));
    compare(&title("the float32 model"), "texts/s", ("onnx/embed, int8", &int8), ("onnx/embed", &nerve));
}

/// Publishes the texts as events of type `ty`; returns the stream's last sequence.
async fn publish(streams: &Streams, ty: &str, texts: &[String]) -> u64 {
    let round = uuid::Uuid::now_v7();
    let sent = futures::stream::iter(texts.iter().enumerate()).map(|(n, text)| async move {
        let mut headers = async_nats::HeaderMap::new();
        let id = format!("{round}-{n}");
        for (name, value) in [("ce-specversion", "1.0"), ("ce-type", ty), ("ce-source", "/bench"), ("ce-id", &id)] {
            headers.insert(name, value);
        }
        let body = serde_json::to_vec(&json!({"text": text})).expect("JSON");
        let sent = streams.jetstream.publish_with_headers(format!("events.{ty}"), headers, body.into()).await;
        sent.expect("a publish").await.expect("an acknowledgement").sequence
    });
    sent.buffer_unordered(512).fold(0, async |last, sequence| last.max(sequence)).await
}

/// A server to measure, and how many requests a round of it takes some seconds.
struct Server {
    name: &'static str,
    address: String,
    model: String,
    requests: usize,
    side: Side,
}

async fn over_http(gateway: &Nerve, texts: &Texts) {
    let (st, st_port) = sentence_transformers().await;
    let (infinity, infinity_port) = infinity().await;
    let nerve = gateway.gateway.trim_start_matches("http://").to_owned();
    let server = |name, address: String, model: &str, requests| Server {
        name,
        address,
        model: model.to_owned(),
        requests,
        side: Side::default(),
    };
    let mut servers = [
        server("nerve", nerve.clone(), MODELS[0], 4096),
        server("nerve, int8", nerve, MODELS[1], 8192),
        server("FastAPI + sentence-transf.", format!("127.0.0.1:{st_port}"), "any", 512),
        server("infinity", format!("127.0.0.1:{infinity_port}"), "minilm", 1024),
    ];
    for server in &servers {
        load::send(&server.address, requests(server, texts, 1)).await;
    }
    for _ in 0..ROUNDS {
        for server in &mut servers {
            let prepared = requests(server, texts, server.requests / CONNECTIONS);
            server.side.rates.push(load::send(&server.address, prepared).await.rate);
        }
    }
    drop((st, infinity));
    let title = format!("POST /v1/embeddings, {CONNECTIONS} connections, one {} text a request", texts.name);
    let [nerve, int8, st, infinity] = &servers;
    for (ours, theirs) in [(nerve, st), (int8, st), (nerve, infinity), (int8, nerve)] {
        compare(&title, "requests/s", (ours.name, &ours.side), (theirs.name, &theirs.side));
    }
}

fn requests(server: &Server, texts: &Texts, each: usize) -> Vec<Vec<Bytes>> {
    let request = |n: usize| {
        let body = json!({"model": server.model, "input": texts.texts[n % texts.texts.len()]}).to_string();
        let head =
            "POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length:";
        Bytes::from(format!("{head} {}\r\n\r\n{body}", body.len()))
    };
    (0..CONNECTIONS).map(|connection| (0..each).map(|n| request(connection * each + n)).collect()).collect()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound address").port()
}

async fn sentence_transformers() -> (Daemon, u16) {
    let port = free_port();
    let mut command = Command::new(python("peers"));
    command.arg(checkout().join("tests/bench/python/st_server.py")).arg(checkout().join(".tools/peers-model"));
    let mut daemon = Daemon::spawn("sentence-transformers", command.args([port.to_string(), cores().to_string()]));
    daemon.line(seconds(120), |line| (line == "ready").then_some(())).await;
    (daemon, port)
}

async fn infinity() -> (Daemon, u16) {
    let port = free_port();
    let mut command = Command::new(python("peers-infinity").with_file_name("infinity_emb"));
    command.args(["v2", "--engine", "torch", "--device", "cpu", "--host", "127.0.0.1", "--url-prefix", "/v1"]);
    command.args([
        "--no-bettertransformer",
        "--served-model-name",
        "minilm",
        "--port",
        &port.to_string(),
        "--model-id",
    ]);
    command.arg(checkout().join(".tools/peers-model")).env("HF_HUB_OFFLINE", "1").env("DO_NOT_TRACK", "1");
    let daemon = Daemon::spawn("infinity", command.env("INFINITY_LOG_LEVEL", "error"));
    eventually("infinity serves", seconds(120), || async {
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/v1/models")).await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    (daemon, port)
}

/// What int8 costs: of each text's nearest texts by the float32 model, how many the int8 model finds.
async fn recall(gateway: &Nerve, texts: &Texts) {
    let whole = vectors(gateway, MODELS[0], &texts.texts).await;
    let small = vectors(gateway, MODELS[1], &texts.texts).await;
    let found: usize = (0..whole.len())
        .map(|index| {
            let (wanted, got) = (nearest(&whole, index), nearest(&small, index));
            got.iter().filter(|one| wanted.contains(one)).count()
        })
        .sum();
    let similarity: f32 = whole.iter().zip(&small).map(|(a, b)| dot(a, b)).sum();
    let count = whole.len() as f64;
    println!("int8 against float32, {} {} texts", texts.texts.len(), texts.name);
    println!("  recall of the nearest {NEAREST}       {:>8.3}", found as f64 / (count * NEAREST as f64));
    println!("  mean cosine                  {:>8.4}\n", f64::from(similarity) / count);
}

async fn vectors(gateway: &Nerve, model: &str, texts: &[String]) -> Vec<Vec<f32>> {
    let request = reqwest::Client::new().post(gateway.url("/v1/embeddings"));
    let answer = request.json(&json!({"model": model, "input": texts})).send().await.expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    let vector = |item: &Value| serde_json::from_value(item["embedding"].clone()).expect("a vector");
    answer["data"].as_array().unwrap_or_else(|| panic!("no vectors in {answer}")).iter().map(vector).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn nearest(vectors: &[Vec<f32>], index: usize) -> Vec<usize> {
    let mut others: Vec<usize> = (0..vectors.len()).filter(|&other| other != index).collect();
    let similarity = |other: &usize| dot(&vectors[index], &vectors[*other]);
    others.sort_by(|a, b| similarity(b).total_cmp(&similarity(a)));
    others.truncate(NEAREST);
    others
}
