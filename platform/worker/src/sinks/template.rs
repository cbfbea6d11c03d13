//! Bodies that a sink's template makes, in a helper process: a template is a program, and its data comes from outside. Jinja bounds its
//! steps, and neither its stack nor all of its memory.

use minijinja::{AutoEscape, Environment, value::Serde};
use nerve_core::{Event, Name, event::is_json};
use nerve_sandbox::{Limits, Pool, Request, SandboxError, Setup, Work};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, io, time::Duration};
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;

/// What a helper process does that fills in the templates of sinks. It is set up with the template of one, and its requests are
/// events as JSON; an empty one finds out whether the template can be read.
pub const SINK_TEMPLATES: Work = Work {
    name: "templates of sinks",
    start: |setup| {
        let Source { text, json } = serde_json::from_slice(setup).map_err(|error| error.to_string())?;
        let environment = environment(text, json)?;
        Ok(Box::new(move |event| match event {
            [] => Ok(Vec::new()),
            event => {
                let event = Event::from_json(event).map_err(|error| failed(&error))?;
                render(&environment, &event)
            }
        }))
    },
    load: None,
};

/// The only template of an environment.
const NAME: &str = "template";
/// Steps that a template may take, and 64 times the bytes that it may make: a bound on loops over large data.
const FUEL: u64 = 1_000_000;
/// The largest body that a template may make, in bytes.
const MAX_BODY_BYTES: u64 = 1 << 20;
/// The largest event that a template is filled in with, in bytes.
const MAX_EVENT_BYTES: u64 = 16 << 20;
/// The memory of a helper, in bytes.
const MEMORY_BYTES: u64 = 256 << 20;
/// The stack of a helper, in bytes.
const STACK_BYTES: u64 = 1 << 20;
/// How long one event may take. Most take less than a millisecond.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct Source {
    text: String,
    /// Whether values are written as JSON.
    json: bool,
}

/// Why there is no body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ComposeError {
    /// The template and the event do not go together, or one of them is wrong.
    #[error("{0}")]
    Impossible(String),
    /// The same may be possible later.
    #[error("{0}")]
    Unavailable(String),
}

/// A sink's template.
pub(super) struct Template {
    pool: Pool,
    sink: Name,
    setup: Setup,
    /// Held by the event that is filled in: one helper is enough for a sink.
    turn: Mutex<()>,
}

impl Template {
    /// Has a helper read it; the error says what is wrong with it. Where there is no helper now, events find out.
    pub(super) async fn new(pool: &Pool, sink: &Name, text: &str, json: bool) -> Result<Self, String> {
        let setup = serde_json::to_vec(&Source { text: text.to_owned(), json }).map_err(|error| error.to_string())?;
        let setup = Setup::new(setup.into());
        let template = Self { pool: pool.clone(), sink: sink.clone(), setup, turn: Mutex::default() };
        match template.run(Vec::new()).await {
            Err(ComposeError::Impossible(why)) => Err(why),
            Ok(_) | Err(ComposeError::Unavailable(_)) => Ok(template),
        }
    }

    /// What it makes of an event.
    pub(super) async fn fill_in(&self, event: &Event) -> Result<Vec<u8>, ComposeError> {
        let event = serde_json::to_vec(event).map_err(|error| ComposeError::Impossible(failed(&error)))?;
        self.run(event).await
    }

    async fn run(&self, event: Vec<u8>) -> Result<Vec<u8>, ComposeError> {
        let request = Request {
            work: SINK_TEMPLATES.name,
            tenant: self.sink.to_string(),
            setup: self.setup.clone(),
            parts: vec![event.into()],
            limits: Limits { memory: MEMORY_BYTES, stack: STACK_BYTES, input: MAX_EVENT_BYTES, output: MAX_BODY_BYTES },
            timeout: TIMEOUT,
        };
        let _turn = self.turn.lock().await;
        self.pool.run(&request).await.map_err(told)
    }
}

/// Has a helper read the template of a sink, as a worker does when the sink starts.
///
/// # Errors
/// Says what is wrong with it.
pub async fn check_template(pool: &Pool, sink: &Name, text: &str, content_type: &str) -> Result<(), String> {
    Template::new(pool, sink, text, is_json(content_type)).await.map(drop)
}

