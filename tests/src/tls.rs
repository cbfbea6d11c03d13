//! Certificates of a test's own.

use std::fs;
use tempfile::TempDir;

/// A certificate that signs itself, and its key, in files.
pub struct SelfSigned {
    /// The certificate, in PEM.
    pub cert: String,
    /// The key, in PEM.
    pub key: String,
    _folder: TempDir,
}

impl SelfSigned {
    /// Makes one for this host.
    pub fn of(host: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).expect("a certificate");
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("a written file");
            path.display().to_string()
        };
        Self {
            cert: write("cert.pem", made.cert.pem()),
            key: write("key.pem", made.signing_key.serialize_pem()),
            _folder: folder,
        }
    }
}
