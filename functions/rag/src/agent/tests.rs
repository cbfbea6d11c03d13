//! Agent decisions and tool calls, without a model.

use super::{chat::RequestedCall, *};
use nerve_core::tool::ToolSpec;
use parking_lot::Mutex;
use time::macros::datetime;

fn tool(name: &str) -> Tool {
    let parameters = json!({"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"],
                            "additionalProperties": false});
    let parameters = parameters.as_object().cloned().unwrap();
    Tool { name: name.into(), spec: ToolSpec { description: "Finds.".into(), parameters } }
}

fn agent(options: AgentOptions) -> Agent {
    let pattern = |text: &str| Pattern::parse(text).unwrap();
    let context = FunctionContext {
        emits: EventType::parse("answer.generated").unwrap(),
        auxiliary_outputs: Vec::new(),
        timeout: Duration::from_secs(10),
    };
    let emits = ["agent.step", "tool.called.find", "answer.generated", "answer.token"].map(pattern).to_vec();
    let endpoint = Endpoint::new("http://127.0.0.1:1/v1", "m".into(), None).unwrap();
    Agent { name: Name::parse("agent").unwrap(), context, emits, endpoint, options }
}

fn event(ty: &str, data: &Value) -> Event {
    let mut event = Event::new("1", "/tests", EventType::parse(ty).unwrap());
    event.time = Some(datetime!(2026-01-01 00:00 UTC));
    event.with_data("application/json", data.to_string())
}

fn only(outcome: Outcome) -> (String, Value) {
    let emissions = outcome.unwrap();
    assert_eq!(emissions.len(), 1);
    (emissions[0].ty.to_string(), serde_json::from_slice(&emissions[0].data).unwrap())
}

/// An emitter with two deployed tools that stores emitted events.
#[derive(Default)]
struct RecordingEmitter(Mutex<Vec<Emission>>);

#[async_trait]
impl Emitter for RecordingEmitter {
    async fn emit(&self, _index: usize, output: Emission) -> Result<(), FunctionError> {
        self.0.lock().push(output);
        Ok(())
    }

    fn tools(&self) -> Vec<Tool> {
        vec![tool("find"), tool("delete")]
    }
}

