//! NATS as others run it: every kind of credentials, TLS, lists of servers, WebSocket, domains, clusters.

use crate::post_event;
use nerve_broker::{KeyPair, jwt};
use nerve_tests::{Cli, Nats, Nerve, Streams, cluster::Cluster, daemon::Daemon, eventually, guest};
use nerve_tests::{nats::free_port, nerve, nerve::Options, seconds, tls::Authority};
use nix::sys::signal::Signal;
use std::path::Path;

/// A secret that nothing may show.
const SECRET: &str = "hunter2-p4ss";

/// Starts `nerve up` on this server with this environment, and sends an event to it; then one by a command with these
/// flags.
async fn serves(url: &str, envs: &[(&str, &str)], flags: &[&str]) {
    let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let nerve = Nerve::up_with(Options { nats: Some(url.to_owned()), envs, ..Options::default() }).await;
    assert_eq!(post_event(&nerve, "a", "1", "{}").await, 202, "{url}");
    Cli::with(flags).run(&["publish", "b", "--data", "{}"]).await.ok();
    let shown = format!("{}{}", nerve.daemon.stdout(), nerve.daemon.stderr());
    assert!(!shown.contains(SECRET), "{shown}");
}

/// Runs `nerve gateway` on this server, which must end at once and say `why`.
async fn is_refused(url: &str, why: &str) {
    let data = tempfile::tempdir().unwrap();
    let mut gateway = Nerve::gateway_before_nats(url, "127.0.0.1:0", data.path());
    let status = gateway.exit(seconds(15)).await;
    let said = gateway.stderr();
    assert!(status.code() == Some(1) && said.contains(why) && !said.contains(SECRET), "{status}: {said}");
    let failed = Cli::with(&["--nats", url]).run(&["list"]).await.failed(1);
    assert!(failed.stderr.contains(why) && !failed.text().contains(SECRET), "{failed:?}");
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn server_that_asks_for_credentials_is_shown_them() {
    let folder = tempfile::tempdir().unwrap();
    let (user, websocket) = (KeyPair::new_user(), free_port());
    let users = format!("{{ user: ada, password: \"{SECRET}\" }}, {{ nkey: {} }}", user.public_key());
    let nats = Nats::configured(&format!(
        "authorization {{ users = [{users}] }}\nwebsocket {{ listen: \"127.0.0.1:{websocket}\", no_tls: true }}\n"
    ))
    .await;
    let (url, seed) = (nats.url(), file(folder.path(), "seed", &user.seed().unwrap()));
    let password = file(folder.path(), "password", &format!("{SECRET}\n"));
    let of_file = ["--nats", &url, "--nats-user", "ada", "--nats-password-file", &password];
    // In the URL, and the first server of a list is away.
    let dead = format!("127.0.0.1:{}", free_port());
    let list = format!("nats://{dead},nats://ada:{SECRET}@{}", nats.address());
    serves(&list, &[], &of_file).await;
    let nkey = [("NERVE_NATS_NKEY_FILE", seed.as_str())];
    serves(&url, &nkey, &["--nats", &url, "--nats-nkey-file", &seed]).await;
    let socket = format!("ws://127.0.0.1:{websocket}");
    let envs = [("NERVE_NATS_USER", "ada"), ("NERVE_NATS_PASSWORD", SECRET)];
    serves(&socket, &envs, &["--nats", &format!("ws://ada:{SECRET}@127.0.0.1:{websocket}")]).await;
    is_refused(&url, "refuses a client without credentials").await;
    is_refused(&format!("nats://ada:wrong-{SECRET}@{}", nats.address()), "refuses this user and password").await;
}

#[tokio::test]
async fn server_with_jwts_is_shown_a_credentials_file() {
    let folder = tempfile::tempdir().unwrap();
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let (system, user) = (KeyPair::new_account(), KeyPair::new_user());
    let accounts = [(&account, "company", true), (&system, "system", false)].map(|(pair, name, stores)| {
        let public = pair.public_key();
        let signed =
            jwt::account(&operator, &jwt::Account { public: &public, name, jetstream: stores, ..<_>::default() })
                .unwrap();
        format!("{public}: \"{signed}\"")
    });
    let nats = Nats::configured(&format!(
        "operator: \"{}\"\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{ {} }}\n",
        jwt::operator(&operator, "company", &system.public_key()).unwrap(),
        system.public_key(),
        accounts.join("\n")
    ))
    .await;
    let signed = jwt::user(&account, &user.public_key(), "nerve", None).unwrap();
    let creds = file(folder.path(), "nerve.creds", &jwt::credentials(&signed, &user.seed().unwrap()));
    let url = nats.url();
    serves(&url, &[("NERVE_NATS_CREDS", &creds)], &["--nats", &url, "--creds", &creds]).await;
    is_refused(&url, "refuses a client without credentials").await;
}

#[tokio::test]
async fn server_with_a_certificate_of_its_own_is_trusted_by_its_ca() {
    let authority = Authority::new();
    authority.sign("server", "localhost");
    authority.sign("client", "nerve");
    let file = |name: &str| authority.path(name);
    let tls = format!("cert_file: {:?}, key_file: {:?}", file("server.pem"), file("server.key"));
    let token = tempfile::tempdir().unwrap();
    let token = self::file(token.path(), "token", SECRET);
    // A token in the clear would be a gift.
    let nats = Nats::configured(&format!("tls {{ {tls} }}\nauthorization {{ token: \"{SECRET}\" }}\n")).await;
    let url = nats.url().replace("127.0.0.1", "localhost");
    let ca = file("ca.pem");
    let envs = [("NERVE_NATS_TLS_CA", ca.as_str()), ("NERVE_NATS_TOKEN_FILE", &token)];
    serves(&url, &envs, &["--nats", &url, "--nats-tls-ca", &ca, "--nats-token-file", &token]).await;
    is_refused(&url, "nats.tls_ca").await;
    // mTLS, which begins before the protocol does.
    let verify = format!("tls {{ {tls}, ca_file: {ca:?}, verify: true, handshake_first: true }}\n");
    let nats = Nats::configured(&verify).await;
    let url = nats.url().replace("nats://127.0.0.1", "tls://localhost");
    let (cert, key) = (file("client.pem"), file("client.key"));
    let mutual = [("NERVE_NATS_TLS_CLIENT_CERT", cert.as_str()), ("NERVE_NATS_TLS_CLIENT_KEY", &key)];
    let envs = [mutual[0], mutual[1], ("NERVE_NATS_TLS_CA", &ca), ("NERVE_NATS_TLS_FIRST", "true")];
    let flags = ["--nats-tls-ca", &ca, "--nats-tls-client-cert", &cert, "--nats-tls-client-key", &key];
    serves(&url, &envs, &[&["--nats", &url, "--nats-tls-first"], &flags[..]].concat()).await;
}

#[tokio::test]
async fn jetstream_of_another_domain_is_used_behind_a_leaf_node() {
    let leaves = free_port();
    let hub =
        format!("jetstream {{ store_dir: STORE, domain: hub }}\nleafnodes {{ listen: \"127.0.0.1:{leaves}\" }}\n");
    let hub = Nats::exactly(&hub).await;
    let remotes = format!("leafnodes {{ remotes: [{{ url: \"nats://127.0.0.1:{leaves}\" }}] }}\n");
    let leaf = Nats::exactly(&format!("server_name: leaf\n{remotes}")).await;
    let url = leaf.url();
    serves(&url, &[("NERVE_NATS_DOMAIN", "hub")], &["--nats", &url, "--nats-domain", "hub"]).await;
    let envs = vec![("NERVE_NATS_DOMAIN".to_owned(), "hub".to_owned())];
    let nerve = Nerve::up_with(Options { nats: Some(url.clone()), envs, ..Options::default() }).await;
    let cli = Cli::with(&["--nats", &url, "--nats-domain", "hub"]);
    cli.deploy(guest::wasm("echo", "events.asked", "told", "", &guest::echo("told")).path()).await;
    assert_eq!(post_event(&nerve, "asked", "2", "{}").await, 202);
    let streams = Streams::connect(&hub.url()).await;
    streams.reaches("EVENTS", "events.told", 1, seconds(20)).await;
}

#[tokio::test]
async fn server_that_starts_before_its_broker_waits_for_it() {
    let data = tempfile::tempdir().unwrap();
    let (port, listen) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let url = format!("nats://127.0.0.1:{port}");
    let mut gateway = Nerve::gateway_before_nats(&url, &listen, data.path());
    let answered =
        async |path: &str| Some(reqwest::get(format!("http://{listen}{path}")).await.ok()?.status().as_u16());
    let lives = eventually("it answers that it lives", seconds(10), || answered("/healthz")).await;
    assert_eq!((lives, answered("/readyz").await), (200, Some(503)));
    // One that waits ends when it is asked to.
    let other = tempfile::tempdir().unwrap();
    let mut asked = Nerve::gateway_before_nats(&url, "127.0.0.1:0", other.path());
    let waits = |daemon: &Daemon| daemon.stderr().contains(&format!("waiting for NATS at {url}")).then_some(());
    eventually("it says what it waits for", seconds(10), || std::future::ready(waits(&asked))).await;
    asked.signal(Signal::SIGTERM);
    assert!(asked.exit(seconds(5)).await.success());
    let _nats = Nats::on_port(port).await;
    gateway.line(seconds(20), |line| line.contains("\"gateway\"").then_some(())).await;
    assert_eq!(answered("/readyz").await, Some(200));
    assert_eq!(gateway.stderr().matches("waiting for NATS").count(), 1, "{}", gateway.stderr());
}

#[tokio::test]
async fn replicas_change_all_that_is_stored_and_a_server_may_be_down() {
    let mut cluster = Cluster::start().await;
    let list = cluster.urls();
    let up = async |replicas: &str| {
        let envs = vec![("NERVE_STREAMS_REPLICAS".to_owned(), replicas.to_owned())];
        Nerve::up_with(Options { nats: Some(list.clone()), envs, ..Options::default() }).await
    };
    let replicas = async |cluster: &Cluster| {
        use futures::TryStreamExt;
        let streams = cluster.streams().await;
        let all: Vec<_> = streams.jetstream.streams().try_collect().await.expect("all streams");
        let mut all: Vec<_> = all.into_iter().map(|info| (info.config.name, info.config.num_replicas)).collect();
        all.sort();
        all
    };
    let mut nerve = up("1").await;
    assert_eq!(post_event(&nerve, "a", "1", "{}").await, 202);
    let before = replicas(&cluster).await;
    assert!(before.len() >= 16 && before.iter().all(|(_, replicas)| *replicas == 1), "{before:?}");
    assert!(nerve.sigterm(seconds(30)).await.success());
    let nerve = up("3").await;
    let after = replicas(&cluster).await;
    assert!(after.len() == before.len() && after.iter().all(|(_, replicas)| *replicas == 3), "{after:?}");
    // One goes while it runs, and is still away at the next start. The others have its messages by then.
    let streams = cluster.streams().await;
    eventually("every stream is replicated", seconds(30), || async {
        for (stream, _) in &after {
            let info = streams.jetstream.get_stream(stream).await.ok()?;
            let replicas = info.cached_info().cluster.as_ref()?.replicas.clone();
            (replicas.len() == 2 && replicas.iter().all(|replica| replica.current)).then_some(())?;
        }
        Some(())
    })
    .await;
    cluster.kill9(0);
    let accepted = async || (post_event(&nerve, "a", "2", "{}").await == 202).then_some(());
    eventually("an event is accepted by the servers that are left", seconds(30), accepted).await;
    drop(nerve);
    let nerve = up("3").await;
    let accepted = async || (post_event(&nerve, "a", "3", "{}").await == 202).then_some(());
    eventually("an event is accepted after a start without one", seconds(30), accepted).await;
}

#[tokio::test]
async fn nats_without_jetstream_or_tls_ends_a_server_at_once() {
    let nats = Nats::exactly("").await;
    is_refused(&nats.url(), "runs without JetStream").await;
    is_refused(&nats.url().replace("nats://", "tls://"), "does not speak TLS on this port").await;
}

#[tokio::test]
async fn credentials_in_a_url_are_shown_nowhere() {
    let url = format!("nats://ada:{SECRET}@127.0.0.1:{}", free_port());
    for format in ["text", "json"] {
        let away = Cli::with(&["--nats", &url]).run(&["list", "--output", format]).await.failed(1);
        assert!(away.stderr.contains("127.0.0.1") && !away.text().contains(SECRET), "{away:?}");
    }
    let wrong = Cli::with(&["--nats", &format!("{url}:port")]).run(&["list"]).await.failed(2);
    assert!(!wrong.text().contains(SECRET), "{wrong:?}");
    let nerve = Nerve::up().await;
    let away = format!("http://ada:{SECRET}@127.0.0.1:{}/", free_port());
    let manifest = format!(
        "[function.away]\nruntime = \"http\"\nurl = \"{away}\"\non = [\"events.a\"]\nretry = {{ attempts = 1 }}\n"
    );
    let folder = nerve_tests::Folder::new(&manifest);
    let mut shown = vec![nerve.cli().deploy(folder.path()).await];
    post_event(&nerve, "a", "1", "{}").await;
    Streams::connect(&nerve.nats).await.reaches("DEAD", "dead.away", 1, seconds(20)).await;
    let commands: [&[&str]; 5] =
        [&["list"], &["describe", "away"], &["logs", "away"], &["dlq", "list"], &["dlq", "show", "1"]];
    for command in commands {
        for format in ["text", "json"] {
            shown.push(nerve.cli().run(&[command, &["--output", format]].concat()).await.ok());
        }
    }
    let all = format!("{shown:#?}");
    assert!(all.contains("http://***@127.0.0.1") && all.contains("could not be asked"), "{all}");
    assert!(!all.contains(SECRET) && !nerve.daemon.stderr().contains(SECRET), "{all}{}", nerve.daemon.stderr());
}

#[tokio::test]
async fn wrong_settings_are_named_without_their_secrets() {
    let token = [("NERVE_NATS_TOKEN", SECRET), ("NERVE_NATS_USER", "ada"), ("NERVE_NATS_PASSWORD", SECRET)];
    let mut command = nerve::command(["worker", "--nats", "127.0.0.1:1"]);
    let refused = nerve::call(
        {
            command.envs(token);
            command
        },
        "",
    )
    .await
    .failed(1);
    assert!(refused.stderr.contains("nats.user and nats.token"), "{refused:?}");
    assert!(!refused.text().contains(SECRET), "{refused:?}");
}
