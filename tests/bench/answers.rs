//! An answer over HTTP, by the whole pipeline: the time to the first token and to the last, with many chunks indexed.

use base64::{Engine, prelude::BASE64_STANDARD};
use nerve_tests::{Nerve, Streams, checkout, seconds, sse::Reader};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Documents, and chunks of each.
const DOCUMENTS: (usize, usize) = (500, 20);
/// Sentences of a chunk.
const SENTENCES: usize = 6;
const QUESTIONS: usize = 100;

/// The fixture's texts, each with its vector by the default model.
struct Sentences {
    texts: Vec<String>,
    vectors: Vec<Vec<f32>>,
}

impl Sentences {
    fn read() -> Self {
        let file = |name: &str| std::fs::read(checkout().join("tests/fixtures/onnx").join(name)).expect("a fixture");
        let texts: Vec<String> = serde_json::from_slice(&file("texts.json")).expect("an array");
        let numbers: Vec<f32> =
            file("minilm.f32").as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let width = numbers.len() / texts.len();
        let all = texts.into_iter().zip(numbers.chunks_exact(width).map(<[f32]>::to_vec));
        let usable = all.filter(|(text, _)| (6..=30).contains(&text.split(' ').count()) && text.len() < 200);
        let (texts, vectors) = usable.unzip();
        Self { texts, vectors }
    }

    /// A chunk of some sentences: its text, and the vector between theirs.
    fn chunk(&self, n: usize) -> (String, Vec<f32>) {
        let chosen = (0..SENTENCES).map(|k| (n * 7 + k * 131) % self.texts.len());
        let (mut text, mut vector) = (String::new(), vec![0.0_f32; self.vectors[0].len()]);
        for index in chosen {
            text.push_str(&format!("{}. ", self.texts[index].trim_end_matches('.')));
            vector.iter_mut().zip(&self.vectors[index]).for_each(|(sum, number)| *sum += number);
        }
        let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|number| *number /= length);
        (text, vector)
    }

    /// A question that has the words of a sentence.
    fn question(&self, n: usize) -> String {
        format!("What of {}?", self.texts[(n * 17) % self.texts.len()])
    }

    /// Publishes documents whose embedding is done already: that is measured elsewhere.
    async fn index(&self, streams: &Streams) {
        let (documents, each) = DOCUMENTS;
        for document in 0..documents {
            let (mut chunks, mut embeddings) = (Vec::new(), Vec::new());
            for index in 0..each {
                let (text, vector) = self.chunk(document * each + index);
                let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
                embeddings.push(json!({"embedding": BASE64_STANDARD.encode(bytes), "tokens": 1, "truncated": false}));
                chunks.push(json!({"index": index, "text": text, "heading": [], "start": 0, "end": text.len()}));
            }
            let name = format!("page-{document}");
            let data = json!({"document": name, "name": name, "collection": "default", "metadata": {},
                              "chunks": chunks, "embeddings": embeddings});
            let mut headers = async_nats::HeaderMap::new();
            let ty = "embedding.created";
            for (key, value) in [("ce-specversion", "1.0"), ("ce-type", ty), ("ce-source", "/bench"), ("ce-id", &name)]
            {
                headers.insert(key, value);
            }
            let body = serde_json::to_vec(&data).expect("JSON");
            let sent = streams.jetstream.publish_with_headers("events.embedding.created", headers, body.into()).await;
            sent.expect("a publish").await.expect("an acknowledgement");
        }
        streams.reaches("EVENTS", "events.document.indexed", documents, seconds(300)).await;
    }
}

pub(crate) async fn measure() {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(&checkout().join("functions/rag")).await;
    let sentences = Sentences::read();
    let streams = Streams::connect(&nerve.nats).await;
    sentences.index(&streams).await;
    // The first few find a cold model and cold files.
    for n in 0..5 {
        ask(&nerve, &sentences.question(n)).await;
    }
    let chunks = DOCUMENTS.0 * DOCUMENTS.1;
    println!("answers by quotation, {chunks} chunks, over POST /v1/answers, one at a time");
    // What is made of an answer after its end (its evaluation, its memory) takes the next one's time where it follows at once.
    for (round, at_once) in [("each after the pipeline's end", false), ("each after the answer's end", true)] {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for n in 0..QUESTIONS {
            let told = streams.count("EVENTS", "events.notification.sent").await;
            let (token, done) = ask(&nerve, &sentences.question(n)).await;
            first.push(token);
            last.push(done);
            if !at_once {
                streams.reaches("EVENTS", "events.notification.sent", told + 1, seconds(30)).await;
            }
        }
        println!("  {round}");
        show("first token", first);
        show("done", last);
    }
    println!();
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).saturating_sub(1)].as_secs_f64() * 1000.0;
    println!("    {what:<15}        p50 {:>6.1} ms, p99 {:>6.1} ms", at(50), at(99));
}

/// How long it took to the first token of an answer, and to its end.
async fn ask(nerve: &Nerve, question: &str) -> (Duration, Duration) {
    let started = Instant::now();
    let asked = reqwest::Client::new().post(nerve.url("/v1/answers")).json(&json!({"question": question}));
    let mut reader = Reader::new(asked.send().await.expect("the gateway answers"));
    let mut token = None;
    loop {
        let frame = reader.next().await.expect("an answer ends with `done`");
        match frame.name.as_str() {
            "token" => _ = token.get_or_insert(started.elapsed()),
            "done" => return (token.expect("an answer has a token"), started.elapsed()),
            "error" => panic!("{question}: {}", Value::to_string(&frame.data)),
            _ => {}
        }
    }
}
