//! `nerve secrets`

use crate::{
    broker::access::members,
    connection::Connection,
    endpoint::Endpoint,
    failure::Failure,
    globals::{DataFolder, Globals},
    membership::Membership,
    output,
};
use clap::{Args, Subcommand};
use nerve_core::Secret;
use nerve_registry::{Machine, RotationError, RotationOutcome};
use serde_json::json;
use std::io::{IsTerminal, Read, stdin};

/// Maximum size of a secret.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// Secrets of functions, sources and sinks: encrypted with the server's key, never shown
#[derive(Debug, Subcommand)]
pub(crate) enum Secrets {
    /// Set a secret; the value is read from stdin
    #[command(after_help = "\
Examples:
  printf %s \"$TOKEN\" | nerve secrets set GITHUB_WEBHOOK_SECRET
  nerve secrets set OPENAI_API_KEY < key.txt")]
    Set(NamedSecret),
    /// List the names of the secrets
    #[command(after_help = "\
Examples:
  nerve secrets list")]
    List(DataFolder),
    /// Remove a secret
    #[command(after_help = "\
Examples:
  nerve secrets remove OPENAI_API_KEY")]
    Remove(NamedSecret),
    RotateKey(RotateKey),
}

/// Replace the secrets key, and encrypt all secrets again
#[derive(Debug, Args)]
#[command(after_help = "\
Run this on the machine whose data directory has the secrets key. Servers may be running: they have both keys until the \
last secret is encrypted again, so no function waits or is reloaded. Joined machines get the new key, encrypted for each \
of them; one that is not running gets it when it starts. Revoked machines get none. Servers with a manually configured \
key (NERVE_SECRETS_KEY, or a copy of secrets.key) need the new one: let them join. If it is interrupted, run it again: \
it resumes.

The values are not changed: replace those that may be known to others.

Examples:
  nerve secrets rotate-key
  nerve secrets rotate-key --data /var/lib/nerve")]
pub(crate) struct RotateKey {
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Debug, Args)]
pub(crate) struct NamedSecret {
    /// Name of the secret: letters, digits and _, not starting with a digit
    #[arg(value_parser = parse_name)]
    name: String,
    #[command(flatten)]
    folder: DataFolder,
}

impl Secrets {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Set(named) => named.set(globals).await,
            Self::List(folder) => list(globals, &folder).await,
            Self::Remove(named) => named.remove(globals).await,
            Self::RotateKey(rotate) => rotate.run(globals).await,
        }
    }
}

impl NamedSecret {
    async fn set(self, globals: &Globals) -> anyhow::Result<()> {
        if stdin().is_terminal() {
            output::hint("type the secret, then Enter and Ctrl-D (it is visible on the screen; use a pipe to hide it)");
        }
        let secret = read(stdin(), &self.name)?;
        let registry = Connection::open(globals, &self.folder).await?.registry().await?;
        registry.set_secret(&self.name, &secret).await?;
        globals.output.show(&json!({"set": self.name}), |_| format!("set {}", self.name))
    }

    async fn remove(self, globals: &Globals) -> anyhow::Result<()> {
        let registry = Connection::open(globals, &self.folder).await?.registry().await?;
        if !registry.remove_secret(&self.name).await? {
            let next = "see `nerve secrets list`";
            return Err(Failure::new(format!("no secret `{}` is set", self.name)).next(next).into());
        }
        globals.output.show(&json!({"removed": self.name}), |_| format!("removed {}", self.name))
    }
}

