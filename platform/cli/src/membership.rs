//! The membership of this machine in the NATS of another one (`nerve join`): files in its data directory.
//!
//! The files are in `<data>/join`, private to this user. `nats.json` is written last, so it exists only if the others
//! do.

use crate::{broker::access::files, failure::Failure};
use nerve_broker::{
    NatsSettings, Servers,
    join::{Grant, Trust},
    jwt,
    roles::{INBOX_PREFIX, Role},
};
use nerve_config::check_trusted;
use nerve_registry::{KeyFiles, SecretsKey};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The directory in the data directory, and its files.
const FOLDER: &str = "join";
const FILE: &str = "nats.json";
const CREDS: &str = "nats.creds";
const CERTIFICATE: &str = "server.pem";
const CA: &str = "ca.pem";
/// Seed of a user with a pending join request. A retry uses the same user.
const PENDING: &str = "pending.nk";

/// The membership of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// The servers, comma-separated.
    pub(crate) servers: String,
    /// The name of this machine.
    pub(crate) name: String,
    /// Its role.
    pub(crate) role: String,
    /// How this machine verifies the servers, if they use TLS.
    recognized_by: Option<RecognizedBy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecognizedBy {
    Certificate,
    Ca,
}

/// Returns the directory in a data directory.
pub(crate) fn folder(data: &Path) -> PathBuf {
    data.join(FOLDER)
}

/// Returns the file of the seed of a pending request.
pub(crate) fn pending_file(data: &Path) -> PathBuf {
    folder(data).join(PENDING)
}

/// Returns the credentials file of this machine's user.
pub(crate) fn credentials_file(data: &Path) -> PathBuf {
    folder(data).join(CREDS)
}

/// Whether this may be the credentials file of some data directory.
pub(crate) fn is_credentials_file(file: &Path) -> bool {
    file.ends_with(Path::new(FOLDER).join(CREDS))
}

/// Creates the error for `nerve up` on the data directory of a member.
pub(crate) fn member_cannot_run_up(data: &Path) -> Failure {
    Failure::new(format!(
        "the data directory {} belongs to a machine that has joined the NATS of another one",
        data.display()
    ))
    .next("start `nerve worker` or `nerve gateway` on it, or use another directory: nerve up --data DIR")
}

impl Membership {
    /// Whether this data directory contains a membership.
    pub(crate) fn exists(data: &Path) -> bool {
        folder(data).join(FILE).exists()
    }

    /// Reads the membership in this data directory.
    pub(crate) fn read(data: &Path) -> Result<Self, Failure> {
        let path = folder(data).join(FILE);
        let failed = |error: anyhow::Error| {
            let next = "join again with a new token of `nerve access token`";
            Failure::new(format!("cannot use {}", path.display())).because(error).next(next)
        };
        let text = files::read(&path).map_err(failed)?.unwrap_or_default();
        // Events are received from and secrets are sent to these servers.
        check_trusted(&path).map_err(|untrusted| failed(untrusted.into()))?;
        serde_json::from_str(&text).map_err(|error| failed(error.into()))
    }

    /// Returns the NATS settings, or `given` if it has another URL. `role` is that of the server to start; commands use
    /// the role of this machine.
    pub(crate) fn settings(&self, given: NatsSettings, data: &Path, role: Role) -> Result<NatsSettings, Failure> {
        let url = Servers::parse(&self.servers).unwrap_or_default();
        if !given.url.is_empty() && given.url.to_string() != url.to_string() {
            return Ok(given);
        }
        if [Role::Gateway, Role::Worker].contains(&role) && role.name() != self.role {
            let thing = format!("this machine has joined as {} and cannot run a {}", self.role, role.name());
            let next =
                format!("join with a token of `nerve access token --role {}`, in another data directory", role.name());
            return Err(Failure::new(thing).next(next));
        }
        let folder = folder(data);
        let file = |kind| (self.recognized_by == Some(kind)).then(|| folder.join(kind.file()));
        Ok(NatsSettings {
            url,
            creds: if given.has_credentials() { given.creds.clone() } else { Some(credentials_file(data)) },
            inbox_prefix: given.inbox_prefix.clone().or_else(|| Some(INBOX_PREFIX.to_owned())),
            pinned: file(RecognizedBy::Certificate).filter(|_| given.tls_ca.is_none()),
            tls_ca: given.tls_ca.clone().or(file(RecognizedBy::Ca)),
            tls: self.recognized_by.is_some(),
            ..given
        })
    }

