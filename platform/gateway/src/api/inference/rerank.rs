//! `POST /v1/rerank`, in Cohere's format or, if the request has `texts`, in that of Text Embeddings Inference.

use crate::api::inference::{
    ModelChoice, Usage, check_count, is_false, missing, model_docs, read_body, run,
    text::{Kind, Text, kind},
};
use crate::{
    Gateway,
    api::openapi::{Docs, list_of, one_of},
    http::problem::{HttpResult, Problem},
};
use axum::{
    Json,
    extract::{Request, State},
    response::IntoResponse,
};
use nerve_core::{
    Inference,
    inference::{Model, Relevance, RerankRequest},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;

/// Documents to order by relevance, in either format: `documents` or `texts`. Unknown fields are ignored.
#[derive(Deserialize, ToSchema)]
struct RerankBody<'a> {
    /// The name of a model; by default the only one that reranks.
    model: Option<String>,
    #[schema(value_type = String, required)]
    query: Option<Text>,
    /// Texts, or objects with a `text`: Cohere's format.
    #[serde(borrow)]
    #[schema(value_type = Option<Vec<Value>>)]
    documents: Option<Vec<&'a RawValue>>,
    /// Texts: the format of Text Embeddings Inference.
    #[schema(value_type = Option<Vec<String>>)]
    texts: Option<Vec<Text>>,
    /// The number of results.
    #[schema(minimum = 1)]
    top_n: Option<usize>,
    /// Whether results have their document, with `documents`.
    return_documents: Option<bool>,
    /// Whether results have their text, with `texts`.
    return_text: Option<bool>,
    /// Whether scores are the model's own output.
    raw_scores: Option<bool>,
}

#[derive(Deserialize)]
struct Document {
    text: Text,
}

/// The response in Cohere's format.
#[derive(Serialize, ToSchema)]
struct Ranked {
    id: String,
    model: String,
    results: Vec<Scored>,
    meta: Meta,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct Meta {
    billed_units: BilledUnits,
}

#[derive(Serialize, ToSchema)]
struct BilledUnits {
    search_units: usize,
}

/// A result in Cohere's format.
#[derive(Serialize, ToSchema)]
struct Scored {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<ResponseDocument>,
    #[serde(skip_serializing_if = "is_false")]
    truncated: bool,
}

#[derive(Serialize, ToSchema)]
struct ResponseDocument {
    text: String,
}

/// A result in the format of Text Embeddings Inference.
#[derive(Serialize, ToSchema)]
struct Rank {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// Orders documents by their relevance to a query.
pub(crate) async fn post(State(gateway): State<Gateway>, request: Request) -> HttpResult {
    let body = read_body(&gateway, request).await?;
    let asked: RerankBody<'_> = body.json("request")?;
    let (documents, plain) = match (asked.documents, asked.texts) {
        (Some(_), Some(_)) => {
            return Err(Problem::invalid_request("`documents` and `texts` are both present: send one"));
        }
        (Some(documents), None) => (read_documents(&documents)?, false),
        (None, Some(texts)) => (texts.into_iter().map(|text| text.0).collect(), true),
        (None, None) => return Err(missing("documents")),
    };
    check_count(&gateway, if plain { "texts" } else { "documents" }, documents.len())?;
    if asked.top_n == Some(0) {
        return Err(Problem::invalid_request("`top_n` must be at least 1"));
    }
    let wanted = match asked.model.as_deref() {
        Some(name) => ModelChoice::Named(name),
        None => ModelChoice::OnlyFor("rerank"),
    };
    let shows = if plain { asked.return_text } else { asked.return_documents }.unwrap_or_default();
    let mut kept = if shows { documents.clone() } else { Vec::new() };
    let request = RerankRequest {
        query: asked.query.ok_or_else(|| missing("query"))?.0,
        documents,
        raw: asked.raw_scores.unwrap_or_default(),
    };
    let rerank =
        |inference: Arc<dyn Inference>, model: Arc<Model>| async move { inference.rerank(&model, request).await };
    let (model, relevances) = run(&gateway, wanted, rerank).await?;
    let usage = Usage::of(relevances.iter().map(|relevance| relevance.tokens));
    let ranking = ranking(relevances, asked.top_n);
    let mut text = |index: usize| kept.get_mut(index).map(std::mem::take);
    if plain {
        let ranks = ranking.into_iter().map(|(index, r)| Rank { index, score: r.score, text: text(index) });
        return Ok(Json(ranks.collect::<Vec<_>>()).into_response());
    }
    let results = ranking.into_iter().map(|(index, relevance)| Scored {
        index,
        relevance_score: relevance.score,
        document: text(index).map(|text| ResponseDocument { text }),
        truncated: relevance.truncated,
    });
    let answer = Ranked {
        id: uuid::Uuid::now_v7().to_string(),
        model,
        results: results.collect(),
        meta: Meta { billed_units: BilledUnits { search_units: 1 } },
        usage,
    };
    Ok(Json(answer).into_response())
}

/// The documentation of [`post`].
pub(crate) fn docs(docs: Docs) -> Docs {
    let mut docs = model_docs(docs.body::<RerankBody<'_>>());
    let formats = one_of([docs.schema_of::<Ranked>(), list_of(docs.schema_of::<Rank>())]);
    docs.json_like(200, "The results, the most relevant first, in the format of the request", formats)
}

/// Sorts by relevance, highest first, with indices of the request.
fn ranking(relevances: Vec<Relevance>, top: Option<usize>) -> Vec<(usize, Relevance)> {
    let mut ranking: Vec<_> = relevances.into_iter().enumerate().collect();
    ranking.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
    ranking.truncate(top.unwrap_or(usize::MAX));
    ranking
}

fn read_documents(documents: &[&RawValue]) -> HttpResult<Vec<String>> {
    let read = |(index, document): (usize, &&RawValue)| {
        let text = match kind(document) {
            Kind::String => serde_json::from_str::<Text>(document.get()),
            _ => serde_json::from_str::<Document>(document.get()).map(|document| document.text),
        };
        text.map(|text| text.0).map_err(|error| {
            let wanted = "a string, or an object with a string `text`";
            Problem::invalid_request(format!("`documents[{index}]` must be {wanted}: {error}"))
        })
    };
    documents.iter().enumerate().map(read).collect()
}
