//! Real python3 processes: what they may write, and the folders in which they run.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail; clippy knows only the bodies of test functions"
)]

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use nerve_core::{
    Context, Deployment, Emission, Event, EventType, Fault, Function, FunctionError, FunctionSpec, Host, Name, Outcome,
    RetryPolicy,
    function::{Artifact, Emitter, LogLevel, LogLine, LogSink, Secret},
    manifest::{Batch, RuntimeSpec},
};
use nerve_runtime::{ProcessConfig, ProcessHost};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Far longer than a test may take: what is answered at once never meets it.
const TIMEOUT: Duration = Duration::from_secs(120);
/// What "at once" may take on a busy machine, with the start of several interpreters.
const AT_ONCE: Duration = Duration::from_secs(30);

struct Ignored;

#[async_trait]
impl Emitter for Ignored {
    async fn emit(&self, _: usize, _: Emission) -> Result<(), FunctionError> {
        Ok(())
    }
}

/// Writes what the event's data says: `ID` in it is the call's id.
const ECHO: &str = r#"
import json, os, sys
for line in sys.stdin:
    call = json.loads(line)
    said = call["event"]["data"]
    if said == "exit": os._exit(1)
    if said == "where": said = json.dumps({"id": call["id"], "events": [{"type": "b", "data": os.getcwd()}]})
    if said == "secret": said = json.dumps({"id": call["id"], "events": [{"type": "b", "data": os.environ["TOKEN"]}]})
    if said == "long": said = '{"id": ID, "events": [{"type": "b", "data": "' + "x" * (41 << 20) + '"}]}'
    print(said.replace("ID", str(call["id"])), flush=True)
"#;

const RIGHT: &str = r#"{"id":ID,"events":[{"type":"b","data":1}]}"#;

struct Rig {
    dir: tempfile::TempDir,
    logs: Arc<Mutex<Vec<LogLine>>>,
}

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), logs: Arc::default() }
    }

    fn work_dir(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn host(&self) -> ProcessHost {
        ProcessHost::new(ProcessConfig::new(self.work_dir()))
    }

    fn deployment(&self, token: &str) -> Deployment {
        let file = self.dir.path().join("artifact");
        std::fs::write(&file, ECHO).unwrap();
        let logs = self.logs.clone();
        Deployment {
            name: Name::parse("echo").unwrap(),
            revision: 1,
            spec: FunctionSpec {
                run: RuntimeSpec::Process { command: vec!["python3".into(), "echo.py".into()], source: None },
                on: vec![],
                stream: None,
                emits: vec![],
                concurrency: 4,
                batch: Batch { size: 4, wait: Duration::ZERO },
                timeout: TIMEOUT,
                memory: 512 << 20,
                retry: RetryPolicy::default(),
                env: [].into(),
                secrets: vec![],
                tool: None,
            },
            artifacts: vec![Artifact { name: "echo.py".into(), sha256: HEXLOWER.encode(&Sha256::digest(ECHO)), file }],
            secrets: [("TOKEN".to_owned(), Secret::new(token))].into(),
            logs: LogSink::new(move |line| logs.lock().push(line)),
        }
    }

    async fn function(&self) -> Arc<dyn Function> {
        self.host().load(self.deployment("first")).await.unwrap()
    }

    fn warnings(&self) -> Vec<String> {
        let logs = self.logs.lock();
        logs.iter().filter(|line| line.level == LogLevel::Warn).map(|line| line.message.clone()).collect()
    }

    /// The folders of loads.
    fn loads(&self) -> Vec<PathBuf> {
        let folders = |path: &Path| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.is_dir()).collect()
        };
        folders(&self.work_dir()).iter().flat_map(|host| folders(host)).collect()
    }
}

async fn invoke(function: &Arc<dyn Function>, said: &[&str]) -> Vec<Outcome> {
    let event = |said: &&str| {
        let data = serde_json::to_string(said).unwrap();
        Event::new("1", "/test", EventType::parse("t").unwrap()).with_data("application/json", data)
    };
    let context = Context { emitter: Arc::new(Ignored), views: None, quotas: Arc::default() };
    let invoked = function.invoke(said.iter().map(event).collect(), context);
    tokio::time::timeout(AT_ONCE, invoked).await.expect("every event is answered at once")
}

async fn answer(function: &Arc<dyn Function>, said: &str) -> String {
    let mut outcomes = invoke(function, &[said]).await;
    String::from_utf8(outcomes.remove(0).unwrap().remove(0).data.to_vec()).unwrap()
}

