//! Connections over real sockets: eviction, timeouts, drain.

use crate::{
    http::accept::*,
    tests::{gateway, request},
};
use axum::routing::get;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

/// Serves on one thread. Returns the address and the task.
async fn serving(
    gateway: Gateway,
    tasks: &TaskTracker,
    head_timeout: Duration,
) -> (SocketAddr, JoinHandle<io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let threads = ConnectionThreads::for_tests(&gateway);
    let (listener, limits) = (Listener { listener, tls: None }, (tasks.clone(), head_timeout));
    (address, tasks.spawn(async move { serve_with_head_timeout(listener, gateway, &threads, limits).await }))
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_finishes_requests() {
    let gateway = gateway(&[], 10).await;
    let stop = gateway.shutdown().clone();
    let tasks = TaskTracker::new();
    let (address, serving) = serving(gateway, &tasks, HEAD_TIMEOUT).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    idle.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let mut busy = TcpStream::connect(address).await.unwrap();
    busy.write_all(b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{").await.unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    // The busy request is being read once a later connection is answered.
    silent.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    silent.read_exact(&mut answer).await.unwrap();
    stop.cancel();
    idle.read_to_end(&mut Vec::new()).await.unwrap();
    busy.write_all(b"}").await.unwrap();
    let mut last = String::new();
    busy.read_to_string(&mut last).await.unwrap();
    assert!(last.starts_with("HTTP/1.1 400"), "{last}");
    serving.await.unwrap().unwrap();
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn connection_without_a_request_is_closed() {
    let gateway = gateway(&[], 10).await;
    let stop = gateway.shutdown().clone();
    let tasks = TaskTracker::new();
    let (address, serving) = serving(gateway, &tasks, Duration::from_millis(20)).await;
    for beginning in ["", "PRI * HT", "GET / HTTP"] {
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(beginning.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Closed, or reset because the beginning was never read.
        let _ = slow.read_to_end(&mut answer).await;
        assert!(answer.is_empty(), "{beginning}");
    }
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn shared_request_runs_elsewhere_and_is_aborted_when_dropped() {
    let gateway = gateway(&[], 10).await;
    let threads = ConnectionThreads::for_tests(&gateway);
    let (thread, _) = threads.gateways(&gateway).remove(0);
    let held = Arc::new(());
    let given = Arc::clone(&held);
    let here = || async { format!("{:?}", std::thread::current().id()) };
    let endless = move || {
        let held = Arc::clone(&given);
        async move {
            std::future::pending::<()>().await;
            drop(held);
        }
    };
    let router = Router::new().route("/here", get(here)).route("/endless", get(endless));
    let shared = SharedRuntime { router, tasks: TaskTracker::new(), runtime: Handle::current() };
    let from_thread = |path: &'static str| {
        let shared = shared.clone();
        thread.runtime().spawn(async move { shared.run(request("GET", path, &[], "")).await })
    };
    let response = from_thread("/here").await.unwrap();
    let thread_id = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
    assert_eq!(thread_id, format!("{:?}", std::thread::current().id()));
    let before = Arc::strong_count(&held);
    let waiting = from_thread("/endless");
    while Arc::strong_count(&held) == before {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    shared.tasks.close();
    shared.tasks.wait().await;
    assert_eq!(Arc::strong_count(&held), before, "the request is aborted");
}

#[tokio::test]
async fn connection_idle_longest_is_evicted() {
    // One request and one stream: two connections.
    let gateway = gateway(&[], 1).await;
    let stop = gateway.shutdown().clone();
    let tasks = TaskTracker::new();
    let (address, serving) = serving(gateway, &tasks, HEAD_TIMEOUT).await;
    let [mut first, mut second] =
        [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    for slow in [&mut first, &mut second] {
        slow.write_all(b"GET /healthz HT").await.unwrap();
    }
    let mut good = TcpStream::connect(address).await.unwrap();
    good.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    good.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let mut said = Vec::new();
    // Closed, or reset because its beginning was never read.
    let _ = first.read_to_end(&mut said).await;
    assert!(said.is_empty());
    second.write_all(b"TP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    second.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK", "it was not evicted");
    stop.cancel();
    serving.await.unwrap().unwrap();
}
