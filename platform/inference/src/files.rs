//! Files of a model's folder, and their errors.

use std::path::Path;

/// Why a folder or file is not a usable model, with the cause and the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModelError(pub(crate) String);

/// Error of a file that cannot be read.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> ModelError {
    let next = match nerve_files::NotRegular::of(error) {
        Some(_) => ": put a regular file there",
        None => "",
    };
    ModelError(format!("{} cannot be read: {error}{next}", path.display()))
}

/// Whether a model's folder has this file, which must be a regular file.
pub(crate) fn is_there(root: &Path, name: &str) -> Result<bool, ModelError> {
    let file = root.join(name);
    nerve_files::is_there(&file).map_err(|error| unreadable(&file, &error))
}

/// Reads a JSON file; `None` if it is missing.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(root: &Path, name: &str) -> Result<Option<T>, ModelError> {
    let file = root.join(name);
    let bytes = match nerve_files::read(&file, u64::MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&file, &error)),
    };
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|error| ModelError(format!("{} cannot be used: {error}", file.display())))
}
