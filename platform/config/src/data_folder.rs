//! The data folder is this user's alone: 0700 and 0600, whatever the umask, and whatever an earlier version made.

use nix::unistd::geteuid;
use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Permissions of a file's group and of all others.
const OTHERS: u32 = 0o077;
/// The most files that are looked at; the folder itself keeps others from the rest.
const MAX_FILES: usize = 100_000;

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// It cannot be made, or kept from others.
    #[error("the data folder {path} cannot be made, or made private: name a folder of this user's with --data DIR")]
    Private {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Somebody else owns it.
    #[error(
        "the data folder {path} belongs to another user (uid {owner}), who could change what is in it: \
         give it to this user (chown), or name another with --data DIR"
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
}

/// Makes the data folder where it is missing, and takes it and what is in it from others.
///
/// # Errors
/// When it is another user's, or cannot be made private.
pub fn make_private(folder: &Path) -> Result<(), HomeError> {
    let failed = |source| HomeError::Private { path: folder.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let found = fs::metadata(folder).map_err(failed)?;
    let user = geteuid();
    if found.uid() != user.as_raw() && !user.is_root() {
        return Err(HomeError::Owner { path: folder.to_owned(), owner: found.uid() });
    }
    if found.mode() & OTHERS != 0 {
        tracing::info!(folder = %folder.display(), "the data folder was open to others, and is private now");
        restrict(folder, found.mode()).map_err(failed)?;
    }
    // Behind the folder's own mode: what is not reached in time is not open either.
    restrict_all(folder);
    Ok(())
}

fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 & !OTHERS))
}

fn restrict_all(folder: &Path) {
    let (mut folders, mut left) = (vec![folder.to_owned()], MAX_FILES);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten().take(left) {
            left = left.saturating_sub(1);
            let Ok(found) = entry.metadata() else { continue };
            if found.is_symlink() {
                continue;
            }
            if found.mode() & OTHERS != 0
                && let Err(error) = restrict(&entry.path(), found.mode())
            {
                tracing::debug!(%error, path = %entry.path().display(), "a file keeps its mode; its folder is private");
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
    fn data_folder_of_before_is_made_private_with_what_is_in_it() {
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
        assert_eq!(mode(&outside), 0o644, "what a link leads to is not in the folder");
        make_private(&root.path().join("new/er")).unwrap();
        assert_eq!(mode(&root.path().join("new/er")), 0o700);
    }
}
