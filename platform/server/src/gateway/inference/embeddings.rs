//! `POST /v1/embeddings`, in OpenAI's shape.

use super::{
    Usage, Wanted, check_count, is_false, missing, parse, read_body, run,
    text::{Kind, Text, kind},
};
use crate::gateway::{
    Gateway,
    problem::{Answer, Problem},
};
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::IntoResponse,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use half::f16;
use nerve_core::{
    Inference,
    inference::{EmbedRequest, Embedding, Model, Precision, Purpose, Vector},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;

/// The model of a request that names none.
const DEFAULT_MODEL: &str = "all-MiniLM-L6-v2";

const TOKENS: &str = "`input` holds numbers of tokens, which are another model's: send the texts themselves \
                      (LangChain does with check_embedding_ctx_length=False)";

/// What is asked; fields that only other services know are ignored.
#[derive(Deserialize)]
struct Asked<'a> {
    model: Option<String>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    encoding_format: Option<EncodingFormat>,
    dimensions: Option<usize>,
    input_type: Option<Purpose>,
    output_dtype: Option<Precision>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    Base64,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Item>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Shown,
    #[serde(skip_serializing_if = "is_false")]
    truncated: bool,
}

/// A vector as the answer holds it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Shown {
    Floats(Vec<f32>),
    Signed(Vec<i8>),
    Unsigned(Vec<u8>),
    Base64(String),
    Sparse { indices: Vec<u32>, values: Vec<f32> },
}

/// Embeds texts.
pub(in crate::gateway) async fn post(State(gateway): State<Gateway>, request: Request<Body>) -> Answer {
    let body = read_body(&gateway, request).await?;
    let asked: Asked<'_> = parse(&body.bytes)?;
    let texts = texts(asked.input.ok_or_else(|| missing("input"))?)?;
    check_count(&gateway, "input", texts.len())?;
    if asked.dimensions == Some(0) {
        return Err(Problem::bad_request("`dimensions` is 0: a vector has at least one"));
    }
    let wanted = Wanted::Named(asked.model.as_deref().unwrap_or(DEFAULT_MODEL));
    let precision = asked.output_dtype.unwrap_or_default();
    let request = EmbedRequest { texts, purpose: asked.input_type, dimensions: asked.dimensions, precision };
    let embed =
        |inference: Arc<dyn Inference>, model: Arc<Model>| async move { inference.embed(&model, request).await };
    let (model, embeddings) = run(&gateway, wanted, embed).await?;
    let format = asked.encoding_format.unwrap_or(EncodingFormat::Float);
    let usage = Usage::of(embeddings.iter().map(|embedding| embedding.tokens));
    let data = embeddings.into_iter().enumerate().map(|(index, embedding)| Item::of(index, embedding, format));
    Ok(Json(List { object: "list", data: data.collect(), model: &model, usage }).into_response())
}

impl Item {
    fn of(index: usize, Embedding { vector, truncated, .. }: Embedding, format: EncodingFormat) -> Self {
        Self { object: "embedding", index, embedding: shown(vector, format), truncated }
    }
}

fn texts(input: &RawValue) -> Answer<Vec<String>> {
    let unread = |error| Problem::bad_request(format!("`input` cannot be read: {error}"));
    match kind(input) {
        Kind::String => Ok(vec![serde_json::from_str::<Text>(input.get()).map_err(unread)?.0]),
        Kind::Array => match serde_json::from_str::<Vec<Text>>(input.get()) {
            Ok(texts) => Ok(texts.into_iter().map(|text| text.0).collect()),
            Err(error) => {
                let items: Vec<&RawValue> = serde_json::from_str(input.get()).unwrap_or_default();
                let other = items.into_iter().enumerate().find(|(_, item)| kind(item) != Kind::String);
                Err(match other {
                    Some((_, item)) if matches!(kind(item), Kind::Number | Kind::Array) => Problem::bad_request(TOKENS),
                    Some((index, _)) => Problem::bad_request(format!("`input[{index}]` is not a string")),
                    None => unread(error),
                })
            }
        },
        Kind::Object | Kind::Number | Kind::Other => {
            Err(Problem::bad_request("`input` must be a string or a list of strings"))
        }
    }
}

