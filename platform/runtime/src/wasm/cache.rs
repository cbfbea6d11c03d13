//! Compiles a component once and keeps the machine code.
//!
//! An entry is `KEY.cwasm` with its digest in `KEY.sha256`, where KEY is the component's SHA-256 and the engine's
//! compatibility hash, which covers wasmtime's version, its settings and the target.

use super::compiler::{CompileError, Compiler};
use data_encoding::HEXLOWER;
use nerve_core::{LoadError, function::Artifact};
use sha2::{Digest, Sha256};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tokio::sync::Mutex;
use wasmtime::{Engine, component::Component};

/// Locks per component digest.
const LOCKS: usize = 16;

/// A folder of compiled components.
pub(super) struct Cache {
    dir: PathBuf,
    compiler: Compiler,
    // Of functions that share a component, one compiles it and the others reuse the result.
    locks: [Mutex<()>; LOCKS],
}

/// A validated component, and the path of its code.
struct Entry {
    bytes: Vec<u8>,
    digest: String,
    path: PathBuf,
}

impl Cache {
    /// Opens the folder, and creates it for this user only if it is missing.
    pub(super) fn open(dir: PathBuf, compiler: Compiler) -> Result<Self, LoadError> {
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)))
            .map_err(|error| {
                let what = format!("the cache folder {} could not be made this user's alone", dir.display());
                LoadError::failed(what, error)
            })?;
        Ok(Self { dir, compiler, locks: std::array::from_fn(|_| Mutex::new(())) })
    }

    /// The component of `artifact`, cached or newly compiled.
    pub(super) async fn component(&self, engine: &Engine, artifact: &Artifact) -> Result<Component, LoadError> {
        let number = artifact.sha256.bytes().fold(0_usize, |sum, byte| sum.wrapping_add(usize::from(byte)));
        let lock = self.locks.get(number % LOCKS).map(Mutex::lock);
        let _lock = match lock {
            Some(lock) => Some(lock.await),
            None => None,
        };
        let (of, wanted, dir) = (engine.clone(), artifact.clone(), self.dir.clone());
        let found = blocking(move || {
            let entry = read(&of, &wanted, &dir)?;
            Ok((cached(&of, &entry.path), entry))
        });
        let (component, Entry { bytes, digest, path }) = found.await?;
        if let Some(component) = component {
            return Ok(component);
        }
        let code = self.compiler.compile(engine, bytes, &digest).await.map_err(|error| match error {
            CompileError::Invalid(why) => LoadError::Invalid(format!("`{}`: {why}", artifact.name)),
            CompileError::Failed(error) => LoadError::failed(format!("compiling `{}`", artifact.name), error),
        })?;
        let of = engine.clone();
        blocking(move || kept(&of, &code, &path)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| LoadError::failed("loading the component was cut short", error))?
}

fn read(engine: &Engine, artifact: &Artifact, dir: &Path) -> Result<Entry, LoadError> {
    let bytes = std::fs::read(&artifact.file)
        .map_err(|error| LoadError::failed(format!("`{}` could not be read", artifact.name), error))?;
    let digest = HEXLOWER.encode(&Sha256::digest(&bytes));
    if digest != artifact.sha256 {
        let source = format!("its SHA-256 is {digest}, not {}", artifact.sha256);
        return Err(LoadError::failed(format!("`{}` was damaged on this machine", artifact.name), source));
    }
    let path = dir.join(format!("{digest}-{:016x}.cwasm", compatibility(engine)));
    Ok(Entry { bytes, digest, path })
}

/// Code is compatible with engines of the same hash: same wasmtime, settings and target.
pub(super) fn compatibility(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

/// Stores newly compiled code, and loads it.
fn kept(engine: &Engine, code: &[u8], entry: &Path) -> Result<Component, LoadError> {
    let loaded = match keep(code, entry) {
        Ok(()) => load(engine, entry),
        // A full disk costs seconds at the next start, but does not fail the function.
        Err(error) => {
            tracing::warn!(%error, entry = %entry.display(), "the compiled component could not be kept");
            from_memory(engine, code)
        }
    };
    loaded.map_err(|error| super::failed("the compiled component does not load", error))
}

fn cached(engine: &Engine, entry: &Path) -> Option<Component> {
    let code = std::fs::read(entry).ok()?;
    let expected = std::fs::read_to_string(entry.with_extension("sha256")).unwrap_or_default();
    if HEXLOWER.encode(&Sha256::digest(&code)) == expected {
        drop(code);
        match load(engine, entry) {
            Ok(component) => return Some(component),
            Err(error) => tracing::warn!(%error, entry = %entry.display(), "a compiled component does not load"),
        }
    } else {
        tracing::warn!(entry = %entry.display(), "a compiled component is damaged; compiling it again");
    }
    // An entry that cannot be removed is overwritten.
    let _ = std::fs::remove_file(entry);
    None
}

#[allow(unsafe_code)]
fn load(engine: &Engine, entry: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file must be what a compiler of this wasmtime wrote, unchanged while it is mapped. Only this module
    // writes entries, of code that helper processes of this binary compiled, into a folder of mode 0700 that only this user (or root) can change. An entry is written to
    // a temporary file and renamed, never changed in place, and the caller has just compared its SHA-256 with the
    // one recorded when it was written. The name and wasmtime's own header pin the engine's version and settings.
    unsafe { Component::deserialize_file(engine, entry) }
}

#[allow(unsafe_code)]
fn from_memory(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes must be what a compiler of this wasmtime wrote. They come straight from the helper process that
    // this binary started to compile them, over its pipe. wasmtime's own header pins the engine's version and settings.
    unsafe { Component::deserialize(engine, code) }
}

fn keep(code: &[u8], entry: &Path) -> std::io::Result<()> {
    let digest = HEXLOWER.encode(&Sha256::digest(code));
    // The digest second: an entry without one is recompiled, never trusted.
    write(entry, code)?;
    write(&entry.with_extension("sha256"), digest.as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
