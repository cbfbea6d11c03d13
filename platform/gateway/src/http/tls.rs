//! TLS: the certificate and its renewal.
//!
//! The files are read every few seconds and used once they have changed and match: a certificate manager replaces one after the other, or a
//! link above both. Open connections keep their certificate.

use parking_lot::RwLock;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Interval at which the files are read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum size of a certificate or key file, in bytes.
const MAX_PEM_BYTES: u64 = 16 << 20;
/// ALPN protocols, by preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate, its key and their files.
#[derive(Debug, Clone)]
pub struct Tls {
    files: Files,
    served: Arc<Served>,
}

#[derive(Debug, Clone)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

/// The content of the files.
struct Pem {
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// The certificate of new connections.
#[derive(Debug)]
struct Served(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path} cannot be read: check gateway.{key}, and that this user may read the file")]
    File {
        /// The file.
        path: PathBuf,
        /// The setting that names it.
        key: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// There is no certificate in the file.
    #[error(
        "{path} holds no certificate in PEM: gateway.tls_cert names a file with the certificate first, then those between it and its root"
    )]
    Certificate {
        /// The file.
        path: PathBuf,
    },
    /// There is no private key in the file.
    #[error(
        "{path} holds no private key in PEM (PKCS #8, PKCS #1 or SEC1, without a password): gateway.tls_key names the key of the certificate"
    )]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// The key does not match the certificate, or neither can be used.
    #[error("{cert} and {key} cannot be used together: check that both come from the same renewal")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// When they cannot be read or used.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = Files { cert: cert.to_owned(), key: key.to_owned() };
        let served = files.certified(&files.read()?)?;
        Ok(Self { files, served: Arc::new(Served(RwLock::new(Arc::new(served)))) })
    }

    /// The TLS acceptor of connections.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, rustls::Error> {
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_cert_resolver(self.served.clone());
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Follows the files until `stop`.
    pub(crate) async fn follow(self, stop: CancellationToken) {
        self.follow_every(RELOAD_INTERVAL, stop).await;
    }

    async fn follow_every(self, every: Duration, stop: CancellationToken) {
        let mut looks = tokio::time::interval(every);
        // The last content, so that an error in it is logged once.
        let mut last = None;
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            let this = self.clone();
            // The file may be on a network.
            let Ok(pem) = tokio::task::spawn_blocking(move || this.files.read()).await else { continue };
            let seen = pem.as_ref().map(Pem::digest).map_err(ToString::to_string);
            if last.as_ref() == Some(&seen) {
                continue;
            }
            self.take(pem, last.is_none());
            last = Some(seen);
        }
    }

    fn take(&self, pem: Result<Pem, TlsError>, first: bool) {
        match pem.and_then(|pem| self.files.certified(&pem)) {
            Ok(certified) => {
                let mut served = self.served.0.write();
                let renewed = served.cert != certified.cert;
                *served = Arc::new(certified);
                drop(served);
                if renewed && !first {
                    tracing::info!(file = %self.files.cert.display(), "new connections use the renewed certificate");
                }
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(" ({cause})")).unwrap_or_default();
                tracing::warn!("the certificate is unchanged: {error}{cause}");
            }
        }
    }
}

impl Files {
    fn read(&self) -> Result<Pem, TlsError> {
        let read = |path: &Path, key| {
            nerve_files::read(path, MAX_PEM_BYTES).map_err(|source| TlsError::File {
                path: path.to_owned(),
                key,
                source,
            })
        };
        Ok(Pem { cert: read(&self.cert, "tls_cert")?, key: read(&self.key, "tls_key")? })
    }

    fn certified(&self, pem: &Pem) -> Result<CertifiedKey, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem.cert)
            .collect::<Result<_, _>>()
            .ok()
            .filter(|chain: &Vec<_>| !chain.is_empty())
            .ok_or_else(|| TlsError::Certificate { path: self.cert.clone() })?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key);
        let key = key.map_err(|_| TlsError::Key { path: self.key.clone() })?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(|source| TlsError::Pair {
            cert: self.cert.clone(),
            key: self.key.clone(),
            source,
        })
    }
}

impl Pem {
    fn digest(&self) -> [u8; 32] {
        Sha256::new().chain_update(Sha256::digest(&self.cert)).chain_update(&self.key).finalize().into()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new((cert, key): &(String, String)) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            folder.write(cert, key);
            folder
        }

        fn write(&self, cert: &str, key: &str) {
            std::fs::write(self.path("cert.pem"), cert).unwrap();
            std::fs::write(self.path("key.pem"), key).unwrap();
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn load(&self) -> Result<Tls, TlsError> {
            Tls::load(&self.path("cert.pem"), &self.path("key.pem"))
        }
    }

    #[test]
    fn invalid_files_are_named_in_the_error() {
        let (one, other) = (made("a.example"), made("b.example"));
        let folder = Folder::new(&one);
        folder.load().unwrap().acceptor().unwrap();
        for (cert, key, said) in [
            (one.0.as_str(), other.1.as_str(), "cannot be used together"),
            ("", one.1.as_str(), "cert.pem holds no certificate"),
            (one.1.as_str(), one.1.as_str(), "cert.pem holds no certificate"),
            (one.0.as_str(), one.0.as_str(), "key.pem holds no private key"),
            ("-----BEGIN CERTIFICATE-----\nx", one.1.as_str(), "cert.pem holds no certificate"),
        ] {
            folder.write(cert, key);
            let error = folder.load().unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("BEGIN"), "{error}");
        }
        std::fs::remove_file(folder.path("key.pem")).unwrap();
        let error = folder.load().unwrap_err().to_string();
        assert!(error.contains("key.pem cannot be read") && error.contains("gateway.tls_key"), "{error}");
    }

    #[tokio::test]
    async fn renewed_certificate_is_used_and_a_broken_one_is_not() {
        let (one, other) = (made("a.example"), made("b.example"));
        let folder = Folder::new(&one);
        let tls = folder.load().unwrap();
        let stop = CancellationToken::new();
        let tasks = tokio_util::task::TaskTracker::new();
        let following = tasks.spawn(tls.clone().follow_every(Duration::from_millis(2), stop.clone()));
        let served = || tls.served.0.read().cert.clone();
        let first = served();
        folder.write(&other.0, &one.1);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(served(), first, "a key of another certificate");
        folder.write(&other.0, &other.1);
        while served() == first {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.cancel();
        following.await.unwrap();
    }
}
