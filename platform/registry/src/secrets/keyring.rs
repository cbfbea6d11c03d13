//! The private keys that a server has for secrets, and the files that hold them.
//!
//! `secrets.key` in the data folder holds the current key, unless the settings do. While the key is replaced, `secrets.key.next` holds
//! the one to come, and a server opens secrets with both.

use crypto_box::{PublicKey, SecretKey, aead::OsRng};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use nerve_config::Config;
use nerve_core::Secret;
use sha2::{Digest, Sha256};
use std::{
    fmt,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

/// The files, in the data folder.
const CURRENT: &str = "secrets.key";
const NEXT: &str = "secrets.key.next";
/// The private key of a machine that has joined, in the data folder: new secrets keys are encrypted for it.
const MACHINE_KEY: &str = "join/machine.key";
/// The most of such a file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024;
/// Bytes of a digest that name a key.
const ID_BYTES: usize = 4;

/// Why the private key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// It is not a key.
    #[error("{0} does not hold a key: it must be 64 hexadecimal digits")]
    Malformed(String),
    /// It is another key than the one that the secrets were encrypted for.
    #[error(
        "the secrets in this NATS are encrypted for the secrets key {needed}, and {origin} holds {held}: give this server the \
         current key, by `nerve join` with a new token of `nerve access token`, or by the secrets.key of the server that has it"
    )]
    Other {
        /// The key that is needed.
        needed: String,
        /// The key that is there.
        held: String,
        /// Where that is.
        origin: String,
    },
    /// Its file cannot be read or written.
    #[error("the secrets key in {path} cannot be used")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The broker failed.
    #[error(transparent)]
    Bus(#[from] nerve_broker::bus::BusError),
}

/// A private key that secrets are encrypted for.
#[derive(Clone)]
pub struct SecretsKey(pub(super) SecretKey);

impl fmt::Debug for SecretsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretsKey({})", self.id())
    }
}

impl SecretsKey {
    /// A new one.
    pub fn generate() -> Self {
        Self(SecretKey::generate(&mut OsRng))
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 32] = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok()?.try_into().ok()?;
        Some(Self(SecretKey::from_bytes(bytes)))
    }

    /// The key as [`parse`](Self::parse) reads it.
    pub fn text(&self) -> Secret {
        Secret::new(HEXLOWER.encode(&self.0.to_bytes()))
    }

    /// What it is called: it tells keys apart, and nothing about the key.
    pub fn id(&self) -> String {
        key_id(&self.0.public_key())
    }

    /// The public key in hexadecimal digits.
    pub fn public(&self) -> String {
        HEXLOWER.encode(self.0.public_key().as_bytes())
    }
}

/// A public key that [`SecretsKey::public`] wrote.
pub(super) fn parse_public(text: &str) -> Option<PublicKey> {
    let bytes: [u8; 32] = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()?;
    Some(PublicKey::from_bytes(bytes))
}

/// What the key with this public half is called.
pub(crate) fn key_id(public: &PublicKey) -> String {
    let digest = Sha256::digest(public.as_bytes());
    HEXLOWER.encode(digest.get(..ID_BYTES).unwrap_or_default())
}

/// The files of one data folder.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    folder: PathBuf,
}

impl KeyFiles {
    /// Those of this data folder.
    pub fn in_folder(data: &Path) -> Self {
        Self { folder: data.to_owned() }
    }

    /// The file of the current key.
    pub fn current_path(&self) -> PathBuf {
        self.folder.join(CURRENT)
    }

    fn next_path(&self) -> PathBuf {
        self.folder.join(NEXT)
    }

    /// The current key, if there is one.
    ///
    /// # Errors
    /// The file cannot be read, or holds no key.
    pub fn current(&self) -> Result<Option<SecretsKey>, KeyringError> {
        read(&self.current_path())
    }

    /// The key that the current one is being replaced by, if it is.
    ///
    /// # Errors
    /// The file cannot be read, or holds no key.
    pub fn next(&self) -> Result<Option<SecretsKey>, KeyringError> {
        read(&self.next_path())
    }

