//! The catalog and its schemas.

use super::*;
use agent::*;
use answers::*;
use check::{Validators, validators};
use control::*;
use documents::*;
use feedback::*;
use nerve_core::{Event, EventType, Pattern};
use retrieval::*;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{fmt::Write, path::Path};

fn event(ty: &str, data: &str) -> Event {
    Event::new("1", "/s", EventType::parse(ty).unwrap()).with_data("application/json", data.to_owned())
}

#[test]
fn every_schema_is_valid_and_every_type_is_listed_once() {
    let Validators { by_name, by_pattern } = validators();
    assert_eq!(by_name.len() + by_pattern.len(), known_types().len());
    assert!(known_types().iter().all(|known| Pattern::parse(known.ty.as_str()).is_ok() && !known.about.is_empty()));
}

/// The fields of each type, those that are required marked with `!`.
const FIELDS: &str = "
document.uploaded: collection data document media_type metadata name text
document.deleted: collection document! metadata name uploaded_at version
document.chunked: chunks! collection digest document! metadata name uploaded_at version
embedding.created: chunks! collection digest dimensions document! embeddings! metadata model name uploaded_at version
document.indexed: chunks collection digest document! latest_upload metadata name removed replaced stale unchanged uploaded_at version
prompt.received: collection conversation filter limit messages options prompt question text
documents.retrieved: asked_at collection conversation documents! filter history limit messages options question! recalled weights
documents.reranked: collection conversation documents! dropped filter history limit messages options question! weights
answer.opened: collection!
answer.token: text!
answer.citation: chunk end heading name number source! start text!
answer.generated: answer! answered citations collection confidence context conversation filter finish generator limit messages options question usage
answer.failed: function kind! message!
answer.evaluated: answer! answered citations collection confidence context conversation evaluation! filter finish flags generator limit messages options question usage
answer.flagged: answer! answered citations collection confidence context conversation evaluation filter finish flags! generator limit messages options question usage
memory.updated: answer collection conversation question remembered turns
notification.sent: answer flagged text! to
agent.asked: collection conversation filter limit messages options prompt question text
agent.step: agent collection conversation question!
tool.called.*: agent arguments! call! tool!
tool.returned: agent arguments call! error result tool!
feedback.submitted: answer! citation correction rating
weights.updated: collection! from! held_out ndcg! previous! reason to training version! weights!
weights.rejected: collection! from! held_out ndcg previous! reason! to training version weights!
weights.rolled_back: collection! from! held_out ndcg previous! reason! to! training version! weights!
weights.rollback_requested: collection version
collection.erased: collection! erased!
control.cancelled: answer!
control.timeout: answer! function
control.retry_requested: answer dead_letter
control.retried: answer dead_letters event request!
control.retry_refused: answer reason! request!
sink.disabled: failing_since host reason! sink!
sink.enabled: sink!
";

fn fields(schema: &Value) -> String {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let field = |name: &str| format!("{name}{}", if required.contains(&name) { "!" } else { "" });
    properties.map(field).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_type_has_its_fields() {
    let found: Vec<String> =
        known_types().iter().map(|known| format!("{}: {}", known.ty, fields(&known.schema))).collect();
    assert_eq!(found.join("\n"), FIELDS.trim());
}

#[test]
fn schema_is_valid_inlined_and_described() {
    for KnownType { ty, schema, .. } in known_types() {
        jsonschema::meta::validate(schema).unwrap_or_else(|error| panic!("{ty}: {error}"));
        assert_eq!(schema["type"], "object", "{ty}");
        let text = schema.to_string();
        assert!(!text.contains("$ref") && !text.contains("nullable"), "{ty}: {text}");
        for (name, property) in schema["properties"].as_object().unwrap() {
            assert!(property["description"].is_string(), "{ty}: {name}: {property}");
        }
    }
}

/// The table of the manual.
fn table() -> String {
    let code = |name: &&str| match name.contains('/') || name.starts_with("nerve ") {
        true => format!("`{name}`"),
        false => (*name).to_owned(),
    };
    let names = |names: &[&str]| match names {
        [] => "–".to_owned(),
        names => names.iter().map(code).collect::<Vec<_>>().join(", "),
    };
    let mut table = "| type | kind | what it says | made by | taken by |\n|---|---|---|---|---|\n".to_owned();
    for KnownType { ty, kind, about, producers, consumers, .. } in known_types() {
        let (made, taken) = (names(producers), names(consumers));
        writeln!(table, "| `{ty}` | {kind} | {about} | {made} | {taken} |").unwrap();
    }
    table
}

#[test]
fn manual_has_the_table_of_all_types() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../functions/reference/event-types.md");
    let manual = std::fs::read_to_string(&file).unwrap();
    let start = manual.find("| type | kind |").expect("the manual has the table");
    let (before, rest) = manual.split_at(start);
    let end = rest.find("\n\n").map_or(rest.len(), |end| end + 1);
    let (found, after) = rest.split_at(end);
    if std::env::var_os("NERVE_WRITE_MANUAL").is_some() {
        std::fs::write(&file, format!("{before}{}{after}", table())).unwrap();
    } else {
        assert_eq!(found, table(), "run this test with NERVE_WRITE_MANUAL=1, which writes the table");
    }
}

