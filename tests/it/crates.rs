//! The crates of the workspace depend on each other in one direction, and on what their purpose needs.

use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

/// What each crate may depend on of this workspace, without what those depend on. `nerve-cli` composes and may use all.
const ALLOWED: &[(&str, &[&str])] = &[
    ("nerve-core", &[]),
    ("nerve-files", &[]),
    ("nerve-events", &["core"]),
    ("nerve-webhooks", &["core"]),
    ("nerve-text", &[]),
    ("nerve-index", &["core", "events"]),
    ("nerve-sandbox", &[]),
    ("nerve-runtime", &["core", "sandbox"]),
    ("nerve-inference", &["core", "files", "sandbox"]),
    ("nerve-onnx", &["core", "events", "inference"]),
    ("nerve-rag", &["core", "events", "index", "sandbox", "text"]),
    ("nerve-broker", &["core", "events", "files"]),
    ("nerve-config", &["core", "files", "broker"]),
    ("nerve-registry", &["core", "files", "broker", "config"]),
    ("nerve-worker", &["core", "events", "sandbox", "broker", "config", "registry"]),
    ("nerve-gateway", &["core", "events", "files", "broker", "config", "registry", "webhooks"]),
];

/// Libraries that only some crates may name: NATS, HTTP servers, WebAssembly, ONNX Runtime, SQLite and its like.
const CONFINED: &[(&str, &[&str])] = &[
    ("async-nats", &["nerve-broker", "nerve-tests"]),
    ("axum", &["nerve-gateway", "nerve-tests"]),
    ("hyper", &["nerve-gateway"]),
    ("wasmtime", &["nerve-runtime"]),
    ("ort", &["nerve-inference"]),
    ("tantivy", &["nerve-index"]),
    ("usearch", &["nerve-index"]),
    ("clap", &["nerve-cli"]),
    ("anyhow", &["nerve-cli"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` for an ordinary one, `dev` or `build` for others.
    kind: Option<String>,
}

/// The ordinary dependencies of each crate of the workspace.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo metadata");
    let named = |package: Package| {
        let ordinary = package.dependencies.into_iter().filter(|dependency| dependency.kind.is_none());
        (package.name, ordinary.map(|dependency| dependency.name).collect())
    };
    metadata.packages.into_iter().map(named).collect()
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    for (name, dependencies) in dependencies() {
        if name == "nerve-cli" || name == "nerve-tests" {
            continue;
        }
        let Some(allowed) = allowed.get(name.as_str()) else {
            panic!("say in this test what the new crate {name} may depend on");
        };
        let own = dependencies.iter().filter_map(|dependency| dependency.strip_prefix("nerve-"));
        let more: Vec<_> = own.filter(|dependency| !allowed.contains(dependency)).collect();
        assert!(more.is_empty(), "{name} depends on {more:?}, and may depend on {allowed:?}");
    }
}

#[test]
fn libraries_with_a_purpose_are_named_by_its_crate_only() {
    let dependencies = dependencies();
    for (library, crates) in CONFINED {
        let named: Vec<_> =
            dependencies.iter().filter(|(_, of)| of.contains(*library)).map(|(name, _)| name.as_str()).collect();
        assert!(!named.is_empty(), "nothing depends on {library}: take it off this list");
        let more: Vec<_> = named.iter().filter(|name| !crates.contains(name)).collect();
        assert!(more.is_empty(), "{more:?} depend on {library}, which is for {crates:?}");
    }
}
