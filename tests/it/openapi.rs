//! The description of the API at `GET /openapi.json`: the document is valid, and the gateway keeps to it.

use nerve_tests::{Folder, Nerve, Streams, checkout, nerve::Options, seconds};
use serde_json::json;
use std::path::PathBuf;
use tokio::process::Command;

const KEY: &str = "a-key-of-more-than-16-characters";
/// Test cases of a run, in any case.
const CASES: usize = 2000;
/// Random ones for each operation; those at the bounds of its schemas, and chains of operations, are about as many again.
const CASES_PER_OPERATION: &str = "40";
/// What is not checked: the gateway may refuse what a schema allows, such as the name of a function that is not deployed, may ignore
/// what it does not, such as an unknown header; a source allows the methods of its provider only; and DELETE cancels an answer, which
/// can be read afterwards.
const EXCLUDED_CHECKS: &str =
    "positive_data_acceptance,negative_data_rejection,allow_header_conformance,use_after_free";
/// A source whose deliveries need no signature.
const SOURCE: &str = "[source.open]\nprovider = \"github\"\nverify = \"none\"\n";

/// A program of the Python environment that `make setup` makes.
fn program(name: &str) -> PathBuf {
    let program = checkout().join(".tools/venv/bin").join(name);
    assert!(program.exists(), "{} is missing: run `make setup`", program.display());
    program
}

/// A `nerve up` with a key, the RAG pipeline and a document.
async fn up() -> Nerve {
    let envs = vec![("NERVE_GATEWAY_KEYS".to_owned(), KEY.to_owned())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    nerve.cli().deploy(&checkout().join("functions/rag")).await.ok();
    nerve.cli().deploy(Folder::new(SOURCE).path()).await.ok();
    nerve
}

#[tokio::test]
async fn openapi_document_is_valid() {
    let nerve = up().await;
    let document = reqwest::get(nerve.url("/openapi.json")).await.unwrap();
    assert_eq!(document.status(), 200, "it needs no key");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("openapi.json");
    std::fs::write(&file, document.bytes().await.unwrap()).unwrap();
    let mut validator = Command::new(program("openapi-spec-validator"));
    let output = validator.args(["--schema", "3.1"]).arg(&file).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn gateway_keeps_to_its_openapi_document() {
    let nerve = up().await;
    let document = json!({"document": "terms.md", "text": "Late invoices cost a fee of 2 % per month."});
    let upload = reqwest::Client::new().post(nerve.url("/v1/documents")).bearer_auth(KEY).json(&document);
    assert_eq!(upload.send().await.unwrap().status(), 202);
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.document.indexed", 1, seconds(60)).await;
    let folder = tempfile::tempdir().unwrap();
    let mut schemathesis = Command::new(program("schemathesis"));
    schemathesis.arg("--config-file").arg(checkout().join("tests/python/schemathesis.toml"));
    schemathesis.args(["run", &nerve.url("/openapi.json"), "--exclude-checks", EXCLUDED_CHECKS, "--no-color"]);
    schemathesis.args(["--header", &format!("Authorization: Bearer {KEY}")]);
    schemathesis.args(["--max-examples", CASES_PER_OPERATION]);
    let output = schemathesis.current_dir(folder.path()).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(generated(&said) >= CASES, "{said}");
}

/// The number of cases that Schemathesis reports.
fn generated(said: &str) -> usize {
    let line = said.lines().find(|line| line.contains(" generated,")).unwrap_or_else(|| panic!("{said}"));
    let number = line.split_whitespace().find_map(|word| word.replace(',', "").parse().ok());
    number.unwrap_or_else(|| panic!("{line}"))
}
