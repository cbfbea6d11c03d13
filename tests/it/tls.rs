//! The gateway over TLS: what it shows, and how its certificate is renewed.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use nerve_tests::{Folder, Nerve, Streams, eventually, nerve::Options, seconds};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use sha2::Sha256;
use std::{path::PathBuf, sync::Arc};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A self-signed certificate for this machine.
struct CertificateFiles {
    cert: String,
    key: String,
    der: CertificateDer<'static>,
}

fn made() -> CertificateFiles {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    CertificateFiles { cert: made.cert.pem(), key: made.signing_key.serialize_pem(), der: made.cert.der().clone() }
}

/// The files that a gateway reads.
struct Files(TempDir);

impl Files {
    fn new(made: &CertificateFiles) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write(&made.cert, &made.key);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Each is replaced whole, as certificate managers do.
    fn write(&self, cert: &str, key: &str) {
        for (name, text) in [("tls.crt", cert), ("tls.key", key)] {
            std::fs::write(self.path("new"), text).unwrap();
            std::fs::rename(self.path("new"), self.path(name)).unwrap();
        }
    }

    fn settings(&self) -> Vec<(String, String)> {
        let setting = |name: &str, file: &str| (name.to_owned(), self.path(file).display().to_string());
        vec![setting("NERVE_GATEWAY_TLS_CERT", "tls.crt"), setting("NERVE_GATEWAY_TLS_KEY", "tls.key")]
    }
}

/// A connection by a client that trusts these certificates.
async fn connect(nerve: &Nerve, trusted: &[&CertificateFiles]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for made in trusted {
        roots.add(made.der.clone()).unwrap();
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let address = nerve.gateway.trim_start_matches("https://");
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// Asks on an open connection.
async fn is_answered(stream: &mut TlsStream<TcpStream>) -> bool {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.unwrap();
    answer[..read].starts_with(b"HTTP/1.1 200")
}

fn client(made: &CertificateFiles) -> reqwest::Client {
    let root = reqwest::Certificate::from_pem(made.cert.as_bytes()).unwrap();
    reqwest::Client::builder().tls_certs_only([root]).build().unwrap()
}

#[tokio::test]
async fn webhooks_come_over_tls_and_the_url_that_is_signed_is_known() {
    let one = made();
    let files = Files::new(&one);
    let nerve = Nerve::up_with(Options { envs: files.settings(), ..Options::default() }).await;
    assert!(nerve.gateway.starts_with("https://127.0.0.1:"), "{}", nerve.gateway);
    nerve.cli().secret("PAY_KEY", "a signature key").await;
    nerve.cli().deploy(Folder::new("[source.pay]\nprovider = \"square\"\nsecrets = [\"PAY_KEY\"]\n").path()).await;
    let client = client(&one);
    let url = nerve.url("/hooks/pay");
    let post = |signed: &str| {
        let body = r#"{"event_id":"sq-1","type":"payment.created"}"#;
        let mut mac = Hmac::<Sha256>::new_from_slice(b"a signature key").unwrap();
        mac.update(format!("{signed}{body}").as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let request = client.post(&url).header("content-type", "application/json");
        request.header("x-square-hmacsha256-signature", signature).body(body).send()
    };
    eventually("the source is served", seconds(20), || async {
        (post("https://elsewhere.example/hooks/pay").await.ok()?.status() == 401).then_some(())
    })
    .await;
    let answer = post(&url).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (202, reqwest::Version::HTTP_2));
    assert_eq!(Streams::connect(&nerve.nats).await.count("EVENTS", "events.pay.>").await, 1);
    // Who speaks no TLS is hung up on, and costs nobody anything.
    let mut plain = TcpStream::connect(nerve.gateway.trim_start_matches("https://")).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert_eq!(client.get(nerve.url("/readyz")).send().await.unwrap().status(), 200);
    // The sample is signed for the URL that it is posted to.
    let mut command = nerve.cli().command(&["source", "test", "pay"]);
    command.env("NERVE_DATA_DIR", nerve.data()).env("SSL_CERT_FILE", files.path("tls.crt"));
    let tested = nerve_tests::nerve::call(command, "").await.ok();
    assert!(tested.stdout.contains("accepted (202)"), "{tested:?}");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_and_a_broken_one_never() {
    let (one, two) = (made(), made());
    let files = Files::new(&one);
    let nerve = Nerve::up_with(Options { envs: files.settings(), ..Options::default() }).await;
    let both = [&one, &two];
    let mut old = connect(&nerve, &both).await.unwrap();
    assert_eq!(shown(&old), one.der);
    assert!(is_answered(&mut old).await);

    files.write(&two.cert, &one.key);
    eventually("the log says what is wrong", seconds(20), || async {
        let log = nerve.daemon.stderr();
        (log.contains("the certificate is unchanged") && log.contains("tls.crt")).then_some(())
    })
    .await;
    assert_eq!(shown(&connect(&nerve, &both).await.unwrap()), one.der);

    files.write(&two.cert, &two.key);
    eventually("the new certificate is shown", seconds(20), || async {
        (shown(&connect(&nerve, &both).await.ok()?) == two.der).then_some(())
    })
    .await;
    assert!(is_answered(&mut old).await, "what is open goes on");
    assert!(connect(&nerve, &[&one]).await.is_err(), "who trusts the old one only");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_served_is_refused_at_the_start() {
    let (one, two) = (made(), made());
    let files = Files::new(&one);
    let start = async || {
        let data = tempfile::tempdir().unwrap();
        let mut command =
            nerve_tests::nerve::command(["up", "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0"]);
        command.arg("--data").arg(data.path()).envs(files.settings());
        nerve_tests::nerve::call(command, "").await
    };
    files.write(&one.cert, &two.key);
    let mismatched = start().await.failed(1);
    assert!(mismatched.stderr.contains("tls.crt") && mismatched.stderr.contains("same renewal"), "{mismatched:?}");
    std::fs::remove_file(files.path("tls.key")).unwrap();
    let missing = start().await.failed(1);
    assert!(missing.stderr.contains("tls.key") && missing.stderr.contains("gateway.tls_key"), "{missing:?}");
}

#[tokio::test]
async fn a_listener_that_others_reach_needs_a_key_with_tls_too() {
    let files = Files::new(&made());
    let data = tempfile::tempdir().unwrap();
    let mut command = nerve_tests::nerve::command(["up", "--listen", "0.0.0.0:0", "--nats-listen", "127.0.0.1:0"]);
    command.arg("--data").arg(data.path()).envs(files.settings());
    let refused = nerve_tests::nerve::call(command, "").await.failed(1);
    assert!(refused.stderr.contains("NERVE_GATEWAY_KEYS"), "{refused:?}");
}