/// Asserts that a mistake of the protocol was made, and that its error quotes `line`.
#[track_caller]
fn assert_mistake(outcome: &Outcome, line: &str) {
    let error = outcome.as_ref().unwrap_err();
    assert_eq!(error.fault, Fault::Invalid, "{line}: {error}");
    assert!(error.message.contains("`echo` broke the process protocol"), "{error}");
    let quote = line.split("ID").max_by_key(|part| part.len()).unwrap();
    assert!(error.message.contains(quote.get(..100).unwrap_or(quote)), "{line}: {error}");
    assert!(error.message.len() < 1000, "{line}: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistaken_line_fails_its_event_at_once_and_the_process_goes_on() {
    let rig = Rig::new();
    let function = rig.function().await;
    for line in [
        r#"{"id":ID}"#,
        r#"{"id":ID,"result":{"words":3}}"#,
        r#"{"type":"b","payload":{"words":3}}"#,
        r#"{"id":ID,"error":"boom"}"#,
        r#"{"id":ID,"events":{"type":"b","data":1}}"#,
        r#"{"id":ID,"events":[{"type":"b","data":NaN}]}"#,
        r#"{"id":"ID","events":[]}"#,
        r#"{"id":1,"events":[]}"#,
        r#"{"id":ID,"events":[],"results":[]}"#,
        r#"{"id":ID,"emit":{"data":1}}"#,
        r#"{"id":ID,"emit":"b"}"#,
        r#"{'id': ID, 'events': []}"#,
        r#"[{"id":ID,"events":[]}]"#,
    ] {
        // Beside events that are answered well, whichever is read first.
        let outcomes = invoke(&function, &[line]).await;
        assert_mistake(&outcomes[0], line);
        let outcomes = invoke(&function, &[RIGHT, line, RIGHT]).await;
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{line}: {outcomes:?}");
        assert_mistake(&outcomes[1], line);
    }
    function.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_longer_than_the_limit_fails_its_event_at_once() {
    let rig = Rig::new();
    let function = rig.function().await;
    let outcomes = invoke(&function, &["long", RIGHT]).await;
    assert!(outcomes[1].is_ok(), "{outcomes:?}");
    let error = outcomes[0].as_ref().unwrap_err();
    assert!(error.fault == Fault::Invalid && error.message.contains("longer than"), "{error}");
    function.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_answer_is_dropped_with_a_warning_and_fails_no_other_event() {
    let rig = Rig::new();
    let function = rig.function().await;
    let twice = "{\"id\":ID,\"events\":[]}\n{\"id\":ID,\"events\":[{\"type\":\"b\",\"data\":\"second\"}]}";
    let outcomes = invoke(&function, &[RIGHT, twice, RIGHT]).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert!(outcomes[1].as_ref().unwrap().is_empty(), "the first answer stands");
    let warnings = rig.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("answer each event once"), "{warnings:?}");
    assert!(warnings[0].contains("second"), "{warnings:?}");
    function.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_and_log_records_on_stdout_fail_nothing() {
    let rig = Rig::new();
    let function = rig.function().await;
    for noise in ["working on it", r#"{"level":"info","msg":"working","id":ID}"#, "{'words': 3}", "[1, 2]"] {
        let outcomes = invoke(&function, &[&format!("{noise}\n{RIGHT}")]).await;
        assert_eq!(outcomes[0].as_ref().unwrap().len(), 1, "{noise}");
    }
    assert_eq!(rig.warnings().len(), 4, "{:?}", rig.warnings());
    function.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_load_of_a_revision_outlives_the_first() {
    let rig = Rig::new();
    let host = rig.host();
    let old = host.load(rig.deployment("first")).await.unwrap();
    let new = host.load(rig.deployment("second")).await.unwrap();
    assert_eq!(rig.loads().len(), 2);
    old.close().await;
    // A child that is started again needs the folder.
    assert_eq!(invoke(&new, &["exit"]).await[0].as_ref().unwrap_err().fault, Fault::Crash);
    assert_eq!(answer(&new, "secret").await, "\"second\"");
    assert_eq!(rig.loads().len(), 1);
    new.close().await;
    assert!(rig.loads().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_of_killed_hosts_are_removed_and_those_of_running_ones_stay() {
    let rig = Rig::new();
    let running = rig.function().await;
    let killed = rig.work_dir().join("host-killed");
    let older = rig.work_dir().join("echo");
    for folder in [killed.join("echo-1-x"), older.join("1")] {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("echo.py"), "").unwrap();
    }
    std::fs::write(killed.join("lock"), "").unwrap();
    let second = rig.function().await;
    assert!(!killed.exists() && !older.exists());
    for function in [&running, &second] {
        assert_eq!(invoke(function, &["exit"]).await[0].as_ref().unwrap_err().fault, Fault::Crash);
        invoke(function, &[RIGHT]).await[0].as_ref().unwrap();
    }
    running.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folder_that_was_removed_is_laid_out_again() {
    let rig = Rig::new();
    let function = rig.function().await;
    let folder: String = serde_json::from_str(&answer(&function, "where").await).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(invoke(&function, &["exit"]).await[0].as_ref().unwrap_err().fault, Fault::Crash);
    assert_eq!(answer(&function, "where").await, format!("\"{folder}\""));
    function.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_that_fails_leaves_no_folder() {
    let rig = Rig::new();
    let host = rig.host();
    let mut deployment = rig.deployment("first");
    deployment.spec.run = RuntimeSpec::Process { command: vec!["no-such-program".into()], source: None };
    assert!(host.load(deployment).await.is_err());
    assert!(rig.loads().is_empty());
}
