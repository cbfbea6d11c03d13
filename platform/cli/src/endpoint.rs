//! The endpoint file of a running `nerve up` in its data directory, and how a command finds NATS.

use crate::{broker::access, failure::Failure, lock::is_alive, membership::Membership};
use nerve_broker::{NatsSettings, Servers, roles::Role};
use nerve_config::check_trusted;
use serde::{Deserialize, Serialize};
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

const FILE: &str = "endpoint.json";
/// Maximum size of the file.
const MAX_BYTES: u64 = 64 << 10;

/// Addresses of a running `nerve up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// URL of the gateway.
    pub(crate) gateway: String,
    /// URL of NATS.
    pub(crate) nats: String,
    /// Directory of the NATS credentials, if NATS requires them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) access: Option<PathBuf>,
    /// Certificate of the nats-server, if it uses TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<PathBuf>,
    /// Listen address of the nats-server that this `nerve up` started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nats_listen: Option<SocketAddr>,
    /// The process id.
    pub(crate) pid: u32,
}

/// The endpoint file, deleted when dropped.
#[derive(Debug)]
pub(crate) struct EndpointFile(PathBuf);

impl Endpoint {
    /// Writes the file atomically.
    pub(crate) fn write(&self, data: &Path) -> io::Result<EndpointFile> {
        let path = data.join(FILE);
        let draft = path.with_extension("json.new");
        std::fs::write(&draft, serde_json::to_vec(self)?)?;
        std::fs::rename(&draft, &path)?;
        Ok(EndpointFile(path))
    }

    /// Returns the endpoint of the `nerve up` that runs on `data`.
    pub(crate) fn of_running(data: &Path) -> Option<Self> {
        Self::read(data).ok().filter(|endpoint| is_alive(endpoint.pid))
    }

    fn read(data: &Path) -> io::Result<Self> {
        let path = data.join(FILE);
        let content = nerve_files::read(&path, MAX_BYTES)?;
        // Secrets and deployments are sent to these addresses.
        check_trusted(&path).map_err(|untrusted| io::Error::other(untrusted.to_string()))?;
        Ok(serde_json::from_slice(&content)?)
    }
}

impl Drop for EndpointFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "cannot remove the endpoint file");
        }
    }
}

/// Returns the gateway URL of the `nerve up` that runs on `data`.
pub(crate) fn find_gateway(data: &Path) -> Option<String> {
    Endpoint::of_running(data).map(|endpoint| endpoint.gateway)
}

/// Returns the NATS settings: `given`, those of the `nerve up` on `data`, or those of the membership of this machine.
/// The credentials of `role` are used for the server of that `nerve up` unless others are given.
pub(crate) fn find_nats(given: NatsSettings, data: &Path, role: Role) -> Result<NatsSettings, Failure> {
    let cause = match Endpoint::read(data) {
        Ok(endpoint) if is_alive(endpoint.pid) => {
            let url = Servers::parse(&endpoint.nats).unwrap_or_default();
            if !given.url.is_empty() && given.url.to_string() != url.to_string() {
                return Ok(given);
            }
            let url = if given.url.is_empty() { url } else { given.url.clone() };
            let found = NatsSettings { pinned: endpoint.certificate, url, ..given };
            return Ok(match endpoint.access.filter(|_| !found.has_credentials()) {
                Some(folder) => access::settings(found, &folder, role),
                None => found,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && Membership::exists(data) => {
            return Membership::read(data)?.settings(given, data, role);
        }
        _ if !given.url.is_empty() => return Ok(given),
        Ok(endpoint) => format!("the `nerve up` on {} (process {}) is not running", data.display(), endpoint.pid),
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("no `nerve up` runs on {}", data.display()),
        Err(error) => format!("cannot read {}: {error}", data.join(FILE).display()),
    };
    Err(Failure::new("cannot find NATS").cause(cause).next(
        "start `nerve up` in this directory, pass the data directory of a running one with --data DIR,\n\
         pass a server with --nats URL or NERVE_NATS_URL, or join one on another machine with `nerve join`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(pid: u32) -> Endpoint {
        Endpoint {
            gateway: "http://127.0.0.1:1".into(),
            nats: "nats://127.0.0.1:2".into(),
            access: Some("/data/nats".into()),
            certificate: None,
            nats_listen: None,
            pid,
        }
    }

    fn given(url: &str) -> NatsSettings {
        NatsSettings { url: Servers::parse(url).unwrap(), ..NatsSettings::default() }
    }

    fn found(url: &str, data: &Path) -> (String, Option<PathBuf>) {
        let found = find_nats(given(url), data, Role::Operator).unwrap();
        (found.url.to_string(), found.creds)
    }

    fn cause(data: &Path) -> String {
        format!("{:#}", anyhow::Error::from(find_nats(given(""), data, Role::Operator).unwrap_err()))
    }

    #[test]
    fn given_settings_override_the_endpoint_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = endpoint(std::process::id()).write(folder.path()).unwrap();
        let creds = Some(PathBuf::from("/data/nats/operator.creds"));
        assert_eq!(
            found("nats://x", folder.path()),
            ("nats://x".to_owned(), None),
            "the credentials belong to another server"
        );
        for url in ["", "nats://127.0.0.1:2", "nats://ada:p4ss@127.0.0.1:2"] {
            let creds = creds.clone().filter(|_| !url.contains('@'));
            assert_eq!(found(url, folder.path()), ("nats://127.0.0.1:2".to_owned(), creds), "{url}");
        }
        let own = NatsSettings { creds: Some("/own".into()), ..given("") };
        assert_eq!(find_nats(own, folder.path(), Role::App).unwrap().creds, Some("/own".into()));
        assert_eq!(find_gateway(folder.path()).as_deref(), Some("http://127.0.0.1:1"));
        drop(file);
        assert_eq!(find_gateway(folder.path()), None);
        assert!(cause(folder.path()).contains("no `nerve up` runs"));
    }

    #[test]
    fn endpoint_file_of_a_killed_process_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let _file = endpoint(0x7fff_fffe).write(folder.path()).unwrap();
        assert!(cause(folder.path()).contains("is not running"));
    }
}
