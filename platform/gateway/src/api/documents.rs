//! `/v1/documents` and `/v1/feedback`: documents and ratings become events.

use crate::{
    Gateway,
    api::{
        answers::state_of,
        auth::Caller,
        cloudevents::essence,
        idempotency::{Keyed, Once},
        openapi::{BROKER, Docs, event_schema, text},
        quotas::QuotaUse,
    },
    http::problem::{HttpResult, Problem, ProblemType},
    publish::{accepted, accepted_docs, check_connected},
};
use axum::{
    body::Body,
    extract::{Extension, Path, Query, Request, State, rejection::QueryRejection},
};
use bytes::Bytes;
use nerve_core::{Event, EventType, event::CORRELATION_ID};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

const UPLOADED: &str = "document.uploaded";
const DELETED: &str = "document.deleted";
const FEEDBACK: &str = "feedback.submitted";
const DEFAULT_COLLECTION: &str = "default";

/// The query of an upload whose body is the document.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct DocumentQuery {
    /// The document's id; a later upload with the same id replaces it.
    document: Option<String>,
    /// A file's name, or a page's title.
    name: Option<String>,
    /// The collection of the document; by default that of the key, else `default`.
    collection: Option<String>,
}

/// Accepts a document: JSON that describes it, or the document itself with its name in the query. Responds 202 once JetStream has
/// acknowledged it; it is searchable after `document.indexed`.
pub(crate) async fn post(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<DocumentQuery>, QueryRejection>,
    request: Request<Body>,
) -> HttpResult {
    let Query(query) = query.map_err(unknown_parameter)?;
    let (parts, body) = gateway.read(request, gateway.config().max_document).await?;
    let mut data = match essence(&parts.headers).as_str() {
        "application/json" => body.json("document")?,
        media_type => raw(&body.bytes, media_type, &query)?,
    };
    let named = data.get("collection").and_then(Value::as_str).map(str::to_owned).or(query.collection);
    let collection = caller.collection(named, DEFAULT_COLLECTION)?;
    let Some(document) = data.get("document").and_then(Value::as_str).or(query.document.as_deref()) else {
        let detail = "`document` is missing: the id by which a later upload replaces the document";
        return Err(Problem::invalid_request(detail));
    };
    let document = document.to_owned();
    data.insert("collection".to_owned(), collection.as_str().into());
    data.insert("document".to_owned(), document.clone().into());
    if !["text", "data"].iter().any(|field| data.get(*field).is_some_and(Value::is_string)) {
        return Err(Problem::invalid_request("the document has no content: send `text`, or `data` in Base64"));
    }
    // The text length of other formats is known only after they are read.
    let bytes = data.get("text").and_then(Value::as_str).map_or(0, str::len);
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let keyed = Keyed { caller: &caller, route: "POST /v1/documents", head: &parts, body: &body.bytes };
    let once = Once::open(gateway.bus(), keyed).await?;
    let mut event = event(once.id(), UPLOADED, data)?;
    event.subject = Some(document.clone());
    let (collection, wanted) = (Some(collection.as_str()), QuotaUse::Document(&document, bytes));
    publish_once(&gateway, &caller, once, Submission { event, collection, wanted }).await
}

/// Deletes a document from its collection.
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    Path(document): Path<String>,
    query: Result<Query<DocumentQuery>, QueryRejection>,
    request: Request<Body>,
) -> HttpResult {
    let Query(query) = query.map_err(unknown_parameter)?;
    let collection = caller.collection(query.collection, DEFAULT_COLLECTION)?;
    let data = json!({"document": document, "collection": &collection});
    // A deletion has no body.
    let (parts, _) = request.into_parts();
    let keyed = Keyed { caller: &caller, route: "DELETE /v1/documents", head: &parts, body: b"" };
    let once = Once::open(gateway.bus(), keyed).await?;
    let mut event = event(once.id(), DELETED, data.as_object().cloned().unwrap_or_default())?;
    event.subject = Some(document);
    let (collection, wanted) = (Some(collection.as_str()), QuotaUse::Event);
    publish_once(&gateway, &caller, once, Submission { event, collection, wanted }).await
}

/// The event of a request.
struct Submission<'r> {
    event: Event,
    /// The collection whose quota applies.
    collection: Option<&'r str>,
    wanted: QuotaUse<'r>,
}

/// Publishes the event of a request, unless an earlier request with the same key did. Responds 202 once JetStream has acknowledged it.
async fn publish_once(gateway: &Gateway, caller: &Caller, once: Once<'_>, submitted: Submission<'_>) -> HttpResult {
    let Submission { event, collection, wanted } = submitted;
    if let Some(receipt) = once.receipt() {
        return Ok(accepted(&receipt));
    }
    let publish = async {
        if let Some(collection) = collection {
            gateway.check_quota(collection, wanted).await?;
        }
        once.publish(&event, caller.origin().identify(&event)).await
    };
    let outcome = publish.await;
    once.settle(outcome).await.map(|receipt| accepted(&receipt))
}

/// A rating or correction of an answer.
#[derive(Debug, Deserialize, ToSchema)]
struct Feedback {
    /// The answer's id.
    answer: String,
    /// From -1, wrong, to 1, right.
    rating: Option<f64>,
    /// The right answer.
    correction: Option<String>,
    /// The chunk that supports it.
    citation: Option<String>,
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    rest: Map<String, Value>,
}

