//! The nats-server that `nerve up` starts: a child that is restarted when it dies and dies when its parent does.
//!
//! [`Broker::start`] waits until JetStream answers; [`Broker::supervise`] keeps it so until it is told to stop. Both
//! run on the main thread: the kernel ties a child to the thread that started it.

pub(crate) mod access;
mod admission;
mod binary;
mod reload;
mod settings;

pub(crate) use admission::{Admission, first_certificate};
pub(crate) use binary::find;
pub(crate) use reload::apply;

use crate::{backoff::Backoff, failure::Failure, lock::Lock};
use nerve_broker::{NatsSettings, Servers, roles::Role};
use nix::{
    sys::{
        signal::{Signal, kill},
        statvfs::statvfs,
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use settings::Settings;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long recovery of a large store may take.
const START: Duration = Duration::from_secs(120);
/// How long it may take to stop by itself.
const STOP: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
const GREETING: Duration = Duration::from_secs(2);
/// What the system says of a disk without room, in the server's log.
const NO_ROOM: &str = "no space left on device";
/// Bytes that must be free for a new start to be of use.
const ROOM_TO_START: u64 = 8 << 20;
/// How often it is looked at whether it stores, and how often in a row it must say that JetStream is off.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
const LOOKS: u32 = 2;

/// What to start.
#[derive(Debug)]
pub(crate) struct BrokerOptions {
    /// The nats-server.
    pub(crate) binary: PathBuf,
    /// The data folder, absolute.
    pub(crate) data: PathBuf,
    /// Where to listen; port 0 takes the port of last time, or a free one.
    pub(crate) listen: SocketAddr,
    /// The data folder's lock, which the child shares.
    pub(crate) lock: Lock,
    /// What TLS is served with; without it the server listens on loopback only.
    pub(crate) tls: Option<TlsFiles>,
}

/// A certificate and its private key, in PEM.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    /// The certificate, and those between it and its root.
    pub(crate) cert: PathBuf,
    /// The private key.
    pub(crate) key: PathBuf,
}

/// A running nats-server.
#[derive(Debug)]
pub(crate) struct Broker {
    options: BrokerOptions,
    address: SocketAddr,
    child: Child,
}

/// A nats-server that this `nerve up` has started, as its clients on this machine know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalBroker {
    url: String,
    /// The folder of its credentials.
    pub(crate) access: PathBuf,
    /// The certificate that it shows, if it does.
    pub(crate) certificate: Option<PathBuf>,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
}

impl LocalBroker {
    /// How a client connects in that role.
    pub(crate) fn client(&self, nats: NatsSettings, role: Role) -> NatsSettings {
        access::settings(self.reached(nats), &self.access, role)
    }

    /// How a client reaches it, without credentials.
    fn reached(&self, nats: NatsSettings) -> NatsSettings {
        let (url, pinned) = (Servers::parse(&self.url).unwrap_or_default(), self.certificate.clone());
        NatsSettings { url, pinned, ..nats.without_credentials() }
    }
}

impl Broker {
    /// Starts it and waits until JetStream is ready.
    pub(crate) async fn start(options: BrokerOptions) -> Result<Self, Failure> {
        let settings = Settings { data: &options.data };
        let failed = |error| failed(&options.data, error);
        check_listen(&options)?;
        let mut address = options.listen;
        if address.port() == 0 {
            address.set_port(free_port_of_last_time(&settings, address.ip()).await.unwrap_or_default());
        }
        let mut child = spawn(&options, address).map_err(failed)?;
        let ready = async {
            if address.port() == 0 {
                address.set_port(chosen_port(&settings, &mut child).await?);
            }
            settings.remember_port(address.port())?;
            ready(&mut child, reachable(address)).await
        };
        timeout(START, ready).await.map_err(anyhow::Error::from).flatten().map_err(failed)?;
        Ok(Self { options, address, child })
    }

    /// How clients of this machine connect.
    pub(crate) fn local(&self) -> LocalBroker {
        let tls = self.options.tls.as_ref();
        let url = format!("{}://{}", if tls.is_some() { "tls" } else { "nats" }, reachable(self.address));
        let certificate = tls.map(|files| std::path::absolute(&files.cert).unwrap_or_else(|_| files.cert.clone()));
        LocalBroker { url, access: access::folder(&self.options.data), certificate, listen: self.address }
    }

    /// Restarts the child on the same port whenever it dies; when `stop` is cancelled, ends it.
    pub(crate) async fn supervise(mut self, stop: &CancellationToken) {
        let mut backoff = Backoff::new();
        loop {
            let started = Instant::now();
            tokio::select! {
                () = stop.cancelled() => return end(self.child).await,
                status = self.child.wait() => tracing::error!(?status, "nats-server died; it is started again"),
                () = store_failed(&self.options.data, reachable(self.address)) => {
                    tracing::error!("nats-server does not store again by itself after its disk was full; it is started again");
                    stop_child(&mut self.child).await;
                }
            }
            let mut ran = started.elapsed();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(backoff.after(ran)) => {}
                }
                ran = Duration::ZERO;
                match self.restart(stop).await {
                    Ok(()) => break,
                    Err(error) => tracing::error!(error = format!("{error:#}"), "nats-server did not start"),
                }
            }
        }
    }

    async fn restart(&mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        // The one that did not become ready must not stand in the way of the next.
        if self.child.id().is_some() {
            self.child.kill().await?;
        }
        self.child = spawn(&self.options, self.address)?;
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            done = timeout(START, ready(&mut self.child, reachable(self.address))) => {
                done??;
                tracing::info!(address = %self.address, "nats-server is back");
                Ok(())
            }
        }
    }
}

