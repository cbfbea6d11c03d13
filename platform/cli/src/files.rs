//! The documents in files and folders on this machine, and why a file is not read.

use crate::failure::Failure;
use ignore::WalkBuilder;
use nerve_files::NotRegular;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// What a PDF begins with.
pub(crate) const PDF: &[u8] = b"%PDF-";

/// The largest file that is a document, in bytes.
const LARGEST: u64 = 16 << 20;

/// The files that say what of a folder is ignored.
const IGNORE_FILES: [&str; 2] = [".gitignore", ".ignore"];

/// Why a file that somebody named, or that is in a folder that somebody named, is not read; `next` is for a regular file.
pub(crate) fn unreadable(path: &Path, error: io::Error, next: &str) -> Failure {
    let next = match NotRegular::of(&error) {
        Some(_) => "put a regular file there, or leave it out",
        None => next,
    };
    Failure::new(format!("cannot read {}", path.display())).because(error).next(next)
}

/// A file that may be a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalFile {
    /// Its path as it was named, with `/`.
    pub(crate) name: String,
    path: PathBuf,
}

/// The files in these files and folders, each once.
pub(crate) fn find_files(paths: &[PathBuf]) -> Result<Vec<LocalFile>, Failure> {
    let mut found = BTreeMap::new();
    for path in paths {
        match path.is_dir() {
            true => path.canonicalize().iter().flat_map(|path| path.ancestors()).try_for_each(check_ignore_files)?,
            false => drop(nerve_files::open(path).map_err(|error| unreadable(path, error, "correct the path"))?),
        }
        let refused = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&refused);
        let mut walk = WalkBuilder::new(path);
        walk.require_git(false).filter_entry(move |entry| {
            // The walk reads them before it says what is in a folder.
            let checked = if entry.path().is_dir() { check_ignore_files(entry.path()) } else { Ok(()) };
            checked.map_err(|failure| *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure)).is_ok()
        });
        for entry in walk.build() {
            let entry = entry.map_err(|error| {
                Failure::new(format!("cannot read {}", path.display())).because(error).next("correct the path")
            })?;
            if entry.file_type().is_some_and(|kind| kind.is_file()) {
                let path = entry.into_path();
                let name = path.to_string_lossy().replace('\\', "/");
                let name = name.trim_start_matches("./").to_owned();
                found.insert(name.clone(), LocalFile { name, path });
            }
        }
        if let Some(failure) = refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failure);
        }
    }
    Ok(found.into_values().collect())
}

/// Refuses a folder whose lists of what is ignored cannot be read.
fn check_ignore_files(folder: &Path) -> Result<(), Failure> {
    for name in IGNORE_FILES {
        let file = folder.join(name);
        nerve_files::is_there(&file).map_err(|error| unreadable(&file, error, "correct the path"))?;
    }
    Ok(())
}

impl LocalFile {
    /// What it holds, if that is text in UTF-8 or a PDF and not too large.
    pub(crate) async fn read(&self) -> Option<Vec<u8>> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || nerve_files::read(&path, LARGEST));
        let content = read.await.ok()?.ok()?;
        let is_text = std::str::from_utf8(&content).is_ok_and(|text| !text.contains('\0') && !text.trim().is_empty());
        (is_text || content.starts_with(PDF)).then_some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn documents_are_text_or_pdf_and_not_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("docs/deep")).unwrap();
        fs::write(at("docs/a.md"), "# A").unwrap();
        fs::write(at("docs/deep/b.txt"), "b").unwrap();
        fs::write(at("docs/c.pdf"), b"%PDF-1.4 \xff").unwrap();
        fs::write(at("docs/d.bin"), b"\xff\x00").unwrap();
        fs::write(at("docs/empty.txt"), " \n").unwrap();
        fs::write(at("docs/e.log"), "log").unwrap();
        fs::write(at("docs/.gitignore"), "*.log\n").unwrap();
        let (mut documents, mut others) = (Vec::new(), Vec::new());
        for file in find_files(&[at("docs"), at("docs/a.md")]).unwrap() {
            let name = file.name.rsplit('/').next().unwrap().to_owned();
            if file.read().await.is_some() { documents.push(name) } else { others.push(name) }
        }
        assert_eq!(
            (documents, others),
            (vec!["a.md".into(), "c.pdf".into(), "b.txt".into()], vec!["d.bin".into(), "empty.txt".into()])
        );
        assert!(find_files(&[at("nothing")]).is_err());
    }

    #[test]
    fn pipe_is_skipped_in_a_folder_and_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let pipe = |name: &str| nix::unistd::mkfifo(&at(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir_all(at("docs/deep")).unwrap();
        fs::write(at("docs/deep/a.md"), "# A").unwrap();
        pipe("docs/pipe.md");
        std::os::unix::fs::symlink("/dev/zero", at("docs/zero.md")).unwrap();
        assert_eq!(find_files(&[at("docs")]).unwrap().len(), 1);
        let refused = |path: &str| anyhow::Error::from(find_files(&[at(path)]).unwrap_err());
        for (path, kind) in [("docs/pipe.md", "a named pipe"), ("docs/zero.md", "a device")] {
            let error = format!("{:#}", refused(path));
            assert!(error.contains(kind) && error.contains(path), "{error}");
        }
        // What is ignored is read before what is there.
        for (ignored, read) in [("docs/deep/.gitignore", "docs"), ("docs/.ignore", "docs/deep")] {
            pipe(ignored);
            let error = format!("{:#}", refused(read));
            assert!(error.contains(ignored) && error.contains("a named pipe"), "{error}");
            fs::remove_file(at(ignored)).unwrap();
        }
    }
}
