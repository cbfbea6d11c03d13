//! `/v1/answers`: asks questions and streams answers, resumable on any gateway.
//!
//! # Layout
//! - `prompt`: the event of a question, which starts the pipeline.
//! - `stream`: reads an answer, as server-sent events or complete.
//! - `chat`: the same over `/v1/chat/completions`, in OpenAI's shape.
//!
//! # Flow
//! `prompt.received` is published; functions retrieve, generate and stream parts into ANSWERS. Each client reads them from there on its own,
//! so that no client waits for another, and resumes from its last sequence on any gateway.

pub(crate) mod chat;
mod prompt;
mod stream;

use crate::{
    Gateway,
    api::{
        auth::Caller,
        idempotency::{Keyed, Once},
        openapi::{BROKER, Docs, event_schema, text},
        quotas::QuotaUse,
        sse,
    },
    http::problem::{HttpResult, Problem, ProblemType},
    publish::{Receipt, broker_problem, check_connected, publish, publish_problem},
};
use axum::{
    Json,
    body::Body,
    extract::{Extension, Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use nerve_broker::bus::{AnswerState, EndReason};
use nerve_core::{Event, Origin, event::CORRELATION_ID};
use nerve_events::{
    EventData,
    answers::{AnswerFailed, FailureKind},
    control::ControlRetryRequested,
};
use prompt::{Prompt, Question, QuestionRequest};
use stream::AnswerStream;
use time::OffsetDateTime;
use utoipa::openapi::{
    RefOr, Schema,
    schema::{AllOfBuilder, ObjectBuilder},
};

/// Asks a question. Streams the answer, or responds with the complete one on request.
pub(crate) async fn post(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> HttpResult {
    let (parts, body) = gateway.read_api(request).await?;
    let asked: QuestionRequest = body.json("question")?;
    let whole = asked.stream == Some(false) || (asked.stream.is_none() && wants_json(&parts.headers));
    let question = Question::of(asked, &caller)?;
    let keyed = Keyed { caller: &caller, route: "POST /v1/answers", head: &parts, body: &body.bytes };
    let once = Once::open(gateway.bus(), keyed).await?;
    let prompt = question.prompt(once.id())?;
    let location = HeaderValue::try_from(format!("/v1/answers/{}", once.id()));
    let location = location.map_err(|error| Problem::invalid_request(error.to_string()))?;
    let answer = start(&gateway, &caller, &prompt, once).await?;
    let response = match whole {
        true => answer.whole().await.map(|answer| Json(answer).into_response()),
        false => Ok(sse::resumable(answer)),
    };
    // A failed answer has a location too, for a retry.
    match response {
        Ok(mut response) => {
            response.headers_mut().insert(header::LOCATION, location);
            Ok(response)
        }
        Err(problem) => Err(problem.with(header::LOCATION, location)),
    }
}

/// Publishes the question and opens its answer, unless an earlier request with the same key did. Reads the answer from its beginning.
async fn start(gateway: &Gateway, caller: &Caller, prompt: &Prompt, once: Once<'_>) -> HttpResult<AnswerStream> {
    let id = &prompt.event.id;
    if once.receipt().is_some() {
        let slot = gateway.stream_slot(caller)?;
        let answer = AnswerStream::open(gateway, id.clone(), None, slot).await?;
        return read_existing(gateway, caller, answer).await;
    }
    if !gateway.catalogue().has_consumer(&prompt.event.ty) {
        let detail = "no deployed function handles `prompt.received`: deploy functions/rag/nerve.toml, or run `nerve ingest`, which \
                      deploys it";
        return Err(Problem::new(ProblemType::NotDeployed, detail));
    }
    let slot = gateway.stream_slot(caller)?;
    check_connected(gateway.bus())?;
    let identity = Origin::nerve().identify(&prompt.event);
    let published = async {
        if !once.has_stored(&prompt.event, identity).await? {
            // Before the answer is opened, which nothing would end.
            gateway.check_quota(&prompt.collection, QuotaUse::Question).await?;
            gateway.bus().admit(&prompt.event).await.map_err(publish_problem)?;
            gateway.bus().publish_own(&prompt.opened).await.map_err(publish_problem)?;
        }
        once.publish(&prompt.event, identity).await
    };
    let (outcome, answer) = futures::join!(published, AnswerStream::open(gateway, id.clone(), None, slot));
    let receipt = once.settle(outcome).await?;
    if receipt.is_duplicate() { read_existing(gateway, caller, answer?).await } else { answer }
}

/// Reads the answer of an earlier request with the same key.
async fn read_existing(gateway: &Gateway, caller: &Caller, answer: AnswerStream) -> HttpResult<AnswerStream> {
    let gone = || {
        let detail = format!(
            "the answer `{}` of this `Idempotency-Key` has expired (streams.answers_max_age): ask again with a new key",
            answer.id
        );
        Problem::new(ProblemType::AnswerExpired, detail)
    };
    let state = visible_state(gateway, caller, &answer.id).await?.ok_or_else(gone)?;
    with_deadline(gateway, &state, answer).await
}

/// Starts the answer's timeout at the time when it was opened last.
async fn with_deadline(gateway: &Gateway, state: &AnswerState, mut answer: AnswerStream) -> HttpResult<AnswerStream> {
    if !answer.start_timeout_at(state.opened_at)
        && let Some(again) = gateway.bus().opened_at(&answer.id).await.map_err(|error| broker_problem(&error))?
    {
        answer.start_timeout_at(again);
    }
    Ok(answer)
}

/// Reads an answer after the last part that the client received.
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> HttpResult {
    let after = headers.get("last-event-id").filter(|value| !value.is_empty());
    let after = after.map(|value| value.to_str().ok().and_then(|text| text.parse::<u64>().ok()).ok_or(()));
    let wrong = || Problem::invalid_request("invalid `Last-Event-ID`: it must be the `id` of a part of this answer");
    let after = after.transpose().map_err(|()| wrong())?;
    let slot = gateway.stream_slot(&caller)?;
    check_connected(gateway.bus())?;
    let state = state_of(&gateway, &caller, &id).await?;
    if state.ended && after.is_some_and(|after| after >= state.last_sequence) {
        // 204 stops browsers from reconnecting.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let whole = wants_json(&headers);
    let answer = AnswerStream::open(&gateway, id, after, slot).await?;
    let answer = with_deadline(&gateway, &state, answer).await?;
    if whole { Ok(Json(answer.whole().await?).into_response()) } else { Ok(sse::resumable(answer)) }
}

/// Cancels an answer: functions stop working on it, and its clients get an error.
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> HttpResult {
    check_connected(gateway.bus())?;
    if !state_of(&gateway, &caller, &id).await?.ended {
        gateway.bus().end_answer(&id, EndReason::Cancelled).await.map_err(publish_problem)?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Requests that a failed answer is generated again.
pub(crate) async fn retry(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> HttpResult {
    check_connected(gateway.bus())?;
    let state = state_of(&gateway, &caller, &id).await?;
    if !state.failed {
        let detail = match state.ended {
            true => format!("the answer `{id}` is complete: GET /v1/answers/{id}"),
            false => format!("the answer `{id}` is in progress, and can be retried only after it failed"),
        };
        return Err(Problem::new(ProblemType::Conflict, detail));
    }
    // Repeated requests at the same point of the answer are one.
    let request_id = format!("{id}#retry#{}", state.last_sequence);
    let event = Event::new(request_id, "/v1/answers", ControlRetryRequested::event_type());
    let event = event.with_extension(CORRELATION_ID, &*id);
    let request = ControlRetryRequested { answer: Some(id), dead_letter: None };
    let data = serde_json::to_vec(&request).map_err(|error| Problem::invalid_request(error.to_string()))?;
    let mut event = event.with_data("application/json", data);
    event.time = Some(OffsetDateTime::now_utc());
    let receipt = publish(gateway.bus(), &event, caller.origin().identify(&event)).await?;
    Ok(json(StatusCode::ACCEPTED, &receipt))
}

/// What a request for an answer may be refused with.
const ANSWER_PROBLEMS: &[ProblemType] =
    &[ProblemType::Conflict, ProblemType::FunctionFailed, ProblemType::Timeout, ProblemType::NotFound];
/// The same for a question.
const QUESTION_PROBLEMS: &[ProblemType] =
    &[ProblemType::NotDeployed, ProblemType::AnswerExpired, ProblemType::QuotaExceeded, ProblemType::InvalidEvent];

/// An answer, as a stream or complete.
fn answer_docs(docs: Docs) -> Docs {
    let described = "The parts of the answer as they are generated, or the complete answer";
    docs.stream(200, described).json_like(200, described, whole_answer()).problems(ANSWER_PROBLEMS)
}

/// The schema of a complete answer.
fn whole_answer() -> RefOr<Schema> {
    let id = ObjectBuilder::new().property("id", text()).required("id");
    AllOfBuilder::new().item(event_schema("answer.generated")).item(id).into()
}

/// The documentation of [`post`].
pub(crate) fn post_docs(mut docs: Docs) -> Docs {
    // Fields that functions read are those of the event.
    let question =
        AllOfBuilder::new().item(docs.schema_of::<QuestionRequest>()).item(event_schema("prompt.received")).into();
    answer_docs(docs.body_like("application/json", question))
        .problems(QUESTION_PROBLEMS)
        .problems(&[ProblemType::InvalidJson])
        .idempotent()
}

/// The documentation of [`get`].
pub(crate) fn get_docs(docs: Docs) -> Docs {
    let docs = docs.path("id", "The id of the answer");
    answer_docs(docs.resumable("The id of the last part that the client has"))
        .empty(204, "The client has the complete answer")
        .problems(BROKER)
}

/// The documentation of [`delete`].
pub(crate) fn delete_docs(docs: Docs) -> Docs {
    docs.path("id", "The id of the answer").empty(204, "The answer has ended").problems(BROKER)
}

/// The documentation of [`retry`].
pub(crate) fn retry_docs(docs: Docs) -> Docs {
    docs.path("id", "The id of the answer")
        .json::<Receipt>(202, "The request to generate it again is stored")
        .problems(&[ProblemType::Conflict])
        .problems(BROKER)
}

/// The state of an answer.
///
/// # Errors
/// 404 if there is none that the caller may see.
pub(crate) async fn state_of(gateway: &Gateway, caller: &Caller, id: &str) -> HttpResult<AnswerState> {
    let unknown = || Problem::not_found(format!("answer `{id}` not found or expired"));
    visible_state(gateway, caller, id).await?.ok_or_else(unknown)
}

/// The state of an answer; `None` if there is none that the caller may see.
///
/// Its owner is the collection of its first part, if the gateway published that. An answer without that part, or whose first part has expired,
/// has no owner: only callers with access to all collections see it.
async fn visible_state(gateway: &Gateway, caller: &Caller, id: &str) -> HttpResult<Option<AnswerState>> {
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

/// The problem of a failed answer.
fn failure(data: &[u8]) -> Problem {
    let unknown = |_| AnswerFailed { kind: FailureKind::Failed, message: String::new(), function: None };
    let AnswerFailed { kind, message, function } = serde_json::from_slice(data).unwrap_or_else(unknown);
    let detail = match function {
        None => message,
        Some(function) => format!("the function `{function}` failed: {message}"),
    };
    let ty = match kind {
        FailureKind::Timeout => ProblemType::Timeout,
        FailureKind::Cancelled => ProblemType::Conflict,
        FailureKind::Failed => ProblemType::FunctionFailed,
    };
    Problem::new(ty, detail)
}

/// A response of JSON with this status.
fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    (status, Json(value)).into_response()
}
