//! Who may use the nats-server of `nerve up`: keys made at the first start, a credentials file for each role, and the servers on
//! other machines that have joined.
//!
//! The server trusts an issuer (NATS' operator), whose seed signs accounts. The account of all that is stored names a key for each
//! role, whose seed signs the users of the role. An account of its own is for those who ask to join: nothing else is in it. The seeds
//! and the credentials are in `<data>/nats`, which is this user's alone; the server reads public keys only, from `trust.conf` there,
//! and reads that again while it runs.

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

/// The folder, in the data folder.
const FOLDER: &str = "nats";
/// Public keys of users who are refused, and since when.
const REVOKED: &str = "revoked.json";
/// Tokens, and the machines that have joined.
const MEMBERS: &str = "members.json";
/// What the server's configuration includes.
const TRUST: &str = "trust.conf";
/// The issuer's own JWT, which the server does not read again while it runs.
const ISSUER_JWT: &str = "issuer.jwt";
/// Credentials of the user who answers those that ask to join.
const JOIN_CREDS: &str = "join.creds";

/// How long a user of the server's own account may be one.
const SYSTEM_USER_LIFETIME: Duration = Duration::from_secs(60);

/// The folder of credentials of the nats-server on `data`.
pub(crate) fn folder(data: &Path) -> PathBuf {
    data.join(FOLDER)
}

/// What the server's configuration includes, beside it.
pub(super) fn trust_file() -> PathBuf {
    Path::new(FOLDER).join(TRUST)
}

fn members_file(folder: &Path) -> PathBuf {
    folder.join(MEMBERS)
}

/// `settings` with the credentials of `role` out of `folder`.
pub(crate) fn settings(settings: NatsSettings, folder: &Path, role: Role) -> NatsSettings {
    let inbox_prefix = (role != Role::App).then(|| INBOX_PREFIX.to_owned()).or(settings.inbox_prefix.clone());
    NatsSettings { creds: Some(folder.join(role.file())), inbox_prefix, ..settings }
}

/// The same as a new user of the server's own account, for a minute. Who may have the server read its configuration again has no
/// credentials that stay: the file is there for as long as it is held.
pub(super) fn system(settings: NatsSettings, folder: &Path) -> anyhow::Result<(NatsSettings, NamedTempFile)> {
    let (account, user) = (system_account(folder)?, KeyPair::new_user());
    let jwt = jwt::user(&account, &user.public_key(), "nerve access", Some(SYSTEM_USER_LIFETIME))?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(jwt::credentials(&jwt, &user.seed()?).as_bytes())?;
    Ok((NatsSettings { creds: Some(file.path().to_owned()), inbox_prefix: None, ..settings }, file))
}

/// The same as the user who answers those that ask to join.
pub(super) fn join_responder(settings: NatsSettings, folder: &Path) -> NatsSettings {
    NatsSettings { creds: Some(folder.join(JOIN_CREDS)), inbox_prefix: None, ..settings }
}

/// Makes the keys that are missing, every role's credentials as this version grants them, and what the server reads. Returns the
/// public key of the account of all that is stored.
pub(super) fn prepare(data: &Path) -> anyhow::Result<String> {
    let folder = folder(data);
    files::make_folder(&folder)?;
    let _lock = FolderLock::take(&folder)?;
    write_credentials(&folder)?;
    write_trust(&folder)?;
    Ok(account(&folder)?.public_key())
}

/// Gives each role new credentials. The server refuses the old ones once it has read `trust.conf` again.
pub(crate) fn rotate(data: &Path, roles: &[Role]) -> anyhow::Result<()> {
    let folder = folder(data);
    let _lock = FolderLock::take(&folder)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for role in roles {
        let file = folder.join(format!("{}.nk", role.name()));
        let old = key(&file, KeyPair::new_user)?.public_key();
        // First: a key that was replaced and is not refused would go on to be good.
        revoke_users(&folder, [old.as_str()], now)?;
        write(&file, &KeyPair::new_user().seed()?)?;
    }
    write_credentials(&folder)?;
    write_trust(&folder)
}

/// A user of this machine.
#[derive(Debug)]
pub(crate) struct RoleUser {
    /// What it is for.
    pub(crate) role: Role,
    /// Its public key.
    pub(crate) public: String,
    /// When its key was made.
    pub(crate) since: SystemTime,
}

/// The users of this machine.
pub(crate) fn roles(data: &Path) -> anyhow::Result<Vec<RoleUser>> {
    let folder = folder(data);
    let user = |role: Role| {
        let file = folder.join(format!("{}.nk", role.name()));
        let public = key(&file, KeyPair::new_user)?.public_key();
        Ok(RoleUser { role, public, since: std::fs::metadata(&file)?.modified()? })
    };
    Role::ALL.into_iter().map(user).collect()
}

