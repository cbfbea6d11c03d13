//! Models of the fixtures, and what is written with Python's packages, under `tests/python`.

use crate::checkout;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::process::Command;

/// The folder of a model in `tests/fixtures/onnx/models`.
pub fn fixture(name: &str) -> PathBuf {
    checkout().join("tests/fixtures/onnx/models").join(name)
}

/// Copies a folder and those in it, over what is there.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder for a model");
    for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let path = entry.expect("a folder's entry").path();
        let target = to.join(path.file_name().expect("an entry's name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(path, target).expect("a copied file");
        }
    }
}

/// Replaces bytes in a file by as many others: enough to spoil a graph and leave it readable.
pub fn spoil(file: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(file).expect("a file to spoil");
    let places: Vec<usize> =
        (0..bytes.len().saturating_sub(from.len())).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
    assert!(!places.is_empty(), "{} has no `{from}`", file.display());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    fs::write(file, bytes).expect("a spoiled file");
}

/// Runs `tests/python/SCRIPT` to its end; its last line is JSON.
pub async fn python(script: &str, args: &[&str]) -> Value {
    let python = checkout().join(".tools/venv/bin/python");
    assert!(python.exists(), "{} is missing: run `make setup`", python.display());
    let script = checkout().join("tests/python").join(script);
    let output = Command::new(python).arg(&script).args(args).output().await.expect("python runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}\n{err}", script.display());
    serde_json::from_str(out.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {out}\n{err}"))
}
