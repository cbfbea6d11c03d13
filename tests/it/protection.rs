//! What a gateway lets nobody do to it: post too much, too fast, too slowly, from elsewhere, or as somebody else.

use crate::{problem, source_is_served};
use futures::StreamExt;
use nerve_tests::{
    Folder, Nerve, Script, Streams, eventually,
    github::{self, SECRET, SOURCE},
    nerve::Options,
    seconds,
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{Signal, kill},
};
use serde_json::{Value, json};
use std::{io, net::SocketAddr, process::Command, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A `nerve up` with GitHub's source and these lines in its table.
async fn up_with(lines: &str, envs: &[(&str, &str)]) -> Nerve {
    let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    nerve.cli().secret("GITHUB_WEBHOOK_SECRET", SECRET).await;
    nerve.cli().deploy(Folder::new(&format!("{SOURCE}{lines}\n")).path()).await;
    nerve
}

async fn send(nerve: &Nerve, id: &str) -> reqwest::Response {
    let body = format!(r#"{{"n":"{id}"}}"#);
    github::delivery(&nerve.url("/hooks/github"), "ping", id, body).send().await.expect("an answer")
}

#[tokio::test]
async fn a_rate_counts_what_is_verified_and_new_and_garbage_uses_none_of_it_up() {
    let nerve = up_with("rate = \"3/h\"", &[]).await;
    source_is_served(&nerve, "github").await;
    for n in 0..20 {
        let forged = github::unsigned(&nerve.url("/hooks/github"), "ping", &n.to_string());
        let forged = forged.header("X-Hub-Signature-256", github::signature("another", b"{}")).body("{}");
        assert_eq!(forged.send().await.unwrap().status(), 401);
    }
    for id in ["a", "a", "a", "a", "b", "c", "a"] {
        assert_eq!(send(&nerve, id).await.status(), 202, "{id}: what is known uses none of it up");
    }
    let over = send(&nerve, "d").await;
    let wait: u64 = over.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=1200).contains(&wait), "a third of an hour at most: {wait}");
    let (status, document) = problem(over).await;
    assert!(status == 429 && document["detail"].as_str().unwrap().contains("`rate`"), "{document}");
    assert_eq!(Streams::connect(&nerve.nats).await.count("EVENTS", "events.github.>").await, 3);
    // More is allowed by deploying it.
    nerve.cli().deploy(Folder::new(&format!("{SOURCE}rate = \"100/s\"\n")).path()).await;
    eventually("the new rate counts", seconds(20), || async {
        (send(&nerve, "e").await.status() == 202).then_some(())
    })
    .await;
    let listed = nerve.cli().run(&["source", "list", "--output", "json"]).await.ok().json();
    assert_eq!(listed[0]["rate"], "100/s");
}

#[tokio::test]
async fn no_more_of_a_source_are_stored_at_once_than_it_says() {
    let nerve = up_with("concurrency = 1", &[]).await;
    source_is_served(&nerve, "github").await;
    let nats = nerve.nats_child();
    kill(nats, Signal::SIGSTOP).unwrap();
    let (one, other) = (Box::pin(send(&nerve, "1")), Box::pin(send(&nerve, "2")));
    let (refused, stored) = futures::future::select(one, other).await.factor_first();
    kill(nats, Signal::SIGCONT).unwrap();
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, document) = problem(refused).await;
    assert!(status == 429 && document["detail"].as_str().unwrap().contains("`concurrency`"), "{document}");
    assert_eq!(stored.await.status(), 202);
    assert_eq!(send(&nerve, "3").await.status(), 202, "its place is free again");
}