/// Writes down that users are refused, if they were signed until now.
fn revoke_users<'u>(folder: &Path, users: impl IntoIterator<Item = &'u str>, now: u64) -> anyhow::Result<()> {
    let file = folder.join(REVOKED);
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
    credentials(JOIN_CREDS, &jwt::user(&join_account(folder)?, &user.public_key(), "nerve", None)?, &user)
}

/// Writes what the server trusts and whom it refuses.
fn write_trust(folder: &Path) -> anyhow::Result<()> {
    let issuer = key(&folder.join("issuer.nk"), KeyPair::new_operator)?;
    let (stored, joins, system) = (account(folder)?, join_account(folder)?, system_account(folder)?);
    let (stored, joins, system) = (stored.public_key(), joins.public_key(), system.public_key());
    let scopes = Role::ALL.into_iter().map(|role| {
        let key = scope_key(folder, role)?.public_key();
        Ok::<_, anyhow::Error>(Scope { key, role: role.name(), permissions: role.permissions() })
    });
    let scopes = scopes.collect::<Result<_, _>>()?;
    let revoked = read_json(&folder.join(REVOKED))?;
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
    write(&folder.join(TRUST), &text)
}

/// The issuer's JWT, made once: a server that runs refuses a configuration with another one.
fn issuer_jwt(folder: &Path, issuer: &KeyPair, system: &str) -> anyhow::Result<String> {
    let file = folder.join(ISSUER_JWT);
    if let Some(jwt) = read(&file)? {
        return Ok(jwt.trim().to_owned());
    }
    let jwt = jwt::operator(issuer, "nerve", system)?;
    write(&file, &jwt)?;
    Ok(jwt)
}

/// The account of all that is stored.
fn account(folder: &Path) -> anyhow::Result<KeyPair> {
    key(&folder.join("account.nk"), KeyPair::new_account)
}

/// The account of those who ask to join.
fn join_account(folder: &Path) -> anyhow::Result<KeyPair> {
    key(&folder.join("join.nk"), KeyPair::new_account)
}

/// The server's own account.
fn system_account(folder: &Path) -> anyhow::Result<KeyPair> {
    key(&folder.join("system.nk"), KeyPair::new_account)
}

/// The key that signs users of a role.
fn scope_key(folder: &Path, role: Role) -> anyhow::Result<KeyPair> {
    key(&folder.join(format!("{}.issuer.nk", role.name())), KeyPair::new_account)
}

/// The role with this name.
pub(crate) fn role_of(name: &str) -> anyhow::Result<Role> {
    Role::ALL.into_iter().find(|role| role.name() == name).with_context(|| format!("there is no role `{name}`"))
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
    fn keys_are_made_once_and_are_this_users_alone() {
        let data = tempfile::tempdir().unwrap();
        let first = prepare(data.path()).unwrap();
        let trusted = || std::fs::read_to_string(data.path().join(trust_file())).unwrap();
        let issuer = |text: &str| text.lines().find(|line| line.starts_with("operator:")).unwrap().to_owned();
        let issued = issuer(&trusted());
        let folder = folder(data.path());
        assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let made = files(&folder);
        let others = ["issuer.nk", "issuer.jwt", "account.nk", "join.nk", "system.nk", "join.creds"];
        assert_eq!(made.len(), others.len() + ["trust.conf", "lock"].len() + 3 * Role::ALL.len(), "{made:?}");
        assert!(made.values().all(|(mode, _)| *mode == 0o600), "{made:?}");
        let again = prepare(data.path()).unwrap();
        assert_eq!(first, again);
        let seeds = |files: &BTreeMap<String, (u32, String)>| {
            let seeds = files.iter().filter(|(name, _)| name.ends_with(".nk"));
            seeds.map(|(name, file)| (name.clone(), file.clone())).collect::<Vec<_>>()
        };
        assert_eq!(seeds(&files(&folder)), seeds(&made));
        rotate(data.path(), &[Role::App]).unwrap();
        let rotated = seeds(&files(&folder));
        let differ = rotated.iter().zip(seeds(&made)).filter(|(new, old)| *new != old).map(|(new, _)| new.0.as_str());
        assert_eq!(differ.collect::<Vec<_>>(), ["app.nk"]);
        assert_eq!(read_json::<BTreeMap<String, u64>>(&folder.join(REVOKED)).unwrap().len(), 1);
        assert_eq!(issuer(&trusted()), issued, "a server that runs takes no other");
        std::fs::write(folder.join("account.nk"), "nonsense").unwrap();
        let error = prepare(data.path()).unwrap_err().to_string();
        assert!(error.contains("account.nk") && !error.contains("nonsense"), "{error}");
    }
}
