//! Files of the nats-server in the data directory.

use super::{TlsFiles, access::trust_file};
use nix::unistd::Pid;
use std::{
    fs::{File, OpenOptions, Permissions},
    io::{Read, Seek, SeekFrom, Write},
    net::SocketAddr,
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

/// A log file with the position of the last read.
#[derive(Debug)]
pub(super) struct LogFollower {
    path: PathBuf,
    read: u64,
}

impl LogFollower {
    /// Whether the lines since the last call contain `text`. Only the last [`TAIL_BYTES`] are read.
    pub(super) fn has_new(&mut self, text: &str) -> bool {
        let Ok(mut log) = File::open(&self.path) else { return false };
        let length = log.metadata().map_or(0, |log| log.len());
        // The server truncates a large log.
        let from = if length < self.read { 0 } else { self.read }.max(length.saturating_sub(TAIL_BYTES));
        self.read = length;
        let mut new = Vec::new();
        let read = log.seek(SeekFrom::Start(from)).and_then(|_| log.take(TAIL_BYTES).read_to_end(&mut new));
        read.is_ok() && String::from_utf8_lossy(&new).contains(text)
    }
}

/// Directory of the global account in the store, which versions without credentials used.
const GLOBAL_ACCOUNT: &str = "$G";

/// Maximum bytes read from the end of a log.
const TAIL_BYTES: u64 = 16 * 1024;

/// Files of the nats-server on `data`.
#[derive(Debug, Clone, Copy)]
pub(super) struct BrokerFiles<'d> {
    /// The data directory, absolute.
    pub(super) data: &'d Path,
}

impl BrokerFiles<'_> {
    /// The configuration file.
    pub(super) fn config(&self) -> PathBuf {
        self.data.join("nats-server.conf")
    }

    /// The log file, whose size the server limits.
    pub(super) fn log(&self) -> PathBuf {
        self.data.join("nats-server.log")
    }

    /// Output before the log is open or during a crash; truncated at each start.
    fn crash(&self) -> PathBuf {
        self.data.join("nats-server.err")
    }

    fn port(&self) -> PathBuf {
        self.data.join("nats-server.port")
    }

    fn ports_folder(&self) -> PathBuf {
        self.data.join("ports")
    }

    /// Writes the configuration, migrates the store to `account`, and removes files of the last start.
    pub(super) fn write(&self, address: SocketAddr, account: &str, tls: Option<&TlsFiles>) -> std::io::Result<()> {
        match std::fs::remove_dir_all(self.ports_folder()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(self.ports_folder())?,
        }
        write_private(&self.crash(), "")?;
        self.migrate_global_account(account)?;
        write_private(&self.config(), &self.text(address, tls))
    }

    /// Moves the streams of the global account, which versions without credentials used, to `account`.
    fn migrate_global_account(&self, account: &str) -> std::io::Result<()> {
        // nats-server appends the second `jetstream`.
        let accounts = self.store().join("jetstream");
        let (before, now) = (accounts.join(GLOBAL_ACCOUNT), accounts.join(account));
        if before.join("streams").is_dir() && !now.exists() {
            std::fs::rename(&before, &now)?;
            tracing::info!("migrated the streams of an earlier version, whose broker required no credentials");
        }
        Ok(())
    }

    fn store(&self) -> PathBuf {
        self.data.join("jetstream")
    }

    fn text(&self, address: SocketAddr, tls: Option<&TlsFiles>) -> String {
        let port = if address.port() == 0 { -1 } else { i32::from(address.port()) };
        let tls = tls.map(|TlsFiles { cert, key }| {
            format!("tls {{\n  cert_file: {}\n  key_file: {}\n}}\n", quoted(cert), quoted(key))
        });
        format!(
            "# Written by `nerve up` at each start of nats-server: edits are lost.\n\
             server_name: \"nerve\"\n\
             host: \"{host}\"\n\
             port: {port}\n\
             ports_file_dir: {ports}\n\
             log_file: {log}\n\
             logfile_size_limit: 16MB\n\
             logfile_max_num: 2\n\
             include {trust}\n\
             {tls}\
             jetstream {{\n  store_dir: {store}\n}}\n",
            host = address.ip(),
            ports = quoted(&self.ports_folder()),
            log = quoted(&self.log()),
            trust = quoted(&trust_file()),
            tls = tls.unwrap_or_default(),
            store = quoted(&self.store()),
        )
    }

    /// Follows the log from its current end.
    pub(super) fn follow_log(&self) -> LogFollower {
        let read = std::fs::metadata(self.log()).map_or(0, |log| log.len());
        LogFollower { path: self.log(), read }
    }

    /// Opens the file for its stdout and stderr.
    pub(super) fn errors(&self) -> std::io::Result<File> {
        OpenOptions::new().append(true).create(true).open(self.crash())
    }

    /// Returns the port that the child with this process id selected.
    pub(super) fn chosen_port(&self, pid: u32) -> Option<u16> {
        let ending = format!("_{pid}.ports");
        let files = std::fs::read_dir(self.ports_folder()).ok()?;
        let file = files.flatten().find(|file| file.file_name().to_string_lossy().ends_with(&ending))?;
        parse_ports(&std::fs::read_to_string(file.path()).ok()?)
    }

    /// Returns the process id of the server that runs with this configuration.
    pub(super) fn pid(&self) -> Option<Pid> {
        let files = std::fs::read_dir(self.ports_folder()).ok()?;
        let of_name = |name: &str| name.strip_suffix(".ports")?.rsplit_once('_')?.1.parse().ok();
        let pid: i32 = files.flatten().find_map(|file| of_name(&file.file_name().to_string_lossy()))?;
        // The process id may have been reused.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let config = self.config();
        let is_ours = line.split(|byte| *byte == 0).any(|word| word == config.as_os_str().as_bytes());
        is_ours.then(|| Pid::from_raw(pid))
    }

    /// Stores the port for the next start.
    pub(super) fn store_port(&self, port: u16) -> std::io::Result<()> {
        std::fs::write(self.port(), port.to_string())
    }

    /// Returns the port of the last start.
    pub(super) fn stored_port(&self) -> Option<u16> {
        std::fs::read_to_string(self.port()).ok()?.trim().parse().ok().filter(|port| *port != 0)
    }

    /// Returns its last error message.
    pub(super) fn last_error(&self) -> Option<String> {
        [self.crash(), self.log()].iter().find_map(|file| error_line(&tail(file)?).map(str::to_owned))
    }
}

