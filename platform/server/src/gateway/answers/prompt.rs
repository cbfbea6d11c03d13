//! A question as the event that starts the pipeline, and the first part of its answer.

use super::super::{
    access::Caller,
    problem::{Answer, Problem},
};
use http::HeaderValue;
use nerve_core::{Event, EventType, answer, event::CORRELATION_ID};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

/// The collection of documents that name none.
const DEFAULT_COLLECTION: &str = "default";
/// The longest id that a caller may choose.
const LONGEST_ID: usize = 128;

/// What `POST /v1/answers` takes. Fields that are not named here go along to every function.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    /// The question.
    #[serde(alias = "prompt")]
    pub(super) question: String,
    /// What is searched.
    pub(super) collection: Option<String>,
    /// Whether parts are sent as they are made.
    pub(super) stream: Option<bool>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// A question that is ready to be published.
pub(super) struct Prompt {
    /// `prompt.received`, whose id is the answer's.
    pub(super) event: Event,
    /// `answer.opened`: who may read the answer.
    pub(super) opened: Event,
    collection: String,
}

impl Prompt {
    /// The question of this caller; asked again under the same `Idempotency-Key` it is the same question.
    pub(super) fn of(asked: Asked, caller: &Caller, key: Option<&HeaderValue>) -> Answer<Self> {
        let Asked { question, collection, rest, .. } = asked;
        if question.trim().is_empty() {
            return Err(Problem::bad_request("`question` is empty"));
        }
        let collection = caller.collection(collection, DEFAULT_COLLECTION)?;
        let id = match key.map(HeaderValue::to_str) {
            None => Uuid::now_v7().to_string(),
            Some(Ok(key)) if (1..=LONGEST_ID).contains(&key.len()) => key.to_owned(),
            Some(_) => {
                let detail = format!("`Idempotency-Key` must be 1 to {LONGEST_ID} printable characters");
                return Err(Problem::bad_request(detail));
            }
        };
        let mut data = rest;
        let about = json!({ "collection": collection });
        data.insert("question".to_owned(), question.into());
        data.insert("collection".to_owned(), collection.as_str().into());
        Ok(Self {
            event: event(&id, "prompt.received", &Value::Object(data))?,
            opened: event(&id, answer::OPENED, &about)?,
            collection,
        })
    }

    /// Whoever may see this collection and no other.
    pub(super) fn collection_caller(&self) -> Caller {
        Caller::Collection(self.collection.clone())
    }

    /// The answer's id in a path.
    pub(super) fn path_id(&self) -> String {
        // Ids that Nerve makes, and most others, need no encoding.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
        if self.event.id.chars().all(plain) { self.event.id.clone() } else { super::path_encoded(&self.event.id) }
    }
}

fn event(id: &str, ty: &str, data: &Value) -> Answer<Event> {
    let ty = EventType::parse(ty).map_err(|error| Problem::bad_request(error.to_string()))?;
    let event = Event::new(id, "/v1/answers", ty).with_extension(CORRELATION_ID, id);
    let mut event = event.with_data("application/json", data.to_string().into_bytes());
    // One source, one id, and two events: the second has an id of its own.
    if event.ty.as_str() == answer::OPENED {
        event.id = format!("{id}#opened");
    }
    event.time = Some(OffsetDateTime::now_utc());
    Ok(event)
}

/// The collection that an answer is about, as its first part says.
pub(super) fn collection_of(first: &Event) -> Option<String> {
    #[derive(Deserialize)]
    struct About {
        collection: String,
    }
    serde_json::from_slice::<About>(&first.data).ok().map(|about| about.collection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(body: Value, caller: &Caller, key: Option<&str>) -> Result<Prompt, u16> {
        let key = key.map(|key| HeaderValue::from_str(key).unwrap());
        let prompt = Prompt::of(serde_json::from_value(body).unwrap(), caller, key.as_ref());
        prompt.map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn a_question_is_an_event_with_all_that_goes_along() {
        let asked = json!({"question": "why?", "limit": 3, "conversation": "c"});
        let Prompt { event, opened, .. } = prompt(asked, &Caller::Any, Some("k 1")).unwrap();
        assert_eq!((event.id.as_str(), event.extension(CORRELATION_ID)), ("k 1", Some("k 1")));
        let data: Value = serde_json::from_slice(&event.data).unwrap();
        assert_eq!(data, json!({"question": "why?", "limit": 3, "conversation": "c", "collection": "default"}));
        assert_eq!((opened.id.as_str(), collection_of(&opened).as_deref()), ("k 1#opened", Some("default")));
        assert_ne!(event.id, prompt(json!({"question": "why?"}), &Caller::Any, None).unwrap().event.id);
    }

    #[test]
    fn a_caller_asks_in_its_own_collection_only() {
        let own = Caller::Collection("own".into());
        let of = |body| prompt(body, &own, None).map(|prompt| collection_of(&prompt.opened).unwrap());
        assert_eq!(of(json!({"question": "?"})).as_deref(), Ok("own"));
        assert_eq!(of(json!({"question": "?", "collection": "own"})).as_deref(), Ok("own"));
        assert_eq!(of(json!({"question": "?", "collection": "other"})), Err(403));
    }

    #[test]
    fn what_is_no_question_is_refused() {
        assert_eq!(prompt(json!({"question": " "}), &Caller::Any, None).err(), Some(400));
        assert_eq!(prompt(json!({"question": "a"}), &Caller::Any, Some(&"k".repeat(200))).err(), Some(400));
    }
}