impl RotateKey {
    async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let data = &connection.config.data.dir;
        if Membership::exists(data) {
            let thing = "a joined machine cannot replace the secrets key";
            return Err(Failure::new(thing).next("run this on the machine of `nerve up`").into());
        }
        let members = members::members(data)?;
        let machines = members.machines.into_iter().map(|(name, machine)| Machine { name, key: machine.machine_key });
        let machines: Vec<Machine> = machines.collect();
        let is_served = Endpoint::of_running(data).is_some();
        let registry = connection.registry().await?;
        let rotated = registry.rotate_secrets_key(&connection.config, &machines, is_served).await;
        let rotated = rotated.map_err(|error| {
            let next = match &error {
                RotationError::MissingKey { .. } => {
                    "pass the data directory of the server with the key: --data DIR; or set NERVE_SECRETS_KEY"
                }
                RotationError::ServerTimeout => "read the log of `nerve up`, and run this again: it resumes",
                _ => "run this again: it resumes, and all secrets stay readable meanwhile",
            };
            Failure::new("the secrets key was not replaced").because(error).next(next)
        })?;
        let is_configured = connection.config.secrets.key.is_some();
        let report = json!({
            "from": rotated.from, "to": rotated.to, "secrets": rotated.encrypted, "unreadable": rotated.unreadable,
            "informed": rotated.informed, "waiting": rotated.waiting,
        });
        globals.output.show(&report, |_| {
            let RotationOutcome { from, to, encrypted, unreadable, informed, waiting, is_resumed } = &rotated;
            let resumed = if *is_resumed { " (resumed)" } else { "" };
            let before = if from == to { String::new() } else { format!(" instead of {from}") };
            let mut lines =
                vec![format!("the secrets key is now {to}{before}{resumed}; {encrypted} secrets were encrypted again")];
            let mut report = |names: &[String], message: &str| {
                if !names.is_empty() {
                    lines.push(format!("{}: {message}", names.join(", ")));
                }
            };
            report(informed, "has the new key");
            report(waiting, "no response; it gets the new key when it starts");
            report(unreadable, "was encrypted with an unknown key and cannot be read: set it again");
            if is_configured {
                lines.push(
                    "NERVE_SECRETS_KEY contains the old key: remove it from the environment of the server".to_owned(),
                );
            }
            lines.push(
                "Servers with a manually configured key need the new one: nerve access token, nerve join".to_owned(),
            );
            lines.join("\n")
        })
    }
}

async fn list(globals: &Globals, folder: &DataFolder) -> anyhow::Result<()> {
    let secrets = Connection::open(globals, folder).await?.registry().await?.secrets().await?;
    globals.output.show(&secrets, |secrets| {
        if secrets.is_empty() {
            return "no secrets; set one with `nerve secrets set NAME`".to_owned();
        }
        output::table(["SECRET", "SET (UTC)"], secrets.iter().map(|s| [s.name.clone(), output::timestamp(s.set_at)]))
    })
}

/// Reads a secret without the line ending that an editor or `echo` appends.
pub(super) fn read(from: impl Read, name: &str) -> Result<Secret, Failure> {
    let refused = || Failure::new(format!("cannot set the secret {name}"));
    let mut text = String::new();
    let length = from.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text).map_err(|error| refused().because(error))?;
    if u64::try_from(length).unwrap_or(u64::MAX) > MAX_SECRET_BYTES {
        return Err(refused().cause("it is larger than 64 KiB").next("store it elsewhere, and its key as a secret"));
    }
    let value = text.strip_suffix('\n').unwrap_or(&text);
    let value = value.strip_suffix('\r').unwrap_or(value);
    if value.is_empty() {
        let next = format!("pipe the value in: printf %s \"$VALUE\" | nerve secrets set {name}");
        return Err(refused().cause("stdin is empty").next(next));
    }
    Ok(Secret::new(value))
}

/// Parses the name of a secret, which is also the name of an environment variable.
pub(super) fn parse_name(text: &str) -> Result<String, String> {
    let valid_start = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if valid_start && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Ok(text.to_owned());
    }
    Err("use letters, digits and _, not starting with a digit, as in OPENAI_API_KEY".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_line_ending_is_removed() {
        let value = |text: &str| read(text.as_bytes(), "A").map(|secret| secret.expose().to_owned()).ok();
        assert_eq!(value("x y\n").as_deref(), Some("x y"));
        assert_eq!(value("x\r\n").as_deref(), Some("x"));
        assert_eq!(value("x\n\n").as_deref(), Some("x\n"));
        assert_eq!(value(""), None);
        assert_eq!(value("\n"), None);
        assert_eq!(value(&"x".repeat(70_000)), None);
    }

    #[test]
    fn secret_name_is_a_variable_name() {
        assert!(parse_name("_A1").is_ok());
        for bad in ["", "1A", "A-B", "A.B", "A B"] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }
}
