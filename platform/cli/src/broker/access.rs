//! Access control of the nats-server of `nerve up`: keys created at the first start, a credentials file per role, and
//! the servers on other machines that have joined.
//!
//! The server trusts an issuer (the NATS operator), whose seed signs accounts. The account with all streams lists a key
//! per role, whose seed signs the users of the role. A separate, empty account is for join requests. Seeds and
//! credentials are in `<data>/nats`, which only this user can read. The server reads only public keys, from
//! `trust.conf` there, and reloads that file at run time.

pub(crate) mod files;
pub(crate) mod members;

use anyhow::Context;
use files::{FolderLock, key, read, read_json, write, write_json};
use nerve_broker::{
    KeyPair, NatsSettings,
    jwt::{self, Account, Scope},
    roles::{INBOX_PREFIX, Role},
};
use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::NamedTempFile;

/// Name of the directory in the data directory.
const FOLDER: &str = "nats";
/// File of the public keys of revoked users, with the time of revocation.
const REVOKED_FILE: &str = "revoked.json";
/// File of tokens and joined machines.
const MEMBERS_FILE: &str = "members.json";
/// File that the server's configuration includes.
const TRUST_FILE: &str = "trust.conf";
/// File of the issuer's JWT, which the server does not reload at run time.
const ISSUER_JWT_FILE: &str = "issuer.jwt";
/// Credentials file of the user that responds to join requests.
const JOIN_CREDS_FILE: &str = "join.creds";

/// Lifetime of a user of the system account.
const SYSTEM_USER_LIFETIME: Duration = Duration::from_secs(60);

/// Returns the credentials directory of the nats-server on `data`.
pub(crate) fn folder(data: &Path) -> PathBuf {
    data.join(FOLDER)
}

/// Returns the path of `trust.conf`, relative to the server's configuration.
pub(super) fn trust_file() -> PathBuf {
    Path::new(FOLDER).join(TRUST_FILE)
}

fn members_file(folder: &Path) -> PathBuf {
    folder.join(MEMBERS_FILE)
}

/// Adds the credentials of `role` in `folder` to `settings`.
pub(crate) fn settings(settings: NatsSettings, folder: &Path, role: Role) -> NatsSettings {
    let inbox_prefix = (role != Role::App).then(|| INBOX_PREFIX.to_owned()).or(settings.inbox_prefix.clone());
    NatsSettings { creds: Some(folder.join(role.file())), inbox_prefix, ..settings }
}

/// Adds credentials of a new user of the system account, which may reload the server. They expire after a minute, and
/// their file is deleted when the returned handle is dropped.
pub(super) fn system(settings: NatsSettings, folder: &Path) -> anyhow::Result<(NatsSettings, NamedTempFile)> {
    let (account, user) = (system_account(folder)?, KeyPair::new_user());
    let jwt = jwt::user(&account, &user.public_key(), "nerve access", Some(SYSTEM_USER_LIFETIME))?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(jwt::credentials(&jwt, &user.seed()?).as_bytes())?;
    Ok((NatsSettings { creds: Some(file.path().to_owned()), inbox_prefix: None, ..settings }, file))
}

/// Adds the credentials of the user that responds to join requests.
pub(super) fn join_responder(settings: NatsSettings, folder: &Path) -> NatsSettings {
    NatsSettings { creds: Some(folder.join(JOIN_CREDS_FILE)), inbox_prefix: None, ..settings }
}

/// Creates missing keys, the credentials of every role with the permissions of this version, and `trust.conf`. Returns
/// the public key of the account with all streams.
pub(super) fn prepare(data: &Path) -> anyhow::Result<String> {
    let folder = folder(data);
    files::make_folder(&folder)?;
    let _lock = FolderLock::take(&folder)?;
    write_credentials(&folder)?;
    write_trust(&folder)?;
    Ok(account(&folder)?.public_key())
}

