//! The protocol's lines.
//!
//! A line of stdout is an answer, a malformed answer, or other text. A malformed answer is never read as a partial one:
//! acknowledging an event whose results were misread would lose them.

mod keys;

use base64::{Engine, prelude::BASE64_STANDARD};
use keys::Keys;
use nerve_core::{Emission, EventType, Fault, FunctionError, Outcome, event::is_media_type, limits::BoundedList};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

/// Maximum length of a line: an event of 25 MB as base64, with a margin.
pub(super) const MAX_LINE_BYTES: usize = 40 << 20;
/// Maximum objects per line: one event for each that may be in flight, and their output events.
const MAX_OBJECTS: usize = 4096;
/// Maximum events parsed per answer; fewer are published.
const MAX_EVENTS: usize = 10_000;
/// Maximum length of a line quoted in an error.
const QUOTE_BYTES: usize = 200;
/// Members of an answer, of an event, and their names in other protocols: an object with one of them is intended
/// as an answer.
const ANSWER_KEYS: [&str; 11] =
    ["id", "events", "event", "error", "emit", "type", "data", "data_base64", "payload", "result", "results"];
/// Members of a log record as JSON.
const LOG_KEYS: [&str; 3] = ["level", "levelname", "severity"];

/// An event to run.
#[derive(Serialize)]
pub(super) struct Call<'e> {
    pub(super) id: u64,
    pub(super) event: &'e RawValue,
}

/// A line of stdout or stderr, without its end.
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    /// How it ended.
    pub(super) end: LineEnd,
}

/// The end of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnd {
    /// With a newline.
    Newline,
    /// It exceeds the maximum length: this is its beginning.
    Limit,
    /// With the pipe, so its writer may have died while writing it.
    Pipe,
}

/// A part of a line.
#[derive(Debug, PartialEq)]
pub(super) enum Reading {
    /// An answer to the event of this id.
    Answer(u64, Answer),
    /// A malformed answer.
    Mistake(Mistake),
    /// Other text.
    Text,
}

/// The content of an answer.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// The event is finished, or has failed.
    Done(Outcome),
    /// Publish this before the end.
    Emit(Emission),
}

/// The reason why an intended answer is malformed.
#[derive(Debug, PartialEq)]
pub(super) struct Mistake {
    /// The ids that it names.
    pub(super) ids: Vec<u64>,
    pub(super) why: String,
}

/// The classification of a line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LineReading {
    /// The ids of the answers.
    pub answers: Vec<u64>,
    /// The ids that each malformed answer names.
    pub mistakes: Vec<Vec<u64>>,
    /// Whether a part of it is other text.
    pub has_text: bool,
    /// Its beginning, for display.
    pub quote: String,
}

/// Classifies a line of stdout.
pub fn read_line(bytes: Vec<u8>, end: LineEnd) -> LineReading {
    let line = Line { bytes, end };
    let mut read = LineReading { quote: line.quote(), ..LineReading::default() };
    for reading in line.read() {
        match reading {
            Reading::Answer(id, _) => read.answers.push(id),
            Reading::Mistake(mistake) => read.mistakes.push(mistake.ids),
            Reading::Text => read.has_text = true,
        }
    }
    read
}

impl Line {
    /// Parses the answers in this line. Two answers in one line are both accepted: threads that print
    /// without a lock write such lines.
    pub(super) fn read(&self) -> Vec<Reading> {
        let mut rest = self.text();
        let mut readings = Vec::new();
        while !rest.is_empty() {
            if readings.len() == MAX_OBJECTS {
                let why = format!("it has more than {MAX_OBJECTS} objects");
                readings.push(Reading::Mistake(Mistake { ids: Vec::new(), why }));
                break;
            }
            // A list would be deserialized as the members in order.
            if !rest.starts_with(b"{") {
                readings.push(self.unread(rest, None));
                break;
            }
            let mut answers = serde_json::Deserializer::from_slice(rest).into_iter::<Members>();
            let (next, parsed) = (answers.next(), answers.byte_offset());
            let after = rest.get(parsed..).unwrap_or_default().trim_ascii();
            match next {
                Some(Ok(members)) if after.is_empty() || after.starts_with(b"{") => {
                    readings.push(members.reading());
                    rest = after;
                }
                Some(Ok(members)) => {
                    let why = "more text follows the object".to_owned();
                    readings.push(Reading::Mistake(Mistake { ids: vec![members.id], why }));
                    break;
                }
                other => {
                    readings.push(self.unread(rest, other.and_then(Result::err)));
                    break;
                }
            }
        }
        readings
    }

    /// Classifies a line whose `rest` is not an answer.
    fn unread(&self, rest: &[u8], error: Option<serde_json::Error>) -> Reading {
        let keys = Keys::of(rest);
        // The event of a truncated answer fails with the process.
        if self.end == LineEnd::Pipe || !keys.are_of_an_answer() {
            return Reading::Text;
        }
        let why = match error {
            _ if self.end == LineEnd::Limit => format!("it is longer than {MAX_LINE_BYTES} bytes"),
            _ if rest.starts_with(b"[") => "it is a list; each answer is an object on a line of its own".to_owned(),
            Some(error) if error.is_data() => error.to_string(),
            Some(error) => format!("it is not valid JSON: {error}"),
            None => "it is empty".to_owned(),
        };
        Reading::Mistake(Mistake { ids: keys.ids, why })
    }

