//! Files of `<data>/nats`: written atomically, private to this user, and changed by one process at a time.

use anyhow::Context;
use nerve_broker::KeyPair;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Maximum size of a file.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Lock of the process that changes the directory: `nerve up`, or a command.
#[derive(Debug)]
pub(super) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Acquires the lock, which other processes hold for milliseconds.
    pub(super) fn take(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("lock");
        let taken = || {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            file.lock()?;
            Ok::<_, io::Error>(Self { _file: file })
        };
        taken().with_context(|| format!("cannot lock {}", path.display()))
    }
}

/// Creates a directory that is private to this user.
pub(crate) fn make_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    let made = made.and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o700)));
    made.with_context(|| format!("cannot create the directory {}", folder.display()))
}

/// Reads a file. Returns `None` if it does not exist.
pub(crate) fn read(file: &Path) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    match nerve_files::open(file).and_then(|found| found.take(MAX_FILE_BYTES).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Reads a JSON file. Returns the default if it does not exist.
pub(super) fn read_json<T: DeserializeOwned + Default>(file: &Path) -> anyhow::Result<T> {
    let Some(text) = read(file)? else { return Ok(T::default()) };
    serde_json::from_str(&text).with_context(|| format!("cannot read {}", file.display()))
}

/// Writes a JSON file.
pub(super) fn write_json(file: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    write(file, &serde_json::to_string_pretty(value)?)
}

/// Reads the key pair whose seed is in `file`, or creates and stores a new one.
pub(crate) fn key(file: &Path, new: impl FnOnce() -> KeyPair) -> anyhow::Result<KeyPair> {
    let Some(seed) = read(file)? else {
        let pair = new();
        write(file, &pair.seed()?)?;
        return Ok(pair);
    };
    KeyPair::from_seed(seed.trim()).map_err(|_| {
        let next = "restore it, or remove its directory to create all credentials again";
        anyhow::anyhow!("{} contains no NATS seed: {next}", file.display())
    })
}

/// Writes a file atomically and private to this user, independent of the umask.
pub(crate) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
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
