//! Where a running `nerve up` can be reached: a file in its data folder, and how a command finds NATS.

use crate::{broker::access, failure::Failure, joined::Joined, lock::is_alive};
use nerve_broker::{NatsSettings, Servers, roles::Role};
use nerve_config::check_trusted;
use serde::{Deserialize, Serialize};
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

const FILE: &str = "endpoint.json";
/// The largest such file, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// What a running `nerve up` says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// The gateway's URL.
    pub(crate) gateway: String,
    /// NATS' URL.
    pub(crate) nats: String,
    /// The folder of the credentials that NATS asks for, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) access: Option<PathBuf>,
    /// The certificate that NATS shows, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<PathBuf>,
    /// Where NATS listens, if this `nerve up` started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nats_listen: Option<SocketAddr>,
    /// The process.
    pub(crate) pid: u32,
}

/// The file, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Announced(PathBuf);

impl Endpoint {
    /// Writes the file whole, or not at all.
    pub(crate) fn announce(&self, data: &Path) -> io::Result<Announced> {
        let path = data.join(FILE);
        let draft = path.with_extension("json.new");
        std::fs::write(&draft, serde_json::to_vec(self)?)?;
        std::fs::rename(&draft, &path)?;
        Ok(Announced(path))
    }

    /// What a `nerve up` that runs on `data` said.
    pub(crate) fn of_running(data: &Path) -> Option<Self> {
        Self::read(data).ok().filter(|endpoint| is_alive(endpoint.pid))
    }

    fn read(data: &Path) -> io::Result<Self> {
        let path = data.join(FILE);
        let content = nerve_files::read(&path, MAX_BYTES)?;
        // It says where secrets and deployments are sent.
        check_trusted(&path).map_err(|untrusted| io::Error::other(untrusted.to_string()))?;
        Ok(serde_json::from_slice(&content)?)
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "the endpoint file was not removed");
        }
    }
}

/// The URL of the gateway that a `nerve up` on `data` announced, while it runs.
pub(crate) fn find_gateway(data: &Path) -> Option<String> {
    Endpoint::of_running(data).map(|endpoint| endpoint.gateway)
}

/// How NATS is reached: by `given`, as a `nerve up` on `data` announced it, or as this machine was told when it joined. A server of
/// that `nerve up` is shown the credentials of `role`, where no others are given.
pub(crate) fn find_nats(given: NatsSettings, data: &Path, role: Role) -> Result<NatsSettings, Failure> {
    let announced = Endpoint::read(data);
    let cause = match announced {
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
        Err(error) if error.kind() == io::ErrorKind::NotFound && Joined::is_in(data) => {
            return Joined::read(data)?.settings(given, data, role);
        }
        _ if !given.url.is_empty() => return Ok(given),
        Ok(endpoint) => format!("the `nerve up` on {} (process {}) is gone", data.display(), endpoint.pid),
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("no `nerve up` runs on {}", data.display()),
        Err(error) => format!("{} cannot be read: {error}", data.join(FILE).display()),
    };
    Err(Failure::new("cannot find NATS").cause(cause).next(
        "start `nerve up` in this folder, name the folder of one that runs with --data DIR,\n\
         name a server with --nats URL or NERVE_NATS_URL, or join one on another machine with `nerve join`",
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
    fn what_is_given_wins_over_what_is_announced() {
        let folder = tempfile::tempdir().unwrap();
        let announced = endpoint(std::process::id()).announce(folder.path()).unwrap();
        let creds = Some(PathBuf::from("/data/nats/operator.creds"));
        assert_eq!(found("nats://x", folder.path()), ("nats://x".to_owned(), None), "they are of another server");
        for url in ["", "nats://127.0.0.1:2", "nats://ada:p4ss@127.0.0.1:2"] {
            let creds = creds.clone().filter(|_| !url.contains('@'));
            assert_eq!(found(url, folder.path()), ("nats://127.0.0.1:2".to_owned(), creds), "{url}");
        }
        let own = NatsSettings { creds: Some("/own".into()), ..given("") };
        assert_eq!(find_nats(own, folder.path(), Role::App).unwrap().creds, Some("/own".into()));
        assert_eq!(find_gateway(folder.path()).as_deref(), Some("http://127.0.0.1:1"));
        drop(announced);
        assert_eq!(find_gateway(folder.path()), None);
        assert!(cause(folder.path()).contains("no `nerve up` runs"));
    }

    #[test]
    fn the_file_of_a_killed_one_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let _announced = endpoint(0x7fff_fffe).announce(folder.path()).unwrap();
        assert!(cause(folder.path()).contains("is gone"));
    }
}
