//! Handles join requests of servers on other machines, over the nats-server that they join.
//!
//! The requester is a user of a separate, empty account and may only send a request and read the response. Both are
//! encrypted with a key of its token.

use super::{
    LocalBroker,
    access::{
        self,
        members::{self, JoinMaterial, JoinReply},
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

/// Begin and end markers of a PEM certificate.
const PEM_MARKERS: [&str; 2] = ["-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"];

/// Maximum size of a certificate file.
const MAX_PEM_BYTES: u64 = 16 << 20;

/// The handler of join requests.
#[derive(Debug)]
pub(crate) struct Admission {
    config: Config,
    broker: LocalBroker,
}

impl Admission {
    /// Creates the handler for the nats-server of this `nerve up`.
    pub(crate) fn new(config: &Config, broker: LocalBroker) -> Self {
        Self { config: config.clone(), broker }
    }

    fn base_settings(&self) -> NatsSettings {
        self.broker.base_settings(self.config.nats.clone())
    }

    /// Handles requests until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        if let Some(Err(error)) = stop.run_until_cancelled(self.follow()).await {
            tracing::error!(error = format!("{error:#}"), "cannot handle join requests");
        }
    }

    async fn follow(&self) -> anyhow::Result<()> {
        let nats = access::join_responder(self.base_settings(), &self.broker.access);
        let client = nats.connect_when_reachable("nerve join").await?.client;
        let mut requests = client.subscribe(join_subject("*")).await?;
        while let Some(request) = requests.next().await {
            let id = request.subject.rsplit('.').next().unwrap_or_default().to_owned();
            let Some(reply) = request.reply else { continue };
            match self.admit(id, request.payload).await {
                Ok(JoinReply { response, joined, has_revoked }) => {
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
                    tracing::error!(error = format!("{error:#}"), "cannot handle the join request of a machine")
                }
            }
        }
        anyhow::bail!("the connection to NATS has ended")
    }

    async fn admit(&self, id: String, request: Bytes) -> anyhow::Result<JoinReply> {
        let data = self.config.data.dir.clone();
        if !members::members(&data)?.tokens.contains_key(&id) {
            // Skip the look-ups for an invalid token.
            return Ok(JoinReply::unknown());
        }
        let material = self.material().await?;
        tokio::task::spawn_blocking(move || members::admit(&data, &id, &request, material)).await?
    }

    /// Reloads the server, so that it rejects the replaced credentials.
    async fn apply(&self) {
        if let Err(error) = reload(self.base_settings(), &self.broker.access).await {
            let error = format!("{error:#}");
            tracing::error!(
                error,
                "cannot reload nats-server: it rejects the replaced credentials of a machine only after a restart"
            );
        }
    }

    /// Collects the data for a joining machine.
    async fn material(&self) -> anyhow::Result<JoinMaterial> {
        let nats = self.broker.client(self.config.nats.clone(), Role::Gateway);
        let bus = Bus::connect(&nats, "nerve join").await?;
        let registry = Registry::open(&bus, self.config.worker.ack_wait).await?;
        let keys = registry.keys_to_share(&self.config).await?;
        let certificate = self.broker.certificate.as_ref().map(|file| {
            let text = nerve_files::read_to_string(file, MAX_PEM_BYTES)
                .with_context(|| format!("cannot read {}", file.display()))?;
            first_certificate(&text).with_context(|| format!("{} contains no PEM certificate", file.display()))
        });
        let secrets_keys = keys.iter().map(|key| key.expose().to_owned()).collect();
        Ok(JoinMaterial { secrets_keys, certificate: certificate.transpose()? })
    }
}

/// Extracts the first certificate of a PEM file, which may also contain a private key.
pub(crate) fn first_certificate(text: &str) -> Option<String> {
    let [begin, end] = PEM_MARKERS;
    let from = text.find(begin)?;
    let rest = text.get(from..)?;
    let to = rest.find(end)?.checked_add(end.len())?;
    rest.get(..to).map(|certificate| format!("{certificate}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_is_extracted_from_a_file_with_a_key() {
        let file = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n\
                    -----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n\
                    -----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n";
        let first = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(first_certificate(file).as_deref(), Some(first));
        assert_eq!(first_certificate("-----BEGIN PRIVATE KEY-----\nhunter2\n"), None);
    }
}
