//! `nerve join`

use crate::{
    broker::access::{files, members::check_name},
    connection::unconnected,
    failure::Failure,
    globals::{DataFolder, Globals},
    membership::{self, Membership},
    output, settings,
};
use anyhow::Context;
use clap::Args;
use nerve_broker::{
    ConnectError, KeyPair, NatsSettings, Servers,
    connection::REQUEST_TIMEOUT,
    join::{Grant, Replaced, Request, Response, Token},
    jwt::{join_inbox, join_subject, parse_credentials},
    roles::Role,
};
use nerve_core::Secret;
use nerve_registry::KeyFiles;
use serde_json::json;
use std::{
    convert::Infallible,
    io::{Read, Write, stdin},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};
use tempfile::NamedTempFile;
use time::OffsetDateTime;

/// Maximum size of a token.
const MAX_TOKEN_BYTES: u64 = 8192;
/// File with this machine's host name.
const HOST_NAME_FILE: &str = "/proc/sys/kernel/hostname";

/// Join the NATS of a `nerve up` on another machine, to run a worker or gateway here
#[derive(Debug, Args)]
#[command(after_help = "\
On the machine of `nerve up`, whose NATS must listen for others (nerve up --nats-listen 0.0.0.0:4222 \
--nats-tls-cert FILE --nats-tls-key FILE), `nerve access token` prints a token, which admits one machine \
and is valid for 15 minutes. Here, `nerve join` creates a key pair, whose private key stays here, and \
receives its own credentials, the certificate of NATS, and the secrets key, all encrypted. `nerve worker` \
on the same data directory then needs no further options.

The token is a secret until it is used, and other users of this machine can read the arguments of a \
process: without TOKEN it is read from standard input. To replace the credentials of this machine, join \
again with a new token.

Examples:
  ssh nerve.example nerve access token | nerve join
  nerve join nerve-join-AbC123
  nerve join --name build-2 --data /var/lib/nerve < token.txt")]
pub(crate) struct Join {
    /// The token; read from standard input if omitted
    #[arg(value_name = "TOKEN", value_parser = secret)]
    token: Option<Secret>,
    /// Name of this machine [default: the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    folder: DataFolder,
}

/// Parses a value that `Debug` and errors do not show.
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

impl Join {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = settings::load(None, globals, self.folder.data.as_deref())?;
        let data = config.data.dir;
        let name = match self.name {
            Some(name) => name,
            None => host_name(),
        };
        check_name(&name).map_err(|why| Failure::usage(why).next("set the name with --name NAME"))?;
        let token = read_token(self.token)?;
        if data.join("nats").join("issuer.nk").exists() {
            let thing = format!("{} is the data directory of a `nerve up`", data.display());
            let next = "join with a separate directory: --data DIR";
            return Err(Failure::new(thing).next(next).into());
        }
        files::make_folder(&data)?;
        files::make_folder(&membership::folder(&data))?;
        let user = files::key(&membership::pending_file(&data), KeyPair::new_user)?;
        let request = request(&data, name, &token, &user)?;
        let grant = JoinExchange { token: &token, data: &data }.run(&request).await?;
        let membership = Membership::store(&data, token.servers.clone(), &grant, &user.seed()?)?;
        let nats = membership.settings(NatsSettings::default(), &data, Role::Operator)?;
        // Report success only after a connection.
        nats.connect("nerve join").await.map_err(unconnected)?;
        let report =
            json!({"joined": membership.name, "role": membership.role, "nats": membership.servers, "data": data});
        globals.output.show(&report, |_| {
            let role = &membership.role;
            format!(
                "joined {} as `{}`, a {role}; start it with: nerve {role} --data {}",
                membership.servers,
                membership.name,
                data.display()
            )
        })
    }
}

fn read_token(given: Option<Secret>) -> Result<Token, Failure> {
    let next = "create a token with `nerve access token`, and copy it completely";
    let text = match given.filter(|text| text.expose() != "-") {
        Some(text) => text,
        None => {
            let mut text = String::new();
            let read = stdin().take(MAX_TOKEN_BYTES).read_to_string(&mut text);
            read.map_err(|error| Failure::new("cannot read the token on standard input").because(error).next(next))?;
            Secret::new(text)
        }
    };
    Token::parse(text.expose()).map_err(|error| Failure::usage("invalid token").because(error).next(next))
}

/// Returns the first label of the host name, with invalid characters replaced.
fn host_name() -> String {
    let name = std::fs::read_to_string(HOST_NAME_FILE).unwrap_or_default();
    let label = name.trim().split('.').next().unwrap_or_default();
    label.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
}

/// Creates the join request. A machine that has joined before keeps its name.
fn request(data: &Path, name: String, token: &Token, user: &KeyPair) -> anyhow::Result<Request> {
    let machine_key = KeyFiles::in_folder(data).machine_or_new()?.public();
    let public = user.public_key();
    let credentials = files::read(&membership::credentials_file(data))?;
    let previous = credentials.and_then(|text| KeyPair::from_seed(parse_credentials(&text)?.1).ok());
    let replaces = previous.map(|old| Replaced::sign(&old, &token.id()?, &public)).transpose()?;
    Ok(Request { name, public, machine_key, replaces })
}

