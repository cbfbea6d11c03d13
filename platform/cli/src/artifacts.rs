//! Collects the files to deploy with a function. Only files below the manifest's directory are allowed.

use crate::{
    failure::Failure,
    files,
    output::{self, Format},
};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use nerve_broker::bus::BusError;
use nerve_core::manifest::RuntimeSpec;
use nerve_registry::{ArtifactRef, Registry};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
};

/// Maximum total size of a function's files.
const MAX_BYTES: u64 = 64 << 20;
/// Maximum files of a function.
const MAX_FILES: usize = 2000;
/// Minimum size of a file whose upload is reported.
const REPORTED_UPLOAD_BYTES: u64 = 8 << 20;
/// Maximum nesting of directories.
const MAX_DEPTH: usize = 32;

/// A file to deploy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Its path relative to the manifest, with `/`.
    pub(crate) name: String,
    /// Lower-case hex SHA-256 of its content.
    pub(crate) sha256: String,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Its content.
    pub(crate) content: Content,
}

/// Location of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// In memory.
    Memory(Bytes),
    /// In a local file, which may be larger than memory.
    Local(PathBuf),
    /// Already in the object store.
    Stored,
}

impl File {
    /// Creates a file from a path, of any size.
    pub(crate) async fn local(name: &str, path: PathBuf) -> std::io::Result<Self> {
        let ArtifactRef { name, sha256, size } = ArtifactRef::of_file(name, &path).await?;
        Ok(Self { name, sha256, size, content: Content::Local(path) })
    }

    /// Creates a file that is already in the object store.
    pub(crate) fn stored(reference: ArtifactRef) -> Self {
        let ArtifactRef { name, sha256, size } = reference;
        Self { name, sha256, size, content: Content::Stored }
    }

    /// Returns its reference in the registry.
    pub(crate) fn reference(&self) -> ArtifactRef {
        ArtifactRef { name: self.name.clone(), sha256: self.sha256.clone(), size: self.size }
    }

    /// Uploads the file unless it is already stored. The upload of a large file is reported to the user.
    pub(crate) async fn upload(&self, registry: &Registry, format: Format) -> Result<ArtifactRef, BusError> {
        let reference = self.reference();
        match &self.content {
            Content::Stored => {}
            Content::Memory(content) => return registry.upload(&self.name, content).await,
            Content::Local(path) => {
                if self.size >= REPORTED_UPLOAD_BYTES
                    && format == Format::Text
                    && !registry.is_uploaded(&reference).await?
                {
                    output::hint(&format!("uploading {} ({}) …", self.name, output::size(self.size)));
                }
                registry.upload_file(&reference, path).await?;
            }
        }
        Ok(reference)
    }
}

/// Returns the files that `run` lists, sorted by name.
pub(crate) fn collect(folder: &Path, run: &RuntimeSpec) -> Result<Vec<File>, Failure> {
    let root = folder.canonicalize().map_err(|error| unreadable(folder).because(error))?;
    let mut collector = Collector { root, files: BTreeMap::new(), bytes: 0 };
    match run {
        RuntimeSpec::Wasm { source } => collector.add_file(source)?,
        RuntimeSpec::Process { command, source } => {
            for (position, argument) in command.iter().enumerate() {
                // A bare program name is looked up on the worker's PATH, even if a file in this directory has that
                // name.
                let is_path = position > 0 || argument.contains('/');
                if is_path && collector.has_file(argument) {
                    collector.add_file(argument)?;
                }
            }
            if let Some(source) = source {
                collector.add(source)?;
            }
        }
        // The files of a built-in function are those of its model, which are collected separately.
        RuntimeSpec::Http { .. } | RuntimeSpec::Builtin { .. } => {}
    }
    Ok(collector.files.into_values().collect())
}

struct Collector {
    /// The manifest's directory, without symbolic links.
    root: PathBuf,
    files: BTreeMap<String, File>,
    bytes: u64,
}

impl Collector {
    fn has_file(&self, path: &str) -> bool {
        // Includes pipes and devices, which are rejected when they are read.
        Path::new(path).is_relative() && self.root.join(path).metadata().is_ok_and(|found| !found.is_dir())
    }

