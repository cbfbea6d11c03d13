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
use nerve_core::{Event, event::CORRELATION_ID};
use nerve_events::{
    EventData,
    documents::{DEFAULT_COLLECTION, DocumentDeleted, DocumentUploaded},
    feedback::FeedbackSubmitted,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use utoipa::IntoParams;

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
        media_type => fields(&raw(&body.bytes, media_type, &query)?)?,
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
    let mut event = event::<DocumentUploaded>(once.id(), &data)?;
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
    let deleted = DocumentDeleted {
        document: document.clone(),
        collection: Some(collection.clone()),
        ..DocumentDeleted::default()
    };
    // A deletion has no body.
    let (parts, _) = request.into_parts();
    let keyed = Keyed { caller: &caller, route: "DELETE /v1/documents", head: &parts, body: b"" };
    let once = Once::open(gateway.bus(), keyed).await?;
    let mut event = event::<DocumentDeleted>(once.id(), &deleted)?;
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

/// Accepts feedback on an answer.
pub(crate) async fn feedback(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> HttpResult {
    let (parts, body) = gateway.read_api(request).await?;
    let given: FeedbackSubmitted = body.json("feedback")?;
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
    let event = event::<FeedbackSubmitted>(once.id(), &given)?.with_extension(CORRELATION_ID, given.answer);
    let collection = match &caller {
        Caller::Collection(own) => Some(own.as_str()),
        Caller::Any(_) => None,
    };
    publish_once(&gateway, &caller, once, Submission { event, collection, wanted: QuotaUse::Event }).await
}

/// The data of a body that is the document.
fn raw(body: &Bytes, media_type: &str, query: &DocumentQuery) -> HttpResult<DocumentUploaded> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let (text, data) = match std::str::from_utf8(body) {
        Ok("") => return Err(Problem::invalid_request("the body is empty")),
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64_STANDARD.encode(body))),
    };
    let says_nothing = ["", "application/octet-stream", "application/x-www-form-urlencoded"].contains(&media_type);
    let media_type = (!says_nothing).then(|| media_type.to_owned());
    let name = query.name.clone().or_else(|| query.document.clone());
    Ok(DocumentUploaded { text, data, media_type, name, ..DocumentUploaded::default() })
}

/// The fields of a document, as those of a body that describes it.
fn fields(document: &DocumentUploaded) -> HttpResult<Map<String, Value>> {
    let fields = serde_json::to_value(document).and_then(serde_json::from_value);
    fields.map_err(|error| Problem::invalid_request(error.to_string()))
}

fn event<T: EventData>(id: &str, data: &impl Serialize) -> HttpResult<Event> {
    let data = serde_json::to_vec(data).map_err(|error| Problem::invalid_request(error.to_string()))?;
    let event = Event::new(id, "/v1/documents", T::event_type());
    let mut event = event.with_data("application/json", data);
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
        .body_like("application/json", event_schema(DocumentUploaded::TYPE))
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
    let docs = docs
        .body_like("application/json", event_schema(FeedbackSubmitted::TYPE))
        .problems(&[ProblemType::NotFound, ProblemType::InvalidJson]);
    accepted_docs(docs).idempotent().problems(QUOTAS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn raw_body_keeps_its_content_and_media_type() {
        let query = DocumentQuery { document: Some("a.md".into()), ..DocumentQuery::default() };
        let text = raw(&Bytes::from_static(b"# Fees"), "text/markdown", &query).unwrap();
        let expected = json!({"text": "# Fees", "media_type": "text/markdown", "name": "a.md"});
        assert_eq!(Value::Object(fields(&text).unwrap()), expected);
        let bytes = raw(&Bytes::from_static(b"%PDF\xff"), "application/pdf", &query).unwrap();
        assert_eq!(bytes.data.as_deref(), Some("JVBERv8="));
        assert!(raw(&Bytes::new(), "text/plain", &query).is_err());
        let form = raw(&Bytes::from_static(b"x"), "application/x-www-form-urlencoded", &query).unwrap();
        assert_eq!(form.media_type, None);
    }
}
