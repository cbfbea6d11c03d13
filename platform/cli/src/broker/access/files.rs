//! The files of `<data>/nats`: written whole or not at all, for this user alone, and changed by one process at a time.

use anyhow::Context;
use nerve_broker::KeyPair;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// The longest file, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Held by the one process that changes the folder: `nerve up`, as it starts the server and answers those who join, or a command.
#[derive(Debug)]
pub(super) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Waits for the others, which hold it for milliseconds.
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

/// Makes a folder for this user alone.
pub(crate) fn make_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    let made = made.and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o700)));
    made.with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// The text of a file; none where there is no file.
pub(crate) fn read(file: &Path) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    match nerve_files::open(file).and_then(|found| found.take(MAX_FILE_BYTES).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// What a file of JSON holds; the default where there is no file.
pub(super) fn read_json<T: DeserializeOwned + Default>(file: &Path) -> anyhow::Result<T> {
    let Some(text) = read(file)? else { return Ok(T::default()) };
    serde_json::from_str(&text).with_context(|| format!("cannot read {}", file.display()))
}

/// Writes a file of JSON.
pub(super) fn write_json(file: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    write(file, &serde_json::to_string_pretty(value)?)
}

/// The key pair whose seed is in `file`, or a new one that is then kept there.
pub(crate) fn key(file: &Path, new: impl FnOnce() -> KeyPair) -> anyhow::Result<KeyPair> {
    let Some(seed) = read(file)? else {
        let pair = new();
        write(file, &pair.seed()?)?;
        return Ok(pair);
    };
    KeyPair::from_seed(seed.trim()).map_err(|_| {
        let next = "restore it, or remove its folder so that all credentials are made anew";
        anyhow::anyhow!("{} holds no seed of NATS: {next}", file.display())
    })
}

/// Writes a file whole or not at all, for this user alone whatever the umask.
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
