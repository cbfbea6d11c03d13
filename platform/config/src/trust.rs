//! Trust in files of this machine: settings, libraries and programs that no other user can change.

use nix::unistd::{getegid, geteuid};
use std::{
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Write permission of a file's group.
const GROUP_WRITE: u32 = 0o020;
/// Write permission of others.
const OTHER_WRITE: u32 = 0o002;
/// The sticky bit: only the owner of a file in the folder may replace it.
const STICKY: u32 = 0o1000;

/// The error for a file that another user can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UntrustedPath {
    /// The file, or a folder above it.
    pub path: PathBuf,
    /// The reason.
    pub why: TrustViolation,
}

/// The reason why a file is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustViolation {
    /// The owner is neither this user nor root.
    Owner(u32),
    /// Group or others may write to it. The value is its mode.
    Writable(u32),
    /// Its metadata cannot be read.
    Unreadable(io::ErrorKind),
}

impl fmt::Display for UntrustedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.why {
            TrustViolation::Owner(owner) => {
                write!(f, "{path} belongs to another user (uid {owner}), who could change what Nerve does")
            }
            TrustViolation::Writable(mode) => {
                write!(
                    f,
                    "other users may write to {path} (mode {:04o}), and could change what Nerve does",
                    mode & 0o7777
                )
            }
            TrustViolation::Unreadable(kind) => write!(f, "{path} cannot be read ({kind})"),
        }
    }
}

impl std::error::Error for UntrustedPath {}

/// Checks that only this user and root can change the file at `path`, each folder above it, and the targets of links in the path.
///
/// # Errors
/// The first path that another user can change.
pub fn check_trusted(path: &Path) -> Result<(), UntrustedPath> {
    let looked = |at: &Path, error: io::Error| UntrustedPath {
        path: at.to_owned(),
        why: TrustViolation::Unreadable(error.kind()),
    };
    let lexical = std::path::absolute(path).map_err(|error| looked(path, error))?;
    let real = path.canonicalize().map_err(|error| looked(path, error))?;
    let who = User { uid: geteuid().as_raw(), gid: getegid().as_raw() };
    for path in [lexical, real] {
        for at in path.ancestors() {
            let found = at.symlink_metadata().map_err(|error| looked(at, error))?;
            if let Some(why) = who.distrusts((found.uid(), found.gid()), (found.mode(), found.is_symlink())) {
                return Err(UntrustedPath { path: at.to_owned(), why });
            }
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

impl User {
    fn distrusts(self, (owner, group): (u32, u32), (mode, is_link): (u32, bool)) -> Option<TrustViolation> {
        if owner != self.uid && owner != 0 {
            return Some(TrustViolation::Owner(owner));
        }
        // The mode of a link is meaningless; its folder decides who may replace it.
        if is_link || mode & STICKY != 0 {
            return None;
        }
        // Many systems give each user a group with the same id, and make files writable for it.
        let own_group = group == self.gid && self.gid == self.uid;
        let by_group = mode & GROUP_WRITE != 0 && !own_group && group != 0;
        (mode & OTHER_WRITE != 0 || by_group).then_some(TrustViolation::Writable(mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn only_this_user_and_root_are_trusted() {
        let user = User { uid: 1000, gid: 1000 };
        let of = |owner, group, mode| user.distrusts((owner, group), (mode, false));
        assert_eq!([of(1000, 1000, 0o644), of(0, 0, 0o755), of(0, 0, 0o775)], [None; 3]);
        assert_eq!([of(1000, 1000, 0o664), of(0, 0, 0o1777)], [None; 2], "a group of one's own; a folder such as /tmp");
        assert_eq!(of(1001, 1000, 0o600), Some(TrustViolation::Owner(1001)));
        assert_eq!(of(1000, 50, 0o664), Some(TrustViolation::Writable(0o664)));
        assert_eq!(of(1000, 1000, 0o666), Some(TrustViolation::Writable(0o666)));
        assert_eq!(user.distrusts((1000, 1000), (0o777, true)), None, "a link");
        let other = User { uid: 1000, gid: 100 };
        assert!(other.distrusts((1000, 100), (0o664, false)).is_some(), "a group of many");
    }

    #[test]
    fn folder_above_a_file_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a");
        fs::create_dir(&inner).unwrap();
        let file = inner.join("nerve-server.toml");
        fs::write(&file, "").unwrap();
        assert_eq!(check_trusted(&file), Ok(()));
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = check_trusted(&file).unwrap_err();
        assert!(refused.path == inner && refused.to_string().contains("0777"), "{refused}");
        // A link is checked together with its target.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(check_trusted(&link).unwrap_err().path, inner.canonicalize().unwrap());
    }
}
