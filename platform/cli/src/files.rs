//! Finds and reads document files.

use crate::failure::Failure;
use ignore::WalkBuilder;
use nerve_files::NotRegular;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// First bytes of a PDF.
pub(crate) const PDF: &[u8] = b"%PDF-";

/// Maximum size of a document in bytes.
const MAX_DOCUMENT_BYTES: u64 = 16 << 20;

/// Names of ignore files.
const IGNORE_FILES: [&str; 2] = [".gitignore", ".ignore"];

/// Creates the error for an unreadable file. `next` is the next step for a regular file.
pub(crate) fn unreadable(path: &Path, error: io::Error, next: &str) -> Failure {
    let next = match NotRegular::of(&error) {
        Some(_) => "replace it by a regular file, or omit it",
        None => next,
    };
    Failure::new(format!("cannot read {}", path.display())).because(error).next(next)
}

/// A candidate for a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalFile {
    /// Its path as given by the user, with `/`.
    pub(crate) name: String,
    path: PathBuf,
}

/// Returns the files in these files and directories, without duplicates.
pub(crate) fn find_files(paths: &[PathBuf]) -> Result<Vec<LocalFile>, Failure> {
    let mut files = BTreeMap::new();
    for path in paths {
        match path.is_dir() {
            true => path.canonicalize().iter().flat_map(|path| path.ancestors()).try_for_each(check_ignore_files)?,
            false => drop(nerve_files::open(path).map_err(|error| unreadable(path, error, "correct the path"))?),
        }
        let failure = Arc::new(Mutex::new(None));
        let recorded = Arc::clone(&failure);
        let mut walk = WalkBuilder::new(path);
        walk.require_git(false).filter_entry(move |entry| {
            // The walk reads ignore files before it returns the entries of a directory.
            let checked = if entry.path().is_dir() { check_ignore_files(entry.path()) } else { Ok(()) };
            checked.map_err(|failure| *recorded.lock() = Some(failure)).is_ok()
        });
        for entry in walk.build() {
            let entry = entry.map_err(|error| {
                Failure::new(format!("cannot read {}", path.display())).because(error).next("correct the path")
            })?;
            if entry.file_type().is_some_and(|kind| kind.is_file()) {
                let path = entry.into_path();
                let name = path.to_string_lossy().replace('\\', "/");
                let name = name.trim_start_matches("./").to_owned();
                files.insert(name.clone(), LocalFile { name, path });
            }
        }
        if let Some(failure) = failure.lock().take() {
            return Err(failure);
        }
    }
    Ok(files.into_values().collect())
}

/// Returns an error if the ignore files of a directory cannot be read.
fn check_ignore_files(folder: &Path) -> Result<(), Failure> {
    for name in IGNORE_FILES {
        let file = folder.join(name);
        nerve_files::is_there(&file).map_err(|error| unreadable(&file, error, "correct the path"))?;
    }
    Ok(())
}

impl LocalFile {
    /// Reads the content. Returns `None` unless it is UTF-8 text or a PDF, and not too large.
    pub(crate) async fn read(&self) -> Option<Vec<u8>> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || nerve_files::read(&path, MAX_DOCUMENT_BYTES));
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
    fn pipe_is_skipped_in_a_directory_and_rejected_as_an_argument() {
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
        // Ignore files are read before the entries of a directory.
        for (ignored, read) in [("docs/deep/.gitignore", "docs"), ("docs/.ignore", "docs/deep")] {
            pipe(ignored);
            let error = format!("{:#}", refused(read));
            assert!(error.contains(ignored) && error.contains("a named pipe"), "{error}");
            fs::remove_file(at(ignored)).unwrap();
        }
    }
}
