//! `nerve access`

mod list;

use super::nats::User;
use crate::{
    broker::{
        self,
        access::{
            self,
            members::{self, TokenOffer},
        },
    },
    endpoint::Endpoint,
    failure::Failure,
    files::unreadable,
    globals::{DataFolder, Globals},
    membership::Membership,
    output, settings,
};
use clap::{Args, Subcommand, ValueEnum};
use nerve_broker::{Servers, join::Offer, pin, roles::Role};
use nerve_config::Config;
use serde_json::json;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Minimum and maximum lifetime of a token.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Maximum addresses in a token.
const MAX_ADDRESSES: usize = 8;
/// Maximum size of a CA certificate in bytes.
const MAX_CA_BYTES: u64 = 64 << 10;

/// Access to the nats-server of `nerve up`.
#[derive(Debug, Subcommand)]
pub(crate) enum Access {
    Token(Token),
    List(list::List),
    Revoke(Revoke),
    Rotate(Rotate),
}

/// Create a token with which a server on another machine joins
#[derive(Debug, Args)]
#[command(after_help = "\
A token admits one machine: `nerve join` there consumes it. It contains the address of NATS, the \
fingerprint of its certificate, and a secret, of which only a derived key is stored here. Until it expires, \
anyone with the token can join, so treat it like a password. `nerve access list` shows unused tokens, \
`nerve access revoke` revokes one.

A joined machine pins that certificate and must join again when the certificate is replaced. With --ca, it \
trusts every certificate of that CA for the host of --address.

Examples:
  nerve access token
  nerve access token --role gateway --ttl 1h
  nerve access token --address nerve.example --ca /etc/ssl/our-ca.pem")]
pub(crate) struct Token {
    /// Role of the machine
    #[arg(long, value_enum, default_value_t = JoinRole::Worker)]
    role: JoinRole,
    /// Lifetime: 1s to 24h
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Address of NATS for the machine, HOST or HOST:PORT; may be repeated [default: its listen address, or this host]
    #[arg(long, value_name = "ADDR")]
    address: Vec<String>,
    /// Certificate of the CA that signed the certificate of NATS, in PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    folder: DataFolder,
}

/// Role of a joining machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum JoinRole {
    Worker,
    Gateway,
}

/// Revoke joined machines or tokens
#[derive(Debug, Args)]
#[command(after_help = "\
The connections of a revoked machine are closed immediately. The machine still has the secrets key and the data \
that it has read: replace the key with `nerve secrets rotate-key`, and then replace the secrets.

Examples:
  nerve access revoke build-2
  nerve access revoke token-7gqx3kfa")]
pub(crate) struct Revoke {
    /// Names of machines and tokens, as shown by `nerve access list`
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    folder: DataFolder,
}

/// Replace the credentials of this machine's roles
#[derive(Debug, Args)]
#[command(after_help = "\
The running nats-server is reloaded: it closes the connections with the old credentials, and `nerve up` \
connects again with the new ones. Programs with a copy of the old credentials are rejected from then on: \
give them the new ones. Joined machines have their own credentials, which are not changed: to replace \
them, use `nerve access token` here, and `nerve join` there.

Examples:
  nerve access rotate app
  nerve access rotate")]
pub(crate) struct Rotate {
    /// Roles [default: all]
    #[arg(value_enum, value_name = "ROLE")]
    roles: Vec<User>,
    #[command(flatten)]
    folder: DataFolder,
}

impl Access {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Token(token) => token.run(globals),
            Self::List(list) => list.run(globals),
            Self::Revoke(revoke) => revoke.run(globals).await,
            Self::Rotate(rotate) => rotate.run(globals).await,
        }
    }
}

/// Loads the settings. The data directory must contain the seeds of a nats-server.
fn load(globals: &Globals, folder: &DataFolder) -> Result<Config, Failure> {
    let config = settings::load(None, globals, folder.data.as_deref())?;
    let data = &config.data.dir;
    if access::folder(data).join("issuer.nk").exists() {
        return Ok(config);
    }
    let thing = format!("no credential seeds in {}", data.display());
    let failure = Failure::new(thing);
    Err(if Membership::exists(data) {
        failure
            .cause("this machine has joined the NATS of another one, which has the seeds")
            .next("run this on the machine of `nerve up`")
    } else if Endpoint::of_running(data).is_some() || !config.nats.url.is_empty() {
        failure.cause("this NATS was not started by `nerve up`: its administrator issues credentials").next(
            "configure such credentials on the other machine in `[nats]`, and the secrets key with NERVE_SECRETS_KEY",
        )
    } else {
        failure.next("pass the data directory of a `nerve up` with its own nats-server: --data DIR")
    })
}

