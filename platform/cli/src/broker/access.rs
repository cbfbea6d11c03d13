//! Who may use the nats-server of `nerve up`: keys made at the first start, and a credentials file for each role.
//!
//! The server trusts an issuer (NATS' operator), whose seed signs an account; that names a key for each role, whose seed signs
//! the role's user. The seeds and the credentials are in
//! `<data>/nats`, which is this user's alone; the server's configuration holds public keys only.

use anyhow::Context;
use nerve_broker::{
    KeyPair, NatsSettings,
    jwt::{self, Account, Scope},
    roles::{INBOX_PREFIX, Role},
};
use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// The folder, in the data folder.
const FOLDER: &str = "nats";
/// Public keys of users whose credentials were replaced, and when.
const REVOKED: &str = "revoked.json";
/// The longest seed or credentials file, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// What the server's configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trust {
    /// The operator's JWT.
    pub(super) operator: String,
    /// The account of everything that is stored, and its JWT.
    pub(super) account: (String, String),
    /// The server's own account, and its JWT.
    pub(super) system: (String, String),
}

/// The folder of credentials of the nats-server on `data`.
pub(crate) fn folder(data: &Path) -> PathBuf {
    data.join(FOLDER)
}

/// `settings` with the credentials of `role` out of `folder`.
pub(crate) fn settings(settings: NatsSettings, folder: &Path, role: Role) -> NatsSettings {
    let inbox_prefix = (role != Role::App).then(|| INBOX_PREFIX.to_owned()).or(settings.inbox_prefix.clone());
    NatsSettings { creds: Some(folder.join(role.file())), inbox_prefix, ..settings }
}

/// Makes the keys that are missing, and every role's credentials as this version grants them.
pub(super) fn prepare(data: &Path) -> anyhow::Result<Trust> {
    let folder = folder(data);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    let made = made.and_then(|()| std::fs::set_permissions(&folder, Permissions::from_mode(0o700)));
    made.with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let operator = key(&folder.join("issuer.nk"), KeyPair::new_operator)?;
    let account = key(&folder.join("account.nk"), KeyPair::new_account)?;
    let system = key(&folder.join("system.nk"), KeyPair::new_account)?;
    let mut scopes = Vec::new();
    for role in Role::ALL {
        let scope = key(&folder.join(format!("{}.issuer.nk", role.name())), KeyPair::new_account)?;
        let user = key(&folder.join(format!("{}.nk", role.name())), KeyPair::new_user)?;
        let jwt = jwt::scoped_user(&scope, &account.public_key(), &user.public_key(), role.name())?;
        write(&folder.join(role.file()), &jwt::credentials(&jwt, &user.seed()?))?;
        scopes.push(Scope { key: scope.public_key(), role: role.name(), permissions: role.permissions() });
    }
    let (account, system) = (account.public_key(), system.public_key());
    let revoked = revoked(&folder)?;
    let nerve = Account { public: &account, name: "nerve", jetstream: true, scopes, revoked };
    let own = Account { public: &system, name: "system", ..Account::default() };
    Ok(Trust {
        operator: jwt::operator(&operator, "nerve", &system)?,
        account: (account.clone(), jwt::account(&operator, &nerve)?),
        system: (system.clone(), jwt::account(&operator, &own)?),
    })
}

/// Gives each role new credentials, and refuses the old ones from the next start of the server on.
pub(crate) fn rotate(data: &Path, roles: &[Role]) -> anyhow::Result<()> {
    let folder = folder(data);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for role in roles {
        let file = folder.join(format!("{}.nk", role.name()));
        let mut revoked = revoked(&folder)?;
        revoked.insert(key(&file, KeyPair::new_user)?.public_key(), now);
        // First: a key that was replaced and is not refused would go on to be good.
        write(&folder.join(REVOKED), &serde_json::to_string_pretty(&revoked)?)?;
        write(&file, &KeyPair::new_user().seed()?)?;
    }
    prepare(data).map(drop)
}

/// Users that are refused: those that were signed until a moment.
fn revoked(folder: &Path) -> anyhow::Result<BTreeMap<String, u64>> {
    let file = folder.join(REVOKED);
    match std::fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("cannot read {}", file.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// The key pair whose seed is in `file`, or a new one that is then kept there.
fn key(file: &Path, new: impl FnOnce() -> KeyPair) -> anyhow::Result<KeyPair> {
    let mut seed = String::new();
    match File::open(file).and_then(|found| found.take(MAX_FILE_BYTES).read_to_string(&mut seed)) {
        Ok(_) => KeyPair::from_seed(seed.trim()).map_err(|_| {
            let next = "restore it, or remove its folder so that all credentials are made anew";
            anyhow::anyhow!("{} holds no seed of NATS: {next}", file.display())
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let pair = new();
            write(file, &pair.seed()?)?;
            Ok(pair)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Writes a file whole or not at all, for this user alone whatever the umask.
fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let draft = file.with_extension("new");
    let written = || {
        let mut options = OpenOptions::new();
        let mut new = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        new.set_permissions(Permissions::from_mode(0o600))?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        std::fs::rename(&draft, file)
    };
    written().with_context(|| format!("cannot write {}", file.display()))
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
        let folder = folder(data.path());
        assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let made = files(&folder);
        assert_eq!(made.len(), 3 + 3 * Role::ALL.len());
        assert!(made.values().all(|(mode, _)| *mode == 0o600), "{made:?}");
        let again = prepare(data.path()).unwrap();
        assert_eq!((first.account.0, first.system.0), (again.account.0, again.system.0));
        let seeds = |files: &BTreeMap<String, (u32, String)>| {
            let seeds = files.iter().filter(|(name, _)| name.ends_with(".nk"));
            seeds.map(|(name, file)| (name.clone(), file.clone())).collect::<Vec<_>>()
        };
        assert_eq!(seeds(&files(&folder)), seeds(&made));
        rotate(data.path(), &[Role::App]).unwrap();
        let rotated = seeds(&files(&folder));
        let differ = rotated.iter().zip(seeds(&made)).filter(|(new, old)| *new != old).map(|(new, _)| new.0.as_str());
        assert_eq!(differ.collect::<Vec<_>>(), ["app.nk"]);
        assert_eq!(revoked(&folder).unwrap().len(), 1);
        std::fs::write(folder.join("account.nk"), "nonsense").unwrap();
        let error = prepare(data.path()).unwrap_err().to_string();
        assert!(error.contains("account.nk") && !error.contains("nonsense"), "{error}");
    }
}
