//! Hides files and folders from a program by path: a mount namespace with covers over them.
//!
//! Landlock restricts opening, but not modes, owners, times and extended attributes. A hidden path protects these as well.
//! of these.

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

/// The flags of a mount without executables.
const INERT: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// The size of the covers: a few folders and one empty file.
const COVER_OPTIONS: &str = "mode=0700,size=64k,nr_inodes=256";
/// A folder that can be traversed but not listed.
const PASSED: u32 = 0o111;

/// Moves this process into a mount namespace in which an empty folder or an empty file covers each of `closed`, except for `own`, which
/// may be inside one of them. The covers cannot be changed. `own` becomes the current folder.
///
/// A closed file that is replaced later, by a rename to its name, is no longer covered.
///
/// The process must have one thread. Without `CAP_SYS_ADMIN` it gets a user namespace too, in which its
/// user is unchanged; other users and groups are `nobody` there.
///
/// # Errors
/// If the kernel or a container policy refuses namespaces or mounts. The process must then exit: it may be in new
/// namespaces without covers.
pub fn cover(closed: &[PathBuf], own: &Path) -> io::Result<()> {
    enter_namespaces()?;
    let (closed, own) = (outermost(closed), own.canonicalize()?);
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let original = File::options().read(true).custom_flags(flags).open(&own)?;
    // All covers are in one file system, mounted over the own folder until they are in position.
    let source = Some("none");
    mount(source, &own, Some("tmpfs"), INERT, Some(COVER_OPTIONS)).map_err(|error| failed("a tmpfs", &own, error))?;
    let (file, folder, around) = (own.join("file"), own.join("folder"), own.join("around"));
    File::create(&file)?.set_permissions(Permissions::from_mode(0o000))?;
    DirBuilder::new().mode(PASSED).create(&folder)?;
    let above = closed.iter().find(|closed| own.starts_with(closed));
    if let Some(above) = above {
        let inner = around.join(own.strip_prefix(above).unwrap_or(&own));
        fs::create_dir_all(&inner)?;
        for folder in inner.ancestors().take_while(|folder| folder.starts_with(&around)) {
            fs::set_permissions(folder, Permissions::from_mode(PASSED))?;
        }
    }
    let fixed = INERT | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(source, &own, None::<&str>, fixed, Some(COVER_OPTIONS)).map_err(|error| failed("read-only", &own, error))?;
    for path in closed.iter().filter(|path| Some(*path) != above) {
        bind(if path.is_dir() { &folder } else { &file }, path)?;
    }
    match above {
        Some(above) => {
            bind(&around, above)?;
            bind(Path::new(&format!("/proc/self/fd/{}", original.as_raw_fd())), &own)?;
        }
        None => umount2(&own, MntFlags::MNT_DETACH).map_err(|error| failed("unmounting", &own, error))?,
    }
    // The current folder was below the covers, where parents are not covered.
    std::env::set_current_dir(&own)
}

fn enter_namespaces() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    if unshare(CloneFlags::CLONE_NEWNS).is_err() {
        let refused = |error| io::Error::other(format!("a user namespace is refused: {error}"));
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| refused(errno.into()))?;
        fs::write("/proc/self/setgroups", "deny").map_err(refused)?;
        fs::write("/proc/self/uid_map", format!("{user} {user} 1")).map_err(refused)?;
        fs::write("/proc/self/gid_map", format!("{group} {group} 1")).map_err(refused)?;
    }
    // Mounts do not propagate out of the namespace.
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    let root = Path::new("/");
    mount(None::<&str>, root, None::<&str>, flags, None::<&str>).map_err(|error| failed("a namespace", root, error))
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    let nothing = None::<&str>;
    mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing).map_err(|error| failed("a cover", to, error))
}

fn failed(what: &str, path: &Path, error: nix::errno::Errno) -> io::Error {
    io::Error::other(format!("mounting {what} at {} is refused: {error}", path.display()))
}

/// The existing paths in canonical form, without those inside another one.
fn outermost(closed: &[PathBuf]) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = closed.iter().filter_map(|path| path.canonicalize().ok()).collect();
    // The contents of a folder follow it.
    paths.sort();
    let mut outermost: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !outermost.iter().any(|outer| path.starts_with(outer)) {
            outermost.push(path);
        }
    }
    outermost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_of_a_closed_folder_are_covered_with_it() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("data/nats")).unwrap();
        fs::write(root.join("data/nats/creds"), "").unwrap();
        fs::write(root.join("data.toml"), "").unwrap();
        let closed = ["data/nats/creds", "none", "data.toml", "data", "data"].map(|path| root.join(path));
        assert_eq!(outermost(&closed), [root.join("data"), root.join("data.toml")]);
    }
}