    /// The key of this machine, if it has joined.
    pub(super) fn machine(&self) -> Result<Option<SecretsKey>, KeyringError> {
        read(&self.folder.join(MACHINE_KEY))
    }

    /// The key of this machine, which is made where there is none.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn machine_or_new(&self) -> Result<SecretsKey, KeyringError> {
        self.make(&self.folder.join(MACHINE_KEY))
    }

    /// Makes the current key where there is none; of two servers that start at once, one makes it.
    pub(super) fn make_current(&self) -> Result<SecretsKey, KeyringError> {
        self.make(&self.current_path())
    }

    /// Makes the key to come where there is none.
    pub(super) fn make_next(&self) -> Result<SecretsKey, KeyringError> {
        self.make(&self.next_path())
    }

    /// Keeps the key to come, which another machine made.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_next(&self, key: &SecretsKey) -> Result<(), KeyringError> {
        write(&self.next_path(), key)
    }

    /// Keeps the current key, which another machine made.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_current(&self, key: &SecretsKey) -> Result<(), KeyringError> {
        write(&self.current_path(), key)
    }

    /// Removes the key to come.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove_next(&self) -> Result<(), KeyringError> {
        let path = self.next_path();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Makes the key to come the current one. The one before it is gone then.
    pub(super) fn promote(&self) -> Result<(), KeyringError> {
        let next = self.next_path();
        std::fs::rename(&next, self.current_path()).map_err(failed(&next))
    }

    fn make(&self, path: &Path) -> Result<SecretsKey, KeyringError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed(path))?;
        }
        if let Some(made) = read(path)? {
            return Ok(made);
        }
        let key = SecretsKey::generate();
        // Linked rather than renamed, so that the first of two stays.
        let draft = tempfile_beside(path, &key)?;
        let linked = std::fs::hard_link(&draft, path);
        std::fs::remove_file(&draft).map_err(failed(&draft))?;
        match linked {
            Ok(()) => Ok(key),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                read(path)?.ok_or_else(|| KeyringError::Malformed(path.display().to_string()))
            }
            Err(error) => Err(failed(path)(error)),
        }
    }
}

/// Writes a file that only this user reads, whole or not at all.
fn write(path: &Path, key: &SecretsKey) -> Result<(), KeyringError> {
    let draft = tempfile_beside(path, key)?;
    std::fs::rename(&draft, path).map_err(failed(path))
}

