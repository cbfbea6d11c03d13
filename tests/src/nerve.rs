//! The `nerve` binary: its roles as daemons, its commands as calls.

use crate::{Broker, broker::OfNerve, daemon::Daemon, nerve_binary, seconds, tls::SelfSigned};
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;
use std::{
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// The private key that secrets are sealed to in tests whose roles share no data folder.
pub const SECRETS_KEY: &str = "6e65727665206e65727665206e65727665206e65727665206e65727665212121";

/// A killed worker's events come again after this long; the default would only make the tests longer.
const ACK_WAIT: &str = "2s";

/// A `nerve` role that serves: `nerve up`, or `nerve gateway`.
pub struct Nerve {
    /// The process.
    pub daemon: Daemon,
    /// The gateway's base URL.
    pub gateway: String,
    /// Its NATS server.
    pub nats: OfNerve,
    role: Role,
    _folder: Option<TempDir>,
}

#[derive(Clone)]
struct Role {
    name: &'static str,
    args: Vec<String>,
    envs: Vec<(String, String)>,
}

/// How to start a role.
#[derive(Default)]
pub struct Options {
    /// `--data`; a temporary folder when none.
    pub data: Option<PathBuf>,
    /// `--nats`: a server that runs already.
    pub nats: Option<String>,
    /// More environment.
    pub envs: Vec<(String, String)>,
}

/// `nerve` with an environment that holds nothing of the machine's own configuration.
pub fn command(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = isolated(Command::new(nerve_binary()));
    command.args(args);
    command
}

/// A command with such an environment.
pub fn isolated(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NERVE_")) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1").env("NERVE_NATS_SERVER", crate::nats_server_binary());
    command.env("NERVE_WORKER_ACK_WAIT", ACK_WAIT);
    // What runs these tests may itself be under a service manager, which would start again what has ended.
    for name in ["INVOCATION_ID", "NOTIFY_SOCKET", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(name);
    }
    command.current_dir(std::env::temp_dir());
    command
}

impl Nerve {
    /// `nerve up` with data of its own.
    pub async fn up() -> Self {
        Self::up_with(Options::default()).await
    }

    /// `nerve up`.
    pub async fn up_with(options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = options.data.clone().unwrap_or_else(|| folder.path().to_owned());
        let mut args = vec!["up".to_owned(), "--data".into(), data.display().to_string()];
        args.extend(["--listen".into(), "127.0.0.1:0".into()]);
        match &options.nats {
            Some(url) => args.extend(["--nats".into(), url.clone()]),
            None => args.extend(["--nats-listen".into(), "127.0.0.1:0".into()]),
        }
        args.extend(["--output".into(), "json".into()]);
        let role = Role { name: "nerve up", args, envs: options.envs };
        Self::start(role, options.nats, Some(folder)).await
    }

