//! `nerve models`, and what is refused at deploy.

use nerve_tests::{
    Folder, Nerve, eventually,
    models::{copy_folder, fixture, spoil},
    nerve::Options,
    seconds,
};
use serde_json::{Value, json};
use std::{fs, path::Path};

#[tokio::test]
async fn models_are_added_listed_and_removed() {
    let nerve = Nerve::up().await;
    let none = nerve.cli().run(&["models", "list"]).await.ok();
    assert!(none.stdout.contains("nerve models add"), "{none:?}");
    let folder = fixture("cross-encoder").display().to_string();
    let added = nerve.cli().run(&["models", "add", &folder, "--name", "judge"]).await.ok();
    assert!(added.stdout.contains("added judge: rerank, 64 tokens"), "{added:?}");
    let again = nerve.cli().run(&["models", "add", &folder, "--name", "judge"]).await.ok();
    assert!(again.stdout.contains("nothing changed"), "{again:?}");
    let file = fixture("mixed").join("model.onnx").display().to_string();
    nerve.cli().run(&["models", "add", &file, "--name", "triage"]).await.ok();
    let listed = nerve.cli().run(&["models", "list", "--output", "json"]).await.ok().json();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|model| model["name"].clone()).collect();
    assert_eq!(names, ["judge", "triage"]);
    let replaced = fixture("classifier").display().to_string();
    let replaced = nerve.cli().run(&["models", "add", &replaced, "--name", "judge"]).await.ok();
    assert!(replaced.stdout.contains("replaced judge: classify, 3 labels"), "{replaced:?}");
    nerve.cli().run(&["models", "remove", "judge"]).await.ok();
    let gone = nerve.cli().run(&["models", "remove", "judge"]).await.failed(1);
    assert!(gone.stderr.contains("model `judge` is not installed"), "{gone:?}");
}

#[tokio::test]
async fn a_model_that_a_function_runs_is_not_removed() {
    let nerve = Nerve::up().await;
    let folder = fixture("classifier").display().to_string();
    nerve.cli().run(&["models", "add", &folder, "--name", "mood"]).await.ok();
    let table = "[function.label]\nruntime = \"builtin\"\nuse = \"onnx/score\"\nmodel = \"mood\"\n\
                 on = [\"events.said\"]\nemits = [\"labeled\"]\n";
    nerve.cli().deploy(Folder::new(table).path()).await;
    let refused = nerve.cli().run(&["models", "remove", "mood"]).await.failed(1);
    assert!(refused.stderr.contains("label"), "{refused:?}");
    nerve.cli().run(&["remove", "label"]).await.ok();
    nerve.cli().run(&["models", "remove", "mood"]).await.ok();
}

#[tokio::test]
async fn classify_gives_a_cluster_its_own_distance() {
    let nerve = Nerve::up().await;
    nerve.cli().run(&["models", "add", &fixture("kmeans").display().to_string()]).await.ok();
    let wanted: Value = serde_json::from_slice(&fs::read(fixture("kmeans").join("expected.json")).unwrap()).unwrap();
    let body = json!({"model": "kmeans", "features": wanted["inputs"]["X"]});
    let answer = eventually("the gateway knows the model", seconds(10), || async {
        let answer = reqwest::Client::new().post(nerve.url("/v1/classify")).json(&body).send().await.unwrap();
        (answer.status() == 200).then_some(answer)
    });
    let answer: Value = answer.await.json().await.unwrap();
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 20);
    for (index, sample) in data.iter().enumerate() {
        let labels = sample["labels"].as_array().unwrap();
        let mut clusters: Vec<usize> =
            labels.iter().map(|label| label["label"].as_str().unwrap().parse().unwrap()).collect();
        for (cluster, label) in clusters.iter().zip(labels) {
            let distance = wanted["probabilities"][index][*cluster].as_f64().unwrap();
            assert!((label["score"].as_f64().unwrap() - distance).abs() < 1e-4, "{sample}");
        }
        assert_eq!(sample["label"], wanted["label"][index].to_string(), "{sample}");
        assert_eq!((&sample["label"], &sample["score"]), (&labels[0]["label"], &labels[0]["score"]));
        clusters.sort_unstable();
        assert_eq!(clusters, [0, 1, 2], "each label once: {sample}");
    }
}

