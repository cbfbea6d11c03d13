//! `nerve nats`

use crate::{
    endpoint::find_nats,
    globals::{DataFolder, Globals},
    output, settings,
};
use clap::{Args, Subcommand, ValueEnum};
use nerve_broker::{NatsSettings, roles};
use serde_json::{Map, Value};
use std::path::Path;

/// NATS connection settings for other programs.
#[derive(Debug, Subcommand)]
pub(crate) enum Nats {
    Context(PrintContext),
}

/// Print connection settings for other programs: a context of the nats CLI, or environment variables
#[derive(Debug, Args)]
#[command(after_help = "\
The context is JSON for `~/.config/nats/context/NAME.json`; --env prints shell commands instead.

Examples:
  nerve nats context > ~/.config/nats/context/nerve.json
  nerve nats context --role operator
  nerve nats context --env")]
pub(crate) struct PrintContext {
    /// Role of the credentials: `app` for your own programs, `operator` for all permissions
    #[arg(long, value_enum, default_value_t = User::App)]
    role: User,
    /// Print environment variables (`export NATS_URL=…`) instead
    #[arg(long)]
    env: bool,
    #[command(flatten)]
    folder: DataFolder,
}

/// A user of the nats-server of `nerve up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum User {
    App,
    Operator,
    Gateway,
    Worker,
}

impl User {
    pub(super) fn role(self) -> roles::Role {
        match self {
            Self::App => roles::Role::App,
            Self::Operator => roles::Role::Operator,
            Self::Gateway => roles::Role::Gateway,
            Self::Worker => roles::Role::Worker,
        }
    }
}

impl Nats {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Context(context) => context.run(globals),
        }
    }
}

impl PrintContext {
    fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = settings::load(None, globals, self.folder.data.as_deref())?;
        let nats = find_nats(config.nats, &config.data.dir, self.role.role())?;
        let text =
            if self.env { environment(&nats) } else { serde_json::to_string_pretty(&context(&nats, self.role))? };
        output::line(&text)?;
        if let Some(missing) = missing(&nats, self.role) {
            output::hint(&missing);
        }
        Ok(())
    }
}

/// Returns the files that a context refers to, instead of containing secrets.
fn files(nats: &NatsSettings) -> [(&'static str, &'static str, Option<&Path>); 5] {
    let ca = nats.tls_ca.as_deref().or(nats.pinned.as_deref());
    [
        ("creds", "NATS_CREDS", nats.creds.as_deref()),
        ("nkey", "NATS_NKEY", nats.nkey_file.as_deref()),
        ("ca", "NATS_CA", ca),
        ("cert", "NATS_CERT", nats.tls_client_cert.as_deref()),
        ("key", "NATS_KEY", nats.tls_client_key.as_deref()),
    ]
}

/// Whether these are credentials of this user of a `nerve up`.
fn are_of(nats: &NatsSettings, user: User) -> bool {
    nats.creds.as_deref().and_then(Path::file_name).is_some_and(|name| name == user.role().file().as_str())
}

/// Returns a warning about required data that is not in the context.
fn missing(nats: &NatsSettings, user: User) -> Option<String> {
    let role = user.role().name();
    if !nats.has_credentials() {
        return Some(format!(
            "warning: Nerve has no credentials for `{role}` at {}: if the server requires some, create a user there and add its credentials",
            nats.url
        ));
    }
    let of_files = [&nats.creds, &nats.nkey_file].into_iter().any(Option::is_some);
    (!of_files).then(|| {
        "warning: the password, token or seed is not printed: copy it into the context from the settings".to_owned()
    })
}

fn context(nats: &NatsSettings, user: User) -> Value {
    let mut context = Map::new();
    let description = match are_of(nats, user) {
        true => format!("Nerve, as {}", user.role().name()),
        false => "the NATS of Nerve".to_owned(),
    };
    context.insert("description".to_owned(), description.into());
    context.insert("url".to_owned(), nats.url.to_string().into());
    let files = files(nats).map(|(name, _, file)| (name, file.map(|file| file.display().to_string())));
    let texts = [("user", nats.user.clone()), ("jetstream_domain", nats.domain.clone())];
    let texts = texts.into_iter().chain([("inbox_prefix", nats.inbox_prefix.clone())]);
    for (name, value) in files.into_iter().chain(texts) {
        if let Some(value) = value {
            context.insert(name.to_owned(), value.into());
        }
    }
    if nats.tls_first {
        context.insert("tls_first".to_owned(), true.into());
    }
    context.into()
}

fn environment(nats: &NatsSettings) -> String {
    let quoted = |value: &str| format!("'{}'", value.replace('\'', r"'\''"));
    let mut lines = vec![format!("export NATS_URL={}", quoted(&nats.url.to_string()))];
    let files = files(nats).into_iter().filter_map(|(_, name, file)| Some((name, file?.display().to_string())));
    lines.extend(files.map(|(name, file)| format!("export {name}={}", quoted(&file))));
    lines.extend(nats.domain.iter().map(|domain| format!("export NATS_JS_DOMAIN={}", quoted(domain))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_broker::Servers;
    use nerve_core::Secret;

    #[test]
    fn context_names_files_and_no_secret() {
        let nats = NatsSettings {
            url: Servers::parse("tls://ada:hunter2@h:4222").unwrap(),
            creds: Some("/it's/app.creds".into()),
            pinned: Some("/cert".into()),
            token: Some(Secret::new("hunter2")),
            ..NatsSettings::default()
        };
        let expected = serde_json::json!({
            "description": "Nerve, as app", "url": "tls://h:4222", "creds": "/it's/app.creds", "ca": "/cert"
        });
        assert_eq!(context(&nats, User::App), expected);
        let lines = "export NATS_URL='tls://h:4222'\nexport NATS_CREDS='/it'\\''s/app.creds'\nexport NATS_CA='/cert'";
        assert_eq!(environment(&nats), lines);
    }

    #[test]
    fn context_of_another_nats_warns_about_missing_data() {
        let nats = NatsSettings { url: Servers::parse("nats://h:4222").unwrap(), ..NatsSettings::default() };
        let of = |nats: &NatsSettings| missing(nats, User::App).unwrap_or_default();
        assert!(of(&nats).contains("no credentials for `app` at nats://h:4222"), "{}", of(&nats));
        assert_eq!(context(&nats, User::App)["description"], "the NATS of Nerve");
        let token = NatsSettings { token: Some(Secret::new("hunter2")), ..nats.clone() };
        assert!(of(&token).contains("is not printed") && !of(&token).contains("hunter2"));
        assert_eq!(missing(&NatsSettings { creds: Some("/app.creds".into()), ..nats }, User::App), None);
    }
}