fn shown(vector: Vector, format: EncodingFormat) -> Shown {
    let in_base64 = |bytes: Vec<u8>| Shown::Base64(BASE64_STANDARD.encode(bytes));
    match (vector, format) {
        (Vector::Sparse { indices, values }, _) => Shown::Sparse { indices, values },
        (Vector::F32(values), EncodingFormat::Float) => Shown::Floats(values),
        (Vector::F16(bits), EncodingFormat::Float) => {
            Shown::Floats(bits.into_iter().map(|bits| f16::from_bits(bits).to_f32()).collect())
        }
        (Vector::I8(values), EncodingFormat::Float) => Shown::Signed(values),
        (Vector::U8(values), EncodingFormat::Float) => Shown::Unsigned(values),
        (Vector::F32(values), EncodingFormat::Base64) => {
            in_base64(values.into_iter().flat_map(f32::to_le_bytes).collect())
        }
        (Vector::F16(bits), EncodingFormat::Base64) => in_base64(bits.into_iter().flat_map(u16::to_le_bytes).collect()),
        (Vector::I8(values), EncodingFormat::Base64) => {
            in_base64(values.into_iter().flat_map(i8::to_le_bytes).collect())
        }
        (Vector::U8(values), EncodingFormat::Base64) => in_base64(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<String>, String> {
        texts(serde_json::from_str(json).unwrap()).map_err(|problem| problem.detail().to_owned())
    }

    #[test]
    fn one_text_or_many_are_read() {
        assert_eq!(read(r#""a\u0000b""#).unwrap(), ["a\0b"]);
        assert_eq!(read(r#"["a", "", "\ud800"]"#).unwrap(), ["a", "", "\u{FFFD}"]);
        assert!(read("[]").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_text_is_told_apart() {
        for tokens in ["[1, 2]", "[[1, 2], [3]]", "[\"a\", 1]"] {
            assert!(read(tokens).unwrap_err().contains("check_embedding_ctx_length=False"), "{tokens}");
        }
        assert!(read(r#"["a", null]"#).unwrap_err().contains("input[1]"));
        assert!(read(r#"["a", {"b": 1}]"#).unwrap_err().contains("input[1]"));
        for other in ["1", "{}", "null", "true"] {
            assert!(read(other).unwrap_err().contains("a list of strings"), "{other}");
        }
    }

    #[test]
    fn each_precision_has_its_two_forms() {
        let bytes = |shown: Shown| match shown {
            Shown::Base64(text) => BASE64_STANDARD.decode(text).unwrap(),
            other => panic!("{other:?}"),
        };
        let half = f16::from_f32(-0.5).to_bits();
        let cases = [
            (Vector::F32(vec![1.5, -2.0]), Shown::Floats(vec![1.5, -2.0]), vec![0, 0, 192, 63, 0, 0, 0, 192]),
            (Vector::F16(vec![half]), Shown::Floats(vec![-0.5]), half.to_le_bytes().to_vec()),
            (Vector::I8(vec![-1, 127]), Shown::Signed(vec![-1, 127]), vec![255, 127]),
            (Vector::U8(vec![0, 255]), Shown::Unsigned(vec![0, 255]), vec![0, 255]),
        ];
        for (vector, floats, raw) in cases {
            assert_eq!(shown(vector.clone(), EncodingFormat::Float), floats);
            assert_eq!(bytes(shown(vector, EncodingFormat::Base64)), raw);
        }
        let sparse = Vector::Sparse { indices: vec![7], values: vec![0.5] };
        let json = serde_json::to_string(&shown(sparse, EncodingFormat::Base64)).unwrap();
        assert_eq!(json, r#"{"indices":[7],"values":[0.5]}"#);
    }
}