#[test]
fn question_starts_a_conversation_that_calls_its_tools() {
    let agent = agent(AgentOptions::default());
    let question_data =
        json!({"prompt": "What is it?", "collection": "c", "messages": [{"role": "user", "content": "Hello"}]});
    let (ty, step) = only(agent.start(&event("prompt.received", &question_data)));
    assert_eq!((ty.as_str(), &step["question"]), (AgentStep::TYPE, &json!("What is it?")));
    assert_eq!(step["agent"]["asked"], json!({"question": "What is it?", "collection": "c"}));
    let expected: Vec<&str> =
        step["agent"]["messages"].as_array().unwrap().iter().map(|one| one["content"].as_str().unwrap()).collect();
    assert_eq!(expected, [DEFAULT_SYSTEM_PROMPT, "Hello", "What is it?"]);

    let mut state: AgentState = serde_json::from_value(step["agent"].clone()).unwrap();
    for call in ["1", "2"] {
        let arguments = json!({"what": call}).as_object().cloned().unwrap();
        state.pending.push(PendingCall { call: call.into(), tool: "find".into(), arguments });
    }
    let (ty, first) = only(agent.call_next_tool(state));
    assert_eq!(
        (ty.as_str(), &first["call"], &first["arguments"]),
        ("tool.called.find", &json!("1"), &json!({"what": "1"}))
    );
    let returned = json!({"call": "1", "tool": "find", "result": {"price": 3}, "agent": first["agent"]});
    let (ty, second) = only(agent.handle_result(&event("tool.returned", &returned)));
    assert_eq!((ty.as_str(), &second["call"]), ("tool.called.find", &json!("2")));
    let returned = json!({"call": "2", "tool": "find", "error": "broken", "agent": second["agent"]});
    let (ty, step) = only(agent.handle_result(&event("tool.returned", &returned)));
    let messages = step["agent"]["messages"].as_array().unwrap();
    assert_eq!(ty, AgentStep::TYPE);
    let tool_message = |call: &str, content: &str| json!({"role": "tool", "tool_call_id": call, "content": content});
    assert_eq!(messages[3..], [tool_message("1", r#"{"price":3}"#), tool_message("2", "Error: broken")]);
    assert_eq!(step["agent"]["called"], json!(["find", "find"]));
    let mut of_another_agent = returned;
    of_another_agent["agent"]["by"] = "another".into();
    for other in [of_another_agent, json!({"call": "1", "tool": "find", "result": 1})] {
        assert!(agent.handle_result(&event("tool.returned", &other)).unwrap().is_empty(), "somebody else called it");
    }
}

#[test]
fn agent_offers_only_allowed_tools() {
    let names = |options| {
        agent(options).tools(&RecordingEmitter::default()).into_iter().map(|tool| tool.name).collect::<Vec<_>>()
    };
    assert_eq!(names(AgentOptions::default()), ["find"], "`emits` has no tool.called.delete");
    assert!(names(AgentOptions { tools: Some(vec!["delete".into()]), ..AgentOptions::default() }).is_empty());
}

#[test]
fn invalid_tool_call_is_reported_to_the_model() {
    let check_call = |name: &str, arguments: &str| {
        let call = RequestedCall { id: "1".into(), name: name.into(), arguments: arguments.into() };
        super::tools::check_call(&[tool("find")], &call).map(Value::Object)
    };
    assert_eq!(check_call("find", r#"{"what": "a"}"#), Ok(json!({"what": "a"})));
    for (name, arguments, expected) in [
        ("lose", "{}", "no tool `lose`; there are find"),
        ("find", "{", "not JSON"),
        ("find", "", "\"what\" is a required property"),
        ("find", r#"{"what": 1}"#, "at /what"),
        ("find", r#"{"what": "a", "more": 1}"#, "more"),
        ("find", "[]", "not an object"),
    ] {
        let why = check_call(name, arguments).unwrap_err();
        assert!(why.contains(expected), "{name} {arguments}: {why}");
    }
}

#[test]
fn decision_is_parsed_in_every_server_format() {
    let read = |message: Value| {
        let completion =
            json!({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}});
        chat::Decision::read(completion.to_string().as_bytes(), 2).unwrap()
    };
    let expected = read(json!({"content": "Yes."}));
    assert_eq!((expected.text.as_str(), expected.calls.len(), expected.usage.prompt_tokens), ("Yes.", 0, 3));
    let text =
        json!({"content": null, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{\"n\":1}"}}]});
    let object = json!({"tool_calls": [{"function": {"name": "f", "arguments": {"n": 1}}}]});
    let (text, object) = (read(text), read(object));
    assert_eq!((text.calls[0].id.as_str(), object.calls[0].id.as_str()), ("a", "call-2-0"));
    assert_eq!(text.calls[0].arguments, object.calls[0].arguments);
    assert_eq!(text.message()["tool_calls"][0]["function"]["arguments"], r#"{"n":1}"#);
    assert_eq!(chat::Decision::read(b"<html>", 0).unwrap_err().fault, Fault::Retry { after: None });
}

#[tokio::test]
async fn exhausted_budget_ends_the_conversation() {
    let started_at = datetime!(2026-01-01 00:00 UTC);
    let question = json!({"question": "?", "collection": "c"}).as_object().cloned().unwrap();
    let state = state::initial("agent", question, "s", started_at).unwrap();
    let budget = Budget { steps: 2, tokens: 100, time: Duration::from_secs(60) };
    let spent = |change: &dyn Fn(&mut AgentState), seconds| {
        let mut state = state.clone();
        change(&mut state);
        state::exhausted_budget(&state, budget, started_at + Duration::from_secs(seconds))
    };
    assert_eq!(spent(&|_| (), 59), None);
    assert_eq!(spent(&|_| (), 60).as_deref(), Some("1m"));
    assert_eq!(spent(&|state| state.steps = 2, 0).as_deref(), Some("2 steps"));
    assert_eq!(spent(&|state| state.usage.completion_tokens = 100, 0).as_deref(), Some("100 tokens"));

    // The time budget of the question is exhausted, so the model is not called.
    let emitter = RecordingEmitter::default();
    let step = event(AgentStep::TYPE, &json!({"question": "?", "agent": state}));
    let context =
        Context { emitter: std::sync::Arc::new(RecordingEmitter::default()), views: None, quotas: <_>::default() };
    let usage = UsageTracker::of(&context);
    let (ty, answer) = only(agent(AgentOptions::default()).decide(&step, (0, &emitter), &usage).await);
    assert_eq!(
        (ty.as_str(), &answer["finish"], &answer["answered"]),
        ("answer.generated", &json!("budget"), &json!(false))
    );
    assert_eq!((&answer["question"], &answer["collection"]), (&json!("?"), &json!("c")));
    let token: Value = serde_json::from_slice(&emitter.0.lock()[0].data).unwrap();
    assert_eq!(token["text"], answer["answer"]);
}

#[test]
fn invalid_token_counts_are_capped() {
    let made_up = r#"{"choices": [{"message": {"content": "a"}}],
        "usage": {"prompt_tokens": 18446744073709551615, "completion_tokens": 18446744073709551615}}"#;
    assert_eq!(read_completion(made_up.as_bytes()), Ok((0, 2 * nerve_core::limits::MAX_COUNT)));
}
