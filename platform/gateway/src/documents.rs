//! `/v1/documents` and `/v1/feedback`: what callers say of documents and of answers, as events.

use super::{
    Gateway,
    access::Caller,
    answers::state_of,
    idempotency::{Keyed, Once},
    modes::essence,
    problem::{Answer, Problem},
    publish::{accepted, check_connected},
    quotas::Wanted,
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

const UPLOADED: &str = "document.uploaded";
const DELETED: &str = "document.deleted";
const FEEDBACK: &str = "feedback.submitted";
const DEFAULT_COLLECTION: &str = "default";

/// Where a document is, when its body is the document itself.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    /// What a later upload replaces.
    document: Option<String>,
    /// A file's name, or a page's title.
    name: Option<String>,
    collection: Option<String>,
}

/// Takes a document: JSON that describes it, or the document itself with its name in the query. 202 once JetStream
/// has it; it is found when `document.indexed` says so.
pub(super) async fn post(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    place: Result<Query<Place>, QueryRejection>,
    request: Request<Body>,
) -> Answer {
    let Query(place) = place.map_err(unknown_parameter)?;
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_document).await?;
    let mut data = match essence(&parts.headers).as_str() {
        "application/json" => described(&body.bytes)?,
        media_type => raw(&body.bytes, media_type, &place)?,
    };
    let named = data.get("collection").and_then(Value::as_str).map(str::to_owned).or(place.collection);
    let collection = caller.collection(named, DEFAULT_COLLECTION)?;
    let Some(document) = data.get("document").and_then(Value::as_str).or(place.document.as_deref()) else {
        let detail = "the document has no name: say `document`, by which a later upload replaces it";
        return Err(Problem::bad_request(detail));
    };
    let document = document.to_owned();
    data.insert("collection".to_owned(), collection.as_str().into());
    data.insert("document".to_owned(), document.clone().into());
    if !["text", "data"].iter().any(|field| data.get(*field).is_some_and(Value::is_string)) {
        return Err(Problem::bad_request("the document has no content: send `text`, or `data` in Base64"));
    }
    // Of what is not text only its reader knows how much there is in it.
    let bytes = data.get("text").and_then(Value::as_str).map_or(0, str::len);
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let keyed = Keyed { caller: &caller, route: "POST /v1/documents", head: &parts, body: &body.bytes };
    let once = Once::open(gateway.bus(), keyed).await?;
    let mut event = event(once.id(), UPLOADED, data)?;
    event.subject = Some(document.clone());
    let (collection, wanted) = (Some(collection.as_str()), Wanted::Document(&document, bytes));
    publish_once(&gateway, &caller, once, Submitted { event, collection, wanted }).await
}

/// Removes a document from its collection.
pub(super) async fn delete(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    Path(document): Path<String>,
    place: Result<Query<Place>, QueryRejection>,
    request: Request<Body>,
) -> Answer {
    let Query(place) = place.map_err(unknown_parameter)?;
    let collection = caller.collection(place.collection, DEFAULT_COLLECTION)?;
    let data = json!({"document": document, "collection": &collection});
    // A deletion has no body.
    let (parts, _) = request.into_parts();
    let keyed = Keyed { caller: &caller, route: "DELETE /v1/documents", head: &parts, body: b"" };
    let once = Once::open(gateway.bus(), keyed).await?;
    let mut event = event(once.id(), DELETED, data.as_object().cloned().unwrap_or_default())?;
    event.subject = Some(document);
    let (collection, wanted) = (Some(collection.as_str()), Wanted::Event);
    publish_once(&gateway, &caller, once, Submitted { event, collection, wanted }).await
}

/// What a request says.
struct Submitted<'r> {
    event: Event,
    /// The collection whose quota it counts for.
    collection: Option<&'r str>,
    wanted: Wanted<'r>,
}