    fn add(&mut self, path: &str) -> Result<(), Failure> {
        if self.root.join(path).is_dir() {
            let name = self.name_of(path)?;
            return self.add_folder(&name, 0);
        }
        self.add_file(path)
    }

    /// Adds every file below the directory `name`, except hidden files and compiled Python files.
    fn add_folder(&mut self, name: &str, depth: usize) -> Result<(), Failure> {
        let path = self.root.join(name);
        if depth > MAX_DEPTH {
            return Err(too_large(&path, &format!("directories are nested deeper than {MAX_DEPTH}")));
        }
        self.resolve(&path)?;
        let entries = fs::read_dir(&path).map_err(|error| unreadable(&path).because(error))?;
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&path).because(error))?;
            let Some(file_name) = entry.file_name().to_str().map(str::to_owned) else {
                return Err(Failure::new(format!("cannot deploy {}", entry.path().display()))
                    .cause("its name is not UTF-8")
                    .next("rename it"));
            };
            if file_name.starts_with('.') || file_name == "__pycache__" {
                continue;
            }
            let child = if name.is_empty() { file_name } else { format!("{name}/{file_name}") };
            if entry.path().is_dir() { self.add_folder(&child, depth + 1)? } else { self.add_file(&child)? }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &str) -> Result<(), Failure> {
        let name = self.name_of(path)?;
        if self.files.contains_key(&name) {
            return Ok(());
        }
        let file = self.resolve(&self.root.join(path))?;
        let left = MAX_BYTES - self.bytes;
        let mut content = Vec::new();
        let read = nerve_files::open(&file).and_then(|file| file.take(left + 1).read_to_end(&mut content));
        let read = read.map_err(|error| files::unreadable(&file, error, MISSING_FILE_HINT))?;
        let length = u64::try_from(read).unwrap_or(u64::MAX);
        if length > left {
            return Err(too_large(&file, "the maximum total size of a function's files is 64 MiB"));
        }
        if self.files.len() >= MAX_FILES {
            return Err(too_large(&file, &format!("a function may have at most {MAX_FILES} files")));
        }
        self.bytes += length;
        let sha256 = HEXLOWER.encode(&Sha256::digest(&content));
        self.files.insert(name.clone(), File { name, sha256, size: length, content: Content::Memory(content.into()) });
        Ok(())
    }

    /// Resolves `path`, which must be in the manifest's directory.
    fn resolve(&self, path: &Path) -> Result<PathBuf, Failure> {
        let real = path.canonicalize().map_err(|error| unreadable(path).because(error).next(MISSING_FILE_HINT))?;
        if real.starts_with(&self.root) { Ok(real) } else { Err(outside(path)) }
    }

    /// Returns the deployed name of `path`: without `.`, and without leaving the manifest's directory.
    fn name_of(&self, path: &str) -> Result<String, Failure> {
        let mut parts = Vec::new();
        for component in Path::new(path).components() {
            match component {
                Component::CurDir => {}
                Component::Normal(part) => parts.push(part.to_string_lossy()),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(outside(&self.root.join(path)));
                }
            }
        }
        Ok(parts.join("/"))
    }
}

const MISSING_FILE_HINT: &str = "build it first, or correct the path in nerve.toml, which is relative to that file";

fn unreadable(path: &Path) -> Failure {
    Failure::new(format!("cannot read {}", path.display()))
}

fn outside(path: &Path) -> Failure {
    Failure::new(format!("cannot deploy {}", path.display()))
        .cause("it is outside the directory of nerve.toml")
        .next("copy it into that directory: only files there are deployed")
}

