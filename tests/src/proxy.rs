//! A TCP proxy that cuts its connections when told to.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Forwards every connection to one address.
pub struct Proxy {
    /// Where it listens: `127.0.0.1:PORT`.
    pub address: String,
    cuts: watch::Sender<usize>,
    open: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// Starts one in front of `target` (`host:port`).
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address").to_string();
        let (cuts, watching) = watch::channel(0);
        let open = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(forward(client, target.clone(), watching.clone(), Arc::clone(&counter)));
            }
        });
        Self { address, cuts, open, _accepting: accepting }
    }

    /// Drops every connection that is open; returns how many there were.
    pub fn cut(&self) -> usize {
        let open = self.open.load(Ordering::SeqCst);
        self.cuts.send_modify(|cuts| *cuts += 1);
        open
    }
}

async fn forward(mut client: TcpStream, target: String, mut cuts: watch::Receiver<usize>, open: Arc<AtomicUsize>) {
    cuts.mark_unchanged();
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    open.fetch_add(1, Ordering::SeqCst);
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = cuts.changed() => {
            // A reset rather than a polite end: what a lost network looks like.
            let _ = client.set_zero_linger();
        }
    }
    open.fetch_sub(1, Ordering::SeqCst);
}