/// Publishes what a request says, unless an earlier one under its key did; 202 once JetStream has it.
async fn publish_once(gateway: &Gateway, caller: &Caller, once: Once<'_>, submitted: Submitted<'_>) -> Answer {
    let Submitted { event, collection, wanted } = submitted;
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

/// What is said of an answer.
#[derive(Debug, Deserialize)]
struct Feedback {
    /// The answer's id.
    answer: String,
    /// From -1, wrong, to 1, right.
    rating: Option<f64>,
    /// What would have been right.
    correction: Option<String>,
    /// The chunk that says it.
    citation: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Takes what somebody thinks of an answer.
pub(super) async fn feedback(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Answer {
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_api_body).await?;
    let given: Feedback = serde_json::from_slice(&body.bytes)
        .map_err(|error| Problem::bad_request(format!("the request is no feedback: {error}")))?;
    if given.rating.is_none() && given.correction.is_none() && given.citation.is_none() {
        let detail = "there is no feedback in it: say `rating` (-1 to 1), `correction` or `citation` (a chunk)";
        return Err(Problem::bad_request(detail));
    }
    if given.rating.is_some_and(|rating| !(-1.0..=1.0).contains(&rating)) {
        return Err(Problem::bad_request("`rating` must be from -1 to 1"));
    }
    check_connected(gateway.bus())?;
    let keyed = Keyed { caller: &caller, route: "POST /v1/feedback", head: &parts, body: &body.bytes };
    let once = Once::open(gateway.bus(), keyed).await?;
    // What was stored once stays so, also when the answer is gone since.
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
    publish_once(&gateway, &caller, once, Submitted { event, collection, wanted: Wanted::Event }).await
}

fn described(body: &Bytes) -> Answer<Map<String, Value>> {
    serde_json::from_slice(body).map_err(|error| Problem::bad_request(format!("the request is no document: {error}")))
}

/// A body that is the document.
fn raw(body: &Bytes, media_type: &str, place: &Place) -> Answer<Map<String, Value>> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let mut data = Map::new();
    match std::str::from_utf8(body) {
        Ok("") => return Err(Problem::bad_request("the body is empty")),
        Ok(text) => data.insert("text".to_owned(), text.into()),
        Err(_) => data.insert("data".to_owned(), BASE64_STANDARD.encode(body).into()),
    };
    if !media_type.is_empty()
        && media_type != "application/octet-stream"
        && media_type != "application/x-www-form-urlencoded"
    {
        data.insert("media_type".to_owned(), media_type.into());
    }
    if let Some(name) = place.name.as_ref().or(place.document.as_ref()) {
        data.insert("name".to_owned(), name.as_str().into());
    }
    Ok(data)
}

fn event(id: &str, ty: &str, data: Map<String, Value>) -> Answer<Event> {
    let ty = EventType::parse(ty).map_err(|error| Problem::bad_request(error.to_string()))?;
    let event = Event::new(id, "/v1/documents", ty);
    let mut event = event.with_data("application/json", Value::Object(data).to_string().into_bytes());
    event.time = Some(OffsetDateTime::now_utc());
    Ok(event)
}

fn unknown_parameter(rejection: QueryRejection) -> Problem {
    let known = "`document`, `name` and `collection` are known";
    Problem::bad_request(format!("{}; {known}", rejection.body_text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_the_document_keeps_what_it_is() {
        let place = Place { document: Some("a.md".into()), ..Place::default() };
        let text = raw(&Bytes::from_static(b"# Fees"), "text/markdown", &place).unwrap();
        assert_eq!(Value::Object(text), json!({"text": "# Fees", "media_type": "text/markdown", "name": "a.md"}));
        let bytes = raw(&Bytes::from_static(b"%PDF\xff"), "application/pdf", &place).unwrap();
        assert_eq!(bytes["data"], "JVBERv8=");
        assert!(raw(&Bytes::new(), "text/plain", &place).is_err());
        assert!(
            !raw(&Bytes::from_static(b"x"), "application/x-www-form-urlencoded", &place)
                .unwrap()
                .contains_key("media_type")
        );
    }
}
