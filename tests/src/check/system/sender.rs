//! Senders of events, and tenants: what they send, how often, and what they are answered.

use super::{History, now};
use crate::{
    check::{
        history::Fact,
        model::{Model, Origin, Post, Request, Tenant},
    },
    github, seconds,
};
use async_nats::jetstream;
use futures::future::join_all;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The key for everything; those of the tenants are this and their name.
pub(super) const KEY: &str = "the-key-of-everything";
/// The wait before an event that was answered 503 is sent again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// A sender.
pub(super) struct Sender {
    pub(super) client: Client,
    pub(super) gateway: String,
    /// For what goes into the user's own stream.
    pub(super) jetstream: jetstream::Context,
    pub(super) history: History,
}

impl Sender {
    /// Sends events, all at once.
    pub(super) async fn send_all(&self, model: &Model, posts: &[Post]) {
        join_all(posts.iter().map(|post| self.send(model, post))).await;
    }

    /// Sends one event until it is taken or refused, as senders of webhooks do.
    async fn send(&self, model: &Model, post: &Post) {
        let (n, post) = model.sent(post);
        let deadline = Instant::now() + seconds(30);
        loop {
            let at = now();
            let (status, body) = match post.origin {
                Origin::Own => (self.published(n, post).await, Value::Null),
                _ => answered(self.event(n, post)).await,
            };
            self.history.add(at, Fact::Sent { n, post, status, duplicate: body["duplicate"] == true });
            if status.is_some_and(|status| status < 500) || Instant::now() > deadline {
                return;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Publishes an event past Nerve; nothing if JetStream does not acknowledge it in time.
    async fn published(&self, n: usize, post: Post) -> Option<u16> {
        let sent = async { self.jetstream.publish("own.task", body(n, post).into()).await.ok()?.await.ok() };
        tokio::time::timeout(seconds(2), sent).await.ok()?.map(|_| 202)
    }

    fn event(&self, n: usize, post: Post) -> RequestBuilder {
        let (body, id) = (body(n, post), format!("id-{}", post.id));
        let plain = |path: &str| {
            let request = self.client.post(format!("{}{path}", self.gateway));
            request.header("content-type", "application/json").body(body.clone())
        };
        let cloud = |path: &str, source: &str| {
            let request = plain(path).header("ce-specversion", "1.0").header("ce-type", "task");
            request.header("ce-id", &id).header("ce-source", source)
        };
        match post.origin {
            Origin::Api => cloud("/v1/events", "/check").bearer_auth(KEY),
            Origin::Cloud => cloud("/hooks/ce", "/check"),
            Origin::OtherCloud => cloud("/hooks/cf", "/check"),
            Origin::Forged => cloud("/hooks/cg", "/hooks/gh"),
            Origin::Github => github::delivery(&format!("{}/hooks/gh", self.gateway), "task", &id, body),
            Origin::Raw => plain("/hooks/raw"),
            Origin::Repeating => plain("/hooks/repeating").header("x-id", id),
            Origin::Own => unreachable!("it is published past Nerve"),
        }
    }

    /// Calls the API for a tenant; has the other one look at the answer, and give feedback on it.
    pub(super) async fn call(&self, tenant: Tenant, key: u8, request: Request) {
        let at = now();
        let Some(made) = self.request(tenant, key, request) else { return };
        let (status, body) = answered(made).await;
        let id = body["id"].as_str().map(str::to_owned);
        self.history.add(at, Fact::Called { tenant, key, request, status, body });
        let (Request::Ask(_), Some(id)) = (request, id) else { return };
        let tenant = tenant.other();
        let get = self.client.get(self.url(&format!("answers/{id}"))).header("accept", "application/json");
        let feedback = self.client.post(self.url("feedback")).json(&json!({"answer": id, "rating": -1}));
        for made in [get, feedback] {
            let at = now();
            let (status, _) = answered(made.bearer_auth(tenant.key())).await;
            self.history.add(at, Fact::Peeked { tenant, id: id.clone(), status });
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/v1/{path}", self.gateway)
    }

    /// The request; `None` if there is no answer yet to give feedback on.
    fn request(&self, tenant: Tenant, key: u8, request: Request) -> Option<RequestBuilder> {
        let url = |path: &str| self.url(path);
        let text = request.text(tenant, key);
        let made = match request {
            Request::Ask(_) => self.client.post(url("answers")).json(&json!({"question": text, "stream": false})),
            Request::Upload(_) => self.client.post(url("documents")).json(&json!({"document": "d", "text": text})),
            Request::Delete => self.client.delete(url(&format!("documents/{text}"))),
            Request::Feedback(_) => {
                let answer = self.history.answer_of(tenant)?;
                self.client.post(url("feedback")).json(&json!({"answer": answer, "rating": 1, "correction": text}))
            }
        };
        Some(made.bearer_auth(tenant.key()).header("idempotency-key", format!("key-{key}")))
    }
}

/// The data of an event, as JSON.
fn body(n: usize, post: Post) -> String {
    let mut data = serde_json::to_value(post.plan).expect("a plan as JSON");
    data["n"] = n.into();
    data.to_string()
}

impl Tenant {
    /// The other one.
    fn other(self) -> Self {
        match self {
            Self::Alpha => Self::Beta,
            Self::Beta => Self::Alpha,
        }
    }

    fn key(self) -> String {
        format!("{KEY}-{}", self.collection())
    }
}

/// The status and the JSON of an answer; nothing if none came in time.
async fn answered(request: RequestBuilder) -> (Option<u16>, Value) {
    let Ok(answer) = request.timeout(seconds(10)).send().await else { return (None, Value::Null) };
    let status = answer.status().as_u16();
    (Some(status), answer.json().await.unwrap_or_default())
}
