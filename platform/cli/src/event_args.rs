//! An event as command-line arguments.

use crate::{failure::Failure, files::unreadable};
use clap::Args;
use nerve_core::{Event, EventType, event::EventError};
use std::{
    io::{IsTerminal, Read, stdin},
    path::{Path, PathBuf},
};
use time::OffsetDateTime;
use uuid::Uuid;

/// Maximum size of a body in bytes, the server's limit for bodies in the object store.
const MAX_BODY_BYTES: u64 = 64 << 20;

/// Source of events from the command line.
const CLI_SOURCE: &str = "/nerve/cli";

/// Arguments for an event, without its type.
#[derive(Debug, Args)]
pub(crate) struct EventArgs {
    /// Event data: JSON, @FILE for a file's content, or - for stdin
    #[arg(long, short, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    data: Option<String>,
    /// Media type of the data; other data than JSON is sent unchanged
    #[arg(long, value_name = "TYPE", default_value = "application/json")]
    content_type: String,
    /// Event ID; events with the same ID and source are stored once [default: a new UUID]
    #[arg(long)]
    id: Option<String>,
    /// Event source: a URI reference
    #[arg(long, default_value = CLI_SOURCE)]
    source: String,
    /// Event subject within the source
    #[arg(long)]
    subject: Option<String>,
    /// An extension attribute, such as partitionkey=42; may be repeated
    #[arg(long = "extension", short = 'e', value_name = "NAME=VALUE", value_parser = parse_extension)]
    extensions: Vec<(String, String)>,
    /// Data directory; used to find the running `nerve up` [default: .nerve]
    #[arg(long, value_name = "DIR", env = "NERVE_DATA_DIR", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,
}

impl EventArgs {
    /// Creates the event with the current time.
    pub(crate) fn into_event(self, ty: EventType) -> Result<Event, Failure> {
        let body = self.data.as_deref().map(read).transpose()?;
        let mut event = Event::new(self.id.unwrap_or_else(|| Uuid::now_v7().to_string()), self.source, ty);
        event.subject = self.subject;
        event.time = Some(OffsetDateTime::now_utc());
        event.extensions.extend(self.extensions);
        if let Some(body) = body {
            event = event.with_data(self.content_type, body);
            check_json(&event)?;
        }
        if event.id.is_empty() || event.source.is_empty() {
            return Err(Failure::usage("the event id and source must not be empty").next("omit --id or --source"));
        }
        check_reserved(&mut event)?;
        Ok(event)
    }
}

fn read(data: &str) -> Result<Vec<u8>, Failure> {
    match (data, data.strip_prefix('@')) {
        ("-", _) if stdin().is_terminal() => {
            crate::output::hint("reading the data from the terminal: end it with Ctrl-D");
            read_limited(stdin(), "stdin")
        }
        ("-", _) => read_limited(stdin(), "stdin"),
        (_, Some(path)) => {
            let file = Path::new(path);
            let next = "pass an existing file, or `-` for standard input";
            read_limited(nerve_files::open(file).map_err(|error| unreadable(file, error, next))?, path)
        }
        (text, None) => Ok(text.as_bytes().to_vec()),
    }
}

fn read_limited(from: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let read = from.take(MAX_BODY_BYTES + 1).read_to_end(&mut body);
    let length = read.map_err(|error| Failure::new(format!("cannot read {name}")).because(error))?;
    if u64::try_from(length).is_ok_and(|length| length <= MAX_BODY_BYTES) {
        return Ok(body);
    }
    Err(Failure::new(format!("cannot send {name}"))
        .cause("the maximum size is 64 MiB")
        .next("store it where the function can download it, and send its URL"))
}

/// Rejects reserved attributes. The default source is allowed, because events of the command line are Nerve's own.
fn check_reserved(event: &mut Event) -> Result<(), Failure> {
    event.remove_hops();
    match event.check_external() {
        Err(EventError::Reserved { name: "source", .. }) if event.source == CLI_SOURCE => Ok(()),
        checked => checked.map_err(|why| Failure::usage("invalid event").because(why)),
    }
}

fn check_json(event: &Event) -> Result<(), Failure> {
    if !event.is_json() {
        return Ok(());
    }
    serde_json::from_slice::<serde::de::IgnoredAny>(&event.data).map(drop).map_err(|error| {
        Failure::usage("--data is not JSON").because(error).next(
            "quote it for the shell, as in --data '{\"text\": \"hi\"}', or set its type: --content-type text/plain",
        )
    })
}

fn parse_extension(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected name=value")?;
    let reserved = ["id", "source", "type", "specversion", "subject", "time", "data", "datacontenttype", "dataschema"];
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err("the name must consist of lower-case letters and digits".to_owned());
    }
    if reserved.contains(&name) {
        return Err(format!("`{name}` is not an extension attribute"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        event: EventArgs,
    }

    fn event(words: &[&str]) -> Result<Event, Failure> {
        let line = Line::try_parse_from([&["x"], words].concat()).unwrap();
        line.event.into_event(EventType::parse("a.b").unwrap())
    }

    #[test]
    fn event_is_built_from_arguments() {
        let event = event(&["--data", "-1", "--id", "7", "--subject", "s", "-e", "partitionkey=a=b"]).unwrap();
        assert_eq!((event.id.as_str(), &event.data[..], event.subject.as_deref()), ("7", &b"-1"[..], Some("s")));
        assert_eq!(event.extension("partitionkey"), Some("a=b"));
        assert!(event.time.is_some() && event.is_json());
    }

    #[test]
    fn other_data_than_json_needs_a_content_type() {
        assert!(event(&["--data", "{oops"]).is_err());
        let event = event(&["--data", "{oops", "--content-type", "text/plain"]).unwrap();
        assert_eq!(&event.data[..], b"{oops");
    }

    #[test]
    fn data_is_read_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("body.json");
        std::fs::write(&path, "[1]").unwrap();
        assert_eq!(&event(&["-d", &format!("@{}", path.display())]).unwrap().data[..], b"[1]");
        assert!(event(&["-d", "@/no/such/file"]).is_err());
    }

    #[test]
    fn reserved_event_attributes_are_rejected() {
        for words in
            [["--source", "/hooks/github"], ["--source", "/nerve/ask"], ["-e", "dataref=nats-object:bodies/abc"]]
        {
            let refused = anyhow::Error::from(event(&words).unwrap_err());
            assert!(format!("{refused:#}").contains("is reserved"), "{refused:#}");
        }
        assert_eq!(event(&["--source", "/shop"]).unwrap().source, "/shop");
        assert_eq!(event(&[]).unwrap().source, "/nerve/cli");
    }

    #[test]
    fn extension_names_are_checked() {
        for bad in ["novalue", "=x", "Upper=x", "id=x", "a-b=c"] {
            assert!(parse_extension(bad).is_err(), "{bad}");
        }
    }
}
