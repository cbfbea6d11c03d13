//! The nats-server of `nerve up`: a child process that is restarted after a crash and exits with its parent.
//!
//! [`Broker::start`] waits until JetStream is ready; [`Broker::supervise`] restarts the child until shutdown. Both run
//! on the main thread, because the kernel ties the child to the thread that started it.

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
use settings::BrokerFiles;
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

/// Start timeout; recovery of a large store is slow.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout of a graceful shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// The system's message for a full disk, in the server's log.
const DISK_FULL_MESSAGE: &str = "no space left on device";
/// Minimum free disk space for a restart.
const MIN_FREE_BYTES: u64 = 8 << 20;
/// Interval of the checks that the server stores messages.
const STORE_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Consecutive checks without JetStream before a restart.
const MAX_FAILED_STORE_CHECKS: u32 = 2;

/// Options of the nats-server.
#[derive(Debug)]
pub(crate) struct BrokerOptions {
    /// Path of the nats-server.
    pub(crate) binary: PathBuf,
    /// The data directory, absolute.
    pub(crate) data: PathBuf,
    /// Listen address. Port 0 selects the port of the last start, or a free one.
    pub(crate) listen: SocketAddr,
    /// The lock of the data directory, which the child shares.
    pub(crate) lock: Lock,
    /// TLS files. Without TLS the server may listen only on loopback.
    pub(crate) tls: Option<TlsFiles>,
}

/// A certificate and its private key, in PEM.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    /// The certificate and its intermediate certificates.
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

/// Connection data of the nats-server of this `nerve up`, for clients on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalBroker {
    url: String,
    /// Directory of the credentials.
    pub(crate) access: PathBuf,
    /// The server certificate, if it uses TLS.
    pub(crate) certificate: Option<PathBuf>,
    /// The listen address.
    pub(crate) listen: SocketAddr,
}

impl LocalBroker {
    /// Returns the connection settings of a client with this role.
    pub(crate) fn client(&self, nats: NatsSettings, role: Role) -> NatsSettings {
        access::settings(self.base_settings(nats), &self.access, role)
    }

    /// Returns the connection settings without credentials.
    fn base_settings(&self, nats: NatsSettings) -> NatsSettings {
        let (url, pinned) = (Servers::parse(&self.url).unwrap_or_default(), self.certificate.clone());
        NatsSettings { url, pinned, ..nats.without_credentials() }
    }
}

impl Broker {
    /// Starts the server and waits until JetStream is ready.
    pub(crate) async fn start(options: BrokerOptions) -> Result<Self, Failure> {
        let settings = BrokerFiles { data: &options.data };
        let failed = |error| failed(&options.data, error);
        check_listen(&options)?;
        let mut address = options.listen;
        if address.port() == 0 {
            address.set_port(free_previous_port(&settings, address.ip()).await.unwrap_or_default());
        }
        let mut child = spawn(&options, address).map_err(failed)?;
        let ready = async {
            if address.port() == 0 {
                address.set_port(chosen_port(&settings, &mut child).await?);
            }
            settings.store_port(address.port())?;
            ready(&mut child, reachable(address)).await
        };
        timeout(START_TIMEOUT, ready).await.map_err(anyhow::Error::from).flatten().map_err(failed)?;
        Ok(Self { options, address, child })
    }

    /// Returns the connection data for clients on this machine.
    pub(crate) fn local(&self) -> LocalBroker {
        let tls = self.options.tls.as_ref();
        let url = format!("{}://{}", if tls.is_some() { "tls" } else { "nats" }, reachable(self.address));
        let certificate = tls.map(|files| std::path::absolute(&files.cert).unwrap_or_else(|_| files.cert.clone()));
        LocalBroker { url, access: access::folder(&self.options.data), certificate, listen: self.address }
    }

