//! Compiles a component once and keeps the machine code.
//!
//! An entry is `KEY.cwasm` with its digest in `KEY.sha256`, where KEY is the component's SHA-256 and the engine's
//! compatibility hash, which covers wasmtime's version, its settings and the target.

use data_encoding::HEXLOWER;
use nerve_core::{LoadError, function::Artifact};
use sha2::{Digest, Sha256};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Semaphore;
use wasmtime::{Engine, component::Component};

/// A folder of compiled components.
pub(super) struct Cache {
    dir: PathBuf,
    // Compiling a Python guest takes 300 MB for seconds, so one at a time.
    compiling: Arc<Semaphore>,
}

impl Cache {
    /// Opens the folder, making it if need be, for this user alone.
    pub(super) fn open(dir: PathBuf) -> Result<Self, LoadError> {
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)))
            .map_err(|error| {
                let what = format!("the cache folder {} could not be made this user's alone", dir.display());
                LoadError::failed(what, error)
            })?;
        Ok(Self { dir, compiling: Arc::new(Semaphore::new(1)) })
    }

    /// The component of `artifact`, from the cache or compiled now.
    pub(super) async fn component(&self, engine: &Engine, artifact: &Artifact) -> Result<Component, LoadError> {
        let (engine, artifact, dir) = (engine.clone(), artifact.clone(), self.dir.clone());
        let permit = self.compiling.clone().acquire_owned().await;
        let permit = permit.map_err(|error| LoadError::failed("the compiler is closed", error))?;
        let work = tokio::task::spawn_blocking(move || {
            // Held by the work itself: dropping the caller does not let a second compilation in.
            let _permit = permit;
            find_or_compile(&engine, &artifact, &dir)
        });
        work.await.map_err(|error| LoadError::failed("compiling the component was cut short", error))?
    }
}

fn find_or_compile(engine: &Engine, artifact: &Artifact, dir: &Path) -> Result<Component, LoadError> {
    let bytes = std::fs::read(&artifact.file)
        .map_err(|error| LoadError::failed(format!("`{}` could not be read", artifact.name), error))?;
    let digest = HEXLOWER.encode(&Sha256::digest(&bytes));
    if digest != artifact.sha256 {
        let source = format!("its SHA-256 is {digest}, not {}", artifact.sha256);
        return Err(LoadError::failed(format!("`{}` was damaged on this machine", artifact.name), source));
    }
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let entry = dir.join(format!("{digest}-{:016x}.cwasm", hasher.finish()));
    if let Some(component) = cached(engine, &entry) {
        return Ok(component);
    }
    super::inspect(&bytes).map_err(|error| LoadError::Invalid(format!("`{}`: {error}", artifact.name)))?;
    let component = Component::from_binary(engine, &bytes)
        .map_err(|error| LoadError::Invalid(format!("`{}` does not compile: {error:#}", artifact.name)))?;
    // A full disk costs the next start some seconds, not this one its function.
    if let Err(error) = keep(&component, &entry) {
        tracing::warn!(%error, entry = %entry.display(), "the compiled component could not be kept");
    }
    Ok(component)
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
    // What cannot be removed is written over.
    let _ = std::fs::remove_file(entry);
    None
}

#[allow(unsafe_code)]
fn load(engine: &Engine, entry: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file must be what `Component::serialize` wrote, unchanged while it is mapped. Only this module
    // writes entries, into a folder of mode 0700 that only this user (or root) can change. An entry is written to
    // a temporary file and renamed, never changed in place, and the caller has just compared its SHA-256 with the
    // one recorded when it was written. The name and wasmtime's own header pin the engine's version and settings.
    unsafe { Component::deserialize_file(engine, entry) }
}

fn keep(component: &Component, entry: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let code = component.serialize()?;
    let digest = HEXLOWER.encode(&Sha256::digest(&code));
    // The digest second: an entry without one is compiled again, never trusted.
    write(entry, &code)?;
    write(&entry.with_extension("sha256"), digest.as_bytes())?;
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
