//! Real components and real python3 processes, and the ways in which they fail.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail; clippy knows only the bodies of test functions"
)]

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use nerve_core::{
    Context, Deployment, Emission, Event, EventType, Fault, Function, FunctionError, FunctionSpec, Host, LoadError,
    Name, RetryPolicy,
    function::{Artifact, Emitter, LogSink},
    manifest::{Batch, RuntimeSpec},
};
use nerve_runtime::{Compiler, ProcessConfig, ProcessHost, WasmConfig, WasmHost, inspect};
use nerve_sandbox::{Pool, Settings};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{path::Path, sync::Arc, time::Duration};

#[derive(Default)]
struct Stored(Mutex<Vec<(usize, Emission)>>);

#[async_trait]
impl Emitter for Stored {
    async fn emit(&self, index: usize, emission: Emission) -> Result<(), FunctionError> {
        self.0.lock().push((index, emission));
        Ok(())
    }
}

fn deployment(dir: &Path, run: RuntimeSpec, file: &str, bytes: &[u8]) -> Deployment {
    let path = dir.join("artifact");
    std::fs::write(&path, bytes).unwrap();
    Deployment {
        name: Name::parse("it").unwrap(),
        revision: 1,
        spec: FunctionSpec {
            run,
            on: vec![],
            stream: None,
            emits: vec![],
            concurrency: 4,
            batch: Batch { size: 4, wait: Duration::ZERO },
            timeout: Duration::from_secs(3),
            memory: 512 << 20,
            retry: RetryPolicy::default(),
            env: [].into(),
            secrets: vec![],
            tool: None,
        },
        artifacts: vec![Artifact { name: file.into(), sha256: HEXLOWER.encode(&Sha256::digest(bytes)), file: path }],
        secrets: [].into(),
        logs: LogSink::new(|_| {}),
    }
}

fn events(words: &[&str]) -> Vec<Event> {
    let event = |word: &&str| {
        Event::new(*word, "/test", EventType::parse("t").unwrap()).with_data("application/json", format!("\"{word}\""))
    };
    words.iter().map(event).collect()
}

fn context() -> (Arc<Stored>, Context) {
    let stored = Arc::new(Stored::default());
    (stored.clone(), Context { emitter: stored, views: None, quotas: Arc::default() })
}

