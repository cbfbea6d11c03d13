//! Denies a program of this user access to files and folders, by a Landlock ruleset.
//!
//! Landlock rules can only allow. So everything next to a closed path is allowed: its siblings, and
//! those of each ancestor. Files created in the ancestors later are closed too.

use crate::confine::works;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The minimum Landlock ABI: older ones refuse every move of a file to another folder.
const OLDEST: ABI = ABI::V2;
/// The allowed operations: all on files. Devices are not restricted.
const FILES: ABI = ABI::V3;
/// File systems that represent processes and devices. A process function reads them and writes nothing: permission to write its own
/// `oom_score_adj` would include that of the broker.
const READ_ONLY: [&str; 2] = ["/proc", "/sys"];
/// Maximum folder entries examined: each rule takes some hundred bytes in the kernel.
const MAX_ENTRIES: usize = 100_000;

/// Returns whether this kernel supports closing folders and no container policy forbids it, by a test in a thread.
pub fn can_close() -> bool {
    works(|| Closed::new(&[], Path::new("/")).ok().flatten().is_some_and(|closed| closed.apply().is_ok()))
}

fn has_rulesets() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::from_all(OLDEST)).and_then(Ruleset::create).is_ok()
}

/// A ruleset ready to apply.
#[derive(Debug)]
pub struct Closed(RulesetCreated);

impl Closed {
    /// Closes `paths` and their contents, except `own`. `None` if the kernel does not support it.
    ///
    /// `/proc` and `/sys` become read-only. With Landlock ABI 6 a restricted process can also signal only its own descendants, and trace
    /// no other process.
    ///
    /// # Errors
    /// If an ancestor of a path cannot be read, or the kernel refuses a rule.
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
            // A path that was deleted meanwhile requires no rule.
            let Ok(file) = PathFd::new(path) else { continue };
            let is_read_only = READ_ONLY.iter().any(|read_only| path == Path::new(read_only));
            let rights = if is_read_only { AccessFs::from_read(FILES) } else { AccessFs::from_all(FILES) };
            let rule = PathBeneath::new(file, rights);
            ruleset = ruleset.add_rule(rule).map_err(io::Error::other)?;
        }
        Ok(Some(Self(ruleset)))
    }

    /// Restricts this thread and its descendants.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn apply(self) -> io::Result<()> {
        self.0.restrict_self().map(drop).map_err(io::Error::other)
    }
}

/// The paths that are neither in `closed` nor ancestors of it, as few as possible.
fn beside(closed: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    // Missing paths cannot be distinguished from files created later, which are closed.
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
            // The target of a link is open by its own path, or closed.
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
    fn siblings_are_open_and_links_into_a_closed_folder_are_closed() {
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
