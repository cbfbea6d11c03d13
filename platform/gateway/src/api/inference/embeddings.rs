//! `POST /v1/embeddings`, in OpenAI's format.

use crate::api::inference::{
    ModelChoice, Usage, check_count, is_false, missing, parse, read_body, run,
    text::{Kind, Text, kind},
};
use crate::{
    Gateway,
    http::problem::{HttpResult, Problem},
};
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::IntoResponse,
};
use nerve_core::{
    Inference,
    inference::{EmbedRequest, Embedding, Model, Precision, Purpose, Vector},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;

/// The model of a request without `model`.
const DEFAULT_MODEL: &str = "all-MiniLM-L6-v2";

const TOKENS: &str = "`input` holds numbers of tokens, which are another model's: send the texts themselves \
                      (LangChain does with check_embedding_ctx_length=False)";

/// The request; unknown fields are ignored.
#[derive(Deserialize)]
struct EmbeddingsRequest<'a> {
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
    embedding: ResponseVector,
    #[serde(skip_serializing_if = "is_false")]
    truncated: bool,
}

/// A vector in the response.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum ResponseVector {
    Vector(Vector),
    Base64(String),
}

/// Embeds texts.
pub(crate) async fn post(State(gateway): State<Gateway>, request: Request<Body>) -> HttpResult {
    let body = read_body(&gateway, request).await?;
    let asked: EmbeddingsRequest<'_> = parse(&body.bytes)?;
    let texts = texts(asked.input.ok_or_else(|| missing("input"))?)?;
    check_count(&gateway, "input", texts.len())?;
    if asked.dimensions == Some(0) {
        return Err(Problem::bad_request("`dimensions` is 0: a vector has at least one"));
    }
    let wanted = ModelChoice::Named(asked.model.as_deref().unwrap_or(DEFAULT_MODEL));
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
        Self { object: "embedding", index, embedding: response_vector(vector, format), truncated }
    }
}

fn texts(input: &RawValue) -> HttpResult<Vec<String>> {
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

fn response_vector(vector: Vector, format: EncodingFormat) -> ResponseVector {
    match format {
        EncodingFormat::Float => ResponseVector::Vector(vector),
        EncodingFormat::Base64 => vector.into_base64().map_or_else(ResponseVector::Vector, ResponseVector::Base64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<String>, String> {
        texts(serde_json::from_str(json).unwrap()).map_err(|problem| problem.detail().to_owned())
    }

    #[test]
    fn one_text_or_several_are_read() {
        assert_eq!(read(r#""a\u0000b""#).unwrap(), ["a\0b"]);
        assert_eq!(read(r#"["a", "", "\ud800"]"#).unwrap(), ["a", "", "\u{FFFD}"]);
        assert!(read("[]").unwrap().is_empty());
    }

    #[test]
    fn invalid_inputs_are_distinguished() {
        for tokens in ["[1, 2]", "[[1, 2], [3]]", "[\"a\", 1]"] {
            assert!(read(tokens).unwrap_err().contains("check_embedding_ctx_length=False"), "{tokens}");
        }
        assert!(read(r#"["a", null]"#).unwrap_err().contains("input[1]"));
        assert!(read(r#"["a", {"b": 1}]"#).unwrap_err().contains("input[1]"));
        for other in ["1", "{}", "null", "true"] {
            assert!(read(other).unwrap_err().contains("a list of strings"), "{other}");
        }
    }
}
