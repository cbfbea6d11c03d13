//! The route table.

use crate::{
    Gateway,
    api::{
        answers::{self, chat},
        auth::Caller,
        caller_limits::Limited,
        documents, events, functions, health,
        inference::{classify, embeddings, rerank},
        openapi::{self, Docs},
        problems, tail, traces,
    },
    http::{body::is_small, forwarded::Origin, middleware::with_middleware, problem::ErrorFormat},
    webhooks::{handshake, receive},
};
use axum::{
    Router,
    body::HttpBody,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, options, post},
};
use std::fmt::Write;

/// The path of webhooks.
pub(crate) const HOOKS: &str = "/hooks/{source}";

/// A route: its access, its thread, its handler, and their documentation.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    pub(crate) thread: Thread,
    /// One line, for the front page and OpenAPI.
    pub(crate) summary: &'static str,
    handler: MakeHandler,
    /// Adds the handler's part to the documentation.
    pub(crate) docs: AddDocs,
    pub(crate) errors: ErrorFormat,
}

type MakeHandler = fn() -> MethodRouter<Gateway>;
type AddDocs = fn(Docs) -> Docs;

/// Who may use a route.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody.
    Public,
    /// Callers with an API key; without configured keys, local clients.
    Caller,
}

/// The thread that a request runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thread {
    /// A thread of the shared runtime: the request may take long, and must not delay other connections.
    Shared,
    /// The same, and the request is not counted against `gateway.max_requests`: operators need it under overload.
    Unlimited,
    /// The connection's thread if the body is small: the request takes microseconds.
    Connection,
}

use Access::{Caller as ByCaller, Public};
use Thread::{Connection, Shared, Unlimited};

/// Every route of the gateway.
#[rustfmt::skip] // A line per route.
pub(crate) const ROUTES: &[Route] = &[
    route("GET", "/", (Public, Shared), "this page", (front_page_route, front_page_docs)),
    route("GET", "/openapi.json", (Public, Shared), "this API as OpenAPI 3.1", (openapi_route, openapi::docs)),
    route("GET", "/problems", (Public, Shared), "the types of errors", (|| get(problems::list), problems::list_docs)),
    route("GET", "/problems/{name}", (Public, Shared), "a type of error", (|| get(problems::get), problems::get_docs)),
    route("POST", HOOKS, (Public, Connection), "a webhook", (|| post(receive::receive), receive::docs)),
    route("GET", HOOKS, (Public, Shared), "the URL verification of Meta", (|| get(handshake::get), handshake::get_docs)),
    route("OPTIONS", HOOKS, (Public, Shared), "the validation of CloudEvents", (|| options(handshake::options), handshake::options_docs)),
    route("POST", "/v1/events", (ByCaller, Connection), "publish CloudEvents", (|| post(events::post), events::post_docs)),
    route("GET", "/v1/events", (ByCaller, Shared), "the event log, as server-sent events", (|| get(tail::get), tail::docs)),
    route("GET", "/v1/event-types", (ByCaller, Shared), "event types with their JSON Schemas", (|| get(events::types), events::types_docs)),
    route("POST", "/v1/answers", (ByCaller, Shared), "ask a question; the answer as server-sent events", (|| post(answers::post), answers::post_docs)),
    route("GET", "/v1/answers/{id}", (ByCaller, Shared), "an answer, from any point on", (|| get(answers::get), answers::get_docs)),
    route("DELETE", "/v1/answers/{id}", (ByCaller, Shared), "cancel an answer", (|| delete(answers::delete), answers::delete_docs)),
    route("POST", "/v1/answers/{id}/retry", (ByCaller, Shared), "generate an answer again", (|| post(answers::retry), answers::retry_docs)),
    route("POST", "/v1/chat/completions", (ByCaller, Shared), "chat completions, as OpenAI's", (|| post(chat::post), chat::docs)).with_openai_errors(),
    route("POST", "/v1/documents", (ByCaller, Shared), "add or replace a document", (|| post(documents::post), documents::post_docs)),
    route("DELETE", "/v1/documents/{document}", (ByCaller, Shared), "delete a document", (|| delete(documents::delete), documents::delete_docs)),
    route("POST", "/v1/feedback", (ByCaller, Shared), "rate an answer", (|| post(documents::feedback), documents::feedback_docs)),
    route("GET", "/v1/functions", (ByCaller, Shared), "deployed functions", (|| get(functions::list), functions::list_docs)),
    route("POST", "/v1/functions/{name}/invoke", (ByCaller, Shared), "call a function", (|| post(functions::invoke), functions::invoke_docs)),
    route("POST", "/v1/embeddings", (ByCaller, Shared), "embeddings, as OpenAI's", (|| post(embeddings::post), embeddings::docs)).with_openai_errors(),
    route("POST", "/v1/rerank", (ByCaller, Shared), "documents by relevance, as Cohere's", (|| post(rerank::post), rerank::docs)),
    route("POST", "/v1/classify", (ByCaller, Shared), "labels of texts or features", (|| post(classify::post), classify::docs)),
    route("GET", "/v1/traces/{id}", (ByCaller, Shared), "the events that one event caused", (|| get(traces::get), traces::docs)),
    route("GET", "/metrics", (ByCaller, Unlimited), "metrics, for Prometheus", (|| get(health::metrics), health::metrics_docs)),
    route("GET", "/healthz", (Public, Unlimited), "whether the process runs", (|| get(health::live), health::live_docs)),
    route("GET", "/readyz", (Public, Unlimited), "whether it can work", (|| get(health::ready), health::ready_docs)),
];

