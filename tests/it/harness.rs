//! The harness itself: a test is worth what its tools are worth.

use nerve_tests::{Nats, Proxy, Streams, eventually, seconds};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn a_nats_server_that_is_killed_comes_back_with_its_data() {
    let mut nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let config = async_nats::jetstream::stream::Config {
        name: "EVENTS".into(),
        subjects: vec!["events.>".into()],
        ..Default::default()
    };
    streams.jetstream.create_stream(config).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("ce-id", "1");
    let sent = streams.jetstream.publish_with_headers("events.a.b", headers, "one".into()).await.unwrap();
    sent.await.unwrap();
    nats.kill9();
    nats.restart().await;
    let streams = Streams::connect(&nats.url()).await;
    assert_eq!(streams.count("EVENTS", "events.a.*").await, 1);
    assert_eq!(streams.count("EVENTS", "events.b.*").await, 0);
    let stored = streams.read("EVENTS", ">").await;
    assert_eq!((stored[0].subject.as_str(), stored[0].header("ce-id"), stored[0].sequence), ("events.a.b", "1", 1));
    assert_eq!(streams.count("NONE", ">").await, 0);
}

#[tokio::test]
async fn a_proxy_forwards_until_it_cuts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().to_string()).await;
    for _ in 0..2 {
        let mut client = TcpStream::connect(&proxy.address).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut five = [0; 5];
        server.read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"hello");
        eventually("the connection is cut", seconds(5), || async { (proxy.cut() == 0).then_some(()) }).await;
        assert!(matches!(client.read(&mut five).await, Ok(0) | Err(_)));
        assert!(matches!(server.read(&mut five).await, Ok(0) | Err(_)));
    }
}
