//! `POST /v1/embeddings`, in OpenAI's format.

use crate::api::inference::{
    ModelChoice, Usage, check_count, is_false, missing, model_docs, read_body, run,
    text::{Kind, Text, kind},
};
use crate::{
    Gateway,
    api::openapi::{Docs, any, list_of, one_of, text as text_schema},
    http::problem::{HttpResult, Problem},
};
use axum::{
    Json,
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
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema, schema::ObjectBuilder},
};

/// The model of a request without `model`.
const DEFAULT_MODEL: &str = "all-MiniLM-L6-v2";

const TOKENS: &str = "`input` holds numbers of tokens, which are another model's: send the texts themselves \
                      (LangChain does with check_embedding_ctx_length=False)";

/// Texts to embed; unknown fields are ignored.
#[derive(Deserialize, ToSchema)]
struct EmbeddingsRequest<'a> {
    /// The name of a model; by default all-MiniLM-L6-v2.
    model: Option<String>,
    /// A text or several.
    #[serde(borrow)]
    #[schema(schema_with = texts_schema, required)]
    input: Option<&'a RawValue>,
    encoding_format: Option<EncodingFormat>,
    /// The number of leading dimensions to keep.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// `query` or `document`, for models that distinguish them.
    #[schema(value_type = Option<String>)]
    input_type: Option<Purpose>,
    /// The number format: `f32`, `f16`, `int8`, `uint8`, `binary` or `ubinary`.
    #[schema(value_type = Option<String>)]
    output_dtype: Option<Precision>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    Base64,
}

#[derive(Serialize, ToSchema)]
struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<EmbeddingItem>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct EmbeddingItem {
    object: &'static str,
    index: usize,
    #[schema(schema_with = vector_schema)]
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
pub(crate) async fn post(State(gateway): State<Gateway>, request: Request) -> HttpResult {
    let body = read_body(&gateway, request).await?;
    let asked: EmbeddingsRequest<'_> = body.json("request")?;
    let texts = texts(asked.input.ok_or_else(|| missing("input"))?)?;
    check_count(&gateway, "input", texts.len())?;
    if asked.dimensions == Some(0) {
        return Err(Problem::invalid_request("`dimensions` is 0: a vector has at least one"));
    }
    let wanted = ModelChoice::Named(asked.model.as_deref().unwrap_or(DEFAULT_MODEL));
    let precision = asked.output_dtype.unwrap_or_default();
    let request = EmbedRequest { texts, purpose: asked.input_type, dimensions: asked.dimensions, precision };
    let embed =
        |inference: Arc<dyn Inference>, model: Arc<Model>| async move { inference.embed(&model, request).await };
    let (model, embeddings) = run(&gateway, wanted, embed).await?;
    let format = asked.encoding_format.unwrap_or(EncodingFormat::Float);
    let usage = Usage::of(embeddings.iter().map(|embedding| embedding.tokens));
    let data = embeddings.into_iter().enumerate().map(|(index, embedding)| EmbeddingItem::of(index, embedding, format));
    Ok(Json(EmbeddingList { object: "list", data: data.collect(), model: &model, usage }).into_response())
}

/// The documentation of [`post`].
pub(crate) fn docs(docs: Docs) -> Docs {
    model_docs(docs.body::<EmbeddingsRequest<'_>>()).json::<EmbeddingList<'_>>(200, "The vector of each text")
}

fn texts_schema() -> RefOr<Schema> {
    one_of([text_schema(), list_of(text_schema())])
}

/// Numbers, the Base64 of them, or the weights of a sparse vector.
fn vector_schema() -> RefOr<Schema> {
    one_of([list_of(any()), text_schema(), ObjectBuilder::new().into()])
}

impl EmbeddingItem {
    fn of(index: usize, Embedding { vector, truncated, .. }: Embedding, format: EncodingFormat) -> Self {
        Self { object: "embedding", index, embedding: response_vector(vector, format), truncated }
    }
}

fn texts(input: &RawValue) -> HttpResult<Vec<String>> {
    let unread = |error| Problem::invalid_request(format!("`input` cannot be read: {error}"));
    match kind(input) {
        Kind::String => Ok(vec![serde_json::from_str::<Text>(input.get()).map_err(unread)?.0]),
        Kind::Array => match serde_json::from_str::<Vec<Text>>(input.get()) {
            Ok(texts) => Ok(texts.into_iter().map(|text| text.0).collect()),
            Err(error) => {
                let items: Vec<&RawValue> = serde_json::from_str(input.get()).unwrap_or_default();
                let other = items.into_iter().enumerate().find(|(_, item)| kind(item) != Kind::String);
                Err(match other {
                    Some((_, item)) if matches!(kind(item), Kind::Number | Kind::Array) => {
                        Problem::invalid_request(TOKENS)
                    }
                    Some((index, _)) => Problem::invalid_request(format!("`input[{index}]` is not a string")),
                    None => unread(error),
                })
            }
        },
        Kind::Object | Kind::Number | Kind::Other => {
            Err(Problem::invalid_request("`input` must be a string or a list of strings"))
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
