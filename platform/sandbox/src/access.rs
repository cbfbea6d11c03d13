//! What of the file system a helper may use beside its pipes.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// What of the file system a helper may use beside its pipes. Paths are absolute, and without symbolic links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// A shared library that the helper loads before it is confined: its code is trusted.
    pub library: Option<PathBuf>,
    /// Files and folders that the helper may read. A kernel without Landlock does not keep it from others.
    pub readable: Vec<PathBuf>,
}

impl Access {
    /// Whether the helper opens no file of its own.
    pub(crate) fn is_none(&self) -> bool {
        self.readable.is_empty()
    }

    /// The arguments that [`Access::read`] reads.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        if *self == Self::default() {
            return Vec::new();
        }
        let library = self.library.as_deref().unwrap_or(Path::new(""));
        std::iter::once(library).chain(self.readable.iter().map(PathBuf::as_path)).map(OsString::from).collect()
    }

    pub(crate) fn read(arguments: impl Iterator<Item = OsString>) -> Self {
        let mut paths = arguments.map(PathBuf::from);
        let library = paths.next().filter(|path| !path.as_os_str().is_empty());
        Self { library, readable: paths.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_survives_the_command_line() {
        let readable = vec![PathBuf::from("/a"), PathBuf::from("/b c")];
        for access in [
            Access::default(),
            Access { library: Some("/l.so".into()), readable: readable.clone() },
            Access { library: None, readable },
        ] {
            assert_eq!(Access::read(access.arguments().into_iter()), access);
        }
    }
}
