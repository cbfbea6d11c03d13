//! The ONNX Runtime library and the bundled models of this installation.

use nerve_config::{OnnxConfig, check_trusted};
#[cfg(feature = "onnx")]
use nerve_inference::{ModelProber, Provider, Settings};
use std::{
    collections::BTreeSet,
    env::consts::{ARCH, DLL_PREFIX, DLL_SUFFIX},
    path::{Path, PathBuf},
};

/// Default model of `onnx/embed`.
pub(crate) const DEFAULT_MODEL: &str = "all-MiniLM-L6-v2";

/// Model directories of packages.
const SYSTEM_MODELS: [&str; 2] = ["/usr/share/nerve/models", "/usr/local/share/nerve/models"];

/// System library directories.
const SYSTEM_LIBRARIES: [&str; 4] = ["/usr/local/lib", "/usr/lib", "/usr/lib64", "/opt/onnxruntime/lib"];

/// Returns the directory of a bundled model: in `onnx.models`, in `.tools/models` of this directory or a parent, of a
/// parent of the running `nerve`, or in the model directories of packages.
pub(crate) fn bundled_folder(config: &OnnxConfig, name: &str) -> Option<PathBuf> {
    folder_in(model_roots(config), name)
}

/// Returns the names of the bundled models.
pub(crate) fn bundled_names(config: &OnnxConfig) -> BTreeSet<String> {
    let entries = model_roots(config).into_iter().filter_map(|root| std::fs::read_dir(root).ok()).flatten().flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    folders.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| !name.starts_with('.')).collect()
}

/// Returns the ONNX Runtime library: `onnx.library`, or else `ORT_DYLIB_PATH`, or else the first one in `.tools/lib` of
/// this directory or a parent, near the running `nerve`, or in the system library directories. A configured library
/// need not exist; a discovered one must be in a trusted location.
pub(crate) fn library(config: &OnnxConfig) -> Option<PathBuf> {
    let variable = || std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    match config.library.clone().or_else(variable) {
        // A bare file name is searched for.
        Some(name) if name.components().count() == 1 && !name.is_file() => {
            let found = library_folders().into_iter().map(|folder| folder.join(&name)).find(|path| path.is_file());
            Some(found.filter(|path| is_trusted(path)).unwrap_or(name))
        }
        Some(path) => Some(path),
        None => library_folders().iter().filter_map(|folder| library_in(folder)).find(|path| is_trusted(path)),
    }
}

/// Whether no other user can have created this file; logs a warning otherwise. A file next to the running `nerve` is
/// trusted like it.
pub(crate) fn is_trusted(path: &Path) -> bool {
    let adjacent = nerve().as_deref().and_then(Path::parent).is_some_and(|folder| path.parent() == Some(folder));
    match if adjacent { Ok(()) } else { check_trusted(path) } {
        Ok(()) => true,
        Err(untrusted) => {
            tracing::warn!("ignoring {}: {untrusted}; configure the path to use it anyway", path.display());
            false
        }
    }
}

/// Returns the settings of nerve-inference with a cache directory and the helper processes that test models.
#[cfg(feature = "onnx")]
pub(crate) fn engine_settings(config: &OnnxConfig, cache: PathBuf, trials: ModelProber) -> anyhow::Result<Settings> {
    let providers: Result<Vec<Provider>, String> =
        config.providers.iter().map(|provider| provider.as_str().parse()).collect();
    let named = |name: String| bundled_folder(config, &name).map(|folder| (name, folder));
    Ok(Settings {
        library: library(config),
        cache,
        bundled: bundled_names(config).into_iter().filter_map(named).collect(),
        providers: providers.map_err(anyhow::Error::msg)?,
        threads: config.threads,
        optimization: config.optimization.as_str().parse().map_err(anyhow::Error::msg)?,
        queue: config.queue,
        context: config.context,
        idle: config.idle,
        prober: Some(trials),
    })
}

fn model_roots(config: &OnnxConfig) -> Vec<PathBuf> {
    let configured = config.models.iter().cloned();
    let near = ancestors().into_iter().map(|folder| folder.join(".tools/models"));
    let near = near.filter(|root| root.is_dir() && is_trusted(root));
    configured.chain(near).chain(SYSTEM_MODELS.map(PathBuf::from)).collect()
}

fn folder_in(roots: Vec<PathBuf>, name: &str) -> Option<PathBuf> {
    // An invalid name must not lead out of the roots.
    nerve_core::ModelName::parse(name).ok()?;
    roots.into_iter().map(|root| root.join(name)).find(|folder| folder.is_dir())
}

fn library_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ancestors().into_iter().map(|folder| folder.join(".tools/lib")).collect();
    if let Some(adjacent) = nerve().as_deref().and_then(Path::parent) {
        folders.extend([adjacent.to_owned(), adjacent.join("lib"), adjacent.join("../lib")]);
    }
    folders.extend(SYSTEM_LIBRARIES.map(PathBuf::from));
    folders.push(format!("/usr/lib/{ARCH}-linux-gnu").into());
    folders
}

/// Returns the library in `folder`: without a version in its name, or else the last one in sort order.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let plain = format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}");
    let exact = folder.join(&plain);
    if exact.is_file() {
        return Some(exact);
    }
    let versioned = format!("{plain}.");
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&versioned)));
    named.map(|entry| entry.path()).filter(|path| path.is_file()).max()
}

/// Returns this directory and its parents, then the parents of the running `nerve`.
fn ancestors() -> Vec<PathBuf> {
    let starts = std::env::current_dir().ok().into_iter().chain(nerve());
    starts.flat_map(|start| start.ancestors().map(Path::to_owned).collect::<Vec<_>>()).collect()
}

fn nerve() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_config::Config;
    use std::fs;

    fn config(models: Option<&Path>, library: Option<&Path>) -> OnnxConfig {
        let defaults = Config::load(None, []).unwrap().onnx;
        OnnxConfig { models: models.map(Path::to_owned), library: library.map(Path::to_owned), ..defaults }
    }

    #[test]
    fn bundled_model_is_a_directory_with_its_name() {
        let root = tempfile::tempdir().unwrap();
        for name in ["one", "two", ".cache"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        fs::write(root.path().join("README"), "").unwrap();
        let config = config(Some(root.path()), None);
        assert_eq!(bundled_folder(&config, "one"), Some(root.path().join("one")));
        let names = bundled_names(&config);
        assert!(names.contains("one") && names.contains("two") && !names.contains(".cache"), "{names:?}");
        assert!(!names.contains("README"));
        for none in ["README", "..", "../x", "one/..", "", "no-such-model"] {
            assert_eq!(bundled_folder(&config, none), None, "{none}");
        }
    }

    #[test]
    fn library_with_a_version_in_its_name_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(library_in(folder.path()), None);
        let plain = format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}");
        for version in ["1.30.0", "1.31.1"] {
            fs::write(folder.path().join(format!("{plain}.{version}")), "").unwrap();
        }
        assert_eq!(library_in(folder.path()), Some(folder.path().join(format!("{plain}.1.31.1"))));
        fs::write(folder.path().join(&plain), "").unwrap();
        assert_eq!(library_in(folder.path()), Some(folder.path().join(&plain)));
    }

    #[test]
    fn configured_library_is_used_even_if_it_does_not_exist() {
        let file = Path::new("/no/such/lib.so");
        assert_eq!(library(&config(None, Some(file))), Some(file.to_owned()));
        assert_eq!(library(&config(None, Some(Path::new("no-such-lib.so")))), Some("no-such-lib.so".into()));
    }
}
