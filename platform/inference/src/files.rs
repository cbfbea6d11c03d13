//! The files of a model, and why they are none.

use std::{fs, path::Path};

/// Why a folder or file is no model that can be run: what, why, and the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FolderError(pub(crate) String);

/// A file that cannot be read.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> FolderError {
    FolderError(format!("{} cannot be read: {error}", path.display()))
}

/// Reads a file of JSON, if there is one.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(root: &Path, name: &str) -> Result<Option<T>, FolderError> {
    let file = root.join(name);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&file, &error)),
    };
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|error| FolderError(format!("{} cannot be used: {error}", file.display())))
}