/// Replaces the credentials of each role. The server rejects the old ones after it has reloaded `trust.conf`.
pub(crate) fn rotate(data: &Path, roles: &[Role]) -> anyhow::Result<()> {
    let folder = folder(data);
    let _lock = FolderLock::take(&folder)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for role in roles {
        let file = folder.join(format!("{}.nk", role.name()));
        let old = key(&file, KeyPair::new_user)?.public_key();
        // Revoke first: a replaced key that is not revoked would stay valid.
        revoke_users(&folder, [old.as_str()], now)?;
        write(&file, &KeyPair::new_user().seed()?)?;
    }
    write_credentials(&folder)?;
    write_trust(&folder)
}

/// A user of this machine.
#[derive(Debug)]
pub(crate) struct RoleUser {
    /// Its role.
    pub(crate) role: Role,
    /// Its public key.
    pub(crate) public: String,
    /// Creation time of its key.
    pub(crate) since: SystemTime,
}

/// Returns the users of this machine.
pub(crate) fn roles(data: &Path) -> anyhow::Result<Vec<RoleUser>> {
    let folder = folder(data);
    let user = |role: Role| {
        let file = folder.join(format!("{}.nk", role.name()));
        let public = key(&file, KeyPair::new_user)?.public_key();
        Ok(RoleUser { role, public, since: std::fs::metadata(&file)?.modified()? })
    };
    Role::ALL.into_iter().map(user).collect()
}

/// Records the revocation of users that were signed before `now`.
fn revoke_users<'u>(folder: &Path, users: impl IntoIterator<Item = &'u str>, now: u64) -> anyhow::Result<()> {
    let file = folder.join(REVOKED_FILE);
    let mut revoked: BTreeMap<String, u64> = read_json(&file)?;
    revoked.extend(users.into_iter().map(|user| (user.to_owned(), now)));
    write_json(&file, &revoked)
}

fn write_credentials(folder: &Path) -> anyhow::Result<()> {
    let stored = account(folder)?.public_key();
    let credentials =
        |file: &str, jwt: &str, user: &KeyPair| write(&folder.join(file), &jwt::credentials(jwt, &user.seed()?));
    for role in Role::ALL {
        let user = key(&folder.join(format!("{}.nk", role.name())), KeyPair::new_user)?;
        let jwt = jwt::scoped_user(&scope_key(folder, role)?, &stored, &user.public_key(), role.name())?;
        credentials(&role.file(), &jwt, &user)?;
    }
    let user = KeyPair::new_user();
    credentials(JOIN_CREDS_FILE, &jwt::user(&join_account(folder)?, &user.public_key(), "nerve", None)?, &user)
}

/// Writes the trusted keys and the revoked users.
fn write_trust(folder: &Path) -> anyhow::Result<()> {
    let issuer = key(&folder.join("issuer.nk"), KeyPair::new_operator)?;
    let (stored, joins, system) = (account(folder)?, join_account(folder)?, system_account(folder)?);
    let (stored, joins, system) = (stored.public_key(), joins.public_key(), system.public_key());
    let scopes = Role::ALL.into_iter().map(|role| {
        let key = scope_key(folder, role)?.public_key();
        Ok::<_, anyhow::Error>(Scope { key, role: role.name(), permissions: role.permissions() })
    });
    let scopes = scopes.collect::<Result<_, _>>()?;
    let revoked = read_json(&folder.join(REVOKED_FILE))?;
    let accounts = [
        Account { public: &stored, name: "nerve", jetstream: true, scopes, revoked },
        Account { public: &joins, name: "join", ..Account::default() },
        Account { public: &system, name: "system", ..Account::default() },
    ];
    let mut text = String::from("# Written by `nerve up` and `nerve access`: edits are lost.\n");
    text.push_str(&format!("operator: \"{}\"\n", issuer_jwt(folder, &issuer, &system)?));
    text.push_str(&format!("system_account: \"{system}\"\nresolver: MEMORY\nresolver_preload {{\n"));
    for account in &accounts {
        text.push_str(&format!("  {}: \"{}\"\n", account.public, jwt::account(&issuer, account)?));
    }
    text.push_str("}\n");
    write(&folder.join(TRUST_FILE), &text)
}

