//! The permissions of the data folder: private to this user (0700 and 0600), regardless of the umask and of earlier versions.

use nix::unistd::geteuid;
use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Permission bits of group and others.
const GROUP_AND_OTHERS: u32 = 0o077;
/// Maximum files whose mode is checked. The folder's own mode protects the others.
const MAX_CHECKED_FILES: usize = 100_000;

/// The error of an unusable data folder.
#[derive(Debug, thiserror::Error)]
pub enum DataFolderError {
    /// It cannot be created or made private.
    #[error("data folder {path} cannot be created or made private: name a folder of this user with --data DIR")]
    Private {
        /// The folder.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// Another user owns it.
    #[error(
        "data folder {path} belongs to another user (uid {owner}), who could change its files: \
         give it to this user (chown), or name another one with --data DIR"
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
}

/// Creates the data folder if it is missing, and removes the permissions of other users on it and its files.
///
/// # Errors
/// The folder belongs to another user, or cannot be made private.
pub fn make_private(folder: &Path) -> Result<(), DataFolderError> {
    let failed = |source| DataFolderError::Private { path: folder.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let found = fs::metadata(folder).map_err(failed)?;
    let user = geteuid();
    if found.uid() != user.as_raw() && !user.is_root() {
        return Err(DataFolderError::Owner { path: folder.to_owned(), owner: found.uid() });
    }
    if found.mode() & GROUP_AND_OTHERS != 0 {
        tracing::info!(folder = %folder.display(), "data folder was accessible to other users; it is private now");
        restrict(folder, found.mode()).map_err(failed)?;
    }
    // The folder's own mode protects files until this reaches them.
    restrict_all(folder);
    Ok(())
}

fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 & !GROUP_AND_OTHERS))
}

fn restrict_all(folder: &Path) {
    let (mut folders, mut left) = (vec![folder.to_owned()], MAX_CHECKED_FILES);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten().take(left) {
            left = left.saturating_sub(1);
            let Ok(found) = entry.metadata() else { continue };
            if found.is_symlink() {
                continue;
            }
            if found.mode() & GROUP_AND_OTHERS != 0
                && let Err(error) = restrict(&entry.path(), found.mode())
            {
                tracing::debug!(%error, path = %entry.path().display(), "mode of a file cannot be changed; its folder is private");
            }
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_data_folder_and_its_files_are_made_private() {
        let root = tempfile::tempdir().unwrap();
        let (folder, outside) = (root.path().join("data"), root.path().join("outside"));
        fs::create_dir_all(folder.join("deep")).unwrap();
        for (file, mode) in [(folder.join("deep/key"), 0o644), (folder.join("run"), 0o755), (outside.clone(), 0o644)] {
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, folder.join("link")).unwrap();
        for open in [folder.join("deep"), folder.clone()] {
            fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        }
        make_private(&folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!([mode(&folder), mode(&folder.join("deep"))], [0o700; 2]);
        assert_eq!((mode(&folder.join("deep/key")), mode(&folder.join("run"))), (0o600, 0o700));
        assert_eq!(mode(&outside), 0o644, "the target of a link is not changed");
        make_private(&root.path().join("new/er")).unwrap();
        assert_eq!(mode(&root.path().join("new/er")), 0o700);
    }
}
