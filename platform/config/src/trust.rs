//! Which files of this machine are believed: settings, libraries and programs that nobody else can have put there.

use nix::unistd::{getegid, geteuid};
use std::{
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Write permission of a file's group, and of all others.
const GROUP_WRITE: u32 = 0o020;
const OTHER_WRITE: u32 = 0o002;
/// In a folder with this bit only a file's owner may replace it.
const STICKY: u32 = 0o1000;

/// Why a file is not believed: the first of the path that somebody else can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untrusted {
    /// The file, or a folder above it.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: Why,
}

/// Who could change a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is neither this user's nor root's.
    Owner(u32),
    /// Its group, or everybody, may write to it: its mode.
    Writable(u32),
    /// It cannot be looked at.
    Unreadable(io::ErrorKind),
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.why {
            Why::Owner(owner) => {
                write!(f, "{path} belongs to another user (uid {owner}), who could change what Nerve does")
            }
            Why::Writable(mode) => {
                write!(f, "others may write to {path} (mode {:04o}), and could change what Nerve does", mode & 0o7777)
            }
            Why::Unreadable(kind) => write!(f, "{path} cannot be looked at ({kind})"),
        }
    }
}

impl std::error::Error for Untrusted {}

/// Checks that only this user and root can change what is at `path`: the file, each folder above it, and what links on the way
/// lead to.
///
/// # Errors
/// Names the first of them that somebody else can change.
pub fn check_trusted(path: &Path) -> Result<(), Untrusted> {
    let looked = |at: &Path, error: io::Error| Untrusted { path: at.to_owned(), why: Why::Unreadable(error.kind()) };
    let lexical = std::path::absolute(path).map_err(|error| looked(path, error))?;
    let real = path.canonicalize().map_err(|error| looked(path, error))?;
    let who = User { uid: geteuid().as_raw(), gid: getegid().as_raw() };
    for path in [lexical, real] {
        for at in path.ancestors() {
            let found = at.symlink_metadata().map_err(|error| looked(at, error))?;
            if let Some(why) = who.distrusts((found.uid(), found.gid()), (found.mode(), found.is_symlink())) {
                return Err(Untrusted { path: at.to_owned(), why });
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
    fn distrusts(self, (owner, group): (u32, u32), (mode, is_link): (u32, bool)) -> Option<Why> {
        if owner != self.uid && owner != 0 {
            return Some(Why::Owner(owner));
        }
        // A link's mode says nothing; who may replace it is a matter of its folder.
        if is_link || mode & STICKY != 0 {
            return None;
        }
        // Many systems give each user a group of the same number, and files that this group may write to.
        let own_group = group == self.gid && self.gid == self.uid;
        let by_group = mode & GROUP_WRITE != 0 && !own_group && group != 0;
        (mode & OTHER_WRITE != 0 || by_group).then_some(Why::Writable(mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn only_this_user_and_root_are_believed() {
        let user = User { uid: 1000, gid: 1000 };
        let of = |owner, group, mode| user.distrusts((owner, group), (mode, false));
        assert_eq!([of(1000, 1000, 0o644), of(0, 0, 0o755), of(0, 0, 0o775)], [None; 3]);
        assert_eq!([of(1000, 1000, 0o664), of(0, 0, 0o1777)], [None; 2], "a group of one's own; a folder such as /tmp");
        assert_eq!(of(1001, 1000, 0o600), Some(Why::Owner(1001)));
        assert_eq!(of(1000, 50, 0o664), Some(Why::Writable(0o664)));
        assert_eq!(of(1000, 1000, 0o666), Some(Why::Writable(0o666)));
        assert_eq!(user.distrusts((1000, 1000), (0o777, true)), None, "a link");
        let other = User { uid: 1000, gid: 100 };
        assert!(other.distrusts((1000, 100), (0o664, false)).is_some(), "a group of many");
    }

    #[test]
    fn folder_above_counts_as_the_file_does() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a");
        fs::create_dir(&inner).unwrap();
        let file = inner.join("nerve-server.toml");
        fs::write(&file, "").unwrap();
        assert_eq!(check_trusted(&file), Ok(()));
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = check_trusted(&file).unwrap_err();
        assert!(refused.path == inner && refused.to_string().contains("0777"), "{refused}");
        // A link from a good place is as good as what it leads to.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(check_trusted(&link).unwrap_err().path, inner.canonicalize().unwrap());
    }
}
