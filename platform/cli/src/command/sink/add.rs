//! `nerve sink add`

use crate::{
    args::{DataFolder, Globals},
    command::deploy::{Made, deploy_own},
    connection::Connection,
    failure::Failure,
    output,
};
use clap::{Args, ValueEnum};
use nerve_core::{Manifest, Name};
use serde::Serialize;

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Its name
    name: Name,
    /// Where events are posted
    #[arg(long)]
    url: String,
    /// The subjects whose events are, such as events.github.>; may be repeated
    #[arg(long, value_name = "PATTERN", required = true)]
    on: Vec<String>,
    /// A secret that signs; several while rotating [default: one that is made]
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
    /// What is posted
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The most posts in a time, a worker, such as 10/s
    #[arg(long)]
    rate: Option<String>,
    /// Post events one after the other, in their order
    #[arg(long)]
    order: bool,
    /// A network that it may reach although it is not public, such as 10.0.0.0/8; may be repeated
    #[arg(long, value_name = "CIDR")]
    allow: Vec<String>,
    /// A further header, in which ${NAME} is a secret; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    #[command(flatten)]
    folder: DataFolder,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// {"type", "timestamp", "data"}
    Standard,
    /// The CloudEvent as JSON
    Cloudevents,
    /// The event's data as it is
    Data,
}

#[derive(Serialize)]
struct Added {
    sink: Name,
    changed: bool,
    /// Shown this once.
    made_secrets: Vec<Made>,
    missing_secrets: Vec<String>,
}

impl Add {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let manifest = self.manifest();
        // Its mistakes are those of options, not of lines that nobody has written.
        Manifest::parse(&manifest).map_err(|error| {
            let prefix = format!("sink.{}.", self.name);
            let told = |problem: &nerve_core::manifest::Problem| {
                format!("{}: {}", problem.key.strip_prefix(&prefix).unwrap_or(&problem.key), problem.message)
            };
            let cause: Vec<String> = error.problems.iter().map(told).collect();
            Failure::usage(format!("cannot add the sink {}", self.name)).cause(cause.join("\n"))
        })?;
        let connection = Connection::open(globals, &self.folder).await?;
        let done = deploy_own(&connection, &manifest, globals.output).await?;
        for name in &done.missing_secrets {
            output::hint(&format!("warning: the secret {name} is not set yet: nerve secrets set {name}"));
        }
        let Self { name: sink, .. } = self;
        let added = Added {
            sink,
            changed: done.changed,
            made_secrets: done.made_secrets,
            missing_secrets: done.missing_secrets,
        };
        globals.output.show(&added, |added| {
            let head = if added.changed { "added" } else { "nothing changed:" };
            let mut lines = vec![format!("{head} sink {}", added.sink)];
            lines.extend(added.made_secrets.iter().map(Made::to_text));
            lines.push(format!("try it: nerve sink test {}", added.sink));
            lines.join("\n")
        })
    }

    fn manifest(&self) -> String {
        let quoted = |text: &str| toml_string(text);
        let list = |items: &[String]| items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ");
        let mut lines = vec![
            format!("[sink.{}]", self.name),
            format!("url = {}", quoted(&self.url)),
            format!("on = [{}]", list(&self.on)),
        ];
        if !self.secrets.is_empty() {
            lines.push(format!("secrets = [{}]", list(&self.secrets)));
        }
        if !self.allow.is_empty() {
            lines.push(format!("allow = [{}]", list(&self.allow)));
        }
        if !self.headers.is_empty() {
            let pair = |(name, value): &(String, String)| format!("{} = {}", quoted(name), quoted(value));
            lines.push(format!("headers = {{ {} }}", self.headers.iter().map(pair).collect::<Vec<_>>().join(", ")));
        }
        lines.extend(self.rate.iter().map(|rate| format!("rate = {}", quoted(rate))));
        lines.extend(self.format.map(|format| {
            let name = match format {
                Format::Standard => "standard",
                Format::Cloudevents => "cloudevents",
                Format::Data => "data",
            };
            format!("format = \"{name}\"")
        }));
        if self.order {
            lines.push("order = true".to_owned());
        }
        lines.join("\n")
    }
}

/// A basic string of TOML, which escapes as JSON does.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        add: Add,
    }

    #[test]
    fn options_make_the_table_that_a_manifest_would_hold() {
        let words = [
            "x",
            "crm",
            "--url",
            "https://a.example/\"x\\",
            "--on",
            "events.a",
            "--on",
            "events.b.>",
            "--secret",
            "A",
            "--secret",
            "B",
            "--format",
            "data",
            "--rate",
            "5/s",
            "--order",
            "--allow",
            "10.0.0.0/8",
            "--header",
            "X-Key=${KEY}",
        ];
        let add = Line::try_parse_from(words).unwrap().add;
        let spec = Manifest::parse(&add.manifest()).unwrap().sinks.into_values().next().unwrap();
        assert_eq!((spec.url.as_str(), spec.on.len(), spec.order), ("https://a.example/\"x\\", 2, true));
        assert_eq!((spec.secret_names(), spec.allow.len()), (vec!["A".into(), "B".into(), "KEY".into()], 1));
        assert_eq!(spec.body.name(), "data");
    }
}
