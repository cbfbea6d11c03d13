//! The nats-server of `nerve up`: who may use it, and for what.

use crate::{post_event, up_with_github};
use async_nats::jetstream::{self, stream};
use futures::StreamExt;
use nerve_tests::{Broker, nerve_binary, tls::SelfSigned};
use nerve_tests::{Cli, Nerve, Streams, broker::OfNerve, eventually, guest, nerve, nerve::Options, seconds};
use serde_json::Value;
use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

/// The broker of a `nerve up` in another role than the operator's.
fn role(nerve: &Nerve, name: &str) -> OfNerve {
    let operator = nerve.nats.credentials.as_deref().expect("the ready line names the operator's credentials");
    OfNerve { credentials: Some(operator.with_file_name(format!("{name}.creds"))), ..nerve.nats.clone() }
}

/// `nerve ARGS…` as a user who has no rights on this machine.
fn as_nobody(binary: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(binary).args(args);
    command.env_clear().env("NO_COLOR", "1").env("PATH", "/usr/bin:/bin").current_dir("/");
    command
}

#[tokio::test]
async fn another_user_of_the_machine_can_do_nothing() {
    let nerve = Nerve::up().await;
    assert_eq!(post_event(&nerve, "a", "1", r#"{"private": true}"#).await, 202);
    // Where that user can read: the binary, and what it wants to deploy.
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    open(folder.path(), 0o755);
    let binary = folder.path().join("nerve");
    std::fs::copy(nerve_binary(), &binary).unwrap();
    open(&binary, 0o755);
    let manifest = folder.path().join("nerve.toml");
    let process = "[function.evil]\nruntime = \"process\"\ncommand = [\"id\"]\non = [\"events.a\"]\n";
    std::fs::write(&manifest, process).unwrap();
    open(&manifest, 0o644);
    let (url, data) = (nerve.nats.url.as_str(), nerve.data());
    let deploy = folder.path().display().to_string();
    let commands: [&[&str]; 4] =
        [&["deploy", &deploy], &["tail", "--from", "first"], &["publish", "a", "--data", "{}"], &["secrets", "list"]];
    for command in commands {
        for found in [("NERVE_NATS_URL", url), ("NERVE_DATA_DIR", data)] {
            let mut call = as_nobody(&binary, command);
            call.env(found.0, found.1);
            let refused = nerve::call(call, "").await.failed(1);
            let says = ["refuses a client without credentials", "Permission denied", "cannot be read"];
            assert!(says.iter().any(|text| refused.stderr.contains(text)), "{command:?} {found:?}: {refused:?}");
            assert!(!refused.stdout.contains("private"), "{refused:?}");
        }
    }
    assert!(async_nats::connect(url).await.is_err(), "nobody connects without credentials");
    let mut files = vec![PathBuf::from(data)];
    while let Some(path) = files.pop() {
        let mode = std::fs::metadata(&path).unwrap().mode() & 0o077;
        let secret = path.ends_with("nats") || path.starts_with(Path::new(data).join("nats"));
        assert!(mode == 0 || !secret, "{}: {mode:o}", path.display());
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

/// What the gateway answers a user who has no rights on this machine.
async fn http_as_nobody(nerve: &Nerve, method: &str, path: &str, body: &str) -> String {
    let (_, address) =
        nerve.url("").split_once("://").map(|(scheme, rest)| (scheme.to_owned(), rest.to_owned())).unwrap();
    let (host, port) = address.trim_end_matches('/').rsplit_once(':').unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\nContent-Type: application/cloudevents+json\\r\\n\
         Content-Length: {}\\r\\n\\r\\n",
        body.len()
    );
    let script = format!(
        "exec 3<>/dev/tcp/{host}/{port}; printf '{head}' >&3; printf '%s' '{body}' >&3; timeout 10 head -n 100 <&3"
    );
    nerve::call(as_nobody(Path::new("bash"), &["-c", &script]), "").await.stdout
}

#[tokio::test]
async fn another_user_of_the_machine_reads_and_publishes_nothing_without_a_key() {
    let event = r#"{"specversion":"1.0","id":"2","source":"/s","type":"a","data":1}"#;
    let nerve = Nerve::up().await;
    assert_eq!(post_event(&nerve, "a", "1", r#"{"private": true}"#).await, 202);
    for (method, path, body) in [
        ("GET", "/v1/events?from=first", ""),
        ("POST", "/v1/events", event),
        ("GET", "/v1/functions", ""),
        ("POST", "/v1/functions/f/invoke", "{}"),
        ("GET", "/metrics", ""),
        ("POST", "/v1/documents", "text"),
    ] {
        let refused = http_as_nobody(&nerve, method, path, body).await;
        assert!(
            refused.starts_with("HTTP/1.1 403") && refused.contains("the request is of user 65534"),
            "{path}: {refused}"
        );
        assert!(!refused.contains("private"), "{path}: {refused}");
    }
    assert!(http_as_nobody(&nerve, "GET", "/healthz", "").await.starts_with("HTTP/1.1 200"));
    assert_eq!(Streams::connect(&nerve.nats).await.count("EVENTS", ">").await, 1);
    let envs = vec![("NERVE_GATEWAY_LOCAL_USERS".to_owned(), "all".to_owned())];
    let open = Nerve::up_with(Options { envs, ..Options::default() }).await;
    assert!(http_as_nobody(&open, "POST", "/v1/events", event).await.starts_with("HTTP/1.1 202"));
}

#[tokio::test]
async fn app_has_its_own_streams_and_none_of_nerves_keys() {
    let nerve = up_with_github().await;
    let app = nerve_tests::broker::client(&role(&nerve, "app")).await.unwrap();
    let credentials = role(&nerve, "app").credentials().unwrap().to_owned();
    let (mut denied, denials) = {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let options = async_nats::ConnectOptions::with_credentials_file(&credentials);
        let options = options.await.unwrap().event_callback(move |event| {
            let _ = sender.send(event.to_string());
            std::future::ready(())
        });
        (receiver, options.connect(&nerve.nats.url).await.unwrap())
    };
    let jetstream = jetstream::new(app.clone());
    // Its own streams, and events.
    let orders = stream::Config { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..<_>::default() };
    jetstream.create_stream(orders).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    for (name, value) in [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/app"), ("ce-type", "asked")] {
        headers.insert(name, value);
    }
    jetstream.publish_with_headers("events.asked", headers, "{}".into()).await.unwrap().await.unwrap();
    let consumer = jetstream.get_stream("ORDERS").await.unwrap();
    let consumer = consumer.create_consumer(jetstream::consumer::pull::Config::default()).await.unwrap();
    // A function may be bound to its stream.
    nerve.cli().deploy(guest::wasm("taker", "orders.>", "order.taken", "", &guest::echo("order.taken")).path()).await;
    jetstream.publish("orders.1", "{}".into()).await.unwrap().await.unwrap();
    let mut messages = consumer.fetch().max_messages(1).messages().await.unwrap();
    messages.next().await.unwrap().unwrap().double_ack().await.unwrap();
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.order.taken", 1, seconds(20)).await;
    // Everything that is Nerve's.
    let before = streams.count("KV_functions", ">").await;
    let closed = [
        "$KV.functions.function.evil",
        "$KV.secrets.GITHUB_WEBHOOK_SECRET",
        "$O.artifacts.C.x",
        "nerve.invoke.taker",
        "nerve.cancel",
        "events.control.retry_requested",
        "dead.taker",
        "answers.x",
        "$JS.API.STREAM.MSG.GET.KV_secrets",
        "$JS.API.DIRECT.GET.KV_secrets.$KV.secrets.GITHUB_WEBHOOK_SECRET",
        "$JS.API.CONSUMER.CREATE.KV_secrets.x",
        "$JS.API.CONSUMER.DURABLE.CREATE.KV_secrets.x",
        "$JS.API.CONSUMER.MSG.NEXT.EVENTS.nerve-taker",
        "$JS.API.CONSUMER.DELETE.EVENTS.nerve-taker",
        "$JS.API.STREAM.DELETE.EVENTS",
        "$JS.ACK._.hash.EVENTS.nerve-taker.1.1.1.1.0",
        "$JS.API.STREAM.PURGE.KV_functions",
    ];
    for subject in closed {
        denials.publish(subject, "{}".into()).await.unwrap();
        denials.flush().await.unwrap();
        is_denied(&mut denied, subject).await;
    }
    for subject in ["$KV.secrets.>", "nerve.invoke.*", "_NERVE.>"] {
        let _subscription = denials.subscribe(subject).await.unwrap();
        denials.flush().await.unwrap();
        is_denied(&mut denied, subject).await;
    }
    assert_eq!(streams.count("KV_functions", ">").await, before);
}

async fn is_denied(events: &mut tokio::sync::mpsc::UnboundedReceiver<String>, subject: &str) {
    let denied = async {
        while let Some(event) = events.recv().await {
            if event.to_lowercase().contains("permissions violation") && event.contains(&format!("\"{subject}\"")) {
                return;
            }
        }
        panic!("the connection ended");
    };
    tokio::time::timeout(seconds(5), denied).await.unwrap_or_else(|_| panic!("{subject} is not denied"));
}

#[tokio::test]
async fn gateway_and_worker_apart_do_their_work_and_deploy_nothing() {
    let envs = vec![("NERVE_SECRETS_KEY".to_owned(), nerve::SECRETS_KEY.to_owned())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let folder = tempfile::tempdir().unwrap();
    let gateway_creds = role(&nerve, "gateway").credentials().unwrap().display().to_string();
    let gateway = Nerve::gateway_with(&nerve.nats.url, &[("NERVE_NATS_CREDS", &gateway_creds)]).await;
    let worker_creds = role(&nerve, "worker").credentials().unwrap().display().to_string();
    let envs = [("NERVE_NATS_CREDS", worker_creds.as_str())];
    let _worker = nerve::worker_with(&nerve.nats.url, folder.path(), &envs).await;
    nerve.cli().deploy(guest::wasm("echo", "events.a", "b", "", &guest::echo("b")).path()).await;
    for n in 0..20 {
        assert_eq!(post_event(&gateway, "a", &n.to_string(), "{}").await, 202);
    }
    Streams::connect(&nerve.nats).await.reaches("EVENTS", "events.b", 20, seconds(20)).await;
    let other = guest::wasm("other", "events.a", "b", "", &guest::echo("b"));
    // Each waits for an answer that does not come.
    let path = other.path().display().to_string();
    let deployed = ["gateway", "worker", "app"].map(|name| {
        let cli = Cli::new(&role(&nerve, name));
        let path = path.clone();
        async move { cli.run(&["deploy", &path]).await.failed(1) }
    });
    for refused in futures::future::join_all(deployed).await {
        assert!(refused.stderr.contains("Permissions Violation"), "{refused:?}");
    }
    let listed: Value = nerve.cli().run(&["list", "--output", "json"]).await.ok().json();
    assert_eq!(listed["functions"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[tokio::test]
async fn commands_find_the_operators_credentials_by_the_data_folder() {
    let nerve = Nerve::up().await;
    let on_data = Cli::with(&["--data", nerve.data()]);
    on_data.run(&["list"]).await.ok();
    on_data.run(&["list", "--nats", &nerve.nats.url]).await.ok();
    let context: Value = on_data.run(&["nats", "context"]).await.ok().json();
    assert_eq!(context["url"], nerve.nats.url.as_str());
    let creds = context["creds"].as_str().unwrap();
    assert!(creds.ends_with("app.creds") && Path::new(creds).is_file(), "{context}");
    let exported = on_data.run(&["nats", "context", "--env", "--role", "operator"]).await.ok().stdout;
    let operator = nerve.nats.credentials.as_ref().unwrap().display().to_string();
    assert!(exported.contains(&format!("export NATS_CREDS='{operator}'")), "{exported}");
}

#[tokio::test]
async fn rotated_credentials_replace_the_old_ones_at_once() {
    let nerve = Nerve::up().await;
    let app = role(&nerve, "app");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.creds");
    std::fs::copy(app.credentials().unwrap(), &copy).unwrap();
    let old = OfNerve { credentials: Some(copy), ..app.clone() };
    nerve_tests::broker::client(&old).await.unwrap();
    let on_data = Cli::with(&["--data", nerve.data()]);
    let nats_server = nerve.nats_child();
    let rotated = on_data.run(&["access", "rotate", "app", "gateway", "--output", "json"]).await.ok().json();
    assert_eq!(rotated, serde_json::json!({"rotated": ["app", "gateway"], "applied": true}));
    assert!(nerve_tests::broker::client(&old).await.is_err(), "the copy is refused");
    nerve_tests::broker::client(&app).await.unwrap();
    let accepted = async || (post_event(&nerve, "a", "1", "{}").await == 202).then_some(());
    eventually("the gateway connects with its new ones", seconds(20), accepted).await;
    assert_eq!(nerve.nats_child(), nats_server, "it takes them while it runs");
}

#[tokio::test]
async fn network_is_listened_on_with_tls_only() {
    let certificate = SelfSigned::of("nerve.example");
    let data = tempfile::tempdir().unwrap();
    let data = data.path().display().to_string();
    let args = ["up", "--data", &data, "--listen", "127.0.0.1:0", "--nats-listen", "0.0.0.0:0"];
    let refused = nerve::call(nerve::command(args), "").await.failed(1);
    assert!(refused.stderr.contains("0.0.0.0") && refused.stderr.contains("--nats-tls-cert"), "{refused:?}");
    let nerve = Nerve::up_with_nats_tls("0.0.0.0:0", &certificate).await;
    assert!(nerve.nats.url.starts_with("tls://127.0.0.1:"), "{}", nerve.nats.url);
    assert_eq!(post_event(&nerve, "a", "1", "{}").await, 202);
    Cli::with(&["--data", nerve.data()]).run(&["list"]).await.ok();
    // Another machine's client trusts the certificate, and the name in it.
    let other = Cli::with(&["--nats", &nerve.nats.url, "--nats-tls-ca", &certificate.cert]).run(&["list"]).await;
    assert!(other.failed(1).stderr.contains("TLS"));
}

#[tokio::test]
async fn killed_broker_comes_back_with_the_same_credentials() {
    let mut nerve = Nerve::up_with(Options::default()).await;
    let credentials = std::fs::read_to_string(nerve.nats.credentials.as_ref().unwrap()).unwrap();
    nix::sys::signal::kill(nerve.nats_child(), nix::sys::signal::Signal::SIGKILL).unwrap();
    let accepted = async || (post_event(&nerve, "a", "1", "{}").await == 202).then_some(());
    eventually("an event is accepted again", seconds(20), accepted).await;
    nerve.restart().await;
    let again = std::fs::read_to_string(nerve.nats.credentials.as_ref().unwrap()).unwrap();
    let seed = |text: &str| text.lines().find(|line| line.starts_with("SU")).map(str::to_owned);
    assert!(seed(&credentials).is_some() && seed(&credentials) == seed(&again));
    assert_eq!(Streams::connect(&nerve.nats).await.count("EVENTS", "events.a").await, 1);
}
