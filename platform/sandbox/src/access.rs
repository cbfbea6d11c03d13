//! The files that a helper may use besides its pipes.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The files that a helper may use besides its pipes. Paths are absolute, without symbolic links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// A trusted shared library, which the helper loads before it is confined.
    pub library: Option<PathBuf>,
    /// Readable files and folders. Without Landlock in the kernel, others are readable too.
    pub readable: Vec<PathBuf>,
}

impl Access {
    /// Returns whether the helper opens no files.
    pub(crate) fn is_none(&self) -> bool {
        self.readable.is_empty()
    }

    /// The command-line arguments that [`Access::read`] parses.
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
    fn access_round_trips_through_the_command_line() {
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