fn told(error: SandboxError) -> ComposeError {
    match error {
        SandboxError::Refused(why) => ComposeError::Impossible(why),
        error if error.is_permanent() => ComposeError::Impossible(failed(&error)),
        error => ComposeError::Unavailable(failed(&error)),
    }
}

fn failed(error: &dyn std::fmt::Display) -> String {
    format!("`template` cannot be filled in: {error}")
}

fn environment(text: String, json: bool) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(move |_| if json { AutoEscape::Json } else { AutoEscape::None });
    environment.set_fuel(Some(FUEL));
    let added = environment.add_template_owned(NAME, text);
    added.map_err(|error| format!("`template` is wrong: {error:#}"))?;
    Ok(environment)
}

/// Takes what a template writes, up to its bound.
#[derive(Default)]
struct Bounded {
    made: Vec<u8>,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.is_full |= self.made.len().saturating_add(bytes.len()) as u64 > MAX_BODY_BYTES;
        if self.is_full {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.made.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template knows.
#[derive(Serialize)]
struct Values<'e> {
    id: &'e str,
    source: &'e str,
    #[serde(rename = "type")]
    ty: &'e str,
    subject: Option<&'e str>,
    time: Option<String>,
    extensions: &'e BTreeMap<String, String>,
    data: Value,
}

fn render(environment: &Environment<'_>, event: &Event) -> Result<Vec<u8>, String> {
    let data: Value = match event.is_json() {
        true if event.data.is_empty() => Value::Null,
        true => serde_json::from_slice(&event.data).map_err(|error| failed(&error))?,
        false => Value::String(String::from_utf8_lossy(&event.data).into_owned()),
    };
    let values = Values {
        id: &event.id,
        source: &event.source,
        ty: event.ty.as_str(),
        subject: event.subject.as_deref(),
        time: event.time.and_then(|time| time.format(&Rfc3339).ok()),
        extensions: &event.extensions,
        data,
    };
    let mut body = Bounded::default();
    let template = environment.get_template(NAME).map_err(|error| failed(&error))?;
    let rendered = template.render_captured_to(Serde(values), &mut body).map(drop);
    if body.is_full {
        return Err(failed(&"what it makes is larger than 1 MiB"));
    }
    rendered.map_err(|error| failed(&format_args!("{error:#}")))?;
    Ok(body.made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;
    use serde_json::json;

    /// What a helper process makes of an event with this data.
    fn filled_in(text: &str, json: bool, content_type: &str, data: &'static [u8]) -> Result<String, String> {
        let setup = serde_json::to_vec(&Source { text: text.to_owned(), json }).unwrap();
        let mut job = (SINK_TEMPLATES.start)(&setup)?;
        assert_eq!(job(b"").unwrap(), b"");
        let event = Event::new("1", "/s", EventType::parse("a.b").unwrap()).with_data(content_type, data);
        job(&serde_json::to_vec(&event).unwrap()).map(|made| String::from_utf8(made).unwrap())
    }

    #[test]
    fn values_are_written_as_json() {
        let text = r#"{"text": {{ "New: " ~ data.title }}, "id": {{ id }}, "all": {{ data.tags }}}"#;
        let data = br#"{"title": "say \"hi\"", "tags": ["a", "b"]}"#;
        let body = filled_in(text, true, "application/json", data).unwrap();
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value, json!({"text": "New: say \"hi\"", "id": "1", "all": ["a", "b"]}));
        assert_eq!(filled_in("{{ type }}: {{ data }}", false, "text/plain", b"a\"b").unwrap(), "a.b: a\"b");
        assert_eq!(filled_in("{{ data is none }}", false, "application/json", b"").unwrap(), "True");
        assert_eq!(filled_in("{{ data }}", false, "image/png", b"\x89P").unwrap(), "\u{fffd}P");
    }

    #[test]
    fn what_a_template_cannot_do_is_told() {
        let told = |text: &str| filled_in(text, true, "application/json", b"{}").unwrap_err();
        assert!(told("{{ oops").contains("`template` is wrong"));
        assert!(told("{{ data | nofilter }}").contains("cannot be filled in"));
        assert!(told("{% for i in range(9999) %}{% for j in range(9999) %}1{% endfor %}{% endfor %}").contains("fuel"));
        let long = told("{% for i in range(3000) %}{{ 'x' * 500 }}{% endfor %}");
        assert!(long.contains("larger than 1 MiB"), "{long}");
    }
}