    /// Stores a grant for the user with this seed.
    pub(crate) fn store(data: &Path, servers: String, grant: &Grant, seed: &str) -> anyhow::Result<Self> {
        let folder = folder(data);
        let trusted = grant.trust.as_ref().map(|trust| match trust {
            Trust::Certificate(pem) => (RecognizedBy::Certificate, pem),
            Trust::Ca(pem) => (RecognizedBy::Ca, pem),
        });
        store_keys(data, grant)?;
        if let Some((kind, pem)) = trusted {
            files::write(&folder.join(kind.file()), pem)?;
        }
        files::write(&credentials_file(data), &jwt::credentials(&grant.jwt, seed))?;
        let recognized_by = trusted.map(|(kind, _)| kind);
        let joined = Self { servers, name: grant.name.clone(), role: grant.role.clone(), recognized_by };
        files::write(&folder.join(FILE), &serde_json::to_string_pretty(&joined)?)?;
        std::fs::remove_file(pending_file(data))?;
        Ok(joined)
    }
}

impl RecognizedBy {
    fn file(self) -> &'static str {
        match self {
            Self::Certificate => CERTIFICATE,
            Self::Ca => CA,
        }
    }
}

/// Stores the secrets keys: the current one, and the next one during a rotation.
fn store_keys(data: &Path, grant: &Grant) -> anyhow::Result<()> {
    let files = KeyFiles::in_folder(data);
    let mut keys = grant.secrets_keys.iter().filter_map(|text| SecretsKey::parse(text));
    let (Some(current), next) = (keys.next(), keys.next()) else {
        anyhow::bail!("the grant contains no secrets key: start `nerve up` there once, and join again");
    };
    let held = files.current()?;
    let is_another = held.is_some_and(|held| grant.secrets_keys.iter().all(|text| *text != held.text().expose()));
    if is_another && !Membership::exists(data) {
        let path = files.current_path();
        let thing = format!("{} contains another secrets key than the required {}", path.display(), current.id());
        let next = "move that file and join again, or use another directory with --data DIR";
        return Err(Failure::new(thing).next(next).into());
    }
    files.write_current(&current)?;
    match next {
        Some(next) => files.write_next(&next)?,
        None => files.remove_next()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_broker::KeyPair;

    fn grant(keys: &[&SecretsKey], trust: Option<Trust>) -> Grant {
        let secrets_keys = keys.iter().map(|key| key.text().expose().to_owned()).collect();
        Grant { name: "b".into(), role: "worker".into(), jwt: "ey.ey.ey".into(), secrets_keys, trust }
    }

    fn store(data: &Path, grant: &Grant) -> anyhow::Result<Membership> {
        files::make_folder(&folder(data))?;
        let user = files::key(&pending_file(data), KeyPair::new_user)?;
        Membership::store(data, "tls://a:1,tls://b:2".to_owned(), grant, &user.seed()?)
    }

    fn given(url: &str) -> NatsSettings {
        NatsSettings { url: Servers::parse(url).unwrap(), ..NatsSettings::default() }
    }

    #[test]
    fn membership_is_used_unless_another_url_is_given() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path();
        assert!(!Membership::exists(data));
        let key = SecretsKey::generate();
        store(data, &grant(&[&key], Some(Trust::Certificate("PEM".into())))).unwrap();
        let joined = Membership::read(data).unwrap();
        for url in ["", "tls://a:1,tls://b:2"] {
            let settings = joined.settings(given(url), data, Role::Worker).unwrap();
            assert_eq!(settings.creds, Some(credentials_file(data)));
            assert_eq!((settings.url.to_string().as_str(), settings.tls), ("tls://a:1,tls://b:2", true));
            assert_eq!((settings.pinned, settings.tls_ca), (Some(folder(data).join(CERTIFICATE)), None));
        }
        assert_eq!(joined.settings(given("nats://x"), data, Role::Worker).unwrap().creds, None);
        let refused = joined.settings(given(""), data, Role::Gateway).unwrap_err().to_string();
        assert!(refused.contains("joined as worker"), "{refused}");
        assert!(joined.settings(given(""), data, Role::Operator).is_ok());
        assert_eq!(KeyFiles::in_folder(data).current().unwrap().unwrap().id(), key.id());
        assert!(!pending_file(data).exists());
    }

    #[test]
    fn secrets_key_of_another_server_is_not_overwritten() {
        let data = tempfile::tempdir().unwrap();
        let (data, files) = (data.path(), KeyFiles::in_folder(data.path()));
        let (old, new, next) = (SecretsKey::generate(), SecretsKey::generate(), SecretsKey::generate());
        files.write_current(&old).unwrap();
        assert!(store(data, &grant(&[&new], None)).unwrap_err().to_string().contains(&new.id()));
        assert_eq!(files.current().unwrap().unwrap().id(), old.id());
        store(data, &grant(&[&old], None)).unwrap();
        // A member replaces its keys.
        store(data, &grant(&[&new, &next], None)).unwrap();
        assert_eq!(files.current().unwrap().unwrap().id(), new.id());
        assert_eq!(files.next().unwrap().unwrap().id(), next.id());
        store(data, &grant(&[&next], None)).unwrap();
        assert!(files.next().unwrap().is_none());
    }
}