/// Returns the issuer's JWT. It is created once, because a running server rejects a configuration with another one.
fn issuer_jwt(folder: &Path, issuer: &KeyPair, system: &str) -> anyhow::Result<String> {
    let file = folder.join(ISSUER_JWT_FILE);
    if let Some(jwt) = read(&file)? {
        return Ok(jwt.trim().to_owned());
    }
    let jwt = jwt::operator(issuer, "nerve", system)?;
    write(&file, &jwt)?;
    Ok(jwt)
}

/// The account with all streams.
fn account(folder: &Path) -> anyhow::Result<KeyPair> {
    key(&folder.join("account.nk"), KeyPair::new_account)
}

/// The account of join requests.
fn join_account(folder: &Path) -> anyhow::Result<KeyPair> {
    key(&folder.join("join.nk"), KeyPair::new_account)
}

/// The system account.
fn system_account(folder: &Path) -> anyhow::Result<KeyPair> {
    key(&folder.join("system.nk"), KeyPair::new_account)
}

/// The signing key of a role's users.
fn scope_key(folder: &Path, role: Role) -> anyhow::Result<KeyPair> {
    key(&folder.join(format!("{}.issuer.nk", role.name())), KeyPair::new_account)
}

/// Returns the role with this name.
pub(crate) fn role_of(name: &str) -> anyhow::Result<Role> {
    Role::ALL.into_iter().find(|role| role.name() == name).with_context(|| format!("unknown role `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, os::unix::fs::MetadataExt};

    fn files(folder: &Path) -> BTreeMap<String, (u32, String)> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let read = |file: PathBuf| {
            let mode = std::fs::metadata(&file).unwrap().mode() & 0o777;
            (file.file_name().unwrap().to_string_lossy().into_owned(), (mode, std::fs::read_to_string(file).unwrap()))
        };
        entries.map(read).collect()
    }

    #[test]
    fn keys_are_created_once_and_are_private() {
        let data = tempfile::tempdir().unwrap();
        let first = prepare(data.path()).unwrap();
        let trusted = || std::fs::read_to_string(data.path().join(trust_file())).unwrap();
        let issuer = |text: &str| text.lines().find(|line| line.starts_with("operator:")).unwrap().to_owned();
        let issued = issuer(&trusted());
        let folder = folder(data.path());
        assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let created = files(&folder);
        let others = ["issuer.nk", "issuer.jwt", "account.nk", "join.nk", "system.nk", "join.creds"];
        assert_eq!(created.len(), others.len() + ["trust.conf", "lock"].len() + 3 * Role::ALL.len(), "{created:?}");
        assert!(created.values().all(|(mode, _)| *mode == 0o600), "{created:?}");
        let again = prepare(data.path()).unwrap();
        assert_eq!(first, again);
        let seeds = |files: &BTreeMap<String, (u32, String)>| {
            let seeds = files.iter().filter(|(name, _)| name.ends_with(".nk"));
            seeds.map(|(name, file)| (name.clone(), file.clone())).collect::<Vec<_>>()
        };
        assert_eq!(seeds(&files(&folder)), seeds(&created));
        rotate(data.path(), &[Role::App]).unwrap();
        let rotated = seeds(&files(&folder));
        let differ =
            rotated.iter().zip(seeds(&created)).filter(|(new, old)| *new != old).map(|(new, _)| new.0.as_str());
        assert_eq!(differ.collect::<Vec<_>>(), ["app.nk"]);
        assert_eq!(read_json::<BTreeMap<String, u64>>(&folder.join(REVOKED_FILE)).unwrap().len(), 1);
        assert_eq!(issuer(&trusted()), issued, "a running server accepts no other issuer");
        std::fs::write(folder.join("account.nk"), "nonsense").unwrap();
        let error = prepare(data.path()).unwrap_err().to_string();
        assert!(error.contains("account.nk") && !error.contains("nonsense"), "{error}");
    }
}