/// A join request with a token.
struct JoinExchange<'a> {
    token: &'a Token,
    data: &'a Path,
}

impl JoinExchange<'_> {
    async fn run(&self, request: &Request) -> anyhow::Result<Grant> {
        let (id, key) = (self.token.id()?, self.token.exchange_key()?);
        let (nats, _credentials) = self.settings(&id)?;
        let client = nats.connect("nerve join").await.map_err(|error| self.unconnected(error))?.client;
        let sent = key.encrypt_request(&id, request)?;
        let reply = tokio::time::timeout(REQUEST_TIMEOUT, client.request(join_subject(&id), sent.into())).await;
        let reply = match reply {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => return Err(self.no_response(error)),
            Err(error) => return Err(self.no_response(error)),
        };
        let response = key.decrypt_response(&id, &reply.payload).map_err(|error| {
            let next = "the connection may be intercepted: create a new token, and check --address";
            Failure::new("the response is not from the machine that created the token").because(error).next(next)
        })?;
        match response {
            Some(Response::Joined(grant)) => Ok(grant),
            Some(Response::Refused(why)) => {
                if let Some(failure) = self.already_joined() {
                    return Err(failure.cause(why).into());
                }
                let next = "if required, create another token with `nerve access token`";
                Err(Failure::new("the join request was refused").cause(why).next(next).into())
            }
            None => {
                if let Some(failure) = self.already_joined() {
                    return Err(failure.into());
                }
                let cause = "it was revoked, has expired, or was created for another data directory";
                let next = "create a new one with `nerve access token`";
                Err(Failure::new("unknown token").cause(cause).next(next).into())
            }
        }
    }

    /// Returns the connection settings of the token's user, with a temporary credentials file.
    fn settings(&self, id: &str) -> anyhow::Result<(NatsSettings, NamedTempFile)> {
        let Token { servers, certificate, .. } = self.token;
        let url = Servers::parse(servers).context("invalid servers in the token")?;
        if certificate.is_none() && !url.are_local() {
            let thing = format!("NATS at {url} is on another machine, but the token contains no certificate");
            let next =
                "configure a certificate for that `nerve up` (--nats-tls-cert, --nats-tls-key), and create a new token";
            return Err(Failure::new(thing).next(next).into());
        }
        let mut file = NamedTempFile::new_in(membership::folder(self.data))?;
        file.write_all(self.token.credentials()?.expose().as_bytes())?;
        let settings = NatsSettings {
            url,
            creds: Some(file.path().to_owned()),
            inbox_prefix: Some(join_inbox(id)),
            tls: certificate.is_some(),
            pinned_sha256: *certificate,
            ..NatsSettings::default()
        };
        Ok((settings, file))
    }

    fn unconnected(&self, error: ConnectError) -> anyhow::Error {
        let next = "create a new one with `nerve access token`";
        match error {
            ConnectError::Refused { servers, source, .. } => {
                if let Some(failure) = self.already_joined() {
                    return failure.because(anyhow::Error::from_boxed(source)).into();
                }
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let until = format_seconds(self.token.expires);
                let why = match now >= self.token.expires {
                    true => format!("it expired at {until}"),
                    false => format!(
                        "it expires at {until}, and the local time is {}: another nats-server may be listening there, \
                         or one of the clocks is wrong",
                        format_seconds(now)
                    ),
                };
                let failure = Failure::new(format!("NATS at {servers} rejects this token: {why}"));
                failure.because(anyhow::Error::from_boxed(source)).next(next).into()
            }
            ConnectError::Tls { servers, source } => {
                let thing = format!("NATS at {servers} is not the server of this token");
                let next = "the connection may be intercepted, or the certificate was replaced:\n\
                            create a new token with `nerve access token`";
                Failure::new(thing).because(anyhow::Error::from_boxed(source)).next(next).into()
            }
            other => unconnected(other)
                .next(
                    "check that the address is reachable from here, and that `nerve up` listens there (--nats-listen);\n\
                     `nerve access token --address HOST` creates a token with another address",
                )
                .into(),
        }
    }

    /// Returns the error for a token that this machine has probably already used to join.
    fn already_joined(&self) -> Option<Failure> {
        let membership = Membership::exists(self.data).then(|| Membership::read(self.data).ok()).flatten()?;
        let next = format!(
            "start it with `nerve {} --data {}`; to replace its credentials, use a new token of `nerve access token`",
            membership.role,
            self.data.display()
        );
        let thing = format!("this machine has already joined as `{}`, and this token is rejected", membership.name);
        Some(Failure::new(thing).next(next))
    }

    fn no_response(&self, error: impl Into<anyhow::Error>) -> anyhow::Error {
        let thing = format!("no `nerve up` responds at {}", self.token.servers);
        let next = "check that it runs there and read its log; then run this again: the token is still valid";
        Failure::new(thing).because(error).next(next).into()
    }
}

fn format_seconds(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.map_or_else(|| "an unknown time".to_owned(), |time| format!("{} UTC", output::timestamp(time)))
}
