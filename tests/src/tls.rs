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

/// A CA of the test's own, which signs certificates into a folder.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    folder: TempDir,
}

impl Authority {
    /// Makes one; its certificate is in `ca.pem`.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut params = rcgen::CertificateParams::new([]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        fs::write(folder.path().join("ca.pem"), cert.pem()).expect("a written file");
        Self { issuer: rcgen::Issuer::new(params, key), folder }
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Signs a certificate for `host`, into `NAME.pem` and `NAME.key`.
    pub fn sign(&self, name: &str, host: &str) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new([host.to_owned()]).expect("parameters");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(self.path(&format!("{name}.pem")), cert.pem()).expect("a written file");
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("a written file");
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