fn too_large(path: &Path, limit: &str) -> Failure {
    Failure::new(format!("cannot deploy {}", path.display()))
        .cause(limit)
        .next("remove files that the function does not need, or let it download large ones at its start")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn process(command: &[&str], source: Option<&str>) -> RuntimeSpec {
        RuntimeSpec::Process {
            command: command.iter().map(|&word| word.into()).collect(),
            source: source.map(Into::into),
        }
    }

    fn names(folder: &Path, run: &RuntimeSpec) -> Vec<String> {
        collect(folder, run).unwrap().into_iter().map(|file| file.name).collect()
    }

    fn refused(folder: &Path, run: &RuntimeSpec) -> String {
        format!("{:#}", anyhow::Error::from(collect(folder, run).unwrap_err()))
    }

    #[test]
    fn command_arguments_that_are_files_are_deployed() {
        let here = folder(&[("python3", "not this"), ("app.py", "x"), ("run.sh", "y"), ("data/a.txt", "z")]);
        assert_eq!(names(here.path(), &process(&["python3", "app.py", "--fast", "x.py"], None)), ["app.py"]);
        assert_eq!(names(here.path(), &process(&["./run.sh", "data/a.txt"], None)), ["data/a.txt", "run.sh"]);
        assert_eq!(names(here.path(), &process(&["/bin/sh", "-c", "exit"], None)), Vec::<String>::new());
    }

    #[test]
    fn directory_is_deployed_without_hidden_files() {
        let here =
            folder(&[("app/main.py", "x"), ("app/lib/a.py", "y"), ("app/.git/c", ""), ("app/__pycache__/m", "")]);
        let run = process(&["python3", "app/main.py"], Some("./app"));
        assert_eq!(names(here.path(), &run), ["app/lib/a.py", "app/main.py"]);
        assert_eq!(names(here.path(), &process(&["x"], Some("."))), ["app/lib/a.py", "app/main.py"]);
    }

    #[test]
    fn named_pipe_is_rejected() {
        let here = folder(&[("app/main.py", "x")]);
        for name in ["run", "app/pipe"] {
            nix::unistd::mkfifo(&here.path().join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let runs = [
            process(&["./run"], None),
            process(&["python3", "run"], None),
            process(&["x"], Some("app")),
            RuntimeSpec::Wasm { source: "run".into() },
        ];
        for run in runs {
            let error = refused(here.path(), &run);
            assert!(error.contains("a named pipe, and not a regular file"), "{run:?}: {error}");
        }
    }

    #[test]
    fn digest_is_that_of_the_content() {
        let here = folder(&[("a.wasm", "abc")]);
        let files = collect(here.path(), &RuntimeSpec::Wasm { source: "a.wasm".into() }).unwrap();
        assert_eq!(files[0].sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn file_outside_the_manifest_directory_is_rejected() {
        let elsewhere = folder(&[("secret", "s"), ("deep/s", "s")]);
        let here = folder(&[("app/main.py", "x")]);
        symlink(elsewhere.path().join("secret"), here.path().join("app/link")).unwrap();
        assert!(refused(here.path(), &process(&["x"], Some("app"))).contains("outside"));
        fs::remove_file(here.path().join("app/link")).unwrap();
        symlink(elsewhere.path().join("deep"), here.path().join("app/link")).unwrap();
        assert!(refused(here.path(), &process(&["x"], Some("app"))).contains("outside"));
        for path in ["../secret", "/etc/hostname"] {
            assert!(refused(here.path(), &RuntimeSpec::Wasm { source: path.into() }).contains("outside"), "{path}");
        }
    }

    #[test]
    fn link_cycle_and_missing_file_are_errors() {
        let here = folder(&[("app/main.py", "x")]);
        symlink(here.path().join("app"), here.path().join("app/again")).unwrap();
        assert!(refused(here.path(), &process(&["x"], Some("app"))).contains("deeper"));
        assert!(refused(here.path(), &RuntimeSpec::Wasm { source: "none.wasm".into() }).contains("none.wasm"));
    }

    #[test]
    fn too_many_files_or_bytes_are_rejected() {
        let here = folder(&[("app/x", "")]);
        for number in 0..MAX_FILES {
            fs::write(here.path().join(format!("app/{number}")), "").unwrap();
        }
        assert!(refused(here.path(), &process(&["x"], Some("app"))).contains("2000 files"));
        let large = folder(&[]);
        fs::File::create(large.path().join("a.wasm")).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(refused(large.path(), &RuntimeSpec::Wasm { source: "a.wasm".into() }).contains("64 MiB"));
    }
}
