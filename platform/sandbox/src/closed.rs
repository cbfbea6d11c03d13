//! Files and folders that a program of this user's cannot open, as a Landlock ruleset.
//!
//! Landlock has rules that allow, and none that deny. So everything that lies beside a closed path is allowed: its siblings, and
//! those of each folder above it. What appears in one of these folders later is closed too.

use crate::confine::works;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The oldest Landlock that does: an older one refuses every move of a file to another folder.
const OLDEST: ABI = ABI::V2;
/// What a rule allows: all that concerns files. Devices are not Nerve's to close.
const FILES: ABI = ABI::V3;
/// Where files stand for processes and devices. A process function reads there and writes nothing: what it may write of its own, such as
/// `oom_score_adj`, it could write of the broker too.
const READ_ONLY: [&str; 2] = ["/proc", "/sys"];
/// The most entries of folders that are looked at: a rule takes the kernel some hundred bytes.
const MAX_ENTRIES: usize = 100_000;

/// Whether this kernel can close folders to a program, and no policy of a container keeps it from that: a thread tries it.
pub fn can_close() -> bool {
    works(|| Closed::new(&[], Path::new("/")).ok().flatten().is_some_and(|closed| closed.apply().is_ok()))
}

fn has_rulesets() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::from_all(OLDEST)).and_then(Ruleset::create).is_ok()
}

/// A ruleset that is ready to be applied.
#[derive(Debug)]
pub struct Closed(RulesetCreated);

impl Closed {
    /// Denies access to `paths` and their content, except `own`. `None` if this kernel cannot.
    ///
    /// Nothing is written in `/proc` and `/sys`. A restricted process also sends signals to its own descendants only, where the kernel has version 6 of Landlock, and traces
    /// no other process.
    ///
    /// # Errors
    /// When a folder above one of the paths cannot be read, or the kernel refuses a rule.
    pub fn new(paths: &[PathBuf], own: &Path) -> io::Result<Option<Self>> {
        if !has_rulesets() {
            return Ok(None);
        }
        let open = beside(paths)?;
        let ruleset = || -> Result<RulesetCreated, RulesetError> {
            let ruleset = Ruleset::default().handle_access(AccessFs::from_all(FILES))?;
            ruleset.scope(Scope::Signal)?.create()
        };
        let mut ruleset = ruleset().map_err(io::Error::other)?;
        for path in open.iter().map(PathBuf::as_path).chain([own]) {
            // One that has gone needs no rule.
            let Ok(file) = PathFd::new(path) else { continue };
            let is_read_only = READ_ONLY.iter().any(|read_only| path == Path::new(read_only));
            let rights = if is_read_only { AccessFs::from_read(FILES) } else { AccessFs::from_all(FILES) };
            let rule = PathBeneath::new(file, rights);
            ruleset = ruleset.add_rule(rule).map_err(io::Error::other)?;
        }
        Ok(Some(Self(ruleset)))
    }

    /// Restricts this thread, and all that it starts.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply(self) -> io::Result<()> {
        self.0.restrict_self().map(drop).map_err(io::Error::other)
    }
}

/// What is neither in `closed` nor above it, in as few paths as possible.
fn beside(closed: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    // One that does not exist cannot be told from what will be made later, which is closed.
    let closed: Vec<PathBuf> = closed.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    let (mut open, mut folders, mut left) = (Vec::new(), vec![PathBuf::from("/")], MAX_ENTRIES);
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // A folder that this user cannot list stays closed.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            left = left.checked_sub(1).ok_or_else(|| {
                io::Error::other(format!("the folders above {} hold too many files", folder.display()))
            })?;
            // What a link leads to is open by its own path, or it is not.
            if entry.file_type()?.is_symlink() {
                continue;
            }
            let path = entry.path();
            if closed.contains(&path) {
                continue;
            }
            let is_above = closed.iter().any(|closed| closed.starts_with(&path));
            if is_above { folders.push(path) } else { open.push(path) }
        }
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_are_open_and_links_into_a_closed_folder_are_not() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        for folder in ["a/data/own", "a/other", "b"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("a/key"), "").unwrap();
        std::os::unix::fs::symlink(root.join("a/data"), root.join("link")).unwrap();
        let open = beside(&[root.join("a/data"), root.join("a/key"), root.join("none")]).unwrap();
        let mut within: Vec<&Path> = open.iter().filter_map(|path| path.strip_prefix(&root).ok()).collect();
        within.sort();
        assert_eq!(within, [Path::new("a/other"), Path::new("b")]);
        assert!(open.contains(&PathBuf::from("/proc")) && !open.contains(&PathBuf::from("/")));
        assert!(open.iter().all(|path| !root.starts_with(path)));
    }
}
