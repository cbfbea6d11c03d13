//! Senders of events, and tenants: what they send, how often, and what they are answered.

use super::{History, now};
use crate::{
    check::{
        history::Fact,
        model::{Model, Origin, Post, Request, Tenant},
    },
    github, seconds,
};
use futures::future::join_all;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The key for everything; those of the tenants are this and their name.
pub(super) const KEY: &str = "the-key-of-everything";
/// The wait before an event that was answered 503 is sent again.
const AGAIN: Duration = Duration::from_millis(200);

/// Whoever sends.
pub(super) struct Sender {
    pub(super) client: Client,
    pub(super) gateway: String,
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
            let (status, body) = answered(self.event(n, post)).await;
            self.history.add(at, Fact::Sent { n, post, status, duplicate: body["duplicate"] == true });
            if status.is_some_and(|status| status < 500) || Instant::now() > deadline {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn event(&self, n: usize, post: Post) -> RequestBuilder {
        let mut data = serde_json::to_value(post.plan).expect("a plan as JSON");
        data["n"] = n.into();
        let (body, id) = (data.to_string(), format!("id-{}", post.id));
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
        }
    }

    /// Calls the API for a tenant; has the other one look at the answer.
    pub(super) async fn call(&self, tenant: Tenant, key: u8, request: Request) {
        let at = now();
        let (status, body) = answered(self.request(tenant, key, request)).await;
        let id = body["id"].as_str().map(str::to_owned);
        self.history.add(at, Fact::Called { tenant, key, request, status, body });
        if let (Request::Ask(_), Some(id)) = (request, id) {
            let (at, tenant) = (now(), tenant.other());
            let get = self.client.get(format!("{}/v1/answers/{id}", self.gateway)).header("accept", "application/json");
            let (status, _) = answered(get.bearer_auth(tenant.key())).await;
            self.history.add(at, Fact::Peeked { tenant, id, status });
        }
    }

    fn request(&self, tenant: Tenant, key: u8, request: Request) -> RequestBuilder {
        let url = |path: &str| format!("{}/v1/{path}", self.gateway);
        let text = request.text(tenant, key);
        let made = match request {
            Request::Ask(_) => self.client.post(url("answers")).json(&json!({"question": text, "stream": false})),
            Request::Upload(_) => self.client.post(url("documents")).json(&json!({"document": "d", "text": text})),
            Request::Delete => self.client.delete(url(&format!("documents/{text}"))),
        };
        made.bearer_auth(tenant.key()).header("idempotency-key", format!("key-{key}"))
    }
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