/// What is answered to a head alone, whose body never comes.
async fn answer_to_head(nerve: &Nerve, more: &str) -> String {
    let mut stream = TcpStream::connect(address(nerve)).await.unwrap();
    let head = format!("POST /hooks/github HTTP/1.1\r\nHost: n.example\r\nContent-Length: 1000000\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(seconds(20), stream.read_to_string(&mut answer))
        .await
        .expect("an answer, and the end")
        .unwrap();
    answer
}

fn address(nerve: &Nerve) -> SocketAddr {
    nerve.gateway.trim_start_matches("http://").parse().unwrap()
}

#[tokio::test]
async fn only_networks_that_are_allowed_may_post_and_only_a_trusted_proxy_is_believed() {
    let allow = "allow = [\"192.0.2.0/24\", \"2001:db8::/32\"]";
    let direct = up_with(allow, &[]).await;
    let behind = up_with(allow, &[("NERVE_GATEWAY_TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8")]).await;
    let from = async |nerve: &Nerve, id: &str, headers: &[(&str, &str)]| {
        let request = github::delivery(&nerve.url("/hooks/github"), "ping", id, format!(r#"{{"n":"{id}"}}"#));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().await.unwrap().status().as_u16()
    };
    let good = [("X-Forwarded-For", "198.51.100.1, 192.0.2.7")];
    eventually("the source is served", seconds(20), || async {
        (from(&behind, "1", &good).await == 202).then_some(())
    })
    .await;
    for (n, (headers, status)) in [
        (vec![("X-Forwarded-For", "192.0.2.7, 10.1.2.3")], 202),
        (vec![("Forwarded", "for=\"[2001:db8::1]:4711\";proto=https")], 202),
        (vec![], 403),
        // What a sender writes himself stands left of what the proxy saw.
        (vec![("X-Forwarded-For", "192.0.2.7, 198.51.100.1")], 403),
        (vec![("X-Forwarded-For", "192.0.2.7"), ("X-Forwarded-For", "198.51.100.1")], 403),
        (vec![("X-Forwarded-For", "192.0.2.7, nonsense")], 403),
        (vec![("X-Forwarded-For", "198.51.100.1"), ("Forwarded", "for=192.0.2.7")], 400),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(from(&behind, &format!("behind-{n}"), &headers).await, status, "{headers:?}");
    }
    eventually("the source is served", seconds(20), || async {
        (send(&direct, "2").await.status() == 403).then_some(())
    })
    .await;
    assert_eq!(from(&direct, "3", &good).await, 403, "nobody here is a proxy");
    let answer = answer_to_head(&direct, "X-Forwarded-For: 192.0.2.7\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "before the body: {answer}");
    assert!(!answer.contains("192.0.2") && answer.contains("application/problem+json"), "{answer}");
    // The API without a key is for this machine, also through a proxy.
    let api = |client: &'static str| {
        reqwest::Client::new().get(behind.url("/v1/functions")).header("X-Forwarded-For", client).send()
    };
    assert_eq!(api("127.0.0.1").await.unwrap().status(), 200);
    assert_eq!(api("192.0.2.7").await.unwrap().status(), 403);
}

#[tokio::test]
async fn senders_that_sign_the_url_are_understood_behind_a_proxy_without_being_told_it() {
    let proxies = ("NERVE_GATEWAY_TRUSTED_PROXIES".to_owned(), "127.0.0.0/8".to_owned());
    let behind = Nerve::up_with(Options { envs: vec![proxies], ..Options::default() }).await;
    let alone = Nerve::up().await;
    let keys = json!({"twilio": "t", "twilio-json": "t", "square": "s", "hubspot": "h"});
    for nerve in [&behind, &alone] {
        let mut manifest = String::new();
        for provider in ["twilio", "square", "hubspot"] {
            nerve.cli().secret(&format!("{provider}_KEY").to_uppercase(), keys[provider].as_str().unwrap()).await;
            let name = provider.to_uppercase();
            manifest += &format!("[source.{provider}]\nprovider = \"{provider}\"\nsecrets = [\"{name}_KEY\"]\n");
            manifest += "dedupe = \"signed\"\n";
        }
        let deployed = nerve.cli().deploy(Folder::new(&manifest).path()).await;
        assert!(deployed.text().contains("gateway.trusted_proxies"), "{deployed:?}");
    }
    let headers =
        json!({"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "n.example"});
    for provider in ["twilio", "square", "hubspot"] {
        eventually("the gateway verifies for the source", seconds(20), || async {
            let request = reqwest::Client::new().post(behind.url(&format!("/hooks/{provider}")));
            let request = request.header("X-Forwarded-Proto", "https").body("{}");
            (request.send().await.ok()?.status() == 401).then_some(())
        })
        .await;
    }
    let public = "https://n.example/hooks";
    let args = |to: &str| [public.to_owned(), keys.to_string(), to.to_owned(), headers.to_string()];
    let run = async |to: String| {
        let args = args(&to);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Script::node("providers.mjs", &args).finish(seconds(60)).await.0
    };
    let told = run(behind.url("/hooks")).await;
    for (provider, statuses) in told.as_object().unwrap() {
        for (case, status) in statuses.as_object().unwrap() {
            let expected = match case.as_str() {
                "good" | "again" => 202,
                // Of the others the id is in what is signed.
                "replay" if provider.starts_with("twilio") => 409,
                _ => 401,
            };
            assert_eq!(status, expected, "{provider}, {case}: {told:#}");
        }
    }
    assert_eq!(told.as_object().unwrap().len(), 4);
    // Where nobody says the URL, the operator is told what to set, and the sender to try again.
    eventually("the gateway has heard of the sources", seconds(20), || async {
        let answered = reqwest::Client::new().post(alone.url("/hooks/square")).body("{}").send().await.ok()?;
        (answered.status() == 503).then_some(())
    })
    .await;
    let told = run(alone.url("/hooks")).await;
    assert_eq!(told["square"]["good"], 503, "{told:#}");
    let settings = ["public_url", "gateway.trusted_proxies", "gateway.tls_cert"];
    alone.daemon.logs("the operator is told what to set", &settings).await;
}

/// The most memory that the server has used, in KiB.
fn peak(nerve: &Nerve) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", nerve.server())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says how much");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_decompression_bomb_is_refused_and_costs_nothing() {
    let nerve = up_with("", &[]).await;
    source_is_served(&nerve, "github").await;
    let mut command = Command::new("node");
    command.args(["-e", "console.log(require('zlib').gzipSync(Buffer.alloc(512 << 20)).toString('base64'))"]);
    let made = nerve_tests::nerve::call(command, "").await.ok();
    let bomb = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, made.stdout.trim()).unwrap();
    assert!(bomb.len() < 1 << 20, "small on the wire: {}", bomb.len());
    let before = peak(&nerve);
    for _ in 0..5 {
        let hook = github::delivery(&nerve.url("/hooks/github"), "ping", "bomb", bomb.clone());
        let answer = hook.header("content-encoding", "gzip").send().await.unwrap();
        assert_eq!(answer.headers()["accept-encoding"], "identity");
        let (status, document) = problem(answer).await;
        assert!(status == 415 && document["detail"].as_str().unwrap().contains("uncompressed"), "{document}");
        let event = reqwest::Client::new().post(nerve.url("/v1/events")).header("content-encoding", "gzip");
        let event = event.header("content-type", "application/cloudevents+json").body(bomb.clone());
        assert_eq!(problem(event.send().await.unwrap()).await.0, 415);
    }
    let grown = peak(&nerve).saturating_sub(before);
    assert!(grown < 64 << 10, "five bombs of 512 MiB took {grown} KiB");
    assert_eq!(Streams::connect(&nerve.nats).await.total().await, 0);
}

#[tokio::test]
async fn a_source_may_take_less_than_the_gateway() {
    let nerve = up_with("max_body = \"1KiB\"", &[]).await;
    source_is_served(&nerve, "github").await;
    let send = |size: usize| {
        let body = format!("\"{}\"", "x".repeat(size - 2));
        github::delivery(&nerve.url("/hooks/github"), "ping", &size.to_string(), body).send()
    };
    assert_eq!(send(1024).await.unwrap().status(), 202);
    assert_eq!(problem(send(1025).await.unwrap()).await.0, 413);
}

/// How many connect to a gateway to keep it busy.
const SLOW: usize = 10_000;

/// How many deliveries a good sender makes meanwhile.
const GOOD: usize = 40;
/// How many connect at once.
const OPENING: usize = 256;

/// Connections that send a byte now and then: every other one of a head, the rest of a body.
struct Slow {
    to: SocketAddr,
    streams: Vec<Option<TcpStream>>,
    opened: usize,
}

impl Slow {
    /// Sends one byte on each connection, and opens those anew that were hung up on.
    async fn creep(&mut self) {
        let lost = (0..self.streams.len()).filter(|at| !self.streams[*at].as_ref().is_some_and(lives));
        let opening = futures::stream::iter(lost.collect::<Vec<_>>()).map(|at| open(self.to, at));
        let opened: Vec<_> = opening.buffer_unordered(OPENING).collect().await;
        for (at, stream) in opened {
            self.opened += usize::from(stream.is_some());
            self.streams[at] = stream;
        }
    }
}

/// Whether another byte could be sent, and nothing was said: a gateway that is done with a connection closes it.
fn lives(stream: &TcpStream) -> bool {
    let silent = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
    stream.try_read(&mut [0; 512]).is_err_and(silent) && stream.try_write(b"x").is_ok()
}

async fn open(to: SocketAddr, at: usize) -> (usize, Option<TcpStream>) {
    let head = match at % 2 {
        0 => "POST /hooks/github HTTP/1.1\r\nHost: n.example\r\nX-Slow: ",
        _ => "POST /hooks/github HTTP/1.1\r\nHost: n.example\r\nContent-Length: 100000\r\n\r\n{",
    };
    let connected = tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(to)).await;
    let stream = connected.ok().and_then(Result::ok).filter(|stream| stream.try_write(head.as_bytes()).is_ok());
    (at, stream)
}

#[tokio::test]
async fn ten_thousand_slow_connections_do_not_stop_a_good_sender() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(most > 12_000, "this test opens {SLOW} connections, and the system allows {most} files: ulimit -Hn");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    // Bounds that they pass by far, on the slowest machine too.
    let bounds = [("NERVE_GATEWAY_MAX_REQUESTS", "500"), ("NERVE_GATEWAY_MAX_STREAMS", "3500")];
    let nerve = up_with("", &bounds).await;
    source_is_served(&nerve, "github").await;
    let mut slow = Slow { to: address(&nerve), streams: (0..SLOW).map(|_| None).collect(), opened: 0 };
    slow.creep().await;
    assert!(slow.opened >= SLOW * 9 / 10, "{} of {SLOW} were opened", slow.opened);
    let good = async {
        let kept = reqwest::Client::new();
        let mut longest = Duration::ZERO;
        for n in 0..GOOD {
            let (started, id, url) = (std::time::Instant::now(), format!("good-{n}"), nerve.url("/hooks/github"));
            let body = format!(r#"{{"n":{n}}}"#);
            let delivery = github::delivery(&url, "ping", &id, body.clone()).timeout(seconds(20));
            let again = kept.execute(github::delivery(&url, "ping", &id, body).build().unwrap());
            assert_eq!(delivery.send().await.expect("a good sender is answered").status(), 202, "{n}");
            longest = longest.max(started.elapsed());
            // One that keeps its connection may find it closed between two requests, as with any server, or given up when it
            // sends: then it is told to send again.
            if let Ok(answer) = again.await {
                let told_to_wait = answer.status() == 503 && answer.headers().contains_key("retry-after");
                assert!(answer.status() == 202 || told_to_wait, "{n}: {answer:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        longest
    };
    let attack = async {
        loop {
            slow.creep().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let longest = tokio::select! {
        longest = good => longest,
        () = attack => unreachable!("it goes on"),
    };
    let metrics = reqwest::get(nerve.url("/metrics")).await.unwrap().text().await.unwrap();
    let evicted = |of: &str| {
        let name = format!("nerve_gateway_evicted_total{{of=\"{of}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or_default()
    };
    println!(
        "opened {}, evicted {} connections and {} requests, the slowest answer took {longest:?}, {} MiB at most",
        slow.opened,
        evicted("connection"),
        evicted("request"),
        peak(&nerve) >> 10
    );
    assert!(evicted("connection") > 0 && evicted("request") > 0, "they were in the way: {metrics}");
    assert_eq!(Streams::connect(&nerve.nats).await.count("EVENTS", "events.github.>").await, GOOD);
    let value: Value = reqwest::get(nerve.url("/readyz")).await.unwrap().json().await.unwrap();
    assert_eq!(value["ready"], true);
}
