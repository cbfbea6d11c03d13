//! `nerve sink add`

use crate::{
    command::deploy::{GeneratedSecret, deploy_own},
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
    output,
};
use clap::{Args, ValueEnum};
use nerve_core::{Manifest, Name};
use serde::Serialize;

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Name of the sink
    name: Name,
    /// URL to which events are posted
    #[arg(long)]
    url: String,
    /// Subject of the events, such as events.github.>; may be repeated
    #[arg(long, value_name = "PATTERN", required = true)]
    on: Vec<String>,
    /// Signing secret; may be repeated during a rotation [default: a generated one]
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
    /// Format of the body
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Maximum request rate per worker, such as 10/s
    #[arg(long)]
    rate: Option<String>,
    /// Post events one at a time, in order
    #[arg(long)]
    order: bool,
    /// Non-public network that the sink may connect to, such as 10.0.0.0/8; may be repeated
    #[arg(long, value_name = "CIDR")]
    allow: Vec<String>,
    /// Additional header; ${NAME} is replaced by a secret; may be repeated
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
    /// The event's data, unchanged
    Data,
}

#[derive(Serialize)]
struct SinkReport {
    sink: Name,
    changed: bool,
    /// Shown only once.
    made_secrets: Vec<GeneratedSecret>,
    missing_secrets: Vec<String>,
}

impl Add {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let manifest = self.manifest();
        // Mistakes are reported for the options, because the manifest is generated.
        Manifest::parse(&manifest).map_err(|error| {
            let prefix = format!("sink.{}.", self.name);
            let message = |problem: &nerve_core::manifest::Problem| {
                format!("{}: {}", problem.key.strip_prefix(&prefix).unwrap_or(&problem.key), problem.message)
            };
            let cause: Vec<String> = error.problems.iter().map(message).collect();
            Failure::usage(format!("cannot add the sink {}", self.name)).cause(cause.join("\n"))
        })?;
        let connection = Connection::open(globals, &self.folder).await?;
        let outcome = deploy_own(&connection, &manifest, globals.output).await?;
        for name in &outcome.missing_secrets {
            output::hint(&format!("warning: the secret {name} is not set: nerve secrets set {name}"));
        }
        let Self { name: sink, .. } = self;
        let report = SinkReport {
            sink,
            changed: outcome.changed,
            made_secrets: outcome.made_secrets,
            missing_secrets: outcome.missing_secrets,
        };
        globals.output.show(&report, |report| {
            let head = if report.changed { "added" } else { "nothing changed:" };
            let mut lines = vec![format!("{head} sink {}", report.sink)];
            lines.extend(report.made_secrets.iter().map(GeneratedSecret::to_text));
            lines.push(format!("test it: nerve sink test {}", report.sink));
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

/// Formats a TOML basic string, whose escapes are those of JSON.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected name=value")?;
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
    fn options_generate_a_valid_manifest_table() {
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
