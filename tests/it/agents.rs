//! An agent by events: a language model at an endpoint, and deployed functions as its tools.

use crate::{post_event, problem};
use nerve_tests::{
    Folder, Nerve, Streams, eventually,
    openai::{Endpoint, LlamaServer, MODEL, Reply},
    seconds,
};
use reqwest::Client;
use serde_json::{Value, json};

const KEY: &str = "sk-of-the-agent";
/// Looks a price up. It knows nothing of agents: arguments in, a result out.
const PRICES: &str = r#"
import json, sys
PRICES = {"rope": 14.5, "anchor": 89.9}
for line in sys.stdin:
    call = json.loads(line)
    data = call["event"]["data"]
    if data["thing"] == "ghost":
        out = {"error": {"kind": "invalid", "message": "there are no ghosts"}}
    else:
        out = {"events": [{"type": "tool.returned", "data": {"price": PRICES.get(data["thing"]), "seen": sorted(data)}}]}
    print(json.dumps({"id": call["id"], **out}), flush=True)
"#;

fn manifest(endpoint: &str, budget: &str) -> Folder {
    let manifest = format!(
        r#"
[function.agent]
runtime = "builtin"
use     = "rag/agent"
on      = ["events.prompt.received", "events.agent.step", "events.tool.returned"]
emits   = ["answer.generated", "answer.token", "agent.step", "tool.called.*"]
secrets = ["LLM_KEY"]
with    = {{ endpoint = "{endpoint}", chat_model = "{MODEL}", max_tokens = 40, budget = {budget} }}

[function.prices]
runtime = "process"
command = ["python3", "prices.py"]
on      = ["events.tool.called.price"]
emits   = ["tool.returned"]
retry   = {{ attempts = 1 }}
tool    = {{ description = "What a thing costs.", parameters = {{ properties = {{ thing = {{ type = "string" }} }}, required = ["thing"], additionalProperties = false }} }}
"#
    );
    Folder::new(&manifest).with("prices.py", PRICES)
}

struct Asking {
    nerve: Nerve,
    streams: Streams,
}

impl Asking {
    async fn up(endpoint: &Endpoint, budget: &str) -> Self {
        let nerve = Nerve::up().await;
        nerve.cli().secret("LLM_KEY", KEY).await;
        nerve.cli().deploy(manifest(&endpoint.url, budget).path()).await;
        let streams = Streams::connect(&nerve.nats).await;
        eventually("the functions run", seconds(30), || async {
            (reqwest::get(nerve.url("/readyz")).await.ok()?.status() == 200).then_some(())
        })
        .await;
        Self { nerve, streams }
    }

    async fn ask(&self, question: &str) -> Value {
        let response = eventually("questions are taken", seconds(30), || async {
            let request = Client::new().post(self.nerve.url("/v1/answers"));
            let response = request.json(&json!({"question": question, "stream": false})).send().await.ok()?;
            (response.status() != 503).then_some(response)
        })
        .await;
        match response.status().as_u16() {
            200 => response.json().await.unwrap(),
            _ => panic!("{:?}", problem(response).await),
        }
    }

    async fn data(&self, ty: &str) -> Vec<Value> {
        let found = self.streams.read("EVENTS", &format!("events.{ty}")).await;
        found.iter().map(|event| serde_json::from_slice(&event.data).unwrap()).collect()
    }
}

/// A completion that calls tools: name and arguments, as the model writes them.
fn calls(calls: &[(&str, &str)]) -> Reply {
    let call = |(place, (name, arguments)): (usize, &(&str, &str))| json!({"id": format!("c{place}"), "type": "function", "function": {"name": name, "arguments": arguments}});
    let calls: Vec<Value> = calls.iter().enumerate().map(call).collect();
    let message = json!({"role": "assistant", "content": null, "tool_calls": calls});
    let usage = json!({"prompt_tokens": 100, "completion_tokens": 10});
    Reply::Say(json!({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}))
}

