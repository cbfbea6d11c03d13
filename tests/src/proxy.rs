//! A TCP proxy that cuts its connections, or swallows what comes back, when told to.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Forwards every connection to one address.
pub struct Proxy {
    /// Where it listens: `127.0.0.1:PORT`.
    pub address: String,
    cuts: watch::Sender<usize>,
    state: Arc<State>,
    _accepting: JoinSet<()>,
}

struct State {
    open: AtomicUsize,
    /// Bytes that the target has answered, and from how many on they are swallowed.
    answered: AtomicUsize,
    may_pass: AtomicUsize,
}

impl Proxy {
    /// Starts one in front of `target` (`host:port`).
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address").to_string();
        let (cuts, watching) = watch::channel(0);
        let (open, answered, may_pass) = (0.into(), 0.into(), usize::MAX.into());
        let state = Arc::new(State { open, answered, may_pass });
        let shared = Arc::clone(&state);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(forward(client, target.clone(), watching.clone(), Arc::clone(&shared)));
            }
        });
        Self { address, cuts, state, _accepting: accepting }
    }

    /// Drops every connection that is open; returns how many there were.
    pub fn cut(&self) -> usize {
        let open = self.state.open.load(Ordering::SeqCst);
        self.cuts.send_modify(|cuts| *cuts += 1);
        open
    }

    /// How many bytes the target has answered.
    pub fn answered(&self) -> usize {
        self.state.answered.load(Ordering::SeqCst)
    }

    /// Whether what the target answers is swallowed: requests arrive, and nobody is told.
    pub fn mute(&self, mute: bool) {
        self.state.may_pass.store(if mute { 0 } else { usize::MAX }, Ordering::SeqCst);
    }

    /// Swallows what the target answers once it has answered so many bytes more.
    pub fn mute_after(&self, bytes: usize) {
        self.state.may_pass.store(self.answered() + bytes, Ordering::SeqCst);
    }

    /// Whether what the target answers is swallowed by now.
    pub fn is_mute(&self) -> bool {
        self.state.is_mute(self.answered())
    }
}

impl State {
    fn is_mute(&self, answered: usize) -> bool {
        answered > self.may_pass.load(Ordering::SeqCst)
    }
}

async fn forward(mut client: TcpStream, target: String, mut cuts: watch::Receiver<usize>, state: Arc<State>) {
    cuts.mark_unchanged();
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    state.open.fetch_add(1, Ordering::SeqCst);
    let cut = {
        let (mut from_client, to_client) = client.split();
        let (from_server, mut to_server) = server.split();
        let there = async {
            let _ = copy(&mut from_client, &mut to_server).await;
            let _ = to_server.shutdown().await;
        };
        tokio::select! {
            _ = async { tokio::join!(there, back(from_server, to_client, &state)) } => false,
            _ = cuts.changed() => true,
        }
    };
    if cut {
        // A reset rather than a polite end: what a lost network looks like.
        let _ = client.set_zero_linger();
    }
    state.open.fetch_sub(1, Ordering::SeqCst);
}

/// What the target answers, unless it is to be swallowed.
async fn back(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, state: &State) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let answered = state.answered.fetch_add(read, Ordering::SeqCst) + read;
        if !state.is_mute(answered) && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
