//! Bodies rendered from a sink's template, in a helper process: a template is a program, and its data is untrusted. Jinja limits
//! its steps, but neither its stack nor all of its memory.

use minijinja::{AutoEscape, Environment, value::Serde};
use nerve_core::{Event, Name, event::is_json};
use nerve_sandbox::{Limits, Pool, Request, SandboxError, Setup, Work};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, io, time::Duration};
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;

/// The work of a helper process that renders templates of sinks. Its setup is the template of one sink, its requests are
/// events as JSON. An empty request checks the template.
pub const SINK_TEMPLATES: Work = Work {
    name: "templates of sinks",
    start: |setup| {
        let TemplateSource { text, json } = serde_json::from_slice(setup).map_err(|error| error.to_string())?;
        let environment = environment(text, json)?;
        Ok(Box::new(move |event| match event {
            [] => Ok(Vec::new()),
            event => {
                let event = Event::from_json(event).map_err(|error| render_error(&error))?;
                render(&environment, &event)
            }
        }))
    },
    load: None,
};

/// The name of the only template of an environment.
const TEMPLATE_NAME: &str = "template";
/// Maximum steps of a template: a limit on loops over large data.
const MAX_FUEL: u64 = 1_000_000;
/// Maximum bytes of a rendered body.
const MAX_BODY_BYTES: u64 = 1 << 20;
/// Maximum bytes of an event that a template is rendered with.
const MAX_EVENT_BYTES: u64 = 16 << 20;
/// Maximum memory of a helper, in bytes.
const MAX_MEMORY_BYTES: u64 = 256 << 20;
/// The stack of a helper, in bytes.
const STACK_BYTES: u64 = 1 << 20;
/// Timeout of one event. Most take less than a millisecond.
const RENDER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct TemplateSource {
    text: String,
    /// Whether values are written as JSON.
    json: bool,
}

/// The error of a body that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ComposeError {
    /// The template or the event is invalid, or they do not match.
    #[error("{0}")]
    Invalid(String),
    /// A temporary error.
    #[error("{0}")]
    Unavailable(String),
}

/// A sink's template.
pub(super) struct Template {
    pool: Pool,
    sink: Name,
    setup: Setup,
    /// Held while an event is rendered: one helper per sink suffices.
    render_lock: Mutex<()>,
}

impl Template {
    /// Creates a template and has a helper check it. If no helper is available now, errors appear when events are rendered.
    ///
    /// # Errors
    /// The error in the template.
    pub(super) async fn new(pool: &Pool, sink: &Name, text: &str, json: bool) -> Result<Self, String> {
        let setup =
            serde_json::to_vec(&TemplateSource { text: text.to_owned(), json }).map_err(|error| error.to_string())?;
        let setup = Setup::new(setup.into());
        let template = Self { pool: pool.clone(), sink: sink.clone(), setup, render_lock: Mutex::default() };
        match template.run(Vec::new()).await {
            Err(ComposeError::Invalid(why)) => Err(why),
            Ok(_) | Err(ComposeError::Unavailable(_)) => Ok(template),
        }
    }

    /// Renders the body for an event.
    pub(super) async fn render(&self, event: &Event) -> Result<Vec<u8>, ComposeError> {
        let event = serde_json::to_vec(event).map_err(|error| ComposeError::Invalid(render_error(&error)))?;
        self.run(event).await
    }

    async fn run(&self, event: Vec<u8>) -> Result<Vec<u8>, ComposeError> {
        let request = Request {
            work: SINK_TEMPLATES.name,
            tenant: self.sink.to_string(),
            setup: self.setup.clone(),
            parts: vec![event.into()],
            limits: Limits {
                memory: MAX_MEMORY_BYTES,
                stack: STACK_BYTES,
                input: MAX_EVENT_BYTES,
                output: MAX_BODY_BYTES,
            },
            timeout: RENDER_TIMEOUT,
        };
        let _guard = self.render_lock.lock().await;
        self.pool.run(&request).await.map_err(compose_error)
    }
}

