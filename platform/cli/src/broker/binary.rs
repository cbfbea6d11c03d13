//! Finds the nats-server to start.

use crate::{failure::Failure, onnx};
use nerve_broker::Version;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

const NAME: &str = "nats-server";
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the configured nats-server, or the first supported one on the PATH, in `.tools/bin` of this directory or a
/// parent, or next to the running `nerve`.
pub(crate) async fn find(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let mut too_old = Vec::new();
    for candidate in named.map_or_else(candidates, |path| vec![path.to_owned()]) {
        match version(&candidate).await {
            Ok(version) if version >= Version::OLDEST => return Ok(candidate),
            Ok(version) => too_old.push(format!("{} is {version}", candidate.display())),
            Err(error) if named.is_some() => {
                return Err(Failure::new(format!("cannot use {} as nats-server", candidate.display()))
                    .because(error)
                    .next("pass a nats-server of at least version 2.14 with --nats-server or NERVE_NATS_SERVER"));
            }
            Err(error) => tracing::debug!(%error, path = %candidate.display(), "not a nats-server to use"),
        }
    }
    let cause = if too_old.is_empty() {
        "not found on the PATH, in .tools/bin or next to nerve".to_owned()
    } else {
        format!("{}: at least 2.14 is required", too_old.join(", "))
    };
    Err(Failure::new("cannot start nats-server").cause(cause).next(
        "install nats-server 2.14 or newer (in a checkout: `make setup`), pass one with --nats-server,\n\
         or use a running server: --nats URL",
    ))
}

fn candidates() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The PATH is the user's choice, except relative entries.
    let on_path: Vec<PathBuf> = std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect();
    let mut folders = on_path.clone();
    if let Ok(here) = std::env::current_dir() {
        folders.extend(here.ancestors().map(|folder| folder.join(".tools/bin")));
    }
    let nerve = std::env::current_exe().ok();
    folders.extend(nerve.as_deref().and_then(Path::parent).map(Path::to_owned));
    let found = folders.into_iter().map(|folder| folder.join(NAME)).filter(|file| file.is_file());
    found.filter(|file| on_path.iter().any(|folder| file.parent() == Some(folder)) || onnx::is_trusted(file)).collect()
}

async fn version(binary: &Path) -> anyhow::Result<Version> {
    let output = Command::new(binary).arg("--version").kill_on_drop(true).output();
    let output = tokio::time::timeout(VERSION_TIMEOUT, output).await??;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().unwrap_or_default();
    parse_version(first)
        .ok_or_else(|| anyhow::anyhow!("`--version` printed `{first}`, which is not a version of nats-server"))
}

/// Parses `nats-server: v2.15.1`.
fn parse_version(text: &str) -> Option<Version> {
    Version::parse(text.trim().strip_prefix("nats-server: ")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_parsed_from_the_output() {
        assert_eq!(parse_version("nats-server: v2.14.0-RC.3\n"), Some(Version::OLDEST));
        for bad in ["", "nats-server: v2", "2.15.1", "nats-server: vx.y.z"] {
            assert_eq!(parse_version(bad), None, "{bad}");
        }
    }

    fn script(folder: &Path, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("fake-server");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn old_or_invalid_server_is_rejected_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let message = |failure: Failure| format!("{:#}", anyhow::Error::from(failure));
        let old = script(folder.path(), "echo nats-server: v2.9.10");
        let error = message(find(Some(&old)).await.unwrap_err());
        assert!(error.contains("2.9.10") && error.contains("2.14"), "{error}");
        let other = script(folder.path(), "echo hello");
        assert!(message(find(Some(&other)).await.unwrap_err()).contains("hello"));
        assert!(message(find(Some(&folder.path().join("none"))).await.unwrap_err()).contains("none"));
        let new = script(folder.path(), "echo nats-server: v2.14.0");
        assert_eq!(find(Some(&new)).await.unwrap(), new);
    }
}
