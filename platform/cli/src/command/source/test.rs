//! `nerve source test`

use super::{HEARD, deployed};
use crate::{
    args::{DataFolder, Globals},
    command::secrets::read,
    connection::Connection,
    endpoint::find_gateway,
    failure::Failure,
};
use clap::Args;
use nerve_core::{Name, Secret, SourceSpec};
use nerve_webhooks::{Sample, Unsigned};
use serde_json::{Value, json};
use std::{io::stdin, time::Duration};
use time::OffsetDateTime;

/// The longest that the gateway may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Post a sample that is signed as the source's provider would; it becomes the event SOURCE.test
#[derive(Debug, Args)]
#[command(after_help = "\
What signs is the source's own secret. This machine reads it where it has the server's key: in the
data folder of a `nerve up`, or in NERVE_SECRETS_KEY. Elsewhere, --stdin takes the secret itself.

Examples:
  nerve source test github
  printf %s \"$SECRET\" | nerve source test github --stdin --gateway https://n.example")]
pub(crate) struct Test {
    /// The source
    name: Name,
    /// The gateway [default: that of the `nerve up` that runs on the data folder, else that of gateway.listen]
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
            _ => self.opened(&connection, &spec).await?,
        };
        let config = &connection.config;
        let scheme = if config.gateway.tls_cert.is_some() { "https" } else { "http" };
        let listens =
            || find_gateway(&config.data.dir).unwrap_or_else(|| format!("{scheme}://{}", config.gateway.listen));
        let gateway = self.gateway.clone().unwrap_or_else(listens);
        let base = format!("{}/hooks/{}", gateway.trim_end_matches('/'), self.name);
        // What is signed is what we post to, as a provider would know it.
        spec.public_url.get_or_insert_with(|| base.clone());
        let id = format!("nerve-test-{}", uuid::Uuid::now_v7());
        let deadline = tokio::time::Instant::now() + HEARD;
        loop {
            let now = OffsetDateTime::now_utc();
            let sample = Sample::sign(&spec, &secrets, (&id, "test"), now).map_err(|why| self.unsigned(why))?;
            let (status, answer) = self.post(&base, sample).await?;
            // A source that was deployed a moment ago may be news to the gateway.
            let news = matches!(status, 401 | 404 | 503) && tokio::time::Instant::now() < deadline;
            if news {
                tokio::time::sleep(Duration::from_millis(250)).await;
                continue;
            }
            if !(200..300).contains(&status) {
                let detail = answer.get("detail").and_then(Value::as_str).unwrap_or("it does not say why");
                let next = "the gateway's log, at level debug, says what is wrong with a delivery";
                return Err(self.failed().cause(format!("{base} answers {status}: {detail}")).next(next).into());
            }
            let report = json!({"source": self.name, "url": base, "status": status, "answer": answer});
            return globals.output.show(&report, |_| {
                let stored = answer.get(0).unwrap_or(&answer);
                format!("accepted ({status}): stored as {} {}", text(stored, "type"), text(stored, "id"))
            });
        }
    }

    /// The source's secrets, where this machine has the key that they are sealed to.
    async fn opened(&self, connection: &Connection, spec: &SourceSpec) -> anyhow::Result<Vec<Secret>> {
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
            let cause = format!("{} is not set, or this machine has not the key to read it", spec.secrets.join(", "));
            let next = "pipe the secret in with --stdin, or name the data folder of the server with --data";
            return Err(self.failed().cause(cause).next(next).into());
        }
        Ok(secrets)
    }

    async fn post(&self, base: &str, sample: Sample) -> Result<(u16, Value), Failure> {
        // Whoever is first installs it; that it is there already is no mistake.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let failed = |error: reqwest::Error| {
            let next = "name the gateway with --gateway URL";
            self.failed().because(error).next(next)
        };
        let client = reqwest::Client::builder().timeout(TIMEOUT).build().map_err(failed)?;
        let url = sample.query.map_or_else(|| base.to_owned(), |query| format!("{base}?{query}"));
        let response = client.post(url).headers(sample.headers).body(sample.body).send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(failed)?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    fn failed(&self) -> Failure {
        Failure::new(format!("the sample of {} was not accepted", self.name))
    }

    fn unsigned(&self, why: Unsigned) -> Failure {
        let next = match why {
            Unsigned::PublicKey => "send a test from the provider's own settings",
            Unsigned::NoSecret => "set it anew, as the provider shows it: nerve secrets set NAME",
        };
        Failure::new(format!("a sample of {} cannot be signed", self.name)).because(why).next(next)
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