impl Token {
    fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = load(globals, &self.folder)?;
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&self.ttl) {
            return Err(Failure::usage("--ttl must be 1s to 24h")
                .next("create another token when it is required")
                .into());
        }
        let data = &config.data.dir;
        let endpoint =
            Endpoint::of_running(data).and_then(|endpoint| Some((endpoint.nats_listen?, endpoint.certificate)));
        let Some((listen, certificate)) = endpoint else {
            let thing = format!("no `nerve up` runs on {}", data.display());
            return Err(Failure::new(thing).next("start it: it handles the join request").into());
        };
        let servers = self.servers(listen, certificate.is_some())?;
        let ca = self.ca.as_deref().map(read_ca).transpose()?;
        let offer = Offer {
            servers: servers.to_string(),
            certificate: certificate.as_deref().map(pin::fingerprint).transpose()?,
            lifetime: self.ttl,
        };
        let role = match self.role {
            JoinRole::Worker => Role::Worker,
            JoinRole::Gateway => Role::Gateway,
        };
        let token = members::issue(data, TokenOffer { role, offer, ca })?;
        let (text, expires) = (token.text()?, from_epoch_seconds(token.expires));
        if servers.are_local() && !globals.output.is_json() {
            output::hint(&format!(
                "NATS listens on {listen}, so only this machine can join: for others, start `nerve up` with --nats-listen, \
                 --nats-tls-cert and --nats-tls-key"
            ));
        }
        let name = members::token_name(&token.id()?);
        if !globals.output.is_json() {
            output::hint(&format!(
                "{name}, for one {} until {} UTC: nerve join TOKEN",
                role.name(),
                output::timestamp(expires)
            ));
        }
        let shown = json!({
            "token": text.expose(), "name": name, "role": role.name(), "expires": expires.format(&Rfc3339)?, "servers": servers.to_string(),
        });
        globals.output.show(&shown, |_| text.expose().to_owned())
    }

    /// Returns the addresses of NATS for the machine.
    fn servers(&self, listen: SocketAddr, uses_tls: bool) -> Result<Servers, Failure> {
        let addresses = match self.address.as_slice() {
            [] if listen.ip().is_unspecified() => vec![format!("{}:{}", host_name(), listen.port())],
            [] => vec![listen.to_string()],
            named => named.to_vec(),
        };
        let next = "use HOST or HOST:PORT";
        if addresses.len() > MAX_ADDRESSES {
            return Err(Failure::usage(format!("at most {MAX_ADDRESSES} --address options are allowed")));
        }
        let scheme = if uses_tls { "tls" } else { "nats" };
        let urls = addresses.iter().map(|address| {
            let has_port = address.parse::<SocketAddr>().is_ok()
                || address
                    .rsplit_once(':')
                    .is_some_and(|(host, port)| !host.contains(':') && port.parse::<u16>().is_ok());
            let port = if has_port { String::new() } else { format!(":{}", listen.port()) };
            format!("{scheme}://{address}{port}")
        });
        let urls: Vec<String> = urls.collect();
        Servers::parse(&urls.join(",")).map_err(|error| Failure::usage("invalid --address").because(error).next(next))
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or("localhost").to_owned()
}

fn read_ca(path: &Path) -> anyhow::Result<String> {
    let text = nerve_files::read_to_string(path, MAX_CA_BYTES);
    let text = text.map_err(|error| unreadable(path, error, "pass the certificate of the CA"))?;
    let certificate = broker::first_certificate(&text);
    Ok(certificate.ok_or_else(|| {
        Failure::new(format!("{} contains no PEM certificate", path.display())).next("pass the certificate of the CA")
    })?)
}

impl Revoke {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = load(globals, &self.folder)?;
        let data = &config.data.dir;
        let revoked = match members::revoke(data, &self.names)? {
            Ok(revoked) => revoked,
            Err(unknown) => {
                let thing = format!("no machine or token `{unknown}`: nothing was revoked");
                let is_role = User::value_variants().iter().any(|user| user.role().name() == unknown);
                let next = match is_role {
                    true => format!("replace the credentials of a role with: nerve access rotate {unknown}"),
                    false => "see `nerve access list`".to_owned(),
                };
                return Err(Failure::new(thing).next(next).into());
            }
        };
        let applied = !revoked.machines.is_empty() && broker::apply(data).await?;
        let report = json!({"revoked": revoked, "applied": applied || revoked.machines.is_empty()});
        globals.output.show(&report, |_| {
            let mut lines = Vec::new();
            if !revoked.tokens.is_empty() {
                lines.push(format!("revoked {}", revoked.tokens.join(", ")));
            }
            if !revoked.machines.is_empty() {
                let when = match applied {
                    true => "connections are closed, and new ones are rejected",
                    false => "rejected after the next start of `nerve up`",
                };
                lines.push(format!("{}: {when}", revoked.machines.join(", ")));
                lines.push(
                    "The machine still has the secrets key and the secrets: run nerve secrets rotate-key, and replace the secrets"
                        .to_owned(),
                );
            }
            lines.join("\n")
        })
    }
}

impl Rotate {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = load(globals, &self.folder)?;
        let data = &config.data.dir;
        let users = if self.roles.is_empty() { User::value_variants().to_vec() } else { self.roles };
        let roles: Vec<Role> = users.into_iter().map(User::role).collect();
        access::rotate(data, &roles)?;
        let applied = broker::apply(data).await?;
        let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
        globals.output.show(&json!({"rotated": names, "applied": applied}), |_| {
            let when = if applied { "now" } else { "after the next start of `nerve up`" };
            format!("created new credentials for {}; the old ones are rejected {when}", names.join(", "))
        })
    }
}

/// Converts seconds since the Unix epoch.
fn from_epoch_seconds(seconds: u64) -> OffsetDateTime {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        token: Token,
    }

    fn servers(listen: &str, args: &[&str]) -> Result<String, Failure> {
        let line = Line::parse_from(["token"].iter().chain(args));
        line.token.servers(listen.parse().unwrap(), true).map(|servers| servers.to_string())
    }

    #[test]
    fn address_defaults_to_the_listen_address() {
        assert_eq!(servers("127.0.0.1:4222", &[]).unwrap(), "tls://127.0.0.1:4222");
        assert!(
            servers("0.0.0.0:4222", &[]).unwrap().starts_with(&format!("tls://{}:4222", host_name().to_lowercase()))
        );
        let named = ["--address", "nerve.example", "--address", "10.0.0.1:5222", "--address", "[::1]:1"];
        let all = "tls://nerve.example:4222,tls://10.0.0.1:5222,tls://[::1]:1";
        assert_eq!(servers("0.0.0.0:4222", &named).unwrap(), all);
        assert!(servers("0.0.0.0:4222", &["--address", "a b"]).is_err());
    }
}
