//! A closed-loop HTTP/1.1 client: some connections, each with one request at a time, all prepared beforehand.

use bytes::Bytes;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// What a round of requests came to.
pub(crate) struct Load {
    /// Requests answered a second.
    pub(crate) rate: f64,
    /// The time of each request until its answer was read, shortest first.
    pub(crate) times: Vec<Duration>,
}

impl Load {
    /// The time within which this part of the requests, at most 1, was answered.
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let at = (self.times.len() as f64 * part).ceil() as usize;
        self.times.get(at.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// Sends each list of requests on a connection of its own.
///
/// Any answer but a 2xx ends the run: what is refused is not comparable.
pub(crate) async fn send(address: &str, connections: Vec<Vec<Bytes>>) -> Load {
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
            let mut times = Vec::with_capacity(requests.len());
            let mut buffer = Vec::with_capacity(8 << 10);
            barrier.wait().await;
            for request in requests {
                let start = Instant::now();
                stream.write_all(&request).await.expect("a request is taken");
                read_answer(&mut stream, &mut buffer).await;
                times.push(start.elapsed());
            }
            times
        });
    }
    barrier.wait().await;
    let start = Instant::now();
    let mut times = Vec::with_capacity(total);
    while let Some(task) = tasks.join_next().await {
        times.extend(task.expect("a connection's requests are all answered"));
    }
    let rate = total as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    Load { rate, times }
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