#[test]
fn schema_violation_is_reported_with_its_location() {
    assert_eq!(check(&event("answer.token", r#"{"text": "a", "more": 1}"#)), Ok(()));
    assert_eq!(check(&event("my.own", "{}")), Ok(()));
    assert_eq!(check(&event("prompt.received", r#"{"prompt": "?"}"#)), Ok(()));
    for (ty, data, said) in [
        ("answer.token", r#"{"text": 1}"#, "at /text"),
        ("answer.token", "{}", "\"text\" is a required property"),
        ("documents.retrieved", r#"{"question": "?", "documents": [{"document": "d"}]}"#, "/documents/0"),
        ("prompt.received", r#"{"q": "?"}"#, "prompt.received"),
        ("feedback.submitted", r#"{"answer": "1", "rating": 3}"#, "/rating"),
        ("answer.generated", "nonsense", "not JSON"),
        ("tool.called.search", r#"{"tool": "search", "arguments": {}}"#, "\"call\" is a required property"),
        ("control.retry_requested", "{}", "control.retry_requested"),
    ] {
        let why = check(&event(ty, data)).unwrap_err();
        assert!(why.contains(said) && why.contains("/v1/event-types"), "{ty} {data}: {why}");
    }
}

#[test]
fn data_with_a_foreign_dataref_is_validated() {
    let referring = |ty: &str, data: &str, to: &str| event(ty, data).with_extension("dataref", to);
    for data in [r#"{"nonsense": 1}"#, ""] {
        assert!(check(&referring("prompt.received", data, "https://x.example/y")).is_err(), "{data}");
    }
    assert_eq!(check(&referring("prompt.received", r#"{"prompt": "?"}"#, "https://x.example/y")), Ok(()));
    assert_eq!(check(&referring("my.own", "", "https://x.example/y")), Ok(()));
    assert_eq!(check(&referring("prompt.received", "", "nats-object:bodies/abc")), Ok(()));
}

#[test]
fn raw_document_body_is_valid() {
    let mut event = event("document.uploaded", "# Fees");
    event.content_type = Some("text/markdown".into());
    assert_eq!(check(&event), Ok(()));
}

/// Data that a schema accepts: its required fields, or all of them.
fn example(schema: &Value, all: bool) -> Value {
    let alternatives = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array);
    if let (Some(first), None) = (alternatives.and_then(|all| all.first()), schema.get("type")) {
        return example(first, all);
    }
    if let Some(constant) = schema.get("const") {
        return constant.clone();
    }
    let ty = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match ty.unwrap_or("string") {
        "integer" => 1.into(),
        "number" => 0.5.into(),
        "boolean" => true.into(),
        "array" => Value::Array(vec![example(&schema["items"], all)]),
        "object" => {
            let of_alternative = alternatives.and_then(|all| all[0]["required"].as_array()).into_iter().flatten();
            let required = schema["required"].as_array().into_iter().flatten().chain(of_alternative);
            let required: Vec<&str> = required.filter_map(Value::as_str).collect();
            let properties = schema["properties"].as_object().into_iter().flatten();
            let given = properties.filter(|(name, _)| all || required.contains(&name.as_str()));
            given.map(|(name, property)| (name.clone(), example(property, all))).collect()
        }
        _ => "text".into(),
    }
}

/// Reads what the schema of `T` accepts as an `R`, which is what a consumer of `T` reads.
fn assert_readable<T: EventData, R: DeserializeOwned>() {
    let known = known_types().iter().find(|known| known.ty == T::TYPE).unwrap();
    for all in [false, true] {
        let data = example(&known.schema, all);
        let event = event(&T::TYPE.replace('*', "x"), &data.to_string());
        assert_eq!(check(&event), Ok(()), "{data}");
        serde_json::from_value::<R>(data.clone()).unwrap_or_else(|error| panic!("{}: {error}: {data}", T::TYPE));
    }
}

#[test]
fn data_that_passes_the_schema_is_readable() {
    assert_readable::<DocumentUploaded, DocumentUploaded>();
    assert_readable::<DocumentDeleted, DocumentDeleted>();
    assert_readable::<DocumentChunked, DocumentChunked>();
    assert_readable::<EmbeddingCreated, EmbeddingCreated>();
    assert_readable::<DocumentIndexed, DocumentIndexed>();
    assert_readable::<PromptReceived, PromptReceived>();
    assert_readable::<DocumentsRetrieved, DocumentsRetrieved>();
    assert_readable::<DocumentsRetrieved, DocumentsReranked>();
    assert_readable::<DocumentsReranked, DocumentsReranked>();
    assert_readable::<AnswerOpened, AnswerOpened>();
    assert_readable::<AnswerToken, AnswerToken>();
    assert_readable::<AnswerCitation, AnswerCitation>();
    assert_readable::<AnswerGenerated, AnswerGenerated>();
    assert_readable::<AnswerGenerated, AnsweredQuestion>();
    assert_readable::<AnswerEvaluated, AnsweredQuestion>();
    assert_readable::<AnswerFailed, AnswerFailed>();
    assert_readable::<AgentAsked, PromptReceived>();
    assert_readable::<AgentStep, AgentStep>();
    assert_readable::<ToolCalled, ToolCalled>();
    assert_readable::<ToolReturned, ToolReturned>();
    assert_readable::<FeedbackSubmitted, FeedbackSubmitted>();
    assert_readable::<WeightsRollbackRequested, WeightsRollbackRequested>();
    assert_readable::<ControlRetryRequested, ControlRetryRequested>();
}

#[test]
fn parameters_that_pass_the_schema_are_readable() {
    let schema = schema::of::<PromptReceived>();
    let options = example(&schema["properties"]["options"], true);
    assert_eq!(serde_json::from_value::<ModelOptions>(options).unwrap().seed, Some(1));
    let messages = example(&schema["properties"]["messages"], true);
    assert_eq!(serde_json::from_value::<Vec<Message>>(messages).unwrap().len(), 1);
    let history = example(&schema::of::<DocumentsReranked>()["properties"]["history"], true);
    assert_eq!(serde_json::from_value::<ConversationHistory>(history).unwrap().turns.len(), 1);
}

#[test]
fn upload_has_the_same_bytes_from_a_struct_and_from_a_map() {
    // The digest by which an unchanged document is recognized covers them.
    let upload = example(&schema::of::<DocumentUploaded>(), true);
    let of_struct =
        serde_json::to_string(&serde_json::from_value::<DocumentUploaded>(upload.clone()).unwrap()).unwrap();
    assert_eq!(of_struct.replace(r#""metadata":{},"#, ""), upload.to_string().replace(r#""metadata":{},"#, ""));
}

#[test]
fn question_is_read_from_the_first_field_that_has_it() {
    let read = |data: &str| {
        let mut prompt: PromptReceived = serde_json::from_str(data).unwrap();
        (prompt.take_question(), Value::Object(prompt.into_rest()).to_string())
    };
    let expected = |question: &str, rest: &str| (Some(question.to_owned()), rest.to_owned());
    assert_eq!(read(r#"{"text": "a", "more": 1}"#), expected("a", r#"{"more":1}"#));
    assert_eq!(read(r#"{"text": "a", "prompt": "b"}"#), expected("b", r#"{"text":"a"}"#));
    assert_eq!(read(r#"{"text": "a", "question": "c"}"#), expected("c", r#"{"text":"a"}"#));
}
