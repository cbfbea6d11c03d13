//! `nerve join`

use crate::{
    args::{DataFolder, Globals},
    broker::access::{files, members::check_name},
    connection::unconnected,
    failure::Failure,
    joined::{self, Joined},
    moment, settings,
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

/// The most that is read as a token, in bytes.
const MAX_TOKEN_BYTES: u64 = 8192;
/// The file with this machine's name.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Join the NATS of a `nerve up` on another machine, to run a worker or a gateway here
#[derive(Debug, Args)]
#[command(after_help = "\
On the machine of `nerve up`, whose NATS listens for others (nerve up --nats-listen 0.0.0.0:4222 \
--nats-tls-cert FILE --nats-tls-key FILE), `nerve access token` prints a token: it is good for \
one machine, once, for 15 minutes. Here, `nerve join` makes a key pair, whose private half stays here, \
and gets what a server needs: credentials of its own, the certificate of NATS, and the secrets key, \
which pass encrypted. `nerve worker` on the same data folder then needs no more options.

The token is a secret until it is used, and other users of this machine can read the arguments of a \
process: without TOKEN it is read from standard input. Join again, with a new token, to replace the \
credentials of this machine.

Examples:
  ssh nerve.example nerve access token | nerve join
  nerve join nerve-join-AbC123
  nerve join --name build-2 --data /var/lib/nerve < token.txt")]
pub(crate) struct Join {
    /// The token; read from standard input where it is left out
    #[arg(value_name = "TOKEN", value_parser = secret)]
    token: Option<Secret>,
    /// The name under which this machine is known [default: the host's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    folder: DataFolder,
}

/// A value that no `Debug` and no error shows.
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
        check_name(&name).map_err(|why| Failure::usage(why).next("name this machine with --name NAME"))?;
        let token = read_token(self.token)?;
        if data.join("nats").join("issuer.nk").exists() {
            let thing = format!("{} is the data folder of a `nerve up`", data.display());
            let next = "join with a folder of its own: --data DIR";
            return Err(Failure::new(thing).next(next).into());
        }
        files::make_folder(&data)?;
        files::make_folder(&joined::folder(&data))?;
        let user = files::key(&joined::pending_file(&data), KeyPair::new_user)?;
        let request = request(&data, name, &token, &user)?;
        let grant = Asking { token: &token, data: &data }.ask(&request).await?;
        let joined = Joined::keep(&data, token.servers.clone(), &grant, &user.seed()?)?;
        let nats = joined.settings(NatsSettings::default(), &data, Role::Operator)?;
        // Said only once it is so.
        nats.connect("nerve join").await.map_err(unconnected)?;
        let report = json!({"joined": joined.name, "role": joined.role, "nats": joined.servers, "data": data});
        globals.output.show(&report, |_| {
            let role = &joined.role;
            format!(
                "joined {} as `{}`, a {role}; start it with: nerve {role} --data {}",
                joined.servers,
                joined.name,
                data.display()
            )
        })
    }
}

fn read_token(given: Option<Secret>) -> Result<Token, Failure> {
    let next = "make a token with `nerve access token`, and copy all of it";
    let text = match given.filter(|text| text.expose() != "-") {
        Some(text) => text,
        None => {
            let mut text = String::new();
            let read = stdin().take(MAX_TOKEN_BYTES).read_to_string(&mut text);
            read.map_err(|error| Failure::new("cannot read the token on standard input").because(error).next(next))?;
            Secret::new(text)
        }
    };
    Token::parse(text.expose()).map_err(|error| Failure::usage("this is no token").because(error).next(next))
}

/// The first label of the host's name, as far as it can be a name.
fn host_name() -> String {
    let name = std::fs::read_to_string(HOST_NAME).unwrap_or_default();
    let label = name.trim().split('.').next().unwrap_or_default();
    label.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
}

/// What this machine asks for. It keeps the name that it has where it has joined before.
fn request(data: &Path, name: String, token: &Token, user: &KeyPair) -> anyhow::Result<Request> {
    let machine_key = KeyFiles::in_folder(data).machine_or_new()?.public();
    let public = user.public_key();
    let before = files::read(&joined::credentials_file(data))?;
    let before = before.and_then(|text| KeyPair::from_seed(parse_credentials(&text)?.1).ok());
    let replaces = before.map(|old| Replaced::sign(&old, &token.id()?, &public)).transpose()?;
    Ok(Request { name, public, machine_key, replaces })
}

