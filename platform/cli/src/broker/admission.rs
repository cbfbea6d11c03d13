//! Answers servers on other machines that ask to join, over the nats-server that they want to use.
//!
//! Who asks is a user of an account of its own, in which nothing else is: it may send a request and read the answer. Both are
//! encrypted with a key of its token.

use super::{
    LocalBroker,
    access::{
        self,
        members::{self, Answer, Gifts},
    },
    reload::reload,
};
use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use nerve_broker::bus::Bus;
use nerve_broker::{NatsSettings, jwt::join_subject, roles::Role};
use nerve_config::Config;
use nerve_registry::Registry;
use tokio_util::sync::CancellationToken;

/// What the certificate begins and ends with in a file of PEM.
const PEM: [&str; 2] = ["-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"];

/// The largest file of a certificate, in bytes.
const MAX_PEM_BYTES: u64 = 16 << 20;

/// What answers.
#[derive(Debug)]
pub(crate) struct Admission {
    config: Config,
    broker: LocalBroker,
}

impl Admission {
    /// For the nats-server of this `nerve up`.
    pub(crate) fn new(config: &Config, broker: LocalBroker) -> Self {
        Self { config: config.clone(), broker }
    }

    fn reached(&self) -> NatsSettings {
        self.broker.reached(self.config.nats.clone())
    }

    /// Answers until `stop`.
    pub(crate) async fn answer(self, stop: CancellationToken) {
        if let Some(Err(error)) = stop.run_until_cancelled(self.follow()).await {
            tracing::error!(error = format!("{error:#}"), "machines that ask to join are not answered");
        }
    }

    async fn follow(&self) -> anyhow::Result<()> {
        let nats = access::join_responder(self.reached(), &self.broker.access);
        let client = nats.connect_when_reachable("nerve join").await?.client;
        let mut requests = client.subscribe(join_subject("*")).await?;
        while let Some(request) = requests.next().await {
            let id = request.subject.rsplit('.').next().unwrap_or_default().to_owned();
            let Some(reply) = request.reply else { continue };
            match self.admit(id, request.payload).await {
                Ok(Answer { response, joined, has_revoked }) => {
                    client.publish(reply, response.into()).await?;
                    if let Some((name, role)) = joined {
                        tracing::info!(name, role, "a machine has joined");
                    }
                    if has_revoked {
                        client.flush().await?;
                        self.apply().await;
                    }
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "a machine that asks to join is not answered")
                }
            }
        }
        anyhow::bail!("the connection to NATS has ended")
    }

    async fn admit(&self, id: String, request: Bytes) -> anyhow::Result<Answer> {
        let data = self.config.data.dir.clone();
        if !members::members(&data)?.tokens.contains_key(&id) {
            // Nothing is looked up for a token that is over.
            return Ok(Answer::unknown());
        }
        let gifts = self.gifts().await?;
        tokio::task::spawn_blocking(move || members::admit(&data, &id, &request, gifts)).await?
    }

    /// Has the server refuse the credentials that were replaced.
    async fn apply(&self) {
        if let Err(error) = reload(self.reached(), &self.broker.access).await {
            let error = format!("{error:#}");
            tracing::error!(
                error,
                "replaced credentials of a machine are refused from the next start of nats-server on"
            );
        }
    }

    /// What a machine is given.
    async fn gifts(&self) -> anyhow::Result<Gifts> {
        let nats = self.broker.client(self.config.nats.clone(), Role::Gateway);
        let bus = Bus::connect(&nats, "nerve join").await?;
        let registry = Registry::open(&bus, self.config.worker.ack_wait).await?;
        let keys = registry.keys_to_share(&self.config).await?;
        let certificate = self.broker.certificate.as_ref().map(|file| {
            let text = nerve_files::read_to_string(file, MAX_PEM_BYTES)
                .with_context(|| format!("cannot read {}", file.display()))?;
            first_certificate(&text).with_context(|| format!("{} holds no certificate in PEM", file.display()))
        });
        let secrets_keys = keys.iter().map(|key| key.expose().to_owned()).collect();
        Ok(Gifts { secrets_keys, certificate: certificate.transpose()? })
    }
}

/// The first certificate of a file in PEM, which may hold a private key as well.
pub(crate) fn first_certificate(text: &str) -> Option<String> {
    let [begin, end] = PEM;
    let from = text.find(begin)?;
    let rest = text.get(from..)?;
    let to = rest.find(end)?.checked_add(end.len())?;
    rest.get(..to).map(|certificate| format!("{certificate}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_is_cut_out_of_a_file_with_a_key() {
        let file = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n\
                    -----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n\
                    -----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n";
        let first = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(first_certificate(file).as_deref(), Some(first));
        assert_eq!(first_certificate("-----BEGIN PRIVATE KEY-----\nhunter2\n"), None);
    }
}
