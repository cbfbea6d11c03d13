//! `nerve source add`

use crate::{
    command::{
        deploy,
        secrets::{parse_name, read},
    },
    connection::Connection,
    failure::Failure,
    files::unreadable,
    globals::{DataFolder, Globals},
    output,
};
use clap::Args;
use nerve_core::{Manifest, Name, SourceSpec, manifest::Provider};
use serde_json::json;
use std::{
    fs::OpenOptions,
    io::{Write, stdin},
    path::{Path, PathBuf},
};

/// Maximum size of a manifest.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// Deploy a webhook source; with --write, also append its table to a nerve.toml
#[derive(Debug, Args)]
#[command(after_help = "\
The source's name is the last segment of its path, and the first token of its event types. Custom schemes
(provider = \"custom\") must be written into a nerve.toml and deployed with it.

Examples:
  printf %s \"$SECRET\" | nerve source add github --provider github --stdin
  nerve source add shop --provider shopify --write nerve.toml
  nerve source add sms --provider twilio --public-url https://n.example/hooks/sms
  nerve source add shop --provider shopify --rate 50/s --concurrency 32 --allow 192.0.2.0/24
  nerve source add orders --provider sns --topic arn:aws:sns:eu-west-1:123456789012:orders")]
pub(crate) struct Add {
    /// Name of the source
    name: Name,
    /// The provider
    #[arg(long, value_parser = parse_provider)]
    provider: Provider,
    /// Name of the signing secret [default: the source's name and _WEBHOOK_SECRET]
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    secret: Option<String>,
    /// Set that secret to the value on stdin
    #[arg(long)]
    stdin: bool,
    /// The provider's URL of this source, for providers that sign the URL
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Name of the secret for Meta's URL verification
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    verify_token: Option<String>,
    /// ARN of an SNS topic; may be repeated
    #[arg(long = "topic", value_name = "ARN")]
    topics: Vec<String>,
    /// While the broker is unavailable, accept deliveries to the gateway's disk
    #[arg(long)]
    spool: bool,
    /// Maximum rate of deliveries per gateway, such as 100/s; others get 429
    #[arg(long)]
    rate: Option<String>,
    /// Maximum concurrent deliveries per gateway; others get 429
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
    /// Allowed network of the sender, such as 192.0.2.0/24; may be repeated [default: all]
    #[arg(long, value_name = "CIDR")]
    allow: Vec<String>,
    /// Maximum body size, such as 1MiB [default: the gateway's limit]
    #[arg(long, value_name = "SIZE")]
    max_body: Option<String>,
    /// Append the table to this nerve.toml
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    #[command(flatten)]
    folder: DataFolder,
}

impl Add {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let table = self.table();
        let spec = check(&self.name, &table)?;
        let secret = match spec.secrets.first() {
            Some(name) if self.stdin => Some((name.clone(), read(stdin(), name)?)),
            _ => None,
        };
        if let Some(path) = &self.write {
            append(path, &self.name, &table)?;
        }
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        if let Some((name, secret)) = &secret {
            registry.set_secret(name, secret).await?;
        }
        deploy::deploy_own(&connection, &table, globals.output).await?;
        let set = registry.secrets().await?;
        let named = spec.secrets.iter().chain(&spec.verify_token);
        let missing: Vec<&String> = named.filter(|name| !set.iter().any(|secret| secret.name == **name)).collect();
        for name in &missing {
            output::hint(&format!("warning: the secret {name} is not set: nerve secrets set {name}"));
        }
        if let Some(hint) = deploy::url_hint(&self.name, &spec) {
            output::hint(&hint);
        }
        let report = json!({"source": self.name, "path": format!("/hooks/{}", self.name), "missing_secrets": missing});
        globals.output.show(&report, |_| format!("deployed {}: it accepts POST /hooks/{}", self.name, self.name))
    }

    /// Returns the equivalent table of a nerve.toml.
    fn table(&self) -> String {
        let quoted = |text: &str| json!(text).to_string();
        let mut lines = vec![format!("[source.{}]", self.name), format!("provider = {}", quoted(self.provider.name()))];
        if self.provider != Provider::Sns {
            let own = || format!("{}_WEBHOOK_SECRET", self.name.as_str().to_ascii_uppercase().replace('-', "_"));
            lines.push(format!("secrets = [{}]", quoted(&self.secret.clone().unwrap_or_else(own))));
        }
        lines.extend(self.public_url.as_ref().map(|url| format!("public_url = {}", quoted(url))));
        lines.extend(self.verify_token.as_ref().map(|name| format!("verify_token = {}", quoted(name))));
        if !self.topics.is_empty() {
            lines.push(format!("topics = {}", json!(self.topics)));
        }
        if self.spool {
            lines.push("spool = true".to_owned());
        }
        lines.extend(self.rate.as_ref().map(|rate| format!("rate = {}", quoted(rate))));
        lines.extend(self.concurrency.map(|slots| format!("concurrency = {slots}")));
        if !self.allow.is_empty() {
            lines.push(format!("allow = {}", json!(self.allow)));
        }
        lines.extend(self.max_body.as_ref().map(|size| format!("max_body = {}", quoted(size))));
        lines.join("\n") + "\n"
    }
}