/// A file with this key, under a name of its own.
fn tempfile_beside(path: &Path, key: &SecretsKey) -> Result<PathBuf, KeyringError> {
    let draft = path.with_extension(format!("{}.new", uuid::Uuid::now_v7().simple()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&draft).and_then(|mut file| {
        writeln!(file, "{}", key.text().expose())?;
        file.sync_all()
    });
    written.map_err(failed(&draft))?;
    Ok(draft)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> KeyringError + use<> {
    let path = path.display().to_string();
    |source| KeyringError::File { path, source }
}

fn read(path: &Path) -> Result<Option<SecretsKey>, KeyringError> {
    let mut text = String::new();
    match nerve_files::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text)) {
        Ok(_) => SecretsKey::parse(&text).map(Some).ok_or_else(|| KeyringError::Malformed(path.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

/// The private keys of this server; cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    keys: Arc<RwLock<Vec<SecretsKey>>>,
    configured: Option<SecretsKey>,
    files: KeyFiles,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.keys()).finish()
    }
}

impl Keyring {
    /// The keys of the settings and of the data folder.
    pub(super) fn read(config: &Config) -> Result<Self, KeyringError> {
        let configured = config.secrets.key.as_ref().map(|key| {
            SecretsKey::parse(key.expose())
                .ok_or_else(|| KeyringError::Malformed("secrets.key (NERVE_SECRETS_KEY)".into()))
        });
        let keyring = Self {
            keys: Arc::default(),
            configured: configured.transpose()?,
            files: KeyFiles::in_folder(&config.data.dir),
        };
        keyring.reload()?;
        Ok(keyring)
    }

    /// Reads the files again; says whether it has a key now that it had not.
    pub(super) fn reload(&self) -> Result<bool, KeyringError> {
        let found = [self.configured.clone(), self.files.current()?, self.files.next()?];
        let found: Vec<SecretsKey> = found.into_iter().flatten().collect();
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = |key: &SecretsKey| !keys.iter().any(|known| known.id() == key.id());
        let grown = found.iter().any(is_new);
        *keys = found;
        Ok(grown)
    }

    /// All of them.
    pub(super) fn keys(&self) -> Vec<SecretsKey> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn files(&self) -> &KeyFiles {
        &self.files
    }

    /// The key that is used where none is registered yet.
    pub(super) fn first(&self) -> Option<SecretsKey> {
        self.keys().into_iter().next()
    }

    /// Where that key is.
    pub(super) fn origin(&self) -> String {
        match self.configured {
            Some(_) => "secrets.key (NERVE_SECRETS_KEY)".to_owned(),
            None => self.files.current_path().display().to_string(),
        }
    }

    /// The private half of this key.
    pub(super) fn key_of(&self, public: &PublicKey) -> Option<SecretsKey> {
        self.keys().into_iter().find(|key| key.0.public_key() == *public)
    }

    /// Opens `sealed`, which must have been encrypted under `name`.
    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Option<Secret> {
        self.keys().iter().find_map(|key| open(key, name, sealed))
    }
}

/// Opens `sealed` with this key.
pub(super) fn open(key: &SecretsKey, name: &str, sealed: &[u8]) -> Option<Secret> {
    let plain = key.0.unseal(sealed).ok()?;
    let value = plain.strip_prefix(name.as_bytes())?.strip_prefix(b"\0")?;
    String::from_utf8(value.to_vec()).ok().map(Secret::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn keyring(files: &KeyFiles, configured: Option<SecretsKey>) -> Keyring {
        let keyring = Keyring { keys: Arc::default(), configured, files: files.clone() };
        keyring.reload().unwrap();
        keyring
    }

    #[test]
    fn sealed_value_opens_under_its_own_name_only() {
        let folder = tempfile::tempdir().unwrap();
        let files = KeyFiles::in_folder(folder.path());
        let key = SecretsKey::generate();
        let sealed = key.0.public_key().seal(&mut OsRng, b"A\0hunter2").unwrap();
        let keyring_with = |key| keyring(&files, key);
        assert_eq!(keyring_with(Some(key.clone())).open("A", &sealed).unwrap().expose(), "hunter2");
        assert!(keyring_with(Some(key)).open("B", &sealed).is_none());
        assert!(keyring_with(Some(SecretsKey::generate())).open("A", &sealed).is_none());
        assert!(keyring_with(None).open("A", &sealed).is_none());
    }

    #[test]
    fn key_file_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let files = KeyFiles::in_folder(&folder.path().join("data"));
        let first = files.make_current().unwrap();
        assert_eq!(files.make_current().unwrap().id(), first.id());
        let mode = std::fs::metadata(files.current_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path().join("data")).unwrap().count(), 1, "no draft is left");
        assert!(!format!("{first:?}").contains(first.text().expose()));
    }

    #[test]
    fn keyring_holds_both_keys_while_one_replaces_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let files = KeyFiles::in_folder(folder.path());
        let current = files.make_current().unwrap();
        let keyring = keyring(&files, None);
        let next = files.make_next().unwrap();
        assert_eq!(files.make_next().unwrap().id(), next.id(), "a rotation that goes on has the same key");
        let sealed = next.0.public_key().seal(&mut OsRng, b"A\0x").unwrap();
        assert!(keyring.open("A", &sealed).is_none());
        assert!(keyring.reload().unwrap() && !keyring.reload().unwrap());
        assert!(keyring.open("A", &sealed).is_some() && keyring.key_of(&current.0.public_key()).is_some());
        files.promote().unwrap();
        assert!(!keyring.reload().unwrap());
        assert!(keyring.open("A", &sealed).is_some() && keyring.key_of(&current.0.public_key()).is_none());
    }
}
