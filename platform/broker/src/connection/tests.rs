//! Connects to fake servers with scripted responses.

use super::*;
use crate::Servers;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinSet,
};

/// A server that greets every client with `info` and responds to its first ping with `answer`.
async fn server(info: &'static str, answer: &'static str) -> (NatsSettings, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Servers::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            stream.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) && !line.contains("PING") {}
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Until the client disconnects.
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {}
        }
    });
    (NatsSettings { url, ..NatsSettings::default() }, tasks)
}

async fn refused(settings: NatsSettings) -> String {
    let error = settings.connect_when_reachable("test").await.unwrap_err();
    assert!(!error.is_transient(), "{error:?}");
    format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default())
}

#[tokio::test]
async fn older_server_is_rejected_with_its_version() {
    let (older, _tasks) = server(r#"{"version": "2.9.10"}"#, "PONG\r\n").await;
    let error = refused(older).await;
    assert!(error.contains("2.9.10") && error.contains("2.14.0"), "{error}");
    let (oldest, _tasks) = server(r#"{"version": "2.14.0", "jetstream": true}"#, "PONG\r\n").await;
    oldest.connect("test").await.unwrap();
}

#[tokio::test]
async fn refused_credentials_are_not_retried() {
    let (settings, _tasks) = server(r#"{"version": "2.15.1"}"#, "-ERR 'Authorization Violation'\r\n").await;
    let error = refused(settings).await;
    assert!(error.contains("a client without credentials"), "{error}");
    let (settings, _tasks) = server(r#"{"version": "2.15.1"}"#, "-ERR 'User Authentication Expired'\r\n").await;
    let error = refused(NatsSettings { token: Some(nerve_core::Secret::new("hunter2")), ..settings }).await;
    assert!(error.contains("this token") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn password_in_a_server_message_is_masked() {
    let (settings, _tasks) = server(r#"{"version": "2.15.1"}"#, "-ERR 'Authentication of hunter2 failed'\r\n").await;
    let password = Some(nerve_core::Secret::new("hunter2"));
    let error = refused(NatsSettings { user: Some("ada".to_owned()), password, ..settings }).await;
    assert!(error.contains("this user and password") && error.contains("of *** failed"), "{error}");
}

#[tokio::test]
async fn server_without_tls_is_reported() {
    let (settings, _tasks) = server(r#"{"version": "2.15.1", "jetstream": true}"#, "-ERR 'Parser Error'\r\n").await;
    let error = refused(NatsSettings { tls_first: true, tls: true, ..settings }).await;
    assert!(error.contains("does not speak TLS on this port"), "{error}");
}

#[tokio::test]
async fn missing_files_are_named() {
    let absent = |settings: NatsSettings| async move {
        refused(NatsSettings { url: Servers::parse("127.0.0.1:1").unwrap(), ..settings }).await
    };
    let none = || Some("/none".into());
    let error = absent(NatsSettings { creds: none(), ..<_>::default() }).await;
    assert!(error.contains("nats.creds: /none"), "{error}");
    let error = absent(NatsSettings { tls_ca: none(), ..<_>::default() }).await;
    assert!(error.contains("nats.tls_ca: /none"), "{error}");
    let error = absent(NatsSettings { nkey: Some(nerve_core::Secret::new("SUhunter2")), ..<_>::default() }).await;
    assert!(error.contains("nats.nkey") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn client_waits_for_a_server_that_starts_later() {
    let (port, settings) = {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        (address, NatsSettings { url: Servers::parse(&address.to_string()).unwrap(), ..<_>::default() })
    };
    assert!(settings.connect("test").await.unwrap_err().is_transient());
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { settings.connect_when_reachable("test").await.map(drop) });
    let listener = TcpListener::bind(port).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"INFO {\"version\": \"2.15.1\", \"jetstream\": true}\r\nPONG\r\n").await.unwrap();
    waiting.join_next().await.unwrap().unwrap().unwrap();
}

#[test]
fn credentials_file_of_nats_is_parsed() {
    let text = "-----BEGIN NATS USER JWT-----\neyJ0.a-b_c\n------END NATS USER JWT------\n\n\
                ************************* IMPORTANT *************************\nNKEY Seed printed below\n\n\
                -----BEGIN USER NKEY SEED-----\nSUAX\n------END USER NKEY SEED------\n";
    assert_eq!(parse_credentials(text), Some(("eyJ0.a-b_c", "SUAX")));
    assert_eq!(parse_credentials(&text.replace('\n', "\r\n")), Some(("eyJ0.a-b_c", "SUAX")));
    for bad in ["", "eyJ0", "-----BEGIN NATS USER JWT-----\neyJ0\n"] {
        assert_eq!(parse_credentials(bad), None, "{bad}");
    }
}
