//! Parses event data and builds results.

use crate::options::{Encoding, Pointer};
use nerve_core::{
    Event,
    inference::{Label, Vector},
};
use nerve_events::documents::TextEmbedding;
use serde::Serialize;
use serde_json::{Map, Value};

/// One text, or several whose results are published in one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    /// All texts.
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }

    /// Whether the result is a single value instead of a list.
    pub(crate) fn is_one(&self) -> bool {
        matches!(self, Self::One(_))
    }
}

/// Parses the data of an event: JSON, or text as a string.
///
/// # Errors
/// If the media type is not supported or the data is malformed.
pub(crate) fn read(event: &Event) -> Result<Value, String> {
    if event.is_json() {
        return serde_json::from_slice(&event.data).map_err(|error| format!("its data is not JSON: {error}"));
    }
    let media = event.content_type.as_deref().unwrap_or_default();
    if !media.trim_start().to_ascii_lowercase().starts_with("text/") {
        return Err(format!("its data is {media}: models accept JSON or text only"));
    }
    Ok(Value::String(String::from_utf8_lossy(&event.data).into_owned()))
}

/// Value at `pointer`, or at the first existing default location.
pub(crate) fn find<'d>(
    data: &'d Value,
    pointer: Option<&Pointer>,
    defaults: &[&str],
    key: &str,
) -> Result<&'d Value, String> {
    if let Some(Pointer(pointer)) = pointer {
        return data.pointer(pointer).ok_or_else(|| format!("its data has nothing at {pointer} (`{key}`)"));
    }
    let found = defaults.iter().find_map(|pointer| data.pointer(pointer));
    found.ok_or_else(|| {
        let locations = defaults.join(", ");
        format!("its data has none of {locations}: set its location, as in with = {{ {key} = \"/path/to/it\" }}")
    })
}

/// Text or texts at `pointer`, or at the first existing default location, or the data itself if it is text.
pub(crate) fn texts(data: &Value, pointer: Option<&Pointer>, defaults: &[&str], key: &str) -> Result<Texts, String> {
    let value = match data {
        Value::String(_) | Value::Array(_) if pointer.is_none() => data,
        _ => find(data, pointer, defaults, key)?,
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

/// A text, or the text field of a document.
fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("text")?.as_str()).or_else(|| value.get("content")?.as_str())
}

/// Data of the published event.
#[derive(Serialize)]
pub(crate) struct PublishedData<'a> {
    pub(crate) model: &'a str,
    #[serde(flatten)]
    pub(crate) result: ModelResult,
    #[serde(flatten)]
    pub(crate) carried: Map<String, Value>,
}

/// Result of the model for one event.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum ModelResult {
    Embedding {
        #[serde(skip_serializing_if = "Option::is_none")]
        dimensions: Option<usize>,
        #[serde(flatten)]
        one: TextEmbedding<EncodedVector>,
    },
    Embeddings {
        #[serde(skip_serializing_if = "Option::is_none")]
        dimensions: Option<usize>,
        embeddings: Vec<TextEmbedding<EncodedVector>>,
    },
    Score(ScoredDocument),
    Scores {
        results: Vec<ScoredDocument>,
    },
    Labels(LabeledText),
    LabeledTexts {
        results: Vec<LabeledText>,
    },
    Outputs {
        outputs: Map<String, Value>,
        #[serde(flatten)]
        best: Option<BestLabels>,
    },
    Mapped(Map<String, Value>),
}

#[derive(Serialize)]
pub(crate) struct ScoredDocument {
    /// Index of the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<usize>,
    pub(crate) score: f32,
    pub(crate) tokens: usize,
    pub(crate) truncated: bool,
}

#[derive(Serialize)]
pub(crate) struct LabeledText {
    #[serde(flatten)]
    pub(crate) best: BestLabels,
    pub(crate) tokens: usize,
    pub(crate) truncated: bool,
}

/// The best label, and all requested labels.
#[derive(Serialize)]
pub(crate) struct BestLabels {
    pub(crate) label: Option<String>,
    pub(crate) score: Option<f32>,
    pub(crate) labels: Vec<Label>,
}

impl BestLabels {
    pub(crate) fn of(mut labels: Vec<Label>, top: Option<usize>) -> Self {
        labels.truncate(top.unwrap_or(usize::MAX));
        let (label, score) = labels.first().map(|first| (first.label.clone(), first.score)).unzip();
        Self { label, score, labels }
    }
}

/// A vector in its published encoding; a dense one as Nerve's events have it (`nerve_events::documents`).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum EncodedVector {
    Vector(Vector),
    Base64(String),
}

impl EncodedVector {
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

    const DEFAULTS: &[&str] = &["/text", "/content"];

    fn event(media: &str, data: &[u8]) -> Event {
        Event::new("1", "/test", EventType::parse("a").unwrap()).with_data(media, data.to_vec())
    }

    #[test]
    fn only_json_and_text_are_accepted() {
        assert_eq!(read(&event("application/json", b"{\"a\": 1}")).unwrap(), json!({"a": 1}));
        assert_eq!(read(&event("text/plain; charset=utf-8", b"a\xff\0")).unwrap(), json!("a\u{FFFD}\0"));
        assert!(read(&event("image/png", b"")).unwrap_err().contains("image/png"));
        assert!(read(&event("application/json", br#""\ud800""#)).unwrap_err().contains("not JSON"));
    }

    #[test]
    fn texts_are_found_at_default_locations() {
        let one = |data: Value| texts(&data, None, DEFAULTS, "input");
        assert_eq!(one(json!({"content": "a"})), Ok(Texts::One("a".into())));
        assert_eq!(one(json!("a")), Ok(Texts::One("a".into())));
        let many = Ok(Texts::Many(vec!["a".into(), "b".into()]));
        assert_eq!(one(json!({"text": ["a", {"text": "b"}]})), many);
        assert_eq!(one(json!(["a", {"content": "b"}])), many);
        let pointer = Pointer("/x/0".into());
        assert_eq!(texts(&json!({"x": ["y"]}), Some(&pointer), DEFAULTS, "input"), Ok(Texts::One("y".into())));
    }

    #[test]
    fn missing_text_error_names_the_option() {
        let one = |data: Value| texts(&data, None, DEFAULTS, "input").unwrap_err();
        assert!(one(json!({"body": "a"})).contains("none of /text, /content: set its location, as in with = { input"));
        assert!(one(json!({"text": 7})).contains("neither a text"));
        assert!(one(json!({"text": ["a", 7]})).contains("item 1"));
        let pointer = Pointer("/x".into());
        assert!(texts(&json!({}), Some(&pointer), DEFAULTS, "input").unwrap_err().contains("nothing at /x"));
    }
}
