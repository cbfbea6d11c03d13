//! An event as a command line gives it.

use crate::{failure::Failure, files::unreadable};
use clap::Args;
use nerve_core::{Event, EventType, event::EventError};
use std::{
    io::{IsTerminal, Read, stdin},
    path::{Path, PathBuf},
};
use time::OffsetDateTime;
use uuid::Uuid;

/// The largest body, in bytes: what the server takes by reference.
const MAX_BODY: u64 = 64 << 20;

/// The source of what the command line sends.
const SOURCE: &str = "/nerve/cli";

/// The parts of an event other than its type.
#[derive(Debug, Args)]
pub(crate) struct Payload {
    /// The body: JSON as it stands, @FILE for a file's content, or - for stdin
    #[arg(long, short, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    data: Option<String>,
    /// The body's media type; a body of another type than JSON is sent as it is
    #[arg(long, value_name = "TYPE", default_value = "application/json")]
    content_type: String,
    /// The event's id; one id from one source is stored once [default: a new UUID]
    #[arg(long)]
    id: Option<String>,
    /// Where it happened: a URI reference
    #[arg(long, default_value = SOURCE)]
    source: String,
    /// What within the source it is about
    #[arg(long)]
    subject: Option<String>,
    /// An extension attribute, such as partitionkey=42; may be repeated
    #[arg(long = "extension", short = 'e', value_name = "NAME=VALUE", value_parser = parse_extension)]
    extensions: Vec<(String, String)>,
    /// The data folder; a `nerve up` that runs on it says where NATS is [default: .nerve]
    #[arg(long, value_name = "DIR", env = "NERVE_DATA_DIR", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,
}

impl Payload {
    /// The event, of type `ty`, as of now.
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
            return Err(Failure::usage("an event's id and source may not be empty").next("leave out --id or --source"));
        }
        check_own(&mut event)?;
        Ok(event)
    }
}

fn read(data: &str) -> Result<Vec<u8>, Failure> {
    match (data, data.strip_prefix('@')) {
        ("-", _) if stdin().is_terminal() => {
            crate::output::hint("reading the body from the terminal: end it with Ctrl-D");
            bounded(stdin(), "stdin")
        }
        ("-", _) => bounded(stdin(), "stdin"),
        (_, Some(path)) => {
            let file = Path::new(path);
            let next = "name a file that is there; `-` reads standard input";
            bounded(nerve_files::open(file).map_err(|error| unreadable(file, error, next))?, path)
        }
        (text, None) => Ok(text.as_bytes().to_vec()),
    }
}

fn bounded(from: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let read = from.take(MAX_BODY + 1).read_to_end(&mut body);
    let length = read.map_err(|error| Failure::new(format!("cannot read {name}")).because(error))?;
    if u64::try_from(length).is_ok_and(|length| length <= MAX_BODY) {
        return Ok(body);
    }
    Err(Failure::new(format!("cannot send {name}"))
        .cause("a body may hold 64 MiB")
        .next("store it where the function can fetch it, and send its address"))
}

/// Refuses what only Nerve's own events say of themselves; the command line's are, unless told another source.
fn check_own(event: &mut Event) -> Result<(), Failure> {
    event.remove_hops();
    match event.check_external() {
        Err(EventError::Reserved { name: "source", .. }) if event.source == SOURCE => Ok(()),
        checked => checked.map_err(|why| Failure::usage("the event cannot be sent").because(why)),
    }
}

fn check_json(event: &Event) -> Result<(), Failure> {
    if !event.is_json() {
        return Ok(());
    }
    serde_json::from_slice::<serde::de::IgnoredAny>(&event.data).map(drop).map_err(|error| {
        Failure::usage("--data is not JSON").because(error).next(
            "quote it for the shell, as in --data '{\"text\": \"hi\"}', or say what it is: --content-type text/plain",
        )
    })
}

fn parse_extension(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    let reserved = ["id", "source", "type", "specversion", "subject", "time", "data", "datacontenttype", "dataschema"];
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err("its name may hold lower-case letters and digits".to_owned());
    }
    if reserved.contains(&name) {
        return Err(format!("`{name}` is not an extension"));
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
        payload: Payload,
    }

    fn event(words: &[&str]) -> Result<Event, Failure> {
        let line = Line::try_parse_from([&["x"], words].concat()).unwrap();
        line.payload.into_event(EventType::parse("a.b").unwrap())
    }

    #[test]
    fn the_parts_of_an_event_are_taken() {
        let event = event(&["--data", "-1", "--id", "7", "--subject", "s", "-e", "partitionkey=a=b"]).unwrap();
        assert_eq!((event.id.as_str(), &event.data[..], event.subject.as_deref()), ("7", &b"-1"[..], Some("s")));
        assert_eq!(event.extension("partitionkey"), Some("a=b"));
        assert!(event.time.is_some() && event.is_json());
    }

    #[test]
    fn a_body_that_is_no_json_must_say_what_it_is() {
        assert!(event(&["--data", "{oops"]).is_err());
        let event = event(&["--data", "{oops", "--content-type", "text/plain"]).unwrap();
        assert_eq!(&event.data[..], b"{oops");
    }

    #[test]
    fn a_body_comes_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("body.json");
        std::fs::write(&path, "[1]").unwrap();
        assert_eq!(&event(&["-d", &format!("@{}", path.display())]).unwrap().data[..], b"[1]");
        assert!(event(&["-d", "@/no/such/file"]).is_err());
    }

    #[test]
    fn event_that_says_it_is_of_nerve_is_refused() {
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
    fn extensions_are_checked() {
        for bad in ["novalue", "=x", "Upper=x", "id=x", "a-b=c"] {
            assert!(parse_extension(bad).is_err(), "{bad}");
        }
    }
}
