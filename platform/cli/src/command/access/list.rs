//! `nerve access list`

use super::{from_epoch_seconds, load};
use crate::{
    broker::access::{self, members, members::Members},
    globals::{DataFolder, Globals},
    output,
};
use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;

/// List users of NATS: roles of this machine, joined machines, and tokens
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve access list
  nerve access list --output json")]
pub(crate) struct List {
    #[command(flatten)]
    folder: DataFolder,
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
    pub(super) fn run(self, globals: &Globals) -> anyhow::Result<()> {
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
                since: from_epoch_seconds(machine.joined),
                rotated: machine.rotated.map(from_epoch_seconds),
                expires: None,
            });
        }
        for (id, token) in tokens.into_iter().filter(|(_, token)| token.used_by.is_none()) {
            rows.push(Row {
                name: members::token_name(&id),
                kind: "token",
                role: token.role,
                public_key: None,
                since: from_epoch_seconds(token.issued),
                rotated: None,
                expires: Some(from_epoch_seconds(token.expires)),
            });
        }
        globals.output.show(&rows, |rows| {
            let heading = ["NAME", "KIND", "ROLE", "SINCE (UTC)", "ROTATED", "EXPIRES", "PUBLIC KEY"];
            output::table(
                heading,
                rows.iter().map(|row| {
                    let format = |time: Option<OffsetDateTime>| time.map(output::timestamp).unwrap_or_default();
                    let (since, rotated, expires) = (format(Some(row.since)), format(row.rotated), format(row.expires));
                    let key = row.public_key.clone().unwrap_or_default();
                    [row.name.clone(), row.kind.to_owned(), row.role.clone(), since, rotated, expires, key]
                }),
            )
        })
    }
}