/// A request, by a token.
struct Asking<'a> {
    token: &'a Token,
    data: &'a Path,
}

impl Asking<'_> {
    async fn ask(&self, request: &Request) -> anyhow::Result<Grant> {
        let (id, key) = (self.token.id()?, self.token.exchange_key()?);
        let (nats, _credentials) = self.settings(&id)?;
        let client = nats.connect("nerve join").await.map_err(|error| self.unconnected(error))?.client;
        let sent = key.encrypt_request(&id, request)?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, client.request(join_subject(&id), sent.into())).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.unanswered(error)),
            Err(error) => return Err(self.unanswered(error)),
        };
        let response = key.decrypt_response(&id, &answer.payload).map_err(|error| {
            let next = "somebody may stand between this machine and that one: make a new token, and check --address";
            Failure::new("the answer is not from the machine that made the token").because(error).next(next)
        })?;
        match response {
            Some(Response::Joined(grant)) => Ok(grant),
            Some(Response::Refused(why)) => {
                if let Some(failure) = self.joined_already() {
                    return Err(failure.cause(why).into());
                }
                let next = "make another token with `nerve access token`, if that is what is missing";
                Err(Failure::new("this machine may not join").cause(why).next(next).into())
            }
            None => {
                if let Some(failure) = self.joined_already() {
                    return Err(failure.into());
                }
                let cause = "it was revoked, it has expired, or it was made for another data folder";
                let next = "make a new one with `nerve access token`";
                Err(Failure::new("this token is not known there").cause(cause).next(next).into())
            }
        }
    }

    /// How the token's user connects, and its credentials for as long as they are needed.
    fn settings(&self, id: &str) -> anyhow::Result<(NatsSettings, NamedTempFile)> {
        let Token { servers, certificate, .. } = self.token;
        let url = Servers::parse(servers).context("the servers of this token cannot be used")?;
        if certificate.is_none() && !url.are_local() {
            let thing = format!("NATS at {url} is on another machine, and the token names no certificate of it");
            let next = "give that `nerve up` a certificate (--nats-tls-cert, --nats-tls-key), and make a new token";
            return Err(Failure::new(thing).next(next).into());
        }
        let mut file = NamedTempFile::new_in(joined::folder(self.data))?;
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
        let again = "make a new one with `nerve access token`";
        match error {
            ConnectError::Refused { servers, source, .. } => {
                if let Some(failure) = self.joined_already() {
                    return failure.because(anyhow::Error::from_boxed(source)).into();
                }
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let until = shown(self.token.expires);
                let why = match now >= self.token.expires {
                    true => format!("it was good until {until}"),
                    false => format!(
                        "it is good until {until} by the clock there, and it is {} here: another nats-server listens \
                         there now, or one of the clocks is wrong",
                        shown(now)
                    ),
                };
                let failure = Failure::new(format!("NATS at {servers} refuses this token: {why}"));
                failure.because(anyhow::Error::from_boxed(source)).next(again).into()
            }
            ConnectError::Tls { servers, source } => {
                let thing = format!("NATS at {servers} is not the one that the token was made for");
                let next = "somebody may stand between this machine and that one, or its certificate was replaced since:\n\
                            make a new token with `nerve access token`";
                Failure::new(thing).because(anyhow::Error::from_boxed(source)).next(next).into()
            }
            other => unconnected(other)
                .next(
                    "check that the address can be reached from here, and that `nerve up` listens there (--nats-listen);\n\
                     `nerve access token --address HOST` puts another address into a token",
                )
                .into(),
        }
    }

    /// Why a token is refused where this machine has joined: by the same one, most likely.
    fn joined_already(&self) -> Option<Failure> {
        let joined = Joined::is_in(self.data).then(|| Joined::read(self.data).ok()).flatten()?;
        let next = format!(
            "start it with `nerve {} --data {}`; a new token of `nerve access token` replaces its credentials",
            joined.role,
            self.data.display()
        );
        let thing = format!("this machine has joined already as `{}`, and this token is refused", joined.name);
        Some(Failure::new(thing).next(next))
    }

    fn unanswered(&self, error: impl Into<anyhow::Error>) -> anyhow::Error {
        let thing = format!("no `nerve up` answers at {}", self.token.servers);
        let next = "check that it runs there and read its log; then run this again: the token is still good";
        Failure::new(thing).because(error).next(next).into()
    }
}

fn shown(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.map_or_else(|| "an unknown time".to_owned(), |time| format!("{} UTC", moment::shown(time)))
}
