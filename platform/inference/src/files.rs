//! The files of a model, and why they are none.

use std::path::Path;

/// Why a folder or file is no model that can be run: what, why, and the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FolderError(pub(crate) String);

/// A file that cannot be read.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> FolderError {
    let next = match nerve_files::NotRegular::of(error) {
        Some(_) => ": put a regular file there",
        None => "",
    };
    FolderError(format!("{} cannot be read: {error}{next}", path.display()))
}

/// Whether a model's folder has this file, which must then be a regular one.
pub(crate) fn is_there(root: &Path, name: &str) -> Result<bool, FolderError> {
    let file = root.join(name);
    nerve_files::is_there(&file).map_err(|error| unreadable(&file, &error))
}

/// Reads a file of JSON, if there is one.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(root: &Path, name: &str) -> Result<Option<T>, FolderError> {
    let file = root.join(name);
    let bytes = match nerve_files::read(&file, u64::MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&file, &error)),
    };
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|error| FolderError(format!("{} cannot be used: {error}", file.display())))
}
