//! Words that the project does not use: homely words where the field has a term, and names that say nothing.
//!
//! What each term means is in the glossary of platform/README.md.

use std::{fs, path::Path, process::Command};

/// Names of constants without a noun: `RETRY_INTERVAL`, `MAX_BATCH_EVENTS` instead.
const CONSTANTS: &[&str] = &[
    "AGAIN",
    "LARGEST",
    "LATER",
    "LEAST",
    "LONGEST",
    "MOST",
    "PATIENCE",
    "REMEMBERED",
    "REOPEN",
    "ROOM",
    "SILENCE",
    "SOON",
    "TOLD",
];
/// Names of types that say only that something happened: the noun of the thing instead.
const TYPES: &[&str] =
    &["Asked", "Done", "Found", "Listed", "Made", "Posted", "Said", "Shown", "Taken", "Told", "Wanted"];
/// Words in comments and messages, with the word to use.
const PHRASES: &[(&str, &str)] = &[
    ("whoever", "name the actor"),
    ("gives way", "is evicted, is shed"),
    ("give way", "are evicted, are shed"),
    ("broker is away", "NATS is unavailable"),
    ("failed for good", "attempts are exhausted"),
    ("likeness", "similarity"),
    ("taken in before", "accepted before"),
    ("none when", "`None` if"),
    ("none where", "`None` if"),
    ("how-manieth", "number of"),
];

struct Hit {
    file: String,
    line: usize,
    text: String,
}

fn tracked(patterns: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new("git").arg("ls-files").args(patterns).current_dir(root).output().expect("git runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The lines of these files in which `find` finds something.
fn hits(files: &[String], find: impl Fn(&str) -> Option<String>) -> Vec<Hit> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut hits = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with("it/words.rs")) {
        let Ok(content) = fs::read_to_string(root.join(file)) else { continue };
        for (number, line) in content.lines().enumerate() {
            hits.extend(find(line).map(|text| Hit { file: file.clone(), line: number + 1, text }));
        }
    }
    hits
}

fn assert_none(hits: &[Hit]) {
    let shown: Vec<_> = hits.iter().map(|hit| format!("{}:{}: {}", hit.file, hit.line, hit.text)).collect();
    assert!(hits.is_empty(), "{} lines:\n{}", hits.len(), shown.join("\n"));
}

#[test]
fn names_say_what_they_are() {
    let declared = |line: &str, keyword: &str| {
        let at = line.find(keyword)?;
        let name: String =
            line.get(at + keyword.len()..)?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let before = line.get(..at)?.trim_start();
        let is_declaration = before.is_empty() || before.starts_with("pub") || before.starts_with("static");
        is_declaration.then_some(name)
    };
    let files = tracked(&["*.rs"]);
    assert!(files.len() > 300, "{} files", files.len());
    assert_none(&hits(&files, |line| {
        let constant = declared(line, "const ").filter(|name| CONSTANTS.contains(&name.as_str()));
        let named = ["struct ", "enum ", "type "].iter().find_map(|keyword| declared(line, keyword));
        constant.or(named.filter(|name| TYPES.contains(&name.as_str()))).map(|name| format!("`{name}` says nothing"))
    }));
}

#[test]
fn sentences_use_the_words_of_the_field() {
    let files = tracked(&["*.rs", "*.md", "*.toml"]);
    assert_none(&hits(&files, |line| {
        let lower = line.to_lowercase();
        let found = PHRASES.iter().find(|(phrase, _)| lower.contains(phrase));
        found.map(|(phrase, instead)| format!("`{phrase}`: {instead}"))
    }));
}