    /// `nerve up` with data of its own, whose nats-server listens there with this certificate.
    pub async fn up_with_nats_tls(listen: &str, certificate: &SelfSigned) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().display().to_string();
        let args = ["up", "--data", &data, "--listen", "127.0.0.1:0", "--nats-listen", listen, "--output", "json"];
        let tls = ["--nats-tls-cert", &certificate.cert, "--nats-tls-key", &certificate.key];
        let args = args.into_iter().chain(tls).map(str::to_owned).collect();
        Self::start(Role { name: "nerve up", args, envs: vec![] }, None, Some(folder)).await
    }

    /// `nerve up` with these settings, and data beside them.
    pub async fn up_configured(settings: &Path) -> Self {
        let data = settings.with_extension("data").display().to_string();
        let settings = settings.display().to_string();
        let args = ["up", "--data", &data, "--config", &settings, "--listen", "127.0.0.1:0"];
        let args = [&args[..], &["--nats-listen", "127.0.0.1:0", "--output", "json"]].concat();
        let role = Role { name: "nerve up", args: args.into_iter().map(str::to_owned).collect(), envs: vec![] };
        Self::start(role, None, None).await
    }

    /// `nerve gateway` alone on that NATS server.
    pub async fn gateway(nats: &str) -> Self {
        Self::gateway_with(nats, &[]).await
    }

    /// The same with more environment.
    pub async fn gateway_with(nats: &str, envs: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let args = ["gateway", "--listen", "127.0.0.1:0", "--nats", nats, "--output", "json"].map(str::to_owned);
        let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let data = ("NERVE_DATA_DIR".to_owned(), folder.path().display().to_string());
        let role = Role { name: "nerve gateway", args: args.to_vec(), envs: envs.chain([data]).collect() };
        Self::start(shared(role), Some(nats.to_owned()), Some(folder)).await
    }

    /// `nerve gateway` alone on that NATS server, with a settings file and a few variables.
    pub async fn gateway_configured(nats: &str, settings: &Path, envs: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let role = configured("gateway", nats, folder.path(), settings, envs);
        Self::start(role, Some(nats.to_owned()), Some(folder)).await
    }

    /// `nerve gateway` at that address, whose NATS server may be away: it need not be ready when this returns.
    pub fn gateway_before_nats(nats: &str, listen: &str, data: &Path) -> Daemon {
        let data = ("NERVE_DATA_DIR".to_owned(), data.display().to_string());
        let args = ["gateway", "--listen", listen, "--nats", nats, "--output", "json"].map(str::to_owned);
        spawn(&shared(Role { name: "nerve gateway", args: args.to_vec(), envs: vec![data] }))
    }

    async fn start(role: Role, nats: Option<String>, folder: Option<TempDir>) -> Self {
        let mut daemon = spawn(&role);
        let ready = daemon.line(seconds(30), |line| {
            let ready: Value = serde_json::from_str(line).ok()?;
            ready.get("gateway").is_some().then_some(ready)
        });
        let ready = ready.await;
        let url = |key: &str| ready[key].as_str().map(str::to_owned);
        let gateway = url("gateway").expect("the ready line has the gateway's URL");
        // What was given may hold a password, which the line does not.
        let url = nats.or(url("nats")).expect("the ready line has the NATS URL");
        let credentials = ready["nats_credentials"].as_str().map(PathBuf::from);
        Self { daemon, gateway, nats: OfNerve { url, credentials }, role, _folder: folder }
    }

    /// The data folder.
    pub fn data(&self) -> &str {
        let data = self.role.args.iter().skip_while(|arg| *arg != "--data").nth(1);
        data.expect("a role with a data folder")
    }

    /// `kill -9` of the role itself.
    pub fn kill9(&mut self) {
        self.daemon.kill9();
    }

    /// Starts the role again, on the addresses it had.
    pub async fn restart(&mut self) {
        let mut role = self.role.clone();
        let address = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
        for (flag, taken) in [("--listen", address(&self.gateway)), ("--nats-listen", address(&self.nats.url))] {
            if let Some(at) = role.args.iter().position(|arg| arg == flag) {
                role.args[at + 1] = taken;
            }
        }
        let folder = self._folder.take();
        // The old daemon goes first: its drop waits for the end.
        self.daemon.kill9();
        *self = Self::start(role, Some(self.nats.url.clone()), folder).await;
    }

    /// SIGTERM, and the exit status it ends with.
    pub async fn sigterm(&mut self, timeout: Duration) -> ExitStatus {
        self.daemon.signal(Signal::SIGTERM);
        self.daemon.exit(timeout).await
    }

    /// The nats-server child of `nerve up`.
    pub fn nats_child(&self) -> Pid {
        let children = self.daemon.children("nats-server");
        *children.first().unwrap_or_else(|| panic!("`nerve up` ({}) has no nats-server child", self.daemon.pid()))
    }

    /// The process that serves, which the role's own process keeps running.
    pub fn server(&self) -> Pid {
        self.daemon.server()
    }

    /// Commands against this server.
    pub fn cli(&self) -> Cli {
        Cli::new(&self.nats)
    }

    /// `path` on the gateway.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.gateway.trim_end_matches('/'))
    }
}

/// `nerve worker` alone on that NATS server, ready when this returns. `data` is its cache.
pub async fn worker(nats: &str, data: &Path) -> Daemon {
    worker_with(nats, data, &[]).await
}

/// The same with more environment.
pub async fn worker_with(nats: &str, data: &Path, envs: &[(&str, &str)]) -> Daemon {
    let data = data.display().to_string();
    let args = ["worker", "--nats", nats, "--data", &data, "--output", "json"].map(str::to_owned);
    let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let mut daemon = spawn(&shared(Role { name: "nerve worker", args: args.to_vec(), envs: envs.collect() }));
    daemon.line(seconds(30), |line| serde_json::from_str::<Value>(line).ok()).await;
    daemon
}