/// Parses the table, or returns a usage error.
fn check(name: &Name, table: &str) -> Result<SourceSpec, Failure> {
    let invalid = || Failure::usage(format!("cannot add the source {name}"));
    let mut manifest = Manifest::parse(table).map_err(|error| {
        let messages: Vec<_> =
            error.problems.iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect();
        invalid().cause(messages.join("\n")).next("see `nerve source add --help`")
    })?;
    manifest.sources.remove(name).ok_or_else(invalid)
}

/// Appends the table to a manifest, which must not contain it yet.
fn append(path: &Path, name: &Name, table: &str) -> anyhow::Result<()> {
    let failed = || Failure::new(format!("cannot write {}", path.display()));
    let before = match nerve_files::read_to_string(path, MAX_MANIFEST_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(unreadable(path, error, "pass a manifest").into()),
    };
    if before.lines().any(|line| line.trim() == format!("[source.{name}]")) {
        let next = "change the table there, and run `nerve deploy`";
        return Err(failed().cause(format!("it already contains [source.{name}]")).next(next).into());
    }
    let gap = if before.is_empty() || before.ends_with("\n\n") { "" } else { "\n" };
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| write!(file, "{gap}{table}")).map_err(|error| failed().because(error).into())
}

fn parse_provider(text: &str) -> Result<Provider, String> {
    let names: Vec<&str> = Provider::BUILT_IN.iter().map(Provider::name).collect();
    let error = || format!("not a provider{}", nerve_core::manifest::did_you_mean(text, &names));
    Provider::built_in(text).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(name: &str, provider: &str) -> Add {
        Add {
            name: Name::parse(name).unwrap(),
            provider: parse_provider(provider).unwrap(),
            secret: None,
            stdin: false,
            public_url: None,
            verify_token: None,
            topics: vec![],
            spool: false,
            rate: None,
            concurrency: None,
            allow: vec![],
            max_body: None,
            write: None,
            folder: DataFolder { data: None },
        }
    }

    #[test]
    fn options_generate_a_valid_table() {
        let shop = add("my-shop", "shopify").table();
        assert_eq!(shop, "[source.my-shop]\nprovider = \"shopify\"\nsecrets = [\"MY_SHOP_WEBHOOK_SECRET\"]\n");
        let spooled = Add { spool: true, ..add("a", "github") }.table();
        assert!(check(&Name::parse("a").unwrap(), &spooled).unwrap().spool, "{spooled}");
        let sns = Add { topics: vec!["arn:aws:sns:eu-west-1:1:t".into()], ..add("t", "sns") }.table();
        assert_eq!(sns, "[source.t]\nprovider = \"sns\"\ntopics = [\"arn:aws:sns:eu-west-1:1:t\"]\n");
        assert_eq!(check(&Name::parse("t").unwrap(), &sns).unwrap().topics.len(), 1);
        let limited = Add {
            rate: Some("5/s".into()),
            concurrency: Some(2),
            allow: vec!["10.0.0.0/8".into(), "::1".into()],
            max_body: Some("1MiB".into()),
            ..add("a", "github")
        };
        let spec = check(&limited.name, &limited.table()).unwrap();
        assert_eq!((spec.rate, spec.concurrency), (Some("5/s".parse().unwrap()), Some(2)));
        assert_eq!((spec.allow.len(), spec.max_body), (2, Some(1 << 20)));
        let wrong = Add { rate: Some("fast".into()), ..limited };
        let error = format!("{:#}", anyhow::Error::from(check(&wrong.name, &wrong.table()).unwrap_err()));
        assert!(error.contains("rate: `fast` is not a rate"), "{error}");
        assert!(parse_provider("gihub").unwrap_err().contains("did you mean `github`?"));
    }

    #[test]
    fn table_is_appended_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, name) = (folder.path().join("nerve.toml"), Name::parse("a").unwrap());
        append(&path, &name, "[source.a]\nx = 1\n").unwrap();
        assert!(append(&path, &name, "[source.a]\n").is_err());
        append(&path, &Name::parse("b").unwrap(), "[source.b]\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[source.a]\nx = 1\n\n[source.b]\n");
    }
}
