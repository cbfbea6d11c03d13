//! `/v1/answers`: questions in, answers out while they are made, resumable on any gateway.
//!
//! # Layout
//! - `prompt`: a question as the event that starts the pipeline.
//! - `reading`: one reader of one answer, and the same answer as server-sent events or whole.
//! - `chat`: the same over `/v1/chat/completions`, in OpenAI's shape.
//!
//! # Flow
//! `prompt.received` goes into the log; functions retrieve, generate and stream parts into ANSWERS; every reader reads
//! them there by itself, so that none waits for another, and each goes on by its last sequence wherever it connects.

pub(super) mod chat;
mod prompt;
mod reading;

use super::{
    Gateway,
    access::Caller,
    idempotency::{Keyed, Once},
    problem::{Answer, Problem},
    publish::{broker_problem, check_connected, publish, publish_problem},
    quotas::Wanted,
    sse,
};
use axum::{
    Json,
    body::Body,
    extract::{Extension, Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use nerve_broker::bus::{AnswerState, Ending};
use nerve_core::{Event, EventType, Origin, event::CORRELATION_ID};
use prompt::{Asked, Prompt, Question};
use reading::Reading;
use serde_json::Value;
use time::OffsetDateTime;

/// Type: another try is wanted.
const RETRY_REQUESTED: &str = "control.retry_requested";

/// Asks a question: the answer as it is made, or whole where the caller wants it so.
pub(super) async fn post(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Answer {
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_api_body).await?;
    let asked: Asked = serde_json::from_slice(&body.bytes)
        .map_err(|error| Problem::bad_request(format!("the request is no question: {error}")))?;
    let whole = asked.stream == Some(false) || (asked.stream.is_none() && wants_json(&parts.headers));
    let question = Question::of(asked, &caller)?;
    let keyed = Keyed { caller: &caller, route: "POST /v1/answers", head: &parts, body: &body.bytes };
    let once = Once::open(gateway.bus(), keyed).await?;
    let prompt = question.prompt(once.id())?;
    let location = HeaderValue::try_from(format!("/v1/answers/{}", once.id()));
    let location = location.map_err(|error| Problem::bad_request(error.to_string()))?;
    let reading = start(&gateway, &caller, &prompt, once).await?;
    let response = match whole {
        true => reading.whole().await.map(|answer| Json(answer).into_response()),
        false => Ok(sse::response(reading.frames())),
    };
    // An answer that failed has its place too, where another try is asked for.
    match response {
        Ok(mut response) => {
            response.headers_mut().insert(header::LOCATION, location);
            Ok(response)
        }
        Err(problem) => Err(problem.with(header::LOCATION, location)),
    }
}

/// Publishes the question and opens its answer, unless an earlier request under its key did; reads the answer from its beginning.
async fn start(gateway: &Gateway, caller: &Caller, prompt: &Prompt, once: Once<'_>) -> Answer<Reading> {
    let id = &prompt.event.id;
    if once.receipt().is_some() {
        let slot = gateway.stream_slot(caller)?;
        let reading = Reading::open(gateway, id.clone(), None, slot).await?;
        return read_again(gateway, caller, reading).await;
    }
    if !gateway.catalogue().takes(&prompt.event.ty) {
        let detail = "no function takes `prompt.received`, so nothing answers: deploy functions/rag/nerve.toml, or \
                      `nerve ingest` documents, which deploys it";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    }
    let slot = gateway.stream_slot(caller)?;
    check_connected(gateway.bus())?;
    let identity = Origin::nerve().identify(&prompt.event);
    let published = async {
        if !once.has_stored(&prompt.event, identity).await? {
            // Before the answer is opened, which nothing would end.
            gateway.check_quota(&prompt.collection, Wanted::Question).await?;
            gateway.bus().admit(&prompt.event).await.map_err(publish_problem)?;
            gateway.bus().publish_own(&prompt.opened).await.map_err(publish_problem)?;
        }
        once.publish(&prompt.event, identity).await
    };
    let (outcome, reading) = futures::join!(published, Reading::open(gateway, id.clone(), None, slot));
    let receipt = once.settle(outcome).await?;
    if receipt.is_duplicate() { read_again(gateway, caller, reading?).await } else { reading }
}

/// Reads the answer of an earlier request under the same key.
async fn read_again(gateway: &Gateway, caller: &Caller, reading: Reading) -> Answer<Reading> {
    let gone = || {
        let detail = format!(
            "the answer `{}` of this `Idempotency-Key` is gone: answers are kept for streams.answers_max_age; ask again \
             under a new key",
            reading.id
        );
        Problem::new(StatusCode::GONE, detail)
    };
    let state = visible_state(gateway, caller, &reading.id).await?.ok_or_else(gone)?;
    since_opened(gateway, &state, reading).await
}

/// Counts the time that the answer may take from when it was opened last.
async fn since_opened(gateway: &Gateway, state: &AnswerState, mut reading: Reading) -> Answer<Reading> {
    if !reading.count_from(state.opened_at)
        && let Some(again) = gateway.bus().opened_at(&reading.id).await.map_err(|error| broker_problem(&error))?
    {
        reading.count_from(again);
    }
    Ok(reading)
}

/// Goes on with an answer, after the part that the caller saw last.
pub(super) async fn get(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let after = headers.get("last-event-id").filter(|value| !value.is_empty());
    let after = after.map(|value| value.to_str().ok().and_then(|text| text.parse::<u64>().ok()).ok_or(()));
    let wrong = || Problem::bad_request("`Last-Event-ID` is wrong: it must be the `id` of a part of this answer");
    let after = after.transpose().map_err(|()| wrong())?;
    let slot = gateway.stream_slot(&caller)?;
    check_connected(gateway.bus())?;
    let state = state_of(&gateway, &caller, &id).await?;
    if state.ended && after.is_some_and(|after| after >= state.last_sequence) {
        // Browsers connect again for as long as they are not told this.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let whole = wants_json(&headers);
    let reading = Reading::open(&gateway, id, after, slot).await?;
    let reading = since_opened(&gateway, &state, reading).await?;
    if whole { Ok(Json(reading.whole().await?).into_response()) } else { Ok(sse::response(reading.frames())) }
}

/// Cancels an answer: what works on it stops, and its readers are told.
pub(super) async fn delete(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer {
    check_connected(gateway.bus())?;
    if !state_of(&gateway, &caller, &id).await?.ended {
        gateway.bus().end_answer(&id, Ending::Cancelled).await.map_err(publish_problem)?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Asks for another try at an answer that ended without one. A worker that hears of it does it, or says why not.
pub(super) async fn retry(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer {
    check_connected(gateway.bus())?;
    let state = state_of(&gateway, &caller, &id).await?;
    if !state.failed {
        let detail = match state.ended {
            true => format!("the answer `{id}` is done: GET /v1/answers/{id} has it"),
            false => format!("the answer `{id}` is being made: there is nothing to try again yet"),
        };
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let ty = EventType::parse(RETRY_REQUESTED).map_err(|error| Problem::bad_request(error.to_string()))?;
    // At this place of the answer it is one request, however often it is sent.
    let event = Event::new(format!("{id}#retry#{}", state.last_sequence), "/v1/answers", ty);
    let event = event.with_extension(CORRELATION_ID, &*id);
    let mut event = event.with_data("application/json", serde_json::json!({"answer": id}).to_string().into_bytes());
    event.time = Some(OffsetDateTime::now_utc());
    let receipt = publish(gateway.bus(), &event, caller.origin().identify(&event)).await?;
    Ok(json(StatusCode::ACCEPTED, &receipt))
}

/// The answer of this id, if the caller may see it.
pub(super) async fn state_of(gateway: &Gateway, caller: &Caller, id: &str) -> Answer<AnswerState> {
    let unknown = || {
        Problem::not_found(format!("there is no answer `{id}`: it was never asked for, or so long ago that it is gone"))
    };
    visible_state(gateway, caller, id).await?.ok_or_else(unknown)
}

/// The answer of this id, if there is one and the caller may see it.
///
/// Its owner is the collection in its first part, when the gateway made that: whatever else is published to the id later, and
/// whatever is left of the answer once its first part has expired, has no owner, and only callers that see everything see it.
async fn visible_state(gateway: &Gateway, caller: &Caller, id: &str) -> Answer<Option<AnswerState>> {
    let state = gateway.bus().answer_state(id).await.map_err(|error| broker_problem(&error))?;
    Ok(state.filter(|state| caller.may_see(prompt::owner_of(&state.first).as_deref())))
}

fn wants_json(headers: &HeaderMap) -> bool {
    let accepts = |wanted: &str| {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().starts_with(wanted))
    };
    accepts("application/json") && !accepts("text/event-stream")
}

/// What a response is when the answer failed.
fn failure(data: &Value) -> Problem {
    let text = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or_default();
    let detail = match text("function") {
        "" => text("message").to_owned(),
        function => format!("the function `{function}` failed: {}", text("message")),
    };
    let status = match text("kind") {
        "timeout" => StatusCode::GATEWAY_TIMEOUT,
        "cancelled" => StatusCode::CONFLICT,
        _ => StatusCode::BAD_GATEWAY,
    };
    Problem::new(status, detail)
}

/// A response of JSON with this status.
fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    (status, Json(value)).into_response()
}
