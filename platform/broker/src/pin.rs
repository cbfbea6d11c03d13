//! TLS pinned to one certificate: that of a nats-server on this machine, for any host name.

use crate::SettingsError;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest, Sha256};
use std::{path::Path, sync::Arc};

/// The setting that names the certificate.
const KEY: &str = "nats.server_tls_cert";
/// Maximum size of a certificate file. All CAs of a system take less than 1 MiB.
const MAX_PEM_BYTES: u64 = 16 << 20;

#[derive(Debug)]
struct Pin {
    sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

/// The SHA-256 of the first certificate in a file, which is the one that the server presents.
///
/// # Errors
/// If the file cannot be read or contains no certificate.
pub fn fingerprint(file: &Path) -> Result<[u8; 32], SettingsError> {
    let text = read_pem(KEY, file)?;
    let unusable = |_| SettingsError::Content { key: KEY, path: file.to_owned(), why: "holds no certificate in PEM" };
    let cert = CertificateDer::from_pem_slice(&text).map_err(unusable)?;
    Ok(Sha256::digest(&cert).into())
}

/// The TLS configuration that accepts only the certificate with this SHA-256.
pub(crate) fn client_config(sha256: [u8; 32]) -> Result<ClientConfig, SettingsError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let unusable = |_| SettingsError::Invalid { key: KEY, why: "this build has no version of TLS for it" };
    let config = config.map_err(unusable)?.dangerous();
    Ok(config.with_custom_certificate_verifier(Arc::new(Pin { sha256, provider })).with_no_client_auth())
}

/// Checks that a file is readable and contains PEM.
pub(crate) fn check_pem(key: &'static str, file: &Path) -> Result<(), SettingsError> {
    read_pem(key, file).map(drop)
}

fn read_pem(key: &'static str, file: &Path) -> Result<Vec<u8>, SettingsError> {
    let read = nerve_files::read(file, MAX_PEM_BYTES).map_err(|source| SettingsError::File {
        key,
        path: file.to_owned(),
        source,
    })?;
    let holds_pem = read.windows(11).any(|window| window == b"-----BEGIN ");
    match holds_pem {
        true => Ok(read),
        false => Err(SettingsError::Content { key, path: file.to_owned(), why: "holds nothing in PEM" }),
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown: [u8; 32] = Sha256::digest(end_entity).into();
        match shown == self.sha256 {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General("the server shows another certificate than the one expected".to_owned())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