/// Accepts feedback on an answer.
pub(crate) async fn feedback(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> HttpResult {
    let (parts, body) = gateway.read_api(request).await?;
    let given: Feedback = body.json("feedback")?;
    if given.rating.is_none() && given.correction.is_none() && given.citation.is_none() {
        let detail = "feedback requires `rating` (-1 to 1), `correction` or `citation` (a chunk)";
        return Err(Problem::invalid_request(detail));
    }
    if given.rating.is_some_and(|rating| !(-1.0..=1.0).contains(&rating)) {
        return Err(Problem::invalid_request("`rating` must be from -1 to 1"));
    }
    check_connected(gateway.bus())?;
    let keyed = Keyed { caller: &caller, route: "POST /v1/feedback", head: &parts, body: &body.bytes };
    let once = Once::open(gateway.bus(), keyed).await?;
    // A repeated request succeeds although the answer may have expired since.
    if once.receipt().is_none()
        && !matches!(caller, Caller::Any(_))
        && let Err(problem) = state_of(&gateway, &caller, &given.answer).await
    {
        return once.settle(Err(problem)).await.map(|receipt| accepted(&receipt));
    }
    let mut data = given.rest;
    let said = [
        ("rating", given.rating.map(Value::from)),
        ("correction", given.correction.map(Value::from)),
        ("citation", given.citation.map(Value::from)),
    ];
    data.extend(said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    data.insert("answer".to_owned(), given.answer.as_str().into());
    let event = event(once.id(), FEEDBACK, data)?.with_extension(CORRELATION_ID, given.answer);
    let collection = match &caller {
        Caller::Collection(own) => Some(own.as_str()),
        Caller::Any(_) => None,
    };
    publish_once(&gateway, &caller, once, Submission { event, collection, wanted: QuotaUse::Event }).await
}

/// The data of a body that is the document.
fn raw(body: &Bytes, media_type: &str, query: &DocumentQuery) -> HttpResult<Map<String, Value>> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let mut data = Map::new();
    match std::str::from_utf8(body) {
        Ok("") => return Err(Problem::invalid_request("the body is empty")),
        Ok(text) => data.insert("text".to_owned(), text.into()),
        Err(_) => data.insert("data".to_owned(), BASE64_STANDARD.encode(body).into()),
    };
    if !media_type.is_empty()
        && media_type != "application/octet-stream"
        && media_type != "application/x-www-form-urlencoded"
    {
        data.insert("media_type".to_owned(), media_type.into());
    }
    if let Some(name) = query.name.as_ref().or(query.document.as_ref()) {
        data.insert("name".to_owned(), name.as_str().into());
    }
    Ok(data)
}

fn event(id: &str, ty: &str, data: Map<String, Value>) -> HttpResult<Event> {
    let ty = EventType::parse(ty).map_err(|error| Problem::invalid_request(error.to_string()))?;
    let event = Event::new(id, "/v1/documents", ty);
    let mut event = event.with_data("application/json", Value::Object(data).to_string().into_bytes());
    event.time = Some(OffsetDateTime::now_utc());
    Ok(event)
}

fn unknown_parameter(rejection: QueryRejection) -> Problem {
    Problem::invalid_query(&rejection, "`document`, `name` and `collection`")
}

/// The problems of a request about a collection.
const QUOTAS: &[ProblemType] =
    &[ProblemType::QuotaExceeded, ProblemType::StorageQuotaExceeded, ProblemType::InvalidEvent];

/// The documentation of [`post`].
pub(crate) fn post_docs(docs: Docs) -> Docs {
    let docs = docs
        .query::<DocumentQuery>()
        .body_like("application/json", event_schema(UPLOADED))
        .body_like("text/plain", text())
        .body_like("text/markdown", text())
        .body_like("application/octet-stream", text());
    accepted_docs(docs).idempotent().problems(QUOTAS).problems(&[ProblemType::InvalidJson])
}

/// The documentation of [`delete`].
pub(crate) fn delete_docs(docs: Docs) -> Docs {
    let docs = docs.path("document", "The id of the document").query::<DocumentQuery>();
    accepted_docs(docs).idempotent().problems(QUOTAS).problems(BROKER)
}

/// The documentation of [`feedback`].
pub(crate) fn feedback_docs(docs: Docs) -> Docs {
    let docs = docs.body::<Feedback>().problems(&[ProblemType::NotFound]);
    accepted_docs(docs).idempotent().problems(QUOTAS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_body_keeps_its_content_and_media_type() {
        let query = DocumentQuery { document: Some("a.md".into()), ..DocumentQuery::default() };
        let text = raw(&Bytes::from_static(b"# Fees"), "text/markdown", &query).unwrap();
        assert_eq!(Value::Object(text), json!({"text": "# Fees", "media_type": "text/markdown", "name": "a.md"}));
        let bytes = raw(&Bytes::from_static(b"%PDF\xff"), "application/pdf", &query).unwrap();
        assert_eq!(bytes["data"], "JVBERv8=");
        assert!(raw(&Bytes::new(), "text/plain", &query).is_err());
        assert!(
            !raw(&Bytes::from_static(b"x"), "application/x-www-form-urlencoded", &query)
                .unwrap()
                .contains_key("media_type")
        );
    }
}
