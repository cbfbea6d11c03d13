//! ONNX Runtime, a shared library loaded once per process.

use ort::{LoadDynamicError, environment::Environment};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};

/// Environment variable and value that disable ONNX Runtime's telemetry, which would also write to the user's home.
/// The library reads it during initialization, so it must be set before.
pub const NO_TELEMETRY: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

/// The loaded library.
static LOADED: Mutex<Option<Library>> = Mutex::new(None);

/// ONNX Runtime, initialized.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    pub(crate) environment: Environment,
    /// Path of the file with symbolic links resolved; its name contains the version.
    pub(crate) file: PathBuf,
}

/// Why ONNX Runtime cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// The library is missing, or its path is not configured.
    #[error(
        "ONNX Runtime not found{}: run `make setup`, or `pip install onnxruntime=={}` and set onnx.library \
         (NERVE_ONNX_LIBRARY) to the libonnxruntime in it",
        at(.0), minimum_version()
    )]
    Missing(Option<PathBuf>),
    /// The library is older than required.
    #[error(
        "{} is ONNX Runtime {found}, but {} or newer is required: `pip install onnxruntime=={}` has one; \
         set onnx.library (NERVE_ONNX_LIBRARY) to it",
        file.display(), minimum_version(), minimum_version()
    )]
    TooOld {
        /// Path of the library.
        file: PathBuf,
        /// Version of the library.
        found: String,
    },
    /// The file is not ONNX Runtime, or is built for another platform.
    #[error("{} cannot be loaded as ONNX Runtime: {why}; set onnx.library (NERVE_ONNX_LIBRARY) to version {}", file.display(), minimum_version())]
    Unusable {
        /// Path of the library.
        file: PathBuf,
        /// Error of the loader.
        why: String,
    },
}

fn at(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| format!(" at {}", path.display())).unwrap_or_default()
}

/// Minimum version of the library.
fn minimum_version() -> String {
    format!("1.{}.1", ort::MINOR_VERSION)
}

impl Library {
    /// Loads the library, or returns the one that this process has loaded.
    ///
    /// # Errors
    /// If the library is missing, too old or unusable.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, LibraryError> {
        let mut loaded = LOADED.lock();
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
    fn missing_or_invalid_library_error_names_the_fix() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("libonnxruntime.so");
        let missing = Library::load(Some(&none)).unwrap_err().to_string();
        assert!(missing.contains("libonnxruntime.so") && missing.contains("make setup"), "{missing}");
        std::fs::write(&none, "not a library").unwrap();
        let unusable = Library::load(Some(&none)).unwrap_err().to_string();
        assert!(unusable.contains("cannot be loaded") && unusable.contains("onnx.library"), "{unusable}");
        assert!(Library::load(None).unwrap_err().to_string().contains("ONNX Runtime not found: run"));
    }

    #[test]
    fn old_library_error_names_both_versions() {
        let error = LibraryError::TooOld { file: "/l.so".into(), found: "1.20.1".into() }.to_string();
        assert!(error.contains("1.20.1") && error.contains(&minimum_version()), "{error}");
    }
}
