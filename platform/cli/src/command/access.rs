//! `nerve access`

use super::nats::User;
use crate::{
    args::{DataFolder, Globals},
    broker::{
        self,
        access::{
            self, members,
            members::{Members, TokenOffer},
        },
    },
    endpoint::Endpoint,
    failure::Failure,
    files::unreadable,
    joined::Joined,
    moment, output, settings,
};
use clap::{Args, Subcommand, ValueEnum};
use nerve_broker::{Servers, join::Offer, pin, roles::Role};
use nerve_config::Config;
use serde::Serialize;
use serde_json::json;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// How long a token can be used, at least and at most.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Servers that a token names at most.
const MAX_ADDRESSES: usize = 8;
/// The largest certificate of a CA, in bytes.
const MAX_CA_BYTES: u64 = 64 << 10;

/// Who may use the nats-server of `nerve up`.
#[derive(Debug, Subcommand)]
pub(crate) enum Access {
    Token(Token),
    List(List),
    Revoke(Revoke),
    Rotate(Rotate),
}

/// Print a token with which a server on another machine joins
#[derive(Debug, Args)]
#[command(after_help = "\
The token is for one machine, once: `nerve join` there uses it up. It holds the address of NATS, the \
fingerprint of its certificate, and a secret, of which only a derived key is kept here. Who has it may join \
until then, so hand it over like a password. `nerve access list` shows the tokens that can be used, \
`nerve access revoke` takes one back.

A machine that has joined recognizes NATS by that certificate, and must join again when the \
certificate is replaced. With --ca, it trusts every certificate of that CA for the host of --address.

Examples:
  nerve access token
  nerve access token --role gateway --ttl 1h
  nerve access token --address nerve.example --ca /etc/ssl/our-ca.pem")]
pub(crate) struct Token {
    /// What the machine is to run
    #[arg(long, value_enum, default_value_t = JoinRole::Worker)]
    role: JoinRole,
    /// How long it can be used: 1s to 24h
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Where the machine reaches NATS, HOST or HOST:PORT; may be repeated [default: where it listens, or this host]
    #[arg(long, value_name = "ADDR")]
    address: Vec<String>,
    /// The certificate of the CA that signed the certificate of NATS, in PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    folder: DataFolder,
}

/// What a machine that joins may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum JoinRole {
    Worker,
    Gateway,
}

/// List who may use NATS: roles of this machine, machines that have joined, and tokens
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve access list
  nerve access list --output json")]
pub(crate) struct List {
    #[command(flatten)]
    folder: DataFolder,
}

/// Refuse a machine that has joined, or a token, from now on
#[derive(Debug, Args)]
#[command(after_help = "\
The connections of a revoked machine are closed at once. It still has the secrets key and what it has read: \
replace the key with `nerve secrets rotate-key`, and then set the secrets anew.

Examples:
  nerve access revoke build-2
  nerve access revoke token-7gqx3kfa")]
pub(crate) struct Revoke {
    /// Names of machines and tokens, as `nerve access list` shows them
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    folder: DataFolder,
}

/// Make new credentials of this machine's roles, and refuse the old ones
#[derive(Debug, Args)]
#[command(after_help = "\
The nats-server takes it while it runs: it closes the connections with the old credentials, and `nerve up` \
connects again with the new ones. Programs that hold a copy of the old credentials are refused from then \
on: give them the new ones. Machines that have joined have credentials of their own, which stay: give such \
a machine new ones with `nerve access token`, and `nerve join` there.

Examples:
  nerve access rotate app
  nerve access rotate")]
pub(crate) struct Rotate {
    /// Whose credentials [default: all]
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

/// The settings, where the data folder has the seeds of a nats-server.
fn load(globals: &Globals, folder: &DataFolder) -> Result<Config, Failure> {
    let config = settings::load(None, globals, folder.data.as_deref())?;
    let data = &config.data.dir;
    if access::folder(data).join("issuer.nk").exists() {
        return Ok(config);
    }
    let thing = format!("there are no seeds of credentials in {}", data.display());
    let failure = Failure::new(thing);
    Err(if Joined::is_in(data) {
        failure
            .cause("this machine has joined the NATS of another one, which has them")
            .next("run this on the machine of `nerve up`")
    } else if Endpoint::of_running(data).is_some() || !config.nats.url.is_empty() {
        failure.cause("the NATS that is used here was not started by `nerve up`: its own administrator gives credentials").next(
            "give a server on another machine such credentials by its settings (`[nats]`), and the secrets key by NERVE_SECRETS_KEY",
        )
    } else {
        failure.next("name the data folder of a `nerve up` that has a nats-server of its own: --data DIR")
    })
}

impl Token {
    fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = load(globals, &self.folder)?;
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&self.ttl) {
            return Err(Failure::usage("--ttl is 1s to 24h").next("make another token when it is needed").into());
        }
        let data = &config.data.dir;
        let endpoint =
            Endpoint::of_running(data).and_then(|endpoint| Some((endpoint.nats_listen?, endpoint.certificate)));
        let Some((listen, certificate)) = endpoint else {
            let thing = format!("no `nerve up` runs on {}", data.display());
            return Err(Failure::new(thing).next("start it: it answers the machine that joins").into());
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
        let (text, expires) = (token.text()?, moment_of(token.expires));
        if servers.are_local() && !globals.output.is_json() {
            output::hint(&format!(
                "NATS listens on {listen}, so only this machine can join: start `nerve up` with --nats-listen, \
                 --nats-tls-cert and --nats-tls-key for others"
            ));
        }
        let name = members::token_name(&token.id()?);
        if !globals.output.is_json() {
            output::hint(&format!(
                "{name}, for one {} until {} UTC: nerve join TOKEN",
                role.name(),
                moment::shown(expires)
            ));
        }
        let shown = json!({
            "token": text.expose(), "name": name, "role": role.name(), "expires": expires.format(&Rfc3339)?, "servers": servers.to_string(),
        });
        globals.output.show(&shown, |_| text.expose().to_owned())
    }

