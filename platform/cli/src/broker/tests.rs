//! Tests with a real nats-server, which `make setup` installs.

use super::*;
use tempfile::TempDir;

async fn options(data: &TempDir, listen: &str) -> BrokerOptions {
    let data = data.path().canonicalize().unwrap();
    let lock = Lock::take(&data).await.unwrap();
    BrokerOptions { binary: find(None).await.unwrap(), data, listen: listen.parse().unwrap(), lock, tls: None }
}

fn pid(broker: &Broker) -> Pid {
    Pid::from_raw(i32::try_from(broker.child.id().unwrap()).unwrap())
}

async fn is_up(address: SocketAddr) -> bool {
    matches!(timeout(GREETING_TIMEOUT, greeting(address)).await, Ok(Ok(line)) if has_jetstream(&line))
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..1000 {
        if check().await {
            return;
        }
        sleep(POLL_INTERVAL).await;
    }
    panic!("{what}: timed out after 10 s");
}

#[tokio::test]
async fn killed_server_restarts_on_its_port_and_stops() {
    let data = tempfile::tempdir().unwrap();
    let broker = Broker::start(options(&data, "127.0.0.1:0").await).await.unwrap();
    let (address, first) = (broker.address, pid(&broker));
    assert!(address.port() != 0 && is_up(address).await);
    let stop = CancellationToken::new();
    let test = async {
        kill(first, Signal::SIGKILL).unwrap();
        eventually("the end of the first", async || !is_up(address).await).await;
        eventually("the second", async || is_up(address).await).await;
        stop.cancel();
    };
    tokio::join!(test, broker.supervise(&stop));
    assert!(!is_up(address).await);
}

#[tokio::test]
async fn next_start_reuses_the_port_if_it_is_free() {
    let data = tempfile::tempdir().unwrap();
    let first = Broker::start(options(&data, "127.0.0.1:0").await).await.unwrap();
    let address = first.address;
    end(first.child).await;
    drop(first.options);
    let second = Broker::start(options(&data, "127.0.0.1:0").await).await.unwrap();
    assert_eq!(second.address, address);
    end(second.child).await;
    drop(second.options);
    let taken = TcpListener::bind(address).await.unwrap();
    let third = Broker::start(options(&data, "127.0.0.1:0").await).await.unwrap();
    assert_ne!(third.address, taken.local_addr().unwrap());
    end(third.child).await;
}

#[tokio::test]
async fn address_in_use_is_reported() {
    let data = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = options(&data, &taken.local_addr().unwrap().to_string()).await;
    let error = format!("{:#}", anyhow::Error::from(Broker::start(options).await.unwrap_err()));
    assert!(error.contains("address already in use"), "{error}");
}

#[tokio::test]
async fn non_loopback_address_requires_tls() {
    let data = tempfile::tempdir().unwrap();
    let options = options(&data, "0.0.0.0:0").await;
    let error = format!("{:#}", anyhow::Error::from(Broker::start(options).await.unwrap_err()));
    assert!(error.contains("0.0.0.0") && error.contains("TLS"), "{error}");
}

#[test]
fn server_is_ready_only_with_jetstream() {
    assert!(has_jetstream("INFO {\"server_id\":\"x\",\"jetstream\":true} \r\n"));
    for other in ["", "INFO {}", "INFO {\"jetstream\":false}", "HTTP/1.1 400"] {
        assert!(!has_jetstream(other), "{other}");
    }
}

#[test]
fn unspecified_address_is_reachable_over_loopback() {
    assert_eq!(reachable("0.0.0.0:4222".parse().unwrap()).to_string(), "127.0.0.1:4222");
    assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
    assert_eq!(reachable("10.0.0.1:1".parse().unwrap()).to_string(), "10.0.0.1:1");
}
