//! The documents in files and folders on this machine.

use crate::failure::Failure;
use ignore::WalkBuilder;
use std::{collections::BTreeMap, path::PathBuf};

/// What a PDF begins with.
pub(crate) const PDF: &[u8] = b"%PDF-";

/// The largest file that is a document, in bytes.
const LARGEST: u64 = 16 << 20;

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
        for entry in WalkBuilder::new(path).require_git(false).build() {
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
    }
    Ok(found.into_values().collect())
}

impl LocalFile {
    /// What it holds, if that is text in UTF-8 or a PDF and not too large.
    pub(crate) async fn read(&self) -> Option<Vec<u8>> {
        let size = tokio::fs::metadata(&self.path).await.ok()?.len();
        if size > LARGEST {
            return None;
        }
        let content = tokio::fs::read(&self.path).await.ok()?;
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
}
