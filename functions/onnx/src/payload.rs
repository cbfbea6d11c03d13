//! What events hold, and what is published of them.

use crate::options::{Encoding, Pointer};
use nerve_core::{
    Event,
    inference::{Label, Vector},
};
use serde::Serialize;
use serde_json::{Map, Value};

/// One text, or several whose results come in one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    /// All of them.
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }

    /// Whether the event asks for one result, not for a list.
    pub(crate) fn is_one(&self) -> bool {
        matches!(self, Self::One(_))
    }
}

/// The data of an event: its JSON, or its text as a string.
pub(crate) fn read(event: &Event) -> Result<Value, String> {
    if event.is_json() {
        return serde_json::from_slice(&event.data).map_err(|error| format!("its data is not JSON: {error}"));
    }
    let media = event.content_type.as_deref().unwrap_or_default();
    if !media.trim_start().to_ascii_lowercase().starts_with("text/") {
        return Err(format!("its data is {media}, and models read JSON or text"));
    }
    Ok(Value::String(String::from_utf8_lossy(&event.data).into_owned()))
}

/// The value at `pointer`, or else at the first of the usual places that is there.
pub(crate) fn find<'d>(
    data: &'d Value,
    pointer: Option<&Pointer>,
    usual: &[&str],
    key: &str,
) -> Result<&'d Value, String> {
    if let Some(Pointer(pointer)) = pointer {
        return data.pointer(pointer).ok_or_else(|| format!("its data has nothing at {pointer} (`{key}`)"));
    }
    let found = usual.iter().find_map(|pointer| data.pointer(pointer));
    found.ok_or_else(|| {
        let places = usual.join(", ");
        format!("its data has none of {places}: say where it is, as in with = {{ {key} = \"/path/to/it\" }}")
    })
}

/// The text or texts at `pointer`, or else at the first of the usual places; data that is text itself will do.
pub(crate) fn texts(data: &Value, pointer: Option<&Pointer>, usual: &[&str], key: &str) -> Result<Texts, String> {
    let value = match data {
        Value::String(_) | Value::Array(_) if pointer.is_none() => data,
        _ => find(data, pointer, usual, key)?,
    };
    match value {
        Value::String(text) => Ok(Texts::One(text.clone())),
        Value::Array(items) => {
            let texts = items.iter().enumerate().map(|(index, item)| {
                text_of(item).map(str::to_owned).ok_or_else(|| format!("item {index} of its `{key}` is not a text"))
            });
            texts.collect::<Result<_, _>>().map(Texts::Many)
        }
        other => text_of(other)
            .map(|text| Texts::One(text.to_owned()))
            .ok_or_else(|| format!("its `{key}` is neither a text nor a list of texts")),
    }
}

/// A text, or the text of a document.
fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("text")?.as_str()).or_else(|| value.get("content")?.as_str())
}

/// The data of the event that is published.
#[derive(Serialize)]
pub(crate) struct Published<'a> {
    pub(crate) model: &'a str,
    #[serde(flatten)]
    pub(crate) result: Made,
    #[serde(flatten)]
    pub(crate) carried: Map<String, Value>,
}

/// What a model made of one event.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Made {
    Embedding {
        #[serde(skip_serializing_if = "Option::is_none")]
        dimensions: Option<usize>,
        #[serde(flatten)]
        one: Embedded,
    },
    Embeddings {
        #[serde(skip_serializing_if = "Option::is_none")]
        dimensions: Option<usize>,
        embeddings: Vec<Embedded>,
    },
    Score(Scored),
    Scores {
        results: Vec<Scored>,
    },
    Labels(Labelled),
    Labelled {
        results: Vec<Labelled>,
    },
    Outputs {
        outputs: Map<String, Value>,
        #[serde(flatten)]
        best: Option<Best>,
    },
    Mapped(Map<String, Value>),
}

#[derive(Serialize)]
pub(crate) struct Embedded {
    pub(crate) embedding: Written,
    pub(crate) tokens: usize,
    pub(crate) truncated: bool,
}

#[derive(Serialize)]
pub(crate) struct Scored {
    /// Which of several documents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<usize>,
    pub(crate) score: f32,
    pub(crate) tokens: usize,
    pub(crate) truncated: bool,
}

#[derive(Serialize)]
pub(crate) struct Labelled {
    #[serde(flatten)]
    pub(crate) best: Best,
    pub(crate) tokens: usize,
    pub(crate) truncated: bool,
}

/// The likeliest label, and all that were asked for.
#[derive(Serialize)]
pub(crate) struct Best {
    pub(crate) label: Option<String>,
    pub(crate) score: Option<f32>,
    pub(crate) labels: Vec<Label>,
}

impl Best {
    pub(crate) fn of(mut labels: Vec<Label>, top: Option<usize>) -> Self {
        labels.truncate(top.unwrap_or(usize::MAX));
        let (label, score) = labels.first().map(|first| (first.label.clone(), first.score)).unzip();
        Self { label, score, labels }
    }
}

/// A vector as the event holds it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Written {
    Vector(Vector),
    Base64(String),
}

impl Written {
    pub(crate) fn of(vector: Vector, encoding: Encoding) -> Self {
        match encoding {
            Encoding::Array => Self::Vector(vector),
            Encoding::Base64 => vector.into_base64().map_or_else(Self::Vector, Self::Base64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;
    use serde_json::json;

    const USUAL: &[&str] = &["/text", "/content"];

    fn event(media: &str, data: &[u8]) -> Event {
        Event::new("1", "/test", EventType::parse("a").unwrap()).with_data(media, data.to_vec())
    }

    #[test]
    fn json_and_text_are_read_and_nothing_else() {
        assert_eq!(read(&event("application/json", b"{\"a\": 1}")).unwrap(), json!({"a": 1}));
        assert_eq!(read(&event("text/plain; charset=utf-8", b"a\xff\0")).unwrap(), json!("a\u{FFFD}\0"));
        assert!(read(&event("image/png", b"")).unwrap_err().contains("image/png"));
        assert!(read(&event("application/json", br#""\ud800""#)).unwrap_err().contains("not JSON"));
    }

    #[test]
    fn texts_are_found_where_they_usually_are() {
        let one = |data: Value| texts(&data, None, USUAL, "input");
        assert_eq!(one(json!({"content": "a"})), Ok(Texts::One("a".into())));
        assert_eq!(one(json!("a")), Ok(Texts::One("a".into())));
        let many = Ok(Texts::Many(vec!["a".into(), "b".into()]));
        assert_eq!(one(json!({"text": ["a", {"text": "b"}]})), many);
        assert_eq!(one(json!(["a", {"content": "b"}])), many);
        let pointer = Pointer("/x/0".into());
        assert_eq!(texts(&json!({"x": ["y"]}), Some(&pointer), USUAL, "input"), Ok(Texts::One("y".into())));
    }

    #[test]
    fn a_text_that_is_not_there_is_told_with_the_way_to_name_it() {
        let one = |data: Value| texts(&data, None, USUAL, "input").unwrap_err();
        assert!(one(json!({"body": "a"})).contains("none of /text, /content: say where it is, as in with = { input"));
        assert!(one(json!({"text": 7})).contains("neither a text"));
        assert!(one(json!({"text": ["a", 7]})).contains("item 1"));
        let pointer = Pointer("/x".into());
        assert!(texts(&json!({}), Some(&pointer), USUAL, "input").unwrap_err().contains("nothing at /x"));
    }
}
