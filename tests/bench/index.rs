//! Retrieval from the index: how soon, and how near to an exact search.

use nerve_events::documents::{Chunk, Document};
use nerve_index::{Change, FusionWeights, Index, Query};
use std::time::Instant;

/// Chunks in the index, as many a document as pages have.
const CHUNKS: usize = 100_000;
const CHUNKS_A_DOCUMENT: usize = 20;
/// Numbers of a vector, as the default model gives.
const WIDTH: usize = 384;
/// Topics that vectors lie around, as embeddings of a collection do.
const TOPICS: u64 = 500;
/// Words of a chunk, and different words there are; the n-th is used as often as Zipf says.
const WORDS: (usize, usize) = (80, 30_000);
const QUERIES: usize = 200;
const NEAREST: usize = 10;

/// A generator that gives the same numbers everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A word's number; small ones are common.
    fn word(&mut self) -> usize {
        ((WORDS.1 as f64).powf(self.next()) as usize).min(WORDS.1 - 1)
    }

    fn text(&mut self, words: usize, rarer_than: usize) -> String {
        let mut said = Vec::with_capacity(words);
        while said.len() < words {
            let word = self.word();
            if word >= rarer_than {
                said.push(format!("word{word}"));
            }
        }
        said.join(" ")
    }

    fn vector(&mut self, topic: u64) -> Vec<f32> {
        let mut around = Random(topic.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let numbers = (0..WIDTH).map(|_| (around.next() - 0.5) + 0.8 * (self.next() - 0.5));
        let mut numbers: Vec<f32> = numbers.map(|x| x as f32).collect();
        let length = numbers.iter().map(|x| x * x).sum::<f32>().sqrt();
        numbers.iter_mut().for_each(|x| *x /= length);
        numbers
    }
}

/// Fills an index, searches it, and prints what that took.
pub(crate) fn measure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let index = Index::open(folder.path(), "bench", WIDTH).expect("an index");
    let mut random = Random(7);
    let started = Instant::now();
    let vectors = fill(&index, &mut random);
    let filled = started.elapsed();
    let mut times = Vec::with_capacity(QUERIES);
    let mut found = 0;
    for n in 0..QUERIES {
        let vector = random.vector(n as u64 % TOPICS);
        // Questions are made of words that are not on every page.
        let query = |weights| Query {
            collection: "default".into(),
            text: random_text(n),
            vector: vector.clone(),
            filter: serde_json::Map::new(),
            limit: NEAREST,
            weights,
        };
        let asked = query(FusionWeights::default());
        let started = Instant::now();
        index.search(&asked).expect("hits");
        times.push(started.elapsed());
        let dense = index.search(&query(FusionWeights { lexical: 0.0, dense: 1.0 })).expect("hits");
        let exact = nearest(&vectors, &vector);
        found += dense.iter().filter(|hit| exact.contains(&hit.id.parse().unwrap_or_default())).count();
    }
    times.sort();
    let milliseconds = |share: f64| times[((QUERIES - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    println!("index of {CHUNKS} chunks, filled in {:.0} s: words and vectors, fused", filled.as_secs_f64());
    println!("  a search, p50                {:>8.2} ms", milliseconds(0.5));
    println!("  a search, p99                {:>8.2} ms", milliseconds(0.99));
    println!("  recall@{NEAREST} against exact         {:>8.3}\n", found as f64 / (QUERIES * NEAREST) as f64);
}

fn random_text(n: usize) -> String {
    Random(n as u64 * 31 + 1).text(6, 50)
}

fn fill(index: &Index, random: &mut Random) -> Vec<Vec<f32>> {
    let mut vectors = Vec::with_capacity(CHUNKS);
    for document in 0..CHUNKS / CHUNKS_A_DOCUMENT {
        let mut chunks = Vec::with_capacity(CHUNKS_A_DOCUMENT);
        for index in 0..CHUNKS_A_DOCUMENT {
            let text = random.text(WORDS.0, 0);
            let vector = random.vector((document * 7 + index / 4) as u64 % TOPICS);
            vectors.push(vector.clone());
            let end = text.len();
            chunks.push((Chunk { index, text, heading: Vec::new(), start: 0, end }, vector));
        }
        let key = format!("page-{document}");
        let (name, version, metadata) = (key.clone(), String::new(), serde_json::Map::new());
        let document = Document {
            collection: "default".into(),
            document: key,
            name,
            version,
            digest: String::new(),
            uploaded_at: 1,
            metadata,
        };
        index.apply(&[Change::Replace { document, chunks }]).expect("an indexed page");
    }
    vectors
}

/// The ids of the chunks whose vectors are nearest, by looking at all of them.
fn nearest(vectors: &[Vec<f32>], vector: &[f32]) -> Vec<usize> {
    let dot = |other: &Vec<f32>| other.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>();
    let mut similarity: Vec<(f32, usize)> = vectors.iter().map(dot).zip(1..).collect();
    similarity.sort_by(|a, b| b.0.total_cmp(&a.0));
    similarity.into_iter().take(NEAREST).map(|(_, id)| id).collect()
}
