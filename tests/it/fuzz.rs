//! What the fuzz targets found, once more: their corpora, the inputs that once ended a target, and what ends a reader of
//! documents.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use nerve_core::manifest::Provider;
use nerve_sandbox::{Limits, Pool, Request, SandboxError, Settings, Setup};
use nerve_tests::{nerve_binary, seconds};
use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
    thread,
};
use targets::{documents::Document, hooks::WebhookInput};

/// A fuzz target: its name, what it does with an input, and the stack that the code has in a server, in MiB.
type Target = (&'static str, fn(&[u8]), usize);

const TARGETS: [Target; 9] = [
    ("documents", targets::documents::run, 32),
    ("endpoint", targets::endpoint::run, 2),
    ("events", targets::events::run, 2),
    ("forwarded", targets::forwarded::run, 2),
    ("hooks", targets::hooks::run, 2),
    ("lines", targets::lines::run, 2),
    ("manifests", targets::manifests::run, 2),
    ("outlines", targets::outlines::run, 2),
    ("templates", targets::templates::run, 2),
];

/// Mutations of each file of the corpus.
const MUTATIONS: usize = 40;

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

fn mutated(data: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    // The provider's name stays, so that the request still has a source.
    let head = data.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut data = data.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = head + numbers.below(data.len() - head);
        match numbers.below(4) {
            0 => data.truncate(at.max(head + 1)),
            1 => data.insert(at, b"=,;:{}[]\"\\\n \xff0"[numbers.below(14)]),
            2 => data[at] = u8::try_from(numbers.below(256)).unwrap(),
            _ => {
                let piece = data[at..(at + numbers.below(40)).min(data.len())].to_vec();
                data.splice(at..at, piece);
            }
        }
    }
    data
}

#[test]
fn no_request_of_the_corpus_or_near_it_is_taken_in_or_panics() {
    let corpus = fuzz().join("corpus/hooks");
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut files = 0;
    for file in std::fs::read_dir(&corpus).expect("the corpus") {
        let data = std::fs::read(file.unwrap().path()).unwrap();
        let posted = WebhookInput::read(&data).expect("a request");
        Provider::BUILT_IN.iter().for_each(|provider| posted.to(provider));
        for _ in 0..MUTATIONS {
            if let Some(posted) = WebhookInput::read(&mutated(&data, &mut numbers)) {
                posted.try_out();
            }
        }
        files += 1;
    }
    assert!(files >= Provider::BUILT_IN.len(), "each provider has a file");
}

fn fuzz() -> PathBuf {
    nerve_tests::checkout().join("tests/fuzz")
}

/// The files of a folder, if it exists.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Gives the inputs to a target, and names those that it panics for.
fn failures(run: fn(&[u8]), inputs: &[PathBuf]) -> Vec<PathBuf> {
    let fails = |file: &&PathBuf| {
        let input = fs::read(file).unwrap();
        catch_unwind(|| run(&input)).is_err()
    };
    inputs.iter().filter(fails).cloned().collect()
}

#[test]
fn each_fuzz_target_passes_with_the_inputs_that_are_kept() {
    let programs = files(&fuzz().join("fuzz_targets")).len();
    assert_eq!(programs, TARGETS.len(), "each target is listed");
    for (name, run, stack) in TARGETS {
        let mut inputs = files(&fuzz().join("corpus").join(name));
        assert!(!inputs.is_empty(), "{name} has a corpus");
        // What ends a reader of documents would end this process.
        if name != "documents" {
            inputs.extend(files(&fuzz().join("crashes").join(name)));
        }
        let thread = thread::Builder::new().stack_size(stack << 20).spawn(move || failures(run, &inputs)).unwrap();
        assert_eq!(thread.join().unwrap(), Vec::<PathBuf>::new(), "{name}");
    }
}

/// A pool of helper processes, of which one reads documents with these limits.
fn request(data: &[u8]) -> Request {
    let document = Document::read(data).expect("a document");
    let (request, bytes) = document.request();
    Request {
        work: nerve_rag::READER.name,
        tenant: "a".to_owned(),
        setup: Setup::new(targets::documents::TOKENIZER.into()),
        parts: request.encode(bytes.to_vec().into()).unwrap(),
        limits: Limits { memory: 256 << 20, stack: 32 << 20, input: 1 << 20, output: 64 << 20 },
        timeout: seconds(10),
    }
}

#[tokio::test]
async fn document_that_ends_its_reader_costs_that_document() {
    let pool = Pool::new(Settings { program: nerve_binary(), memory: 384 << 20, helpers: 1, idle: seconds(5) });
    let inputs = files(&fuzz().join("crashes/documents"));
    assert!(!inputs.is_empty(), "such documents are kept");
    for file in inputs {
        let read = pool.run(&request(&fs::read(&file).unwrap())).await;
        assert!(!matches!(read, Err(SandboxError::Unavailable(_))), "{}: {read:?}", file.display());
        assert!(pool.run(&request(b"a.txt\nLate fees.")).await.is_ok(), "after {}", file.display());
    }
}