/// Off loopback, credentials would pass in the clear without TLS.
fn check_listen(options: &BrokerOptions) -> Result<(), Failure> {
    if options.listen.ip().is_loopback() || options.tls.is_some() {
        return Ok(());
    }
    let thing = format!("nats-server does not listen on {} without TLS", options.listen);
    let next = "name its certificate and key with --nats-tls-cert FILE --nats-tls-key FILE, or listen on loopback";
    Err(Failure::new(thing).cause("others on the network could read the credentials, and all events").next(next))
}

fn spawn(options: &BrokerOptions, address: SocketAddr) -> anyhow::Result<Child> {
    let settings = Settings { data: &options.data };
    settings.write(address, &access::prepare(&options.data)?, options.tls.as_ref())?;
    let mut command = Command::new(&options.binary);
    command
        .arg("--config")
        .arg(settings.config())
        .stdin(options.lock.share()?)
        .stdout(settings.errors()?)
        .stderr(settings.errors()?)
        .kill_on_drop(true);
    // The server's settings are none of its business, and its environment is open to all processes of this user.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NERVE_")) {
        command.env_remove(name);
    }
    nerve_runtime::die_with_parent(&mut command);
    Ok(command.spawn()?)
}

/// The port that the last start took, if nobody else has taken it since.
async fn free_port_of_last_time(settings: &Settings<'_>, ip: IpAddr) -> Option<u16> {
    let port = settings.remembered_port()?;
    TcpListener::bind((ip, port)).await.ok().map(|_| port)
}

/// The port that the child took, which it writes to a file.
async fn chosen_port(settings: &Settings<'_>, child: &mut Child) -> anyhow::Result<u16> {
    let Some(pid) = child.id() else { anyhow::bail!("it ended at once") };
    loop {
        if let Some(port) = settings.chosen_port(pid) {
            return Ok(port);
        }
        still_running(child)?;
        sleep(POLL).await;
    }
}

/// Waits until a client is greeted with JetStream.
async fn ready(child: &mut Child, address: SocketAddr) -> anyhow::Result<()> {
    loop {
        still_running(child)?;
        match timeout(GREETING, greeting(address)).await {
            Ok(Ok(line)) if has_jetstream(&line) => return Ok(()),
            Ok(Ok(line)) => tracing::debug!(line, "JetStream is not ready yet"),
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(POLL).await;
    }
}

fn still_running(child: &mut Child) -> anyhow::Result<()> {
    match child.try_wait()? {
        Some(status) => anyhow::bail!("it ended with {status}"),
        None => Ok(()),
    }
}

/// Waits until the server needs a new start, as a write of its has failed for want of room and there is room again: a stream takes
/// nothing more after that, and some versions turn JetStream off.
async fn store_failed(data: &Path, address: SocketAddr) {
    let mut log = Settings { data }.follow_log();
    let (mut lacked_room, mut without) = (false, 0);
    while without < LOOKS {
        sleep(LOOK_INTERVAL).await;
        lacked_room |= log.says(NO_ROOM);
        without = match timeout(GREETING, greeting(address)).await {
            Ok(Ok(line)) if line.starts_with("INFO ") && !has_jetstream(&line) => without + 1,
            _ => 0,
        };
        let free = statvfs(data).map_or(0, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()));
        if lacked_room && free >= ROOM_TO_START {
            return;
        }
    }
}

/// The first line that the server sends to a client.
async fn greeting(address: SocketAddr) -> std::io::Result<String> {
    let mut line = String::new();
    BufReader::new(TcpStream::connect(address).await?).read_line(&mut line).await?;
    Ok(line)
}

/// Whether `INFO {…}` says that JetStream is on.
fn has_jetstream(greeting: &str) -> bool {
    let info = greeting.trim().strip_prefix("INFO ").unwrap_or_default();
    let info = serde_json::from_str::<serde_json::Value>(info).unwrap_or_default();
    info.get("jetstream").and_then(serde_json::Value::as_bool).unwrap_or_default()
}

/// The nats-server that runs on `data`, if one does.
pub(crate) fn running(data: &Path) -> Option<Pid> {
    let data = data.canonicalize().ok()?;
    Settings { data: &data }.pid()
}

/// Where a client on this machine reaches a server that listens on `address`.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn end(mut child: Child) {
    stop_child(&mut child).await;
}

/// Asks it to stop, and insists after a while.
async fn stop_child(child: &mut Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid
        && let Err(error) = kill(Pid::from_raw(pid), Signal::SIGTERM)
    {
        tracing::debug!(%error, "nats-server could not be asked to stop");
    }
    if timeout(STOP, child.wait()).await.is_err() {
        tracing::warn!("nats-server did not stop in {STOP:?} and is killed");
        if let Err(error) = child.kill().await {
            tracing::warn!(%error, "nats-server could not be killed");
        }
    }
}

fn failed(data: &Path, error: anyhow::Error) -> Failure {
    let settings = Settings { data };
    let cause = match settings.last_complaint() {
        Some(complaint) => error.context(complaint),
        None => error,
    };
    Failure::new("nats-server did not start")
        .because(cause)
        .next(format!("read {}; a server that runs already is used with --nats URL", settings.log().display()))
}

#[cfg(test)]
mod tests;
