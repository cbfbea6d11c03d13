//! Reads files that people name, or that are in folders that people name: regular files only.
//!
//! Opening a named pipe waits for a writer, a device such as `/dev/zero` has no end, and opening a tape rewinds it. So a path is
//! looked at before it is opened, it is opened without waiting, and what was opened is looked at again: another process may replace
//! the file in between. Links are followed.

use std::{
    fmt,
    fs::{File, FileType, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

/// The kind of a path that is not a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotRegular {
    kind: &'static str,
}

impl fmt::Display for NotRegular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is {}, and not a regular file", self.kind)
    }
}

impl std::error::Error for NotRegular {}

impl NotRegular {
    /// The kind, if that is why a file was not read.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref()).copied()
    }

    fn check(found: FileType) -> io::Result<()> {
        let kind = match found {
            _ if found.is_file() => return Ok(()),
            _ if found.is_dir() => "a folder",
            _ if found.is_fifo() => "a named pipe",
            _ if found.is_socket() => "a socket",
            _ if found.is_char_device() || found.is_block_device() => "a device",
            _ => "something else",
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, Self { kind }))
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// When it cannot be opened, or is of another kind: see [`NotRegular::of`].
pub fn open(path: &Path) -> io::Result<File> {
    NotRegular::check(path.metadata()?.file_type())?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    NotRegular::check(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a regular file of at most `max_bytes`.
///
/// # Errors
/// Those of [`open`]; when it cannot be read, or is larger.
pub fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut content)?;
    if u64::try_from(content.len()).is_ok_and(|length| length <= max_bytes) {
        return Ok(content);
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {max_bytes} bytes")))
}

/// Reads a regular file of at most `max_bytes` in UTF-8.
///
/// # Errors
/// Those of [`read`]; when it is not UTF-8.
pub fn read_to_string(path: &Path, max_bytes: u64) -> io::Result<String> {
    let content = read(path, max_bytes)?;
    String::from_utf8(content).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
}

/// Whether there is a regular file; what is there and is none is an error.
///
/// # Errors
/// When it is of another kind, or cannot be looked at.
pub fn is_there(path: &Path) -> io::Result<bool> {
    match path.metadata() {
        Ok(found) => NotRegular::check(found.file_type()).map(|()| true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{sys::stat::Mode, unistd::mkfifo};
    use std::os::unix::{fs::symlink, net::UnixListener};

    #[test]
    fn only_regular_files_are_read_and_links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "abc").unwrap();
        symlink("file", at("link")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(read_to_string(&at(name), 3).unwrap(), "abc");
            assert!(is_there(&at(name)).unwrap());
        }
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink("pipe", at("to-pipe")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        let kinds = [
            ("pipe", "a named pipe"),
            ("to-pipe", "a named pipe"),
            ("socket", "a socket"),
            ("zero", "a device"),
            ("folder", "a folder"),
        ];
        for (name, kind) in kinds {
            for error in [read(&at(name), 3).unwrap_err(), is_there(&at(name)).unwrap_err()] {
                assert_eq!(NotRegular::of(&error), Some(NotRegular { kind }), "{name}: {error}");
                assert_eq!(error.to_string(), format!("it is {kind}, and not a regular file"));
            }
        }
    }

    #[test]
    fn file_that_is_missing_too_large_or_no_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        assert!(!is_there(&file).unwrap() && !is_there(&file.join("below")).unwrap());
        assert_eq!(read(&file, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&file, b"\xffbc").unwrap();
        assert_eq!(read(&file, 2).unwrap_err().to_string(), "it has more than 2 bytes");
        assert_eq!(read(&file, 3).unwrap().len(), 3);
        assert_eq!(read_to_string(&file, 3).unwrap_err().to_string(), "it is not text in UTF-8");
        assert!(read(&file, u64::MAX).is_ok());
    }
}
