//! `nerve source test`

use super::{PROPAGATION_TIMEOUT, deployed};
use crate::{
    command::secrets::read,
    connection::Connection,
    endpoint::find_gateway,
    failure::Failure,
    globals::{DataFolder, Globals},
};
use clap::Args;
use nerve_core::{Name, Secret, SourceSpec};
use nerve_webhooks::{Sample, SigningError};
use serde_json::{Value, json};
use std::{io::stdin, time::Duration};
use time::OffsetDateTime;

/// Timeout of the gateway's response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Post a sample signed like the provider's deliveries; it becomes the event SOURCE.test
#[derive(Debug, Args)]
#[command(after_help = "\
The sample is signed with the source's secret. This machine can decrypt it with the server's key: in the data
directory of a `nerve up`, or in NERVE_SECRETS_KEY. Otherwise, pass the secret with --stdin.

Examples:
  nerve source test github
  printf %s \"$SECRET\" | nerve source test github --stdin --gateway https://n.example")]
pub(crate) struct Test {
    /// The source
    name: Name,
    /// URL of the gateway [default: that of the running `nerve up`, or else gateway.listen]
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
    /// Read the secret from stdin
    #[arg(long)]
    stdin: bool,
    #[command(flatten)]
    folder: DataFolder,
}

impl Test {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let mut spec = deployed(&connection.registry().await?, &self.name).await?;
        let secrets = match (self.stdin, spec.secrets.first()) {
            (true, Some(first)) => vec![read(stdin(), first)?],
            _ => self.secrets(&connection, &spec).await?,
        };
        let config = &connection.config;
        let scheme = if config.gateway.tls_cert.is_some() { "https" } else { "http" };
        let listens =
            || find_gateway(&config.data.dir).unwrap_or_else(|| format!("{scheme}://{}", config.gateway.listen));
        let gateway = self.gateway.clone().unwrap_or_else(listens);
        let base = format!("{}/hooks/{}", gateway.trim_end_matches('/'), self.name);
        // The signature covers the URL of the request, as with a provider.
        spec.public_url.get_or_insert_with(|| base.clone());
        let id = format!("nerve-test-{}", uuid::Uuid::now_v7());
        let deadline = tokio::time::Instant::now() + PROPAGATION_TIMEOUT;
        loop {
            let now = OffsetDateTime::now_utc();
            let sample = Sample::sign(&spec, &secrets, (&id, "test"), now).map_err(|why| self.unsigned(why))?;
            let (status, answer) = self.post(&base, sample).await?;
            // The gateway may not know a source that was just deployed.
            let retry = matches!(status, 401 | 404 | 503) && tokio::time::Instant::now() < deadline;
            if retry {
                tokio::time::sleep(Duration::from_millis(250)).await;
                continue;
            }
            if !(200..300).contains(&status) {
                let detail = answer.get("detail").and_then(Value::as_str).unwrap_or("no reason given");
                let next = "see the gateway's log at level debug";
                return Err(self.failed().cause(format!("{base} responded {status}: {detail}")).next(next).into());
            }
            let report = json!({"source": self.name, "url": base, "status": status, "answer": answer});
            return globals.output.show(&report, |_| {
                let stored = answer.get(0).unwrap_or(&answer);
                format!("accepted ({status}): stored as {} {}", text(stored, "type"), text(stored, "id"))
            });
        }
    }

    /// Decrypts the source's secrets, if this machine has the secrets key.
    async fn secrets(&self, connection: &Connection, spec: &SourceSpec) -> anyhow::Result<Vec<Secret>> {
        let registry = connection.registry().await?;
        if spec.secrets.is_empty() {
            return Ok(Vec::new());
        }
        let keyring = registry.keyring(&connection.config).await?;
        let mut secrets = Vec::new();
        for name in &spec.secrets {
            secrets.extend(registry.secret(&keyring, name).await?);
        }
        if secrets.is_empty() {
            let cause = format!("{} is not set, or this machine lacks the key to decrypt it", spec.secrets.join(", "));
            let next = "pipe the secret in with --stdin, or pass the data directory of the server with --data";
            return Err(self.failed().cause(cause).next(next).into());
        }
        Ok(secrets)
    }

    async fn post(&self, base: &str, sample: Sample) -> Result<(u16, Value), Failure> {
        // Fails if a provider is already installed, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let failed = |error: reqwest::Error| {
            let next = "pass the gateway with --gateway URL";
            self.failed().because(error).next(next)
        };
        let client = reqwest::Client::builder().timeout(RESPONSE_TIMEOUT).build().map_err(failed)?;
        let url = sample.query.map_or_else(|| base.to_owned(), |query| format!("{base}?{query}"));
        let response = client.post(url).headers(sample.headers).body(sample.body).send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(failed)?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    fn failed(&self) -> Failure {
        Failure::new(format!("the sample of {} was not accepted", self.name))
    }

    fn unsigned(&self, why: SigningError) -> Failure {
        let next = match why {
            SigningError::PublicKey => "send a test from the provider's settings",
            SigningError::NoSecret => "set it again, as the provider shows it: nerve secrets set NAME",
        };
        Failure::new(format!("cannot sign a sample of {}", self.name)).because(why).next(next)
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
