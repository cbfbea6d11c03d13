//! A closed-loop HTTP/1.1 client: some connections, each with one request at a time, all prepared beforehand.

use bytes::Bytes;
use std::{sync::Arc, time::Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// Sends each list of requests on a connection of its own; returns the requests answered a second.
///
/// Any answer but a 2xx ends the run: what is refused is not comparable.
pub(crate) async fn rate(address: &str, connections: Vec<Vec<Bytes>>) -> f64 {
    let total: usize = connections.iter().map(Vec::len).sum();
    let mut open = Vec::with_capacity(connections.len());
    for requests in connections {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        open.push((stream, requests));
    }
    let barrier = Arc::new(tokio::sync::Barrier::new(open.len() + 1));
    let mut tasks = JoinSet::new();
    for (mut stream, requests) in open {
        let barrier = Arc::clone(&barrier);
        tasks.spawn(async move {
            barrier.wait().await;
            let mut buffer = Vec::with_capacity(8 << 10);
            for request in requests {
                stream.write_all(&request).await.expect("a request is taken");
                read_answer(&mut stream, &mut buffer).await;
            }
        });
    }
    barrier.wait().await;
    let start = Instant::now();
    while let Some(task) = tasks.join_next().await {
        task.expect("a connection's requests are all answered");
    }
    total as f64 / start.elapsed().as_secs_f64()
}

/// Reads one answer, which must be a 2xx with a `content-length` or without a body.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) {
    buffer.clear();
    let head = loop {
        let read = stream.read_buf(buffer).await.expect("an answer");
        assert!(read > 0, "the connection was closed: {}", String::from_utf8_lossy(buffer));
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = std::str::from_utf8(&buffer[..head]).expect("a head in ASCII").to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 2"), "refused: {}", String::from_utf8_lossy(buffer));
    assert!(!text.contains("transfer-encoding"), "a chunked answer is not understood: {text}");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |length| length.trim().parse().expect("a length"));
    while buffer.len() < head + length {
        assert!(stream.read_buf(buffer).await.expect("an answer's body") > 0, "the connection was closed");
    }
}