async fn refused(nerve: &Nerve, folder: &Path, said: &[&str]) {
    let path = folder.display().to_string();
    let added = nerve.cli().run(&["models", "add", &path, "--name", "bad"]).await.failed(1);
    let table = "[function.bad]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\nmodel = \"./model\"\n\
                 on = [\"events.a\"]\nemits = [\"b\"]\n";
    let beside = Folder::new(table);
    copy_folder(folder, &beside.file("model"));
    let deployed = nerve.cli().run(&["deploy", &beside.path().display().to_string()]).await.failed(1);
    for output in [added, deployed] {
        assert!(said.iter().all(|said| output.stderr.contains(said)), "{said:?} in {}", output.stderr);
    }
    let listed = nerve.cli().run(&["models", "list", "--output", "json"]).await.ok().json();
    assert_eq!(listed, json!([]), "nothing was changed");
}

#[tokio::test]
async fn what_is_no_model_is_refused_at_deploy() {
    let nerve = Nerve::up().await;
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixture("pooling-cls"), folder.path());
    let graph = folder.path().join("model.onnx");
    fs::write(&graph, "<html>not found</html>").unwrap();
    refused(&nerve, folder.path(), &["model.onnx cannot be used", "not an ONNX model"]).await;
    copy_folder(&fixture("pooling-cls"), folder.path());
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    refused(&nerve, folder.path(), &["no tokenizer.json", "save the model's fast tokenizer beside it"]).await;
    copy_folder(&fixture("pooling-cls"), folder.path());
    spoil(&graph, "token_type_ids", "pixel_values__");
    refused(&nerve, folder.path(), &["requires the input `pixel_values__`"]).await;
    // Only ONNX Runtime knows which operators it has.
    copy_folder(&fixture("pooling-cls"), folder.path());
    spoil(&graph, "Softmax", "Softmix");
    refused(&nerve, folder.path(), &["ONNX Runtime cannot load the model", "Softmix"]).await;
    copy_folder(&fixture("pooling-cls"), folder.path());
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    refused(&nerve, folder.path(), &["tokenizer.json cannot be used"]).await;
}

#[tokio::test]
async fn options_that_a_model_does_not_take_are_refused_at_deploy() {
    let nerve = Nerve::up().await;
    for (with, said) in [
        ("with = { dimensions = 999 }", "this model's vectors have 384"),
        ("with = { dimension = 9 }", "unknown field `dimension`"),
        ("with = { keep = 9 }", "sparse"),
        ("with = { carry = [\"embedding\"] }", "a field of the result"),
    ] {
        let table = format!(
            "[function.bad]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\non = [\"events.a\"]\nemits = [\"b\"]\n{with}\n"
        );
        let folder = Folder::new(&table);
        let output = nerve.cli().run(&["deploy", &folder.path().display().to_string()]).await.failed(1);
        assert!(output.stderr.contains(said), "{with}: {}", output.stderr);
    }
}

#[tokio::test]
async fn a_workers_files_of_a_removed_model_are_evicted() {
    let data = tempfile::tempdir().unwrap();
    let nerve = Nerve::up_with(Options { data: Some(data.path().to_owned()), ..Options::default() }).await;
    let folder = fixture("classifier").display().to_string();
    nerve.cli().run(&["models", "add", &folder]).await.ok();
    let classify = || async {
        let body = json!({"model": "classifier", "input": "good"});
        let answer = reqwest::Client::new().post(nerve.url("/v1/classify")).json(&body).send().await.unwrap();
        answer.status().as_u16()
    };
    eventually("the gateway knows the model", seconds(10), || async { (classify().await == 200).then_some(()) }).await;
    let kept = || fs::read_dir(data.path().join("artifacts")).map_or(0, Iterator::count);
    assert!(kept() > 0);
    nerve.cli().run(&["models", "remove", "classifier"]).await.ok();
    eventually("its files are gone", seconds(20), || async { (kept() == 0).then_some(()) }).await;
    assert_eq!(classify().await, 404);
}