fn component(body: &str) -> Vec<u8> {
    let wat = format!(
        r#"(module
            (import "nerve:function/host@0.1.0" "emit" (func $emit
                (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
            (memory (export "memory") 2)
            (global $top (mut i32) (i32.const 4096))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local i32)
                (local.set 4 (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
                (global.set $top (i32.add (local.get 4) (local.get 3))) (local.get 4))
            (data (i32.const 2048) "\01\00\00\00\00\00\00\00\00\09\00\00\03\00\00\00")
            (data (i32.const 2064) "\01\00\00\00\01\00\00\00\00\09\00\00\03\00\00\00")
            (data (i32.const 2304) "bad")
            (global $calls (mut i32) (i32.const 0))
            (func (export "handle") (param i32) (result i32) {body}))"#
    );
    let mut module = wat::parse_str(wat).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../functions/wit");
    let (package, _) = resolve.push_dir(wit).unwrap();
    let world = resolve.select_world(&[package], Some("function")).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    wit_component::ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}

/// Components are compiled by the `nerve` of the same build.
fn wasm_host(dir: &Path) -> WasmHost {
    wasm_host_with(dir, 384 << 20)
}

fn wasm_host_with(dir: &Path, memory: u64) -> WasmHost {
    let exe = std::env::current_exe().unwrap();
    let beside = exe.ancestors().skip(1).take(2).map(|folder| folder.join("nerve")).find(|path| path.is_file());
    let program =
        beside.unwrap_or_else(|| panic!("no `nerve` beside the tests: run `cargo build --release --workspace`"));
    let pool = Pool::new(Settings { program, ..Settings::new(1 << 30, 2) });
    let compiler = Compiler { pool, memory, timeout: Duration::from_secs(60) };
    WasmHost::new(WasmConfig { cache_dir: dir.join("cache"), compiler }).unwrap()
}

async fn wasm(dir: &Path, body: &str) -> Arc<dyn Function> {
    let host = wasm_host(dir);
    let run = RuntimeSpec::Wasm { source: "f.wasm".into() };
    let mut deployment = deployment(dir, run, "f.wasm", &component(body));
    deployment.spec.memory = 1 << 20;
    deployment.spec.timeout = Duration::from_millis(200);
    host.load(deployment).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_answers_refuses_traps_and_is_bounded() {
    let grow = "(drop (memory.grow (i32.const 64))) (i32.const 1024)";
    let fresh = "(if (global.get $calls) (then unreachable)) (global.set $calls (i32.const 1)) (i32.const 1024)";
    let cases = [
        ("(i32.const 1024)", None, ""),
        (fresh, None, ""),
        ("(i32.const 2048)", Some(Fault::Invalid), "bad"),
        ("(i32.const 2064)", Some(Fault::Retry { after: None }), "bad"),
        ("unreachable", Some(Fault::Crash), "unreachable"),
        ("(loop (br 0)) (i32.const 0)", Some(Fault::Timeout), "timeout"),
        (grow, Some(Fault::Crash), "its limit is 1024 KiB"),
    ];
    for (body, fault, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let function = wasm(dir.path(), body).await;
        for outcome in function.invoke(events(&["a", "b"]), context().1).await {
            match (outcome, fault) {
                (Ok(emissions), None) => assert!(emissions.is_empty()),
                (Err(error), Some(fault)) => {
                    assert_eq!(error.fault, fault, "{body}: {error}");
                    assert!(error.message.contains(says), "{body}: {error}");
                }
                (outcome, _) => panic!("{body}: {outcome:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_emits_before_it_ends() {
    // An event of type `bad` with the body `bad`, whatever that is worth, and nothing else.
    let emit = "(call $emit (i32.const 2304) (i32.const 3) (i32.const 2304) (i32.const 3) (i32.const 0) (i32.const 0) \
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) \
        (i32.const 3000))";
    for (end, fault) in [("(i32.const 1024)", None), ("unreachable", Some(Fault::Crash))] {
        let dir = tempfile::tempdir().unwrap();
        let function = wasm(dir.path(), &format!("{emit} {end}")).await;
        let (stored, context) = context();
        let outcomes = function.invoke(events(&["a", "b"]), context).await;
        assert!(
            outcomes.iter().all(|outcome| outcome.as_ref().err().map(|error| error.fault) == fault),
            "{outcomes:?}"
        );
        let stored = stored.0.lock();
        let seen: Vec<_> = stored.iter().map(|(index, one)| (*index, one.ty.as_str(), &one.data[..])).collect();
        assert_eq!(seen, [(0, "bad", &b"bad"[..]), (1, "bad", &b"bad"[..])]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_wants_what_nobody_offers_is_refused_when_it_is_loaded() {
    let wat = r#"(component
        (import "other:world/thing@1.0.0" (instance (export "f" (func))))
        (core module $m (func (export "handle")))
        (core instance $i (instantiate $m))
        (func (export "handle") (canon lift (core func $i "handle"))))"#;
    let dir = tempfile::tempdir().unwrap();
    let host = wasm_host(dir.path());
    let run = RuntimeSpec::Wasm { source: "f.wasm".into() };
    let loaded = host.load(deployment(dir.path(), run, "f.wasm", &wat::parse_str(wat).unwrap())).await;
    let Err(LoadError::Invalid(why)) = loaded else { panic!("it was loaded, or the machine was blamed") };
    assert!(why.contains("cannot be linked") && why.contains("other:world/thing"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn component_that_needs_too_much_to_compile_is_refused() {
    let sum = "(local.set $x (i32.add (local.get $x) (i32.const 77777)))\n".repeat(500_000);
    let large = component(&format!("(local $x i32) {sum} (i32.const 1024)"));
    let dir = tempfile::tempdir().unwrap();
    let host = wasm_host_with(dir.path(), 128 << 20);
    let run = RuntimeSpec::Wasm { source: "f.wasm".into() };
    let loaded = host.load(deployment(dir.path(), run, "f.wasm", &large)).await;
    let Err(LoadError::Invalid(why)) = loaded else { panic!("it was loaded, or the machine was blamed") };
    assert!(why.contains("more than 128 MiB") && why.contains("sandbox.compile_memory"), "{why}");
    let small =
        deployment(dir.path(), RuntimeSpec::Wasm { source: "f.wasm".into() }, "f.wasm", &component("(i32.const 1024)"));
    assert!(host.load(small).await.is_ok(), "others are compiled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_cache_entry_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(wasm(dir.path(), "(i32.const 1024)").await);
    let files = || std::fs::read_dir(dir.path().join("cache")).unwrap().map(|entry| entry.unwrap().path());
    let entry = files().find(|path| path.extension().unwrap() == "cwasm").unwrap();
    let good = std::fs::read(&entry).unwrap();
    std::fs::write(&entry, b"rubbish").unwrap();
    let function = wasm(dir.path(), "(i32.const 1024)").await;
    assert!(function.invoke(events(&["a"]), context().1).await.iter().all(Result::is_ok));
    assert_eq!(std::fs::read(&entry).unwrap().len(), good.len());
}

#[test]
fn files_of_another_kind_are_refused_with_the_next_step() {
    assert!(inspect(&component("(i32.const 1024)")).is_ok());
    for (bytes, says) in [
        (b"hello".to_vec(), "not WebAssembly"),
        (wat::parse_str("(module)").unwrap(), "wasm-tools component new"),
        (wat::parse_str("(component)").unwrap(), "`handle`"),
    ] {
        assert!(inspect(&bytes).unwrap_err().to_string().contains(says));
    }
}

const SCRIPT: &str = r#"
import json, os, sys, time
held = []
print("not an answer", flush=True)
def say(o): print(json.dumps(o), flush=True)
for line in sys.stdin:
    m = json.loads(line); i = m["id"]; w = m["event"]["data"]
    if w == "exit": print("boom", file=sys.stderr, flush=True); os._exit(3)
    elif w == "hang": time.sleep(60)
    elif w == "memory": bytearray(4 << 30)
    elif w == "invalid": say({"id": i, "error": {"kind": "invalid", "message": "no"}})
    elif w == "first": held.append(i)
    else:
        say({"id": i, "emit": {"type": "early", "data": w}})
        say({"id": i, "events": [{"type": "late", "data": {"w": w}}]})
        for h in held: say({"id": h, "events": []})
        held = []
"#;

async fn process(dir: &Path) -> Arc<dyn Function> {
    let run = RuntimeSpec::Process { command: vec!["python3".into(), "src/f.py".into()], source: None };
    let host = ProcessHost::new(ProcessConfig::new(dir.join("work")));
    host.load(deployment(dir, run, "src/f.py", SCRIPT.as_bytes())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_answers_in_any_order_and_emits_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let function = process(dir.path()).await;
    let (stored, context) = context();
    let outcomes = function.invoke(events(&["first", "x", "invalid"]), context).await;
    assert_eq!(outcomes[0], Ok(vec![]));
    assert_eq!(outcomes[1].as_ref().unwrap()[0].data, &br#"{"w": "x"}"#[..]);
    assert_eq!(outcomes[2].as_ref().unwrap_err().fault, Fault::Invalid);
    assert_eq!(stored.0.lock()[0].0, 1);
    function.close().await;
    let left = std::fs::read_dir(dir.path().join("work")).unwrap();
    assert!(left.map(|entry| entry.unwrap().path()).all(|path| path.is_file()), "no folder is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_has_a_batch_at_once_however_few_invocations_it_may_have() {
    let dir = tempfile::tempdir().unwrap();
    let run = RuntimeSpec::Process { command: vec!["python3".into(), "src/f.py".into()], source: None };
    let mut deployment = deployment(dir.path(), run, "src/f.py", SCRIPT.as_bytes());
    deployment.spec.concurrency = 1;
    let function = ProcessHost::new(ProcessConfig::new(dir.path().join("work"))).load(deployment).await.unwrap();
    // The first is answered only when the second is there.
    let outcomes = function.invoke(events(&["first", "x"]), context().1).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    function.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guilty_event_costs_its_neighbors_nothing() {
    for (word, fault, says) in
        [("exit", Fault::Crash, "boom"), ("hang", Fault::Timeout, "timeout"), ("memory", Fault::Crash, "MemoryError")]
    {
        let dir = tempfile::tempdir().unwrap();
        let function = process(dir.path()).await;
        let (stored, context) = context();
        let outcomes = function.invoke(events(&["x", word, "y"]), context).await;
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{word}: {outcomes:?}");
        let error = outcomes[1].as_ref().unwrap_err();
        assert_eq!(error.fault, fault, "{error}");
        assert!(error.message.contains(says), "{error}");
        assert_eq!(stored.0.lock().len(), 2, "a run again emitted twice");
        function.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_absent_and_a_path_that_leaves_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let host = ProcessHost::new(ProcessConfig::new(dir.path().join("work")));
    for (program, file, says) in [("no-such-program", "f", "no-such-program"), ("true", "../f", "../f")] {
        let run = RuntimeSpec::Process { command: vec![program.into()], source: None };
        let Err(LoadError::Invalid(message)) = host.load(deployment(dir.path(), run, file, b"")).await else {
            panic!("{program} {file} was loaded");
        };
        assert!(message.contains(says), "{message}");
    }
}
