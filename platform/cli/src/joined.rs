//! The NATS that this machine has joined with `nerve join`: the files in its data folder.
//!
//! They are in `<data>/join`, for this user alone; `nats.json` is written last, so it is there only where the others are.

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

/// The folder, in the data folder, and the files in it.
const FOLDER: &str = "join";
const FILE: &str = "nats.json";
const CREDS: &str = "nats.creds";
const CERTIFICATE: &str = "server.pem";
const CA: &str = "ca.pem";
/// The seed of a user who has asked and whose answer is not here yet: who asks again is the same.
const PENDING: &str = "pending.nk";

/// What this machine has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// The servers, with commas.
    pub(crate) servers: String,
    /// The name under which this machine is known there.
    pub(crate) name: String,
    /// What it may do.
    pub(crate) role: String,
    /// How the servers are recognized, if they use TLS.
    recognized_by: Option<RecognizedBy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecognizedBy {
    Certificate,
    Ca,
}

/// The folder in a data folder.
pub(crate) fn folder(data: &Path) -> PathBuf {
    data.join(FOLDER)
}

/// The seed of the user who asks.
pub(crate) fn pending_file(data: &Path) -> PathBuf {
    folder(data).join(PENDING)
}

/// The credentials of this machine's user.
pub(crate) fn credentials_file(data: &Path) -> PathBuf {
    folder(data).join(CREDS)
}

/// Whether this may be such a file, of whichever data folder.
pub(crate) fn is_credentials_file(file: &Path) -> bool {
    file.ends_with(Path::new(FOLDER).join(CREDS))
}

/// Why a `nerve up` does not start a nats-server there.
pub(crate) fn is_another_machines(data: &Path) -> Failure {
    Failure::new(format!("the data folder {} is that of a machine that has joined another's NATS", data.display()))
        .next("start `nerve worker` or `nerve gateway` on it, or give this one another folder: nerve up --data DIR")
}

impl Joined {
    /// Whether the machine of this data folder has joined.
    pub(crate) fn is_in(data: &Path) -> bool {
        folder(data).join(FILE).exists()
    }

    /// What the machine of this data folder has joined.
    pub(crate) fn read(data: &Path) -> Result<Self, Failure> {
        let path = folder(data).join(FILE);
        let failed = |error: anyhow::Error| {
            let next = "join again, with a new token of `nerve access token`";
            Failure::new(format!("{} cannot be used", path.display())).because(error).next(next)
        };
        let text = files::read(&path).map_err(failed)?.unwrap_or_default();
        // It says where events are taken from, and secrets sent to.
        check_trusted(&path).map_err(|untrusted| failed(untrusted.into()))?;
        serde_json::from_str(&text).map_err(|error| failed(error.into()))
    }

    /// How NATS is reached, unless `given` names another one. `role` is that of the server which is to start; commands have what
    /// this machine has.
    pub(crate) fn settings(&self, given: NatsSettings, data: &Path, role: Role) -> Result<NatsSettings, Failure> {
        let url = Servers::parse(&self.servers).unwrap_or_default();
        if !given.url.is_empty() && given.url.to_string() != url.to_string() {
            return Ok(given);
        }
        if [Role::Gateway, Role::Worker].contains(&role) && role.name() != self.role {
            let thing = format!("this machine has joined as {}, and may not be a {}", self.role, role.name());
            let next =
                format!("join with a token of `nerve access token --role {}`, in another data folder", role.name());
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

    /// Keeps what was granted to this machine, whose user has this seed.
    pub(crate) fn keep(data: &Path, servers: String, grant: &Grant, seed: &str) -> anyhow::Result<Self> {
        let folder = folder(data);
        let trusted = grant.trust.as_ref().map(|trust| match trust {
            Trust::Certificate(pem) => (RecognizedBy::Certificate, pem),
            Trust::Ca(pem) => (RecognizedBy::Ca, pem),
        });
        keep_keys(data, grant)?;
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

/// Keeps the secrets keys: the current one, and one beside it where a rotation goes on.
fn keep_keys(data: &Path, grant: &Grant) -> anyhow::Result<()> {
    let files = KeyFiles::in_folder(data);
    let mut keys = grant.secrets_keys.iter().filter_map(|text| SecretsKey::parse(text));
    let (Some(current), next) = (keys.next(), keys.next()) else {
        anyhow::bail!("no secrets key came with it: start `nerve up` there once, and join again");
    };
    let held = files.current()?;
    let is_another = held.is_some_and(|held| grant.secrets_keys.iter().all(|text| *text != held.text().expose()));
    if is_another && !Joined::is_in(data) {
        let path = files.current_path();
        let thing = format!("{} holds another secrets key than {}, which is needed", path.display(), current.id());
        let next = "move that file away, and join again; or name another folder with --data DIR";
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

    fn keep(data: &Path, grant: &Grant) -> anyhow::Result<Joined> {
        files::make_folder(&folder(data))?;
        let user = files::key(&pending_file(data), KeyPair::new_user)?;
        Joined::keep(data, "tls://a:1,tls://b:2".to_owned(), grant, &user.seed()?)
    }

    fn given(url: &str) -> NatsSettings {
        NatsSettings { url: Servers::parse(url).unwrap(), ..NatsSettings::default() }
    }

    #[test]
    fn what_was_joined_is_used_where_nothing_else_is_named() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path();
        assert!(!Joined::is_in(data));
        let key = SecretsKey::generate();
        keep(data, &grant(&[&key], Some(Trust::Certificate("PEM".into())))).unwrap();
        let joined = Joined::read(data).unwrap();
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
        assert!(keep(data, &grant(&[&new], None)).unwrap_err().to_string().contains(&new.id()));
        assert_eq!(files.current().unwrap().unwrap().id(), old.id());
        keep(data, &grant(&[&old], None)).unwrap();
        // One that has joined takes what is new there.
        keep(data, &grant(&[&new, &next], None)).unwrap();
        assert_eq!(files.current().unwrap().unwrap().id(), new.id());
        assert_eq!(files.next().unwrap().unwrap().id(), next.id());
        keep(data, &grant(&[&next], None)).unwrap();
        assert!(files.next().unwrap().is_none());
    }
}