    /// Restarts the child on the same port after it exits. Stops it when `stop` is cancelled.
    pub(crate) async fn supervise(mut self, stop: &CancellationToken) {
        let mut backoff = Backoff::new();
        loop {
            let started = Instant::now();
            tokio::select! {
                () = stop.cancelled() => return end(self.child).await,
                status = self.child.wait() => tracing::error!(?status, "nats-server exited unexpectedly; restarting it"),
                () = store_failed(&self.options.data, reachable(self.address)) => {
                    tracing::error!("nats-server does not recover from a full disk; restarting it");
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
        // A child that did not become ready must not block the next one.
        if self.child.id().is_some() {
            self.child.kill().await?;
        }
        self.child = spawn(&self.options, self.address)?;
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            done = timeout(START_TIMEOUT, ready(&mut self.child, reachable(self.address))) => {
                done??;
                tracing::info!(address = %self.address, "nats-server is running again");
                Ok(())
            }
        }
    }
}

/// Requires TLS for non-loopback addresses, because credentials would be sent in plain text.
fn check_listen(options: &BrokerOptions) -> Result<(), Failure> {
    if options.listen.ip().is_loopback() || options.tls.is_some() {
        return Ok(());
    }
    let thing = format!("nats-server cannot listen on {} without TLS", options.listen);
    let next = "pass a certificate and key with --nats-tls-cert FILE --nats-tls-key FILE, or listen on loopback";
    Err(Failure::new(thing).cause("others on the network could read the credentials, and all events").next(next))
}

fn spawn(options: &BrokerOptions, address: SocketAddr) -> anyhow::Result<Child> {
    let settings = BrokerFiles { data: &options.data };
    settings.write(address, &access::prepare(&options.data)?, options.tls.as_ref())?;
    let mut command = Command::new(&options.binary);
    command
        .arg("--config")
        .arg(settings.config())
        .stdin(options.lock.share()?)
        .stdout(settings.errors()?)
        .stderr(settings.errors()?)
        .kill_on_drop(true);
    // nats-server does not need Nerve's settings, and all processes of this user can read its environment.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NERVE_")) {
        command.env_remove(name);
    }
    nerve_runtime::die_with_parent(&mut command);
    Ok(command.spawn()?)
}

/// Returns the port of the last start if it is free.
async fn free_previous_port(settings: &BrokerFiles<'_>, ip: IpAddr) -> Option<u16> {
    let port = settings.stored_port()?;
    TcpListener::bind((ip, port)).await.ok().map(|_| port)
}

/// Waits for the port that the child selected, which it writes to a file.
async fn chosen_port(settings: &BrokerFiles<'_>, child: &mut Child) -> anyhow::Result<u16> {
    let Some(pid) = child.id() else { anyhow::bail!("it exited immediately") };
    loop {
        if let Some(port) = settings.chosen_port(pid) {
            return Ok(port);
        }
        still_running(child)?;
        sleep(POLL_INTERVAL).await;
    }
}

/// Waits until the greeting reports JetStream.
async fn ready(child: &mut Child, address: SocketAddr) -> anyhow::Result<()> {
    loop {
        still_running(child)?;
        match timeout(GREETING_TIMEOUT, greeting(address)).await {
            Ok(Ok(line)) if has_jetstream(&line) => return Ok(()),
            Ok(Ok(line)) => tracing::debug!(line, "JetStream is not ready yet"),
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn still_running(child: &mut Child) -> anyhow::Result<()> {
    match child.try_wait()? {
        Some(status) => anyhow::bail!("it exited with {status}"),
        None => Ok(()),
    }
}

/// Waits until the server must be restarted: a write failed because the disk was full, and the disk has free space
/// again. Until a restart its streams accept no messages, and some versions disable JetStream.
async fn store_failed(data: &Path, address: SocketAddr) {
    let mut log = BrokerFiles { data }.follow_log();
    let (mut disk_was_full, mut failed_checks) = (false, 0);
    while failed_checks < MAX_FAILED_STORE_CHECKS {
        sleep(STORE_CHECK_INTERVAL).await;
        disk_was_full |= log.has_new(DISK_FULL_MESSAGE);
        failed_checks = match timeout(GREETING_TIMEOUT, greeting(address)).await {
            Ok(Ok(line)) if line.starts_with("INFO ") && !has_jetstream(&line) => failed_checks + 1,
            _ => 0,
        };
        let free = statvfs(data).map_or(0, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()));
        if disk_was_full && free >= MIN_FREE_BYTES {
            return;
        }
    }
}

/// Reads the first line that the server sends to a client.
async fn greeting(address: SocketAddr) -> std::io::Result<String> {
    let mut line = String::new();
    BufReader::new(TcpStream::connect(address).await?).read_line(&mut line).await?;
    Ok(line)
}

/// Whether the greeting `INFO {…}` reports JetStream.
fn has_jetstream(greeting: &str) -> bool {
    let info = greeting.trim().strip_prefix("INFO ").unwrap_or_default();
    let info = serde_json::from_str::<serde_json::Value>(info).unwrap_or_default();
    info.get("jetstream").and_then(serde_json::Value::as_bool).unwrap_or_default()
}

/// Returns the nats-server that runs on `data`.
pub(crate) fn running(data: &Path) -> Option<Pid> {
    let data = data.canonicalize().ok()?;
    BrokerFiles { data: &data }.pid()
}

/// Returns the address for clients on this machine of a server that listens on `address`.
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

/// Stops the child with SIGTERM, and with SIGKILL after a timeout.
async fn stop_child(child: &mut Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid
        && let Err(error) = kill(Pid::from_raw(pid), Signal::SIGTERM)
    {
        tracing::debug!(%error, "cannot send SIGTERM to nats-server");
    }
    if timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        tracing::warn!("nats-server did not stop within {STOP_TIMEOUT:?}; killing it");
        if let Err(error) = child.kill().await {
            tracing::warn!(%error, "cannot kill nats-server");
        }
    }
}

fn failed(data: &Path, error: anyhow::Error) -> Failure {
    let settings = BrokerFiles { data };
    let cause = match settings.last_error() {
        Some(message) => error.context(message),
        None => error,
    };
    Failure::new("nats-server did not start")
        .because(cause)
        .next(format!("read {}; to use a running server, pass --nats URL", settings.log().display()))
}

#[cfg(test)]
mod tests;
