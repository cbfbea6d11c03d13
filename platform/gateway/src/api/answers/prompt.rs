//! The event of a question, which starts the pipeline, and the first part of its answer.

use crate::{
    api::auth::Caller,
    http::problem::{HttpResult, Problem},
};
use nerve_core::{Event, event::CORRELATION_ID};
use nerve_events::{EventData, answers::AnswerOpened, documents::DEFAULT_COLLECTION, retrieval::PromptReceived};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// The source of a question and of the first part of its answer. External events and events of functions cannot have it.
const SOURCE: &str = "/v1/answers";

/// The body of `POST /v1/answers`. Other fields are passed through to every function.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct QuestionRequest {
    /// The question.
    #[schema(min_length = 1)]
    #[serde(alias = "prompt")]
    pub(crate) question: String,
    /// The collection to search.
    pub(crate) collection: Option<String>,
    /// Maximum number of documents to retrieve.
    #[schema(minimum = 1)]
    pub(crate) limit: Option<u64>,
    /// Whether to stream the answer.
    pub(crate) stream: Option<bool>,
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    pub(crate) rest: Map<String, Value>,
}

/// A valid question.
pub(crate) struct Question {
    /// The data of its event: [`PromptReceived`], with the fields as they came.
    data: Map<String, Value>,
    collection: String,
}

/// The events of a question.
pub(crate) struct Prompt {
    /// `prompt.received`, whose id is the answer's.
    pub(crate) event: Event,
    /// `answer.opened`, which names the answer's owner.
    pub(crate) opened: Event,
    /// The collection.
    pub(crate) collection: String,
}

impl Question {
    /// Validates a question.
    ///
    /// # Errors
    /// 400 if it is empty, 403 for a collection that the caller may not search.
    pub(crate) fn of(asked: QuestionRequest, caller: &Caller) -> HttpResult<Self> {
        let QuestionRequest { question, collection, limit, rest, .. } = asked;
        if question.trim().is_empty() {
            return Err(Problem::invalid_request("`question` is empty"));
        }
        let collection = caller.collection(collection, DEFAULT_COLLECTION)?;
        let mut data = rest;
        data.insert("question".to_owned(), question.into());
        data.insert("collection".to_owned(), collection.as_str().into());
        data.extend(limit.map(|limit| ("limit".to_owned(), limit.into())));
        Ok(Self { data, collection })
    }

    /// Its events, for the answer with this id.
    pub(crate) fn prompt(self, id: &str) -> HttpResult<Prompt> {
        let opened = AnswerOpened { collection: self.collection.clone() };
        let mut opened = event::<AnswerOpened>(id, &opened)?;
        // Two events with the same source need different ids.
        opened.id = format!("{id}#opened");
        let event = event::<PromptReceived>(id, &self.data)?;
        Ok(Prompt { event, opened, collection: self.collection })
    }
}

fn event<T: EventData>(id: &str, data: &impl Serialize) -> HttpResult<Event> {
    let data = serde_json::to_vec(data).map_err(|error| Problem::invalid_request(error.to_string()))?;
    let event = Event::new(id, SOURCE, T::event_type()).with_extension(CORRELATION_ID, id);
    let mut event = event.with_data("application/json", data);
    event.time = Some(OffsetDateTime::now_utc());
    Ok(event)
}

/// The collection that owns an answer, from its first part; `None` for any other part.
pub(crate) fn owner_of(part: &Event) -> Option<String> {
    let is_opened = part.ty.as_str() == AnswerOpened::TYPE && part.source == SOURCE;
    let opened = is_opened.then(|| serde_json::from_slice::<AnswerOpened>(&part.data).ok()).flatten();
    opened.map(|opened| opened.collection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_events::retrieval::DocumentsRetrieved;
    use serde_json::json;

    fn prompt(body: Value, caller: &Caller) -> Result<Prompt, u16> {
        let question = Question::of(serde_json::from_value(body).unwrap(), caller);
        question.and_then(|question| question.prompt("7")).map_err(|problem| problem.status().as_u16())
    }

    fn any() -> Caller {
        Caller::Any(String::new())
    }

    #[test]
    fn question_event_carries_all_fields() {
        let asked = json!({"question": "why?", "limit": 3, "conversation": "c"});
        let Prompt { event, opened, .. } = prompt(asked, &any()).unwrap();
        assert_eq!((event.id.as_str(), event.extension(CORRELATION_ID)), ("7", Some("7")));
        let data: Value = serde_json::from_slice(&event.data).unwrap();
        assert_eq!(data, json!({"question": "why?", "limit": 3, "conversation": "c", "collection": "default"}));
        assert_eq!((opened.id.as_str(), owner_of(&opened).as_deref()), ("7#opened", Some("default")));
    }

    #[test]
    fn limit_that_no_function_can_read_is_refused() {
        // JSON Schema takes the first three for integers.
        for limit in ["3.0", "1e3", "1e30", "-1", "\"3\""] {
            let body = format!(r#"{{"question": "why?", "limit": {limit}}}"#);
            assert!(serde_json::from_str::<QuestionRequest>(&body).is_err(), "{limit}");
        }
    }

    #[test]
    fn caller_asks_in_its_own_collection_only() {
        let own = Caller::Collection("own".into());
        let of = |body| prompt(body, &own).map(|prompt| owner_of(&prompt.opened).unwrap());
        assert_eq!(of(json!({"question": "?"})).as_deref(), Ok("own"));
        assert_eq!(of(json!({"question": "?", "collection": "own"})).as_deref(), Ok("own"));
        assert_eq!(of(json!({"question": "?", "collection": "other"})), Err(403));
    }

    #[test]
    fn invalid_question_is_refused() {
        assert_eq!(prompt(json!({"question": " "}), &any()).err(), Some(400));
    }

    #[test]
    fn only_the_part_that_the_gateway_opens_names_an_owner() {
        let opened = prompt(json!({"question": "?", "collection": "own"}), &any()).unwrap().opened;
        let of_a_function = Event { source: "/functions/f".into(), ..opened.clone() };
        let another_part = Event { ty: DocumentsRetrieved::event_type(), ..opened };
        assert_eq!((owner_of(&of_a_function), owner_of(&another_part)), (None, None));
    }
}