    /// Where the machine is to reach NATS.
    fn servers(&self, listen: SocketAddr, uses_tls: bool) -> Result<Servers, Failure> {
        let addresses = match self.address.as_slice() {
            [] if listen.ip().is_unspecified() => vec![format!("{}:{}", host_name(), listen.port())],
            [] => vec![listen.to_string()],
            named => named.to_vec(),
        };
        let next = "name it as HOST or HOST:PORT";
        if addresses.len() > MAX_ADDRESSES {
            return Err(Failure::usage(format!("--address names {MAX_ADDRESSES} servers at most")));
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
        Servers::parse(&urls.join(","))
            .map_err(|error| Failure::usage("--address is no address").because(error).next(next))
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or("localhost").to_owned()
}

fn read_ca(path: &Path) -> anyhow::Result<String> {
    let text = nerve_files::read_to_string(path, MAX_CA_BYTES);
    let text = text.map_err(|error| unreadable(path, error, "name the certificate of the CA"))?;
    let certificate = broker::first_certificate(&text);
    Ok(certificate.ok_or_else(|| {
        Failure::new(format!("{} holds no certificate in PEM", path.display())).next("name the certificate of the CA")
    })?)
}

/// A row of `nerve access list`.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    kind: &'static str,
    role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    rotated: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    expires: Option<OffsetDateTime>,
}

impl List {
    fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = load(globals, &self.folder)?;
        let Members { tokens, machines } = members::members(&config.data.dir)?;
        let mut rows = Vec::new();
        for user in access::roles(&config.data.dir)? {
            let since = OffsetDateTime::from(user.since);
            let (name, public_key) = (user.role.name().to_owned(), Some(user.public));
            rows.push(Row { role: name.clone(), name, kind: "role", public_key, since, rotated: None, expires: None });
        }
        for (name, machine) in machines {
            rows.push(Row {
                name,
                kind: "machine",
                role: machine.role,
                public_key: Some(machine.public),
                since: moment_of(machine.joined),
                rotated: machine.rotated.map(moment_of),
                expires: None,
            });
        }
        for (id, token) in tokens.into_iter().filter(|(_, token)| token.used_by.is_none()) {
            rows.push(Row {
                name: members::token_name(&id),
                kind: "token",
                role: token.role,
                public_key: None,
                since: moment_of(token.issued),
                rotated: None,
                expires: Some(moment_of(token.expires)),
            });
        }
        globals.output.show(&rows, |rows| {
            let heading = ["NAME", "KIND", "ROLE", "SINCE (UTC)", "ROTATED", "EXPIRES", "PUBLIC KEY"];
            output::table(
                heading,
                rows.iter().map(|row| {
                    let shown = |time: Option<OffsetDateTime>| time.map(moment::shown).unwrap_or_default();
                    let (since, rotated, expires) = (shown(Some(row.since)), shown(row.rotated), shown(row.expires));
                    let key = row.public_key.clone().unwrap_or_default();
                    [row.name.clone(), row.kind.to_owned(), row.role.clone(), since, rotated, expires, key]
                }),
            )
        })
    }
}

impl Revoke {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = load(globals, &self.folder)?;
        let data = &config.data.dir;
        let revoked = match members::revoke(data, &self.names)? {
            Ok(revoked) => revoked,
            Err(unknown) => {
                let thing = format!("there is no machine and no token `{unknown}`: nothing was revoked");
                let is_role = User::value_variants().iter().any(|user| user.role().name() == unknown);
                let next = match is_role {
                    true => format!("replace the credentials of a role: nerve access rotate {unknown}"),
                    false => "`nerve access list` shows their names".to_owned(),
                };
                return Err(Failure::new(thing).next(next).into());
            }
        };
        let applied = !revoked.machines.is_empty() && broker::apply(data).await?;
        let report = json!({"revoked": revoked, "applied": applied || revoked.machines.is_empty()});
        globals.output.show(&report, |_| {
            let mut lines = Vec::new();
            if !revoked.tokens.is_empty() {
                lines.push(format!("{}: nobody can join with it any more", revoked.tokens.join(", ")));
            }
            if !revoked.machines.is_empty() {
                let when = match applied {
                    true => "the connections are closed, and new ones are refused",
                    false => "refused from the next start of `nerve up` on",
                };
                lines.push(format!("{}: {when}", revoked.machines.join(", ")));
                lines.push(
                    "The secrets key and the secrets are known there: nerve secrets rotate-key, and set the secrets anew"
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
            let when = if applied { "now" } else { "from the next start of `nerve up` on" };
            format!("new credentials for {}; the old ones are refused {when}", names.join(", "))
        })
    }
}

/// A moment in seconds since 1970.
fn moment_of(seconds: u64) -> OffsetDateTime {
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
    fn address_is_where_nats_listens_unless_another_is_named() {
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