/// `nerve worker` alone on that NATS server, with a settings file and a few variables, ready when this returns.
pub async fn worker_configured(nats: &str, data: &Path, settings: &Path, envs: &[(&str, &str)]) -> Daemon {
    let mut daemon = spawn(&configured("worker", nats, data, settings, envs));
    daemon.line(seconds(30), |line| serde_json::from_str::<Value>(line).ok()).await;
    daemon
}

fn configured(name: &'static str, nats: &str, data: &Path, settings: &Path, envs: &[(&str, &str)]) -> Role {
    let (data, settings) = (data.display().to_string(), settings.display().to_string());
    let args = [name, "--nats", nats, "--data", &data, "--config", &settings, "--output", "json"].map(str::to_owned);
    let listen = (name == "gateway").then(|| ["--listen", "127.0.0.1:0"].map(str::to_owned)).into_iter().flatten();
    let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    shared(Role { name, args: args.into_iter().chain(listen).collect(), envs: envs.collect() })
}

/// Roles that run apart are given the same key for secrets.
fn shared(mut role: Role) -> Role {
    role.envs.push(("NERVE_SECRETS_KEY".to_owned(), SECRETS_KEY.to_owned()));
    role
}

fn spawn(role: &Role) -> Daemon {
    let mut command = command(&role.args);
    command.envs(role.envs.iter().cloned());
    Daemon::spawn(role.name, &mut command)
}

/// Runs commands against one NATS server.
#[derive(Clone)]
pub struct Cli {
    flags: Vec<String>,
}

/// What a command gave.
#[derive(Debug)]
pub struct Output {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// This output, once it is sure that the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "the command failed: {self:#?}");
        self
    }

    /// This output, once it is sure that the command failed with this code.
    #[track_caller]
    pub fn failed(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "the command should have failed: {self:#?}");
        self
    }

    /// Both streams, for a message that may stand on either.
    pub fn text(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// Standard output as JSON: one document, or one a line.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| {
            let lines: Result<Vec<Value>, _> = self.stdout.lines().map(serde_json::from_str).collect();
            Value::Array(lines.unwrap_or_else(|e| panic!("not JSON ({e}): {self:#?}")))
        })
    }
}

impl Cli {
    /// Commands against this server.
    pub fn new<B: Broker + ?Sized>(broker: &B) -> Self {
        let credentials = broker.credentials().map(|file| ["--creds".to_owned(), file.display().to_string()]);
        let url = ["--nats".to_owned(), broker.url().to_owned()];
        Self { flags: url.into_iter().chain(credentials.into_iter().flatten()).collect() }
    }

    /// Commands with these options, which say where NATS is.
    pub fn with(flags: &[&str]) -> Self {
        Self { flags: flags.iter().map(|flag| (*flag).to_owned()).collect() }
    }

    /// `nerve ARGS…` against the server, to start.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.args(&self.flags);
        command
    }

    /// `nerve ARGS…` against the server.
    pub async fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, "").await
    }

    /// The same with `input` on stdin.
    pub async fn run_with(&self, args: &[&str], input: &str) -> Output {
        call(self.command(args), input).await
    }

    /// `nerve deploy FOLDER`, which must succeed.
    pub async fn deploy(&self, folder: &Path) -> Output {
        self.run(&["deploy", &folder.display().to_string()]).await.ok()
    }

    /// `nerve secrets set`, which must succeed.
    pub async fn secret(&self, name: &str, value: &str) {
        self.run_with(&["secrets", "set", name], value).await.ok();
    }
}

/// Runs a command to its end, for two minutes at most.
pub async fn call(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    let pid = Pid::from_raw(child.id().try_into().expect("a pid"));
    let input = input.to_owned();
    let end = tokio::task::spawn_blocking(move || {
        // A command that does not read its stdin has closed it: no error.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    });
    let output = match tokio::time::timeout(seconds(120), end).await {
        Ok(output) => output.expect("the command's thread ends").expect("the command's output can be read"),
        Err(_) => {
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            panic!("{command:?} did not end within two minutes");
        }
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Output { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
