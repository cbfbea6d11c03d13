//! `nerve new`

use crate::{failure::Failure, globals::Globals};
use clap::{Args, ValueEnum};
use nerve_core::Name;
use serde_json::json;
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Create a new function from a template
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve new hello
  nerve new label-issues --template wasm-python")]
pub(crate) struct New {
    /// Name of the function and its directory
    name: Name,
    /// The template
    #[arg(long, short, value_enum, default_value_t = Template::WasmJs)]
    template: Template,
    /// Parent directory [default: the current one]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Template {
    /// JavaScript, as a WebAssembly component
    WasmJs,
    /// Python, as a WebAssembly component
    WasmPython,
    /// Rust, as a WebAssembly component
    WasmRust,
    /// Python, as a plain process: nothing to build
    ProcessPython,
}

/// A path in the new directory, and its content.
type File = (&'static str, &'static str);

/// Placeholder of the function's name in templates.
const NAME_PLACEHOLDER: &str = "{{name}}";

const WIT: File = ("wit/nerve.wit", include_str!("../../../../functions/wit/nerve.wit"));

macro_rules! files {
    ($folder:literal: $($path:literal),+) => {
        &[$(($path, include_str!(concat!("../../templates/", $folder, "/", $path)))),+]
    };
}

impl Template {
    fn files(self) -> &'static [File] {
        match self {
            Self::WasmJs => files!("wasm-js": ".gitignore", "nerve.toml", "function.js", "package.json", "README.md"),
            Self::WasmPython => files!("wasm-python": ".gitignore", "nerve.toml", "app.py", "build.sh", "README.md"),
            Self::WasmRust => files!("wasm-rust": ".gitignore", "nerve.toml", "src/lib.rs", "Cargo.toml", "README.md"),
            Self::ProcessPython => files!("process-python": "nerve.toml", "function.py", "README.md"),
        }
    }

    /// Returns the WIT file that a component is built against.
    fn contract(self) -> Option<File> {
        (self != Self::ProcessPython).then_some(WIT)
    }
}

impl New {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let folder = self.path.as_deref().unwrap_or(Path::new("")).join(self.name.as_str());
        let files = self.write(&folder)?;
        let report = json!({"name": self.name, "folder": folder, "files": files});
        globals.output.show(&report, |_| {
            let list = files.iter().map(|file| format!("\n  {file}")).collect::<String>();
            format!("created {}{list}\nnext: see {}", folder.display(), folder.join("README.md").display())
        })
    }

    fn write(&self, folder: &Path) -> Result<Vec<&'static str>, Failure> {
        let failed = |path: &Path, error| Failure::new(format!("cannot write {}", path.display())).because(error);
        match fs::create_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Failure::new(format!("{} already exists", folder.display()))
                    .cause("existing files are never overwritten")
                    .next("choose another name, or another directory with --path"));
            }
            created => created.map_err(|error| failed(folder, error).next("pass an existing directory with --path"))?,
        }
        let mut written = Vec::new();
        for (path, text) in self.template.files().iter().copied().chain(self.template.contract()) {
            let file = folder.join(path);
            write(&file, &text.replace(NAME_PLACEHOLDER, self.name.as_str())).map_err(|error| failed(&file, error))?;
            written.push(path);
        }
        Ok(written)
    }
}

fn write(file: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let mode = if file.extension().is_some_and(|extension| extension == "sh") { 0o777 } else { 0o666 };
    fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::Manifest;

    fn new(folder: &Path, template: Template) -> New {
        New { name: Name::parse("my-function").unwrap(), template, path: Some(folder.to_owned()) }
    }

    #[test]
    fn every_template_has_a_valid_manifest() {
        for template in Template::value_variants() {
            let parent = tempfile::tempdir().unwrap();
            let folder = parent.path().join("my-function");
            let files = new(parent.path(), *template).write(&folder).unwrap();
            for file in &files {
                let text = fs::read_to_string(folder.join(file)).unwrap();
                assert!(!text.contains(NAME_PLACEHOLDER), "{template:?} {file}");
            }
            let manifest = Manifest::parse(&fs::read_to_string(folder.join("nerve.toml")).unwrap()).unwrap();
            assert_eq!(manifest.functions.keys().map(Name::as_str).collect::<Vec<_>>(), ["my-function"]);
            assert_eq!(files.contains(&WIT.0), *template != Template::ProcessPython, "{template:?}");
        }
    }

    #[test]
    fn every_template_file_is_written() {
        fn count(folder: &Path) -> usize {
            let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
        }
        let existing = count(&Path::new(env!("CARGO_MANIFEST_DIR")).join("templates"));
        let known: usize = Template::value_variants().iter().map(|template| template.files().len()).sum();
        assert_eq!(known, existing);
    }

    #[test]
    fn existing_directory_is_not_overwritten() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("my-function");
        new(parent.path(), Template::ProcessPython).write(&folder).unwrap();
        let error = new(parent.path(), Template::WasmJs).write(&folder).unwrap_err();
        assert!(error.to_string().contains("already exists"));
        assert!(!folder.join("package.json").exists());
    }
}
