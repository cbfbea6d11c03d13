//! The private keys of a server for secrets, and their files.
//!
//! The current key is in `secrets.key` in the data folder, or in the settings. During a rotation the next key is in
//! `secrets.key.next`, and a server decrypts secrets with both.

use crypto_box::{PublicKey, SecretKey, aead::OsRng};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use nerve_config::Config;
use nerve_core::Secret;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use std::{
    fmt,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The file of the current key, in the data folder.
const CURRENT_KEY_FILE: &str = "secrets.key";
/// The file of the next key, in the data folder.
const NEXT_KEY_FILE: &str = "secrets.key.next";
/// The file of the private key of a joined machine, in the data folder. New secrets keys are encrypted for it.
const MACHINE_KEY_FILE: &str = "join/machine.key";
/// Maximum bytes of a key file that are read.
const MAX_FILE_BYTES: u64 = 1024;
/// Bytes of a key id.
const ID_BYTES: usize = 4;

/// The error of an unusable private key.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The text is not a key.
    #[error("{0} is not a key: it must be 64 hexadecimal digits")]
    Malformed(String),
    /// The secrets are encrypted for another key.
    #[error(
        "the secrets in this NATS are encrypted for the secrets key {needed}, but {origin} has {held}: give this server the \
         current key, by `nerve join` with a new token of `nerve access token`, or by a copy of secrets.key of a server that has it"
    )]
    KeyMismatch {
        /// The id of the required key.
        needed: String,
        /// The id of the key of this server.
        held: String,
        /// The location of that key.
        origin: String,
    },
    /// A key file cannot be read or written.
    #[error("secrets key in {path} cannot be read or written")]
    File {
        /// The file.
        path: String,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The broker failed.
    #[error(transparent)]
    Bus(#[from] nerve_broker::bus::BusError),
}

/// A private key for secrets.
#[derive(Clone)]
pub struct SecretsKey(pub(super) SecretKey);

impl fmt::Debug for SecretsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretsKey({})", self.id())
    }
}

impl SecretsKey {
    /// Generates a new key.
    pub fn generate() -> Self {
        Self(SecretKey::generate(&mut OsRng))
    }

    /// Parses 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 32] = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok()?.try_into().ok()?;
        Some(Self(SecretKey::from_bytes(bytes)))
    }

    /// Returns the key in the form that [`parse`](Self::parse) reads.
    pub fn text(&self) -> Secret {
        Secret::new(HEXLOWER.encode(&self.0.to_bytes()))
    }

    /// Returns the id of the key, which reveals nothing about it.
    pub fn id(&self) -> String {
        key_id(&self.0.public_key())
    }

    /// Returns the public key in hexadecimal digits.
    pub fn public(&self) -> String {
        HEXLOWER.encode(self.0.public_key().as_bytes())
    }
}

/// Parses a public key in the form of [`SecretsKey::public`].
pub(super) fn parse_public(text: &str) -> Option<PublicKey> {
    let bytes: [u8; 32] = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()?;
    Some(PublicKey::from_bytes(bytes))
}

/// Returns the id of a key by its public key.
pub(crate) fn key_id(public: &PublicKey) -> String {
    let digest = Sha256::digest(public.as_bytes());
    HEXLOWER.encode(digest.get(..ID_BYTES).unwrap_or_default())
}

/// The key files of one data folder.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    folder: PathBuf,
}

impl KeyFiles {
    /// Creates the key files of a data folder.
    pub fn in_folder(data: &Path) -> Self {
        Self { folder: data.to_owned() }
    }

    /// Returns the path of the current key.
    pub fn current_path(&self) -> PathBuf {
        self.folder.join(CURRENT_KEY_FILE)
    }

    fn next_path(&self) -> PathBuf {
        self.folder.join(NEXT_KEY_FILE)
    }

    /// Returns the current key, if it exists.
    ///
    /// # Errors
    /// The file cannot be read, or is no key.
    pub fn current(&self) -> Result<Option<SecretsKey>, KeyringError> {
        read(&self.current_path())
    }

    /// Returns the next key during a rotation.
    ///
    /// # Errors
    /// The file cannot be read, or is no key.
    pub fn next(&self) -> Result<Option<SecretsKey>, KeyringError> {
        read(&self.next_path())
    }

    /// Returns the key of this machine, if it has joined.
    pub(super) fn machine(&self) -> Result<Option<SecretsKey>, KeyringError> {
        read(&self.folder.join(MACHINE_KEY_FILE))
    }

