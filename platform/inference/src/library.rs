//! ONNX Runtime itself: a shared library, loaded once a process.

use ort::{LoadDynamicError, environment::Environment};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The variable, and its value, that keep ONNX Runtime from sending its publisher what runs here, and from writing that to the
/// user's home. It is read when the library is made ready, so the environment has it before.
pub const NO_TELEMETRY: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

/// The loaded library.
static LOADED: Mutex<Option<Library>> = Mutex::new(None);

/// ONNX Runtime, ready for sessions.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    pub(crate) environment: Environment,
    /// The file, without symbolic links: its name has the version.
    pub(crate) file: PathBuf,
}

/// Why ONNX Runtime cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// There is no library, or nobody said where.
    #[error(
        "ONNX Runtime is not there{}: run `make setup`, or `pip install onnxruntime=={}` and set onnx.library \
         (NERVE_ONNX_LIBRARY) to the libonnxruntime in it",
        at(.0), needed()
    )]
    Missing(Option<PathBuf>),
    /// It is older than what Nerve was built for.
    #[error(
        "{} is ONNX Runtime {found}, and Nerve was built for {} or newer: `pip install onnxruntime=={}` has one; \
         set onnx.library (NERVE_ONNX_LIBRARY) to it",
        file.display(), needed(), needed()
    )]
    TooOld {
        /// The library.
        file: PathBuf,
        /// Its version.
        found: String,
    },
    /// It is no ONNX Runtime, or not for this machine.
    #[error("{} cannot be loaded as ONNX Runtime: {why}; set onnx.library (NERVE_ONNX_LIBRARY) to version {}", file.display(), needed())]
    Unusable {
        /// The library.
        file: PathBuf,
        /// What the loader says.
        why: String,
    },
}

fn at(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| format!(" at {}", path.display())).unwrap_or_default()
}

/// The oldest version that will do.
fn needed() -> String {
    format!("1.{}.1", ort::MINOR_VERSION)
}

impl Library {
    /// Loads the library, or returns the one that is loaded: a process has only one.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, LibraryError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = loaded.as_ref() {
            return Ok(library.clone());
        }
        let file = path.and_then(|path| path.canonicalize().ok());
        let Some(file) = file else { return Err(LibraryError::Missing(path.map(Path::to_owned))) };
        let unusable = |why: String| LibraryError::Unusable { file: file.clone(), why };
        let builder = ort::init_from(&file).map_err(|error| match error {
            LoadDynamicError::BadVersion { version_str, .. } => {
                LibraryError::TooOld { file: file.clone(), found: version_str }
            }
            LoadDynamicError::Dlopen { error, .. } => unusable(error.to_string()),
            other => unusable(other.to_string()),
        })?;
        let builder = builder.with_name("nerve").with_telemetry(false);
        let environment = builder.build().map_err(|error| unusable(error.to_string()))?;
        let library = Self { environment, file };
        *loaded = Some(library.clone());
        Ok(library)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_no_library_is_said_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("libonnxruntime.so");
        let missing = Library::load(Some(&none)).unwrap_err().to_string();
        assert!(missing.contains("libonnxruntime.so") && missing.contains("make setup"), "{missing}");
        std::fs::write(&none, "not a library").unwrap();
        let unusable = Library::load(Some(&none)).unwrap_err().to_string();
        assert!(unusable.contains("cannot be loaded") && unusable.contains("onnx.library"), "{unusable}");
        assert!(Library::load(None).unwrap_err().to_string().contains("ONNX Runtime is not there: run"));
    }

    #[test]
    fn an_old_library_names_both_versions() {
        let error = LibraryError::TooOld { file: "/l.so".into(), found: "1.20.1".into() }.to_string();
        assert!(error.contains("1.20.1") && error.contains(&needed()), "{error}");
    }
}