const EMBED: &str = "[function.embed]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\non = [\"events.doc\"]\n\
                     emits = [\"doc.embedded\"]\nretry = { attempts = 100, backoff = [\"200ms\"] }\n";

#[tokio::test]
async fn without_onnx_runtime_nerve_starts_says_so_and_loses_nothing() {
    let data = tempfile::tempdir().unwrap();
    let missing = [("NERVE_ONNX_LIBRARY".to_owned(), "/no/such/libonnxruntime.so".to_owned())];
    let options = Options { data: Some(data.path().to_owned()), envs: missing.to_vec(), ..Options::default() };
    let mut nerve = Nerve::up_with(options).await;
    eventually("it is said", seconds(10), || async {
        let said = nerve.daemon.stderr();
        let all = ["cannot run models", "/no/such/libonnxruntime.so", "make setup", "NERVE_ONNX_LIBRARY"];
        all.iter().all(|word| said.contains(word)).then_some(())
    })
    .await;
    let body = json!({"input": "a"});
    let answer = reqwest::Client::new().post(nerve.url("/v1/embeddings")).json(&body).send().await.unwrap();
    let (status, message) = crate::openai_error(answer).await;
    assert!(status == 503 && message.contains("make setup"), "{message}");
    nerve.cli().deploy(Folder::new(EMBED).path()).await;
    assert_eq!(crate::post_event(&nerve, "doc", "1", r#"{"text": "a"}"#).await / 100, 2);
    assert!(nerve.sigterm(seconds(20)).await.success());
    drop(nerve);

    let nerve = Nerve::up_with(Options { data: Some(data.path().to_owned()), ..Options::default() }).await;
    let streams = nerve_tests::Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.doc.embedded", 1, seconds(20)).await;
}

#[tokio::test]
async fn an_older_onnx_runtime_is_told_with_both_versions_and_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("old.c"), folder.path().join("libonnxruntime.so"));
    let old = r#"
        static const void *api(unsigned version) { return version > 20 ? (const void *)0 : (const void *)1; }
        static const char *version(void) { return "1.20.1"; }
        static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { api, version };
        const void *OrtGetApiBase(void) { return &base; }
    "#;
    fs::write(&source, old).unwrap();
    let compiled = std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(compiled.expect("cc, which links Rust too").success());
    let envs = vec![("NERVE_ONNX_LIBRARY".to_owned(), library.display().to_string())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    eventually("both versions are named", seconds(10), || async {
        let said = nerve.daemon.stderr();
        let all = ["is ONNX Runtime 1.20.1, but 1.31.1 or newer is required", "pip install onnxruntime==1.31.1"];
        all.iter().all(|word| said.contains(word)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_the_default_model_nerve_starts_and_says_how_to_get_it() {
    // A copy of the binary elsewhere has no checkout around it.
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("nerve");
    fs::copy(nerve_tests::nerve_binary(), &binary).unwrap();
    let mut command = std::process::Command::new(&binary);
    command.args(["up", "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", "--output", "json", "--data"]);
    command.arg(folder.path().join("data")).current_dir(folder.path());
    command.env("NERVE_NATS_SERVER", nerve_tests::nats_server_binary()).env_remove("ORT_DYLIB_PATH");
    let mut daemon = nerve_tests::daemon::Daemon::spawn("nerve", &mut command);
    daemon.line(seconds(30), |line| line.contains("gateway").then_some(())).await;
    eventually("both are named", seconds(10), || async {
        let said = daemon.stderr();
        let all = ["ONNX Runtime not found", "all-MiniLM-L6-v2", "make setup", "nerve models add"];
        all.iter().all(|word| said.contains(word)).then_some(())
    })
    .await;
}
