//! Where a running `nerve up` can be reached: a file in its data folder, and how a command finds NATS.

use crate::{failure::Failure, lock::is_alive};
use nerve_server::config::check_trusted;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};

const FILE: &str = "endpoint.json";

/// What a running `nerve up` says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// The gateway's URL.
    pub(crate) gateway: String,
    /// NATS' URL.
    pub(crate) nats: String,
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

    fn read(data: &Path) -> io::Result<Self> {
        let path = data.join(FILE);
        let content = std::fs::read(&path)?;
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
    Endpoint::read(data).ok().filter(|endpoint| is_alive(endpoint.pid)).map(|endpoint| endpoint.gateway)
}

/// The URL of NATS: `given` (`--nats` or `NERVE_NATS_URL`), or what a `nerve up` on `data` announced.
pub(crate) fn find_nats(given: Option<&str>, data: &Path) -> Result<String, Failure> {
    if let Some(url) = given.filter(|url| !url.is_empty()) {
        return Ok(url.to_owned());
    }
    let cause = match Endpoint::read(data) {
        Ok(endpoint) if is_alive(endpoint.pid) => return Ok(endpoint.nats),
        Ok(endpoint) => format!("the `nerve up` on {} (process {}) is gone", data.display(), endpoint.pid),
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("no `nerve up` runs on {}", data.display()),
        Err(error) => format!("{} cannot be read: {error}", data.join(FILE).display()),
    };
    Err(Failure::new("cannot find NATS").cause(cause).next(
        "start `nerve up` in this folder, name the folder of one that runs with --data DIR,\n\
         or name a server with --nats URL or NERVE_NATS_URL",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(pid: u32) -> Endpoint {
        Endpoint { gateway: "http://127.0.0.1:1".into(), nats: "nats://127.0.0.1:2".into(), pid }
    }

    #[test]
    fn what_is_given_wins_over_what_is_announced() {
        let folder = tempfile::tempdir().unwrap();
        let announced = endpoint(std::process::id()).announce(folder.path()).unwrap();
        assert_eq!(find_nats(Some("nats://x"), folder.path()).unwrap(), "nats://x");
        assert_eq!(find_nats(Some(""), folder.path()).unwrap(), "nats://127.0.0.1:2");
        assert_eq!(find_nats(None, folder.path()).unwrap(), "nats://127.0.0.1:2");
        assert_eq!(find_gateway(folder.path()).as_deref(), Some("http://127.0.0.1:1"));
        drop(announced);
        assert_eq!(find_gateway(folder.path()), None);
        let error = format!("{:#}", anyhow::Error::from(find_nats(None, folder.path()).unwrap_err()));
        assert!(error.contains("no `nerve up` runs"), "{error}");
    }

    #[test]
    fn the_file_of_a_killed_one_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let _announced = endpoint(0x7fff_fffe).announce(folder.path()).unwrap();
        let error = format!("{:#}", anyhow::Error::from(find_nats(None, folder.path()).unwrap_err()));
        assert!(error.contains("is gone"), "{error}");
    }
}
