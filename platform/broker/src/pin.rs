//! TLS with exactly one certificate: that of a nats-server on this machine, which may be made for any name.

use crate::SettingsError;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use std::{path::Path, sync::Arc};

/// The setting that names the certificate.
const KEY: &str = "nats.server_tls_cert";

#[derive(Debug)]
struct Pin {
    cert: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

/// What connects to a server that shows the first certificate of this file.
pub(crate) fn client_config(file: &Path) -> Result<ClientConfig, SettingsError> {
    check_pem(KEY, file)?;
    let unusable = || SettingsError::Content { key: KEY, path: file.to_owned(), why: "holds no certificate in PEM" };
    let cert = CertificateDer::from_pem_file(file).map_err(|_| unusable())?;
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let config = config.map_err(|_| unusable())?.dangerous();
    Ok(config.with_custom_certificate_verifier(Arc::new(Pin { cert, provider })).with_no_client_auth())
}

/// Checks that a file can be read and has something in PEM.
pub(crate) fn check_pem(key: &'static str, file: &Path) -> Result<(), SettingsError> {
    let read = std::fs::read(file).map_err(|source| SettingsError::File { key, path: file.to_owned(), source })?;
    let holds_pem = read.windows(11).any(|window| window == b"-----BEGIN ");
    match holds_pem {
        true => Ok(()),
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
        match *end_entity == self.cert {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General("the server shows another certificate than that of its settings".to_owned())),
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