    /// Returns the key of this machine, and creates it if it does not exist.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn machine_or_new(&self) -> Result<SecretsKey, KeyringError> {
        self.create(&self.folder.join(MACHINE_KEY_FILE))
    }

    /// Creates the current key if it does not exist. Of two servers that start concurrently, only one creates it.
    pub(super) fn create_current(&self) -> Result<SecretsKey, KeyringError> {
        self.create(&self.current_path())
    }

    /// Creates the next key if it does not exist.
    pub(super) fn create_next(&self) -> Result<SecretsKey, KeyringError> {
        self.create(&self.next_path())
    }

    /// Stores the next key, which another machine has created.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_next(&self, key: &SecretsKey) -> Result<(), KeyringError> {
        write(&self.next_path(), key)
    }

    /// Stores the current key, which another machine has created.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_current(&self, key: &SecretsKey) -> Result<(), KeyringError> {
        write(&self.current_path(), key)
    }

    /// Removes the next key.
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

    /// Replaces the current key by the next one.
    pub(super) fn promote(&self) -> Result<(), KeyringError> {
        let next = self.next_path();
        std::fs::rename(&next, self.current_path()).map_err(failed(&next))
    }

    fn create(&self, path: &Path) -> Result<SecretsKey, KeyringError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed(path))?;
        }
        if let Some(key) = read(path)? {
            return Ok(key);
        }
        let key = SecretsKey::generate();
        // Linked rather than renamed, so that a concurrent first key is not replaced.
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

/// Writes a private file atomically.
fn write(path: &Path, key: &SecretsKey) -> Result<(), KeyringError> {
    let draft = tempfile_beside(path, key)?;
    std::fs::rename(&draft, path).map_err(failed(path))
}

/// Writes this key to a temporary file with a unique name.
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

/// The private keys of this server. Cheap to clone.
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
    /// Reads the keys of the settings and of the data folder.
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

    /// Reloads the files. Returns whether there is a new key.
    pub(super) fn reload(&self) -> Result<bool, KeyringError> {
        let found = [self.configured.clone(), self.files.current()?, self.files.next()?];
        let found: Vec<SecretsKey> = found.into_iter().flatten().collect();
        let mut keys = self.keys.write();
        let is_new = |key: &SecretsKey| !keys.iter().any(|known| known.id() == key.id());
        let has_new_key = found.iter().any(is_new);
        *keys = found;
        Ok(has_new_key)
    }

    /// Returns all keys.
    pub(super) fn keys(&self) -> Vec<SecretsKey> {
        self.keys.read().clone()
    }

    pub(super) fn files(&self) -> &KeyFiles {
        &self.files
    }

    /// Returns the key to register if none is registered yet.
    pub(super) fn first(&self) -> Option<SecretsKey> {
        self.keys().into_iter().next()
    }

    /// Returns the location of that key.
    pub(super) fn origin(&self) -> String {
        match self.configured {
            Some(_) => "secrets.key (NERVE_SECRETS_KEY)".to_owned(),
            None => self.files.current_path().display().to_string(),
        }
    }

    /// Returns the private key of a public key.
    pub(super) fn key_of(&self, public: &PublicKey) -> Option<SecretsKey> {
        self.keys().into_iter().find(|key| key.0.public_key() == *public)
    }

    /// Decrypts a secret that was encrypted under `name`.
    pub(crate) fn decrypt(&self, name: &str, encrypted: &[u8]) -> Option<Secret> {
        self.keys().iter().find_map(|key| decrypt(key, name, encrypted))
    }
}

/// Decrypts a secret with this key.
pub(super) fn decrypt(key: &SecretsKey, name: &str, encrypted: &[u8]) -> Option<Secret> {
    let plain = key.0.unseal(encrypted).ok()?;
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
    fn secret_is_decrypted_only_under_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let files = KeyFiles::in_folder(folder.path());
        let key = SecretsKey::generate();
        let encrypted = key.0.public_key().seal(&mut OsRng, b"A\0hunter2").unwrap();
        let keyring_with = |key| keyring(&files, key);
        assert_eq!(keyring_with(Some(key.clone())).decrypt("A", &encrypted).unwrap().expose(), "hunter2");
        assert!(keyring_with(Some(key)).decrypt("B", &encrypted).is_none());
        assert!(keyring_with(Some(SecretsKey::generate())).decrypt("A", &encrypted).is_none());
        assert!(keyring_with(None).decrypt("A", &encrypted).is_none());
    }

    #[test]
    fn key_file_is_created_once_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let files = KeyFiles::in_folder(&folder.path().join("data"));
        let first = files.create_current().unwrap();
        assert_eq!(files.create_current().unwrap().id(), first.id());
        let mode = std::fs::metadata(files.current_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path().join("data")).unwrap().count(), 1, "no temporary file is left");
        assert!(!format!("{first:?}").contains(first.text().expose()));
    }

    #[test]
    fn keyring_has_both_keys_during_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let files = KeyFiles::in_folder(folder.path());
        let current = files.create_current().unwrap();
        let keyring = keyring(&files, None);
        let next = files.create_next().unwrap();
        assert_eq!(files.create_next().unwrap().id(), next.id(), "a resumed rotation has the same key");
        let encrypted = next.0.public_key().seal(&mut OsRng, b"A\0x").unwrap();
        assert!(keyring.decrypt("A", &encrypted).is_none());
        assert!(keyring.reload().unwrap() && !keyring.reload().unwrap());
        assert!(keyring.decrypt("A", &encrypted).is_some() && keyring.key_of(&current.0.public_key()).is_some());
        files.promote().unwrap();
        assert!(!keyring.reload().unwrap());
        assert!(keyring.decrypt("A", &encrypted).is_some() && keyring.key_of(&current.0.public_key()).is_none());
    }
}