const fn route(
    method: &'static str,
    path: &'static str,
    (access, thread): (Access, Thread),
    summary: &'static str,
    (handler, docs): (MakeHandler, AddDocs),
) -> Route {
    Route { method, path, access, thread, summary, handler, docs, errors: ErrorFormat::Problem }
}

impl Route {
    /// This route with errors as OpenAI's clients expect them.
    const fn with_openai_errors(self) -> Self {
        Self { errors: ErrorFormat::OpenAi, ..self }
    }
}

impl Gateway {
    /// Every route, with authentication and middleware.
    pub fn router(&self) -> Router {
        let add = |access: Access| {
            let routes = ROUTES.iter().filter(move |route| route.access == access);
            routes.fold(Router::new(), |router, route| router.route(route.path, (route.handler)()))
        };
        let api = add(ByCaller).route_layer(middleware::from_fn_with_state(self.clone(), authenticate));
        with_middleware(self, add(Public).merge(api))
    }
}

/// Whether a request runs on the connection's thread: its route says so and its body is small.
pub(crate) fn runs_on_connection(request: &Request<impl HttpBody>) -> bool {
    let is_route = |route: &Route| {
        route.thread == Connection && route.method == request.method().as_str() && route.path == request.uri().path()
    };
    ROUTES.iter().any(is_route) && is_small(request.body())
}

/// The format of the errors of a path.
pub(crate) fn error_format(path: &str) -> ErrorFormat {
    ROUTES.iter().find(|route| route.path == path).map_or(ErrorFormat::Problem, |route| route.errors)
}

/// Whether requests of this path are admitted even when the gateway is overloaded.
pub(crate) fn is_unlimited(path: &str) -> bool {
    ROUTES.iter().any(|route| route.thread == Unlimited && route.path == path)
}

/// Authenticates an API request and counts it against the caller's limit.
async fn authenticate(State(gateway): State<Gateway>, origin: Origin, mut request: Request, next: Next) -> Response {
    let admitted =
        gateway.shared().access.check(request.uri(), request.headers(), &origin).and_then(|caller: Caller| {
            let share = gateway.shared().callers.hold(&caller, Limited::Requests)?;
            Ok((caller, share))
        });
    match admitted {
        Ok((caller, share)) => {
            request.extensions_mut().insert(caller);
            let response = next.run(request).await;
            drop(share);
            response
        }
        Err(problem) => problem.into_response(),
    }
}

// Functions of their own: a handler that reads the table cannot be named in it.

fn front_page_route() -> MethodRouter<Gateway> {
    get(|| async { front_page() })
}

fn openapi_route() -> MethodRouter<Gateway> {
    get(|| async { openapi::respond() })
}

fn front_page_docs(docs: Docs) -> Docs {
    docs.text(200, "Every route with its summary")
}

fn front_page() -> String {
    ROUTES.iter().fold("This is Nerve's gateway.\n\n".to_owned(), |mut page, Route { method, path, summary, .. }| {
        // Writing to a string does not fail.
        let _ = writeln!(page, "{method:<7} {path:<28} {summary}");
        page
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn small_events_run_on_the_connection_thread() {
        let runs = |method: &str, path: &str, bytes: usize| {
            let request = Request::builder().method(method).uri(path).body(Body::from(vec![0; bytes])).unwrap();
            runs_on_connection(&request)
        };
        assert!(runs("POST", "/v1/events", 10) && runs("POST", "/v1/events?x=y", 10));
        assert!(
            !runs("POST", "/v1/events", 1 << 20) && !runs("GET", "/v1/events", 0) && !runs("POST", "/v1/answers", 10)
        );
    }

    #[test]
    fn front_page_lists_routes_once() {
        let page = front_page();
        assert_eq!(page.matches("POST    /v1/events ").count(), 1, "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
    }

    #[test]
    fn health_and_metrics_are_admitted_under_overload() {
        assert!(["/healthz", "/readyz", "/metrics"].into_iter().all(is_unlimited));
        assert!(!["/", "/v1/events", "/hooks/github", "/healthz/x"].into_iter().any(is_unlimited));
    }
}