/// Checks the template of a sink in a helper process, as a worker does when the sink starts.
///
/// # Errors
/// The error in the template.
pub async fn check_template(pool: &Pool, sink: &Name, text: &str, content_type: &str) -> Result<(), String> {
    Template::new(pool, sink, text, is_json(content_type)).await.map(drop)
}

fn compose_error(error: SandboxError) -> ComposeError {
    match error {
        SandboxError::Refused(why) => ComposeError::Invalid(why),
        error if error.is_permanent() => ComposeError::Invalid(render_error(&error)),
        error => ComposeError::Unavailable(render_error(&error)),
    }
}

fn render_error(error: &dyn std::fmt::Display) -> String {
    format!("`template` cannot be rendered: {error}")
}

fn environment(text: String, json: bool) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(move |_| if json { AutoEscape::Json } else { AutoEscape::None });
    environment.set_fuel(Some(MAX_FUEL));
    let added = environment.add_template_owned(TEMPLATE_NAME, text);
    added.map_err(|error| format!("invalid `template`: {error:#}"))?;
    Ok(environment)
}

/// A buffer of at most [`MAX_BODY_BYTES`].
#[derive(Default)]
struct LimitedBuffer {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for LimitedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.is_full |= self.bytes.len().saturating_add(bytes.len()) as u64 > MAX_BODY_BYTES;
        if self.is_full {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The variables of a template.
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
        true => serde_json::from_slice(&event.data).map_err(|error| render_error(&error))?,
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
    let mut body = LimitedBuffer::default();
    let template = environment.get_template(TEMPLATE_NAME).map_err(|error| render_error(&error))?;
    let rendered = template.render_captured_to(Serde(values), &mut body).map(drop);
    if body.is_full {
        return Err(render_error(&"the body is larger than 1 MiB"));
    }
    rendered.map_err(|error| render_error(&format_args!("{error:#}")))?;
    Ok(body.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;
    use serde_json::json;

    /// Renders an event with this data, as a helper process does.
    fn rendered(text: &str, json: bool, content_type: &str, data: &'static [u8]) -> Result<String, String> {
        let setup = serde_json::to_vec(&TemplateSource { text: text.to_owned(), json }).unwrap();
        let mut job = (SINK_TEMPLATES.start)(&setup)?;
        assert_eq!(job(b"").unwrap(), b"");
        let event = Event::new("1", "/s", EventType::parse("a.b").unwrap()).with_data(content_type, data);
        job(&serde_json::to_vec(&event).unwrap()).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn values_are_written_as_json() {
        let text = r#"{"text": {{ "New: " ~ data.title }}, "id": {{ id }}, "all": {{ data.tags }}}"#;
        let data = br#"{"title": "say \"hi\"", "tags": ["a", "b"]}"#;
        let body = rendered(text, true, "application/json", data).unwrap();
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value, json!({"text": "New: say \"hi\"", "id": "1", "all": ["a", "b"]}));
        assert_eq!(rendered("{{ type }}: {{ data }}", false, "text/plain", b"a\"b").unwrap(), "a.b: a\"b");
        assert_eq!(rendered("{{ data is none }}", false, "application/json", b"").unwrap(), "True");
        assert_eq!(rendered("{{ data }}", false, "image/png", b"\x89P").unwrap(), "\u{fffd}P");
    }

    #[test]
    fn template_errors_are_reported() {
        let error = |text: &str| rendered(text, true, "application/json", b"{}").unwrap_err();
        assert!(error("{{ oops").contains("invalid `template`"));
        assert!(error("{{ data | nofilter }}").contains("cannot be rendered"));
        assert!(
            error("{% for i in range(9999) %}{% for j in range(9999) %}1{% endfor %}{% endfor %}").contains("fuel")
        );
        let long = error("{% for i in range(3000) %}{{ 'x' * 500 }}{% endfor %}");
        assert!(long.contains("larger than 1 MiB"), "{long}");
    }
}