#[tokio::test]
async fn an_agent_calls_deployed_functions_until_it_knows() {
    let server = LlamaServer::start(KEY).await;
    let wrong = calls(&[("price", r#"{"thing": 7}"#), ("weather", "{}"), ("price", r#"{"thing": "ghost"}"#)]);
    let both = calls(&[("price", r#"{"thing": "rope"}"#), ("price", r#"{"thing": "anchor"}"#)]);
    // What comes after that the model of llama.cpp's own server says, of the whole conversation.
    let endpoint = Endpoint::before(&server, [wrong, both]).await;
    let asking = Asking::up(&endpoint, "{ steps = 5 }").await;
    let answer = asking.ask("What do a rope and an anchor cost?").await;

    let asked = endpoint.take_asked();
    assert_eq!(asked.len(), 3, "{asked:#?}");
    assert!(asked.iter().all(|one| one.authorization.as_deref() == Some(&*format!("Bearer {KEY}"))));
    let tool = &asked[0].body["tools"][0]["function"];
    assert_eq!((&tool["name"], &tool["description"]), (&json!("price"), &json!("What a thing costs.")));
    assert_eq!(tool["parameters"]["required"], json!(["thing"]));
    let messages = |n: usize| asked[n].body["messages"].as_array().unwrap().clone();
    let told: Vec<String> = messages(1)[3..].iter().map(|one| one["content"].as_str().unwrap().to_owned()).collect();
    assert!(told[0].contains("at /thing") && told[1].contains("no tool `weather`; there are price"), "{told:?}");
    assert!(told[2].contains("there are no ghosts"), "a tool that fails tells the agent: {told:?}");
    let results: Vec<Value> =
        messages(2)[7..].iter().map(|one| serde_json::from_str(one["content"].as_str().unwrap()).unwrap()).collect();
    assert_eq!(results, [json!({"price": 14.5, "seen": ["thing"]}), json!({"price": 89.9, "seen": ["thing"]})]);

    let itself = server.complete(&asked[2].body).await;
    assert_eq!(answer["answer"], itself["choices"][0]["message"]["content"]);
    assert_eq!((&answer["steps"], &answer["tools"]), (&json!(3), &json!(["price", "price", "price"])), "{answer}");
    assert_eq!(answer["usage"]["prompt_tokens"], json!(200 + itself["usage"]["prompt_tokens"].as_u64().unwrap()));
    assert_eq!((asking.data("agent.step").await.len(), asking.data("tool.called.price").await.len()), (3, 3));
    assert_eq!(asking.data("tool.returned").await.len(), 3);
    assert_eq!(asking.streams.count("DEAD", "dead.prices").await, 1);
}

#[tokio::test]
async fn a_budget_ends_an_agent_that_finds_no_end() {
    let server = LlamaServer::start(KEY).await;
    let again = || calls(&[("price", r#"{"thing": "rope"}"#)]);
    let endpoint = Endpoint::before(&server, (0..10).map(|_| again())).await;
    for (budget, steps, said) in [("{ steps = 2 }", 2, "2 steps"), ("{ tokens = 300 }", 3, "300 tokens")] {
        let asking = Asking::up(&endpoint, budget).await;
        let answer = asking.ask("What does a rope cost?").await;
        assert_eq!(
            (&answer["finish"], &answer["answered"], &answer["steps"]),
            (&json!("budget"), &json!(false), &json!(steps))
        );
        assert!(answer["answer"].as_str().unwrap().contains(said), "{answer}");
        assert_eq!(endpoint.take_asked().len(), steps);
    }
}

#[tokio::test]
async fn an_agent_goes_on_where_it_was_when_everything_was_killed() {
    let server = LlamaServer::start(KEY).await;
    let endpoint = Endpoint::before(&server, [calls(&[("price", r#"{"thing": "rope"}"#)])]).await;
    let mut asking = Asking::up(&endpoint, "{ steps = 4 }").await;
    // The second step waits for an endpoint that is busy, and meanwhile all of it is killed.
    endpoint.then([Reply::Refuse { status: 429, retry_after: Some("1"), body: "busy".to_owned() }]);
    let question = r#"{"question": "What does a rope cost?"}"#;
    assert_eq!(post_event(&asking.nerve, "prompt.received", "q", question).await, 202);
    asking.streams.reaches("EVENTS", "events.tool.returned", 1, seconds(60)).await;
    asking.nerve.kill9();
    asking.nerve.restart().await;
    asking.streams = Streams::connect(&asking.nerve.nats).await;
    asking.streams.reaches("EVENTS", "events.answer.generated", 1, seconds(60)).await;
    let answer = &asking.data("answer.generated").await[0];
    assert_eq!((&answer["steps"], &answer["tools"]), (&json!(2), &json!(["price"])), "{answer}");
    assert_eq!(asking.data("tool.called.price").await.len(), 1, "no step was done twice");
}