    /// The line without surrounding space, and without the byte order mark that some runtimes write first.
    fn text(&self) -> &[u8] {
        let bytes = self.bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.bytes);
        bytes.trim_ascii()
    }

    /// The beginning of the line, for display.
    pub(super) fn quote(&self) -> String {
        let text = self.text();
        match text.get(..QUOTE_BYTES) {
            Some(start) if text.len() > QUOTE_BYTES => format!("{}…", String::from_utf8_lossy(start)),
            _ => String::from_utf8_lossy(text).into_owned(),
        }
    }
}

impl Keys<'_> {
    /// Returns whether an object with these members is intended as an answer. A log record as JSON is not, although it may have
    /// its own `id` or `error`.
    fn are_of_an_answer(&self) -> bool {
        let has = |names: &[&str]| names.iter().any(|name| self.has(name));
        let answers = has(&["events", "emit"]) || (self.has("id") && self.has("error"));
        has(&ANSWER_KEYS) && (answers || !has(&LOG_KEYS))
    }
}

/// The members of an answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    id: u64,
    emit: Option<Emitted>,
    error: Option<Failure>,
    events: Option<BoundedList<Emitted, MAX_EVENTS>>,
}

impl Members {
    fn reading(self) -> Reading {
        let id = self.id;
        let answer = match (self.events, self.error, self.emit) {
            (Some(BoundedList { items, total }), None, None) if total > items.len() => {
                Err(format!("it has {total} events, and {MAX_EVENTS} are the most that are read"))
            }
            (Some(BoundedList { items, .. }), None, None) => {
                items.into_iter().map(Emitted::emission).collect::<Result<_, _>>().map(Ok).map(Answer::Done)
            }
            (None, Some(failure), None) => Ok(Answer::Done(Err(failure.into()))),
            (None, None, Some(emitted)) => emitted.emission().map(Answer::Emit),
            (None, None, None) => {
                Err("it has none of `events`, `error` and `emit`; an event without results is answered \"events\": []"
                    .to_owned())
            }
            _ => Err("it has more than one of `events`, `error` and `emit`".to_owned()),
        };
        match answer {
            Ok(answer) => Reading::Answer(id, answer),
            Err(why) => Reading::Mistake(Mistake { ids: vec![id], why }),
        }
    }
}

/// An output event: members of a CloudEvent. Those that Nerve sets are accepted, as in a forwarded
/// event with another type, and ignored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an event, as {\"type\": \"…\", \"data\": …}")]
struct Emitted {
    #[serde(rename = "type")]
    ty: String,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
    datacontenttype: Option<String>,
    subject: Option<String>,
    partitionkey: Option<String>,
    #[serde(rename = "specversion")]
    _specversion: Option<IgnoredAny>,
    #[serde(rename = "id")]
    _id: Option<IgnoredAny>,
    #[serde(rename = "source")]
    _source: Option<IgnoredAny>,
    #[serde(rename = "time")]
    _time: Option<IgnoredAny>,
    #[serde(rename = "correlationid")]
    _correlation: Option<IgnoredAny>,
    #[serde(rename = "causationid")]
    _causation: Option<IgnoredAny>,
    #[serde(rename = "traceparent")]
    _traceparent: Option<IgnoredAny>,
    #[serde(rename = "tracestate")]
    _tracestate: Option<IgnoredAny>,
    #[serde(rename = "nervehops")]
    _hops: Option<IgnoredAny>,
}

/// A failure reported by a function.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object, as {\"kind\": \"invalid\", \"message\": \"…\"}")]
struct Failure {
    kind: Kind,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Invalid,
    Retry,
}

impl From<Failure> for FunctionError {
    fn from(failure: Failure) -> Self {
        let fault = match failure.kind {
            Kind::Invalid => Fault::Invalid,
            Kind::Retry => Fault::Retry { after: None },
        };
        Self::new(fault, failure.message)
    }
}

impl Emitted {
    /// As the JSON event format has it: `data_base64` is bytes, a string of another media type is its text, and
    /// anything else is the JSON as written.
    fn emission(self) -> Result<Emission, String> {
        let refused = |why: String| format!("it has an event that cannot be published: {why}");
        let ty = EventType::parse(self.ty).map_err(|error| refused(error.to_string()))?;
        if let Some(declared) = self.datacontenttype.as_deref().filter(|declared| !is_media_type(declared)) {
            return Err(refused(format!("its datacontenttype {declared:?} is no media type")));
        }
        let json = self.datacontenttype.as_deref().is_none_or(|declared| declared.contains("json"));
        let data = match (self.data, self.data_base64) {
            (Some(_), Some(_)) => return Err(refused("`data` and `data_base64` exclude each other".to_owned())),
            (None, Some(text)) => BASE64_STANDARD
                .decode(text)
                .map_err(|error| refused(format!("its data_base64 is not base64: {error}")))?,
            (Some(raw), None) => match serde_json::from_str::<String>(raw.get()) {
                Ok(text) if !json => text.into_bytes(),
                _ => raw.get().as_bytes().to_vec(),
            },
            (None, None) => Vec::new(),
        };
        Ok(Emission {
            ty,
            data: data.into(),
            content_type: self.datacontenttype,
            subject: self.subject,
            partition_key: self.partitionkey,
        })
    }
}

#[cfg(test)]
mod tests;