/// Writes a file that only this user can read.
fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut written = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
    written.set_permissions(Permissions::from_mode(0o600))?;
    written.write_all(text.as_bytes())
}

fn tail(file: &Path) -> Option<String> {
    let mut file = File::open(file).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the last line of a log that explains an exit, without its time.
fn error_line(log: &str) -> Option<&str> {
    log.lines().rev().find_map(|line| {
        let fatal = ["[FTL] ", "[ERR] "].iter().find_map(|level| line.split_once(level));
        fatal
            .map(|(_, message)| message)
            .or((line.starts_with("nats-server:") || line.starts_with("panic:")).then_some(line))
    })
}

/// Parses `{"nats": ["nats://127.0.0.1:4222"], …}`.
fn parse_ports(text: &str) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_str(text).ok()?;
    ports.get("nats")?.get(0)?.as_str()?.rsplit_once(':')?.1.parse().ok()
}

/// Quotes a path for the configuration.
fn quoted(path: &Path) -> String {
    let escaped = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_contains_address_store_trust_and_tls() {
        let settings = BrokerFiles { data: Path::new("/data \"x\"") };
        let text = settings.text("127.0.0.1:0".parse().unwrap(), None);
        assert!(text.contains("host: \"127.0.0.1\"\nport: -1\n") && !text.contains("tls {"), "{text}");
        assert!(text.contains(r#"store_dir: "/data \"x\"/jetstream""#), "{text}");
        assert!(text.contains("include \"nats/trust.conf\"\n"), "{text}");
        let tls = TlsFiles { cert: "/c".into(), key: "/k".into() };
        let text = settings.text("[::1]:4222".parse().unwrap(), Some(&tls));
        assert!(text.contains("host: \"::1\"\nport: 4222\n"), "{text}");
        assert!(text.contains("tls {\n  cert_file: \"/c\"\n  key_file: \"/k\"\n}\n"), "{text}");
    }

    #[test]
    fn port_is_read_and_stored() {
        let folder = tempfile::tempdir().unwrap();
        let settings = BrokerFiles { data: folder.path() };
        assert_eq!(settings.stored_port(), None);
        settings.store_port(4333).unwrap();
        assert_eq!(settings.stored_port(), Some(4333));
        settings.write("127.0.0.1:0".parse().unwrap(), "ANERVE", None).unwrap();
        assert_eq!(settings.chosen_port(7), None);
        let file = folder.path().join("ports/nats-server_7.ports");
        std::fs::write(file, r#"{"nats":["nats://127.0.0.1:4555"]}"#).unwrap();
        assert_eq!(settings.chosen_port(7), Some(4555));
    }

    #[test]
    fn global_account_is_migrated_once() {
        let folder = tempfile::tempdir().unwrap();
        let settings = BrokerFiles { data: folder.path() };
        let accounts = folder.path().join("jetstream/jetstream");
        let write = || settings.write("127.0.0.1:0".parse().unwrap(), "ANERVE", None).unwrap();
        write();
        assert!(!accounts.exists());
        std::fs::create_dir_all(accounts.join("$G/streams/EVENTS")).unwrap();
        write();
        assert!(accounts.join("ANERVE/streams/EVENTS").is_dir() && !accounts.join("$G").exists());
        std::fs::create_dir_all(accounts.join("$G/streams/LATER")).unwrap();
        write();
        assert!(accounts.join("ANERVE/streams/EVENTS").is_dir() && accounts.join("$G/streams/LATER").is_dir());
    }

    #[test]
    fn error_is_found_in_the_log() {
        let log =
            "[1] 2026/01/01 00:00:00.0 [INF] Starting\n[1] 2026/01/01 00:00:00.0 [FTL] Error listening on port: 1\n";
        assert_eq!(error_line(log), Some("Error listening on port: 1"));
        assert_eq!(error_line("nats-server: bad.conf:1: oops\n"), Some("nats-server: bad.conf:1: oops"));
        assert_eq!(error_line("[INF] fine\n"), None);
    }
}
