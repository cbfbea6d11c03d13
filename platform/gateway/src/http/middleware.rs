//! Middleware around every request: page check, admission, metrics, and a 500 if the handler panics.

use crate::{
    Gateway, OVERLOAD_RETRY_AFTER,
    http::{
        admission::Slot,
        completion::{OnComplete, on_complete},
        forwarded::Peer,
        metrics::{Label, Timed},
        problem::{self, Problem, ProblemType},
    },
    routes,
    webhooks::receive,
};
use axum::{
    BoxError, Router,
    body::HttpBody,
    extract::{MatchedPath, Request},
    response::{IntoResponse, Response},
    routing::Route,
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use nerve_core::Name;
use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    task::{Context, Poll},
};
use tower::{Service, layer::layer_fn};
use tracing::Instrument;

/// Puts the middleware around these routes.
pub(crate) fn with_middleware(gateway: &Gateway, routes: Router<Gateway>) -> Router {
    // One layer, since each costs as much per request as checking a signature; axum's own layers box twice.
    let layered = gateway.clone();
    routes.layer(layer_fn(move |inner| Middleware { gateway: layered.clone(), inner })).with_state(gateway.clone())
}

impl Gateway {
    /// Responds to a small webhook, with the middleware but without the router, which takes as long as verifying the webhook. `completed`
    /// is called once the request is complete, and returns whether it may proceed.
    pub(crate) fn respond_to_webhook<B>(
        self,
        source: Name,
        peer: Peer,
        request: http::Request<B>,
        completed: impl FnOnce() -> bool + Send + Unpin + 'static,
    ) -> impl Future<Output = Response> + Send + 'static
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let timed = Timed::begin(Label::Named(routes::HOOKS), request.method());
        let page = self.shared().access.check_page(request.uri(), request.headers());
        let admission = match (page, self.shared().requests.try_acquire()) {
            (Err(problem), _) => Admission::Rejected(problem),
            (Ok(()), None) => Admission::Shed,
            (Ok(()), Some(slot)) => {
                let activate = slot.activation();
                let request = request.map(|body| OnComplete::new(body, move || completed() && activate()));
                let received =
                    receive::receive_small(self.clone(), source, peer, request).map(IntoResponse::into_response);
                // Boxed, since it is far larger than the rest.
                Admission::Admitted(Box::pin(received), slot)
            }
        };
        self.respond(timed, admission)
    }

    async fn respond(self, timed: Timed, admission: Admission<impl Future<Output = Response>>) -> Response {
        let format = || routes::error_format(timed.route());
        let respond = AssertUnwindSafe(admission.respond())
            .catch_unwind()
            .map(|response| problem::finish(response.unwrap_or_else(problem::after_panic), format));
        let response = respond.instrument(timed.span()).await;
        self.shared().request_metrics.end(timed, response.status());
        response
    }
}

/// A route with the middleware around it.
#[derive(Clone)]
struct Middleware {
    gateway: Gateway,
    inner: Route,
}

impl Service<Request> for Middleware {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let route = request.extensions().get::<MatchedPath>().cloned();
        let timed = Timed::begin(route.map_or(Label::Named("none"), Label::Matched), request.method());
        let admission = self.admit(request);
        let gateway = self.gateway.clone();
        Box::pin(async move { Ok(gateway.respond(timed, admission).await) })
    }
}

impl Middleware {
    /// Sheds requests over `gateway.max_requests`, after evicting incomplete ones. Health checks are always admitted.
    fn admit(&mut self, request: Request) -> Admission<impl Future<Output = Response> + use<>> {
        let infallible = |response: Result<Response, Infallible>| {
            let Ok(response) = response;
            response
        };
        let shared = self.gateway.shared();
        if let Err(problem) = shared.access.check_page(request.uri(), request.headers()) {
            return Admission::Rejected(problem);
        }
        if routes::is_unlimited(request.uri().path()) {
            return Admission::Unlimited(self.inner.call(request).map(infallible));
        }
        let Some(slot) = shared.requests.try_acquire() else { return Admission::Shed };
        let activate = slot.activation();
        let request = request.map(|body| on_complete(body, activate));
        Admission::Admitted(self.inner.call(request).map(infallible), slot)
    }
}

/// The decision of admission control.
enum Admission<F> {
    /// Over the limit.
    Shed,
    /// Sent by a browser for a page that may not act here.
    Rejected(Problem),
    Unlimited(F),
    Admitted(F, Slot),
}

impl<F: Future<Output = Response>> Admission<F> {
    async fn respond(self) -> Response {
        let problem = match self {
            Self::Shed => overloaded("limit of concurrent requests reached (gateway.max_requests)"),
            Self::Rejected(problem) => problem,
            Self::Unlimited(response) => return response.await,
            Self::Admitted(response, slot) => tokio::select! {
                biased;
                response = response => return response,
                () = slot.evicted() => {
                    let detail = "request shed while its body was still arriving: limit of concurrent requests reached \
                                  (gateway.max_requests)";
                    overloaded(detail).closing()
                }
            },
        };
        problem.into_response()
    }
}

fn overloaded(detail: &str) -> Problem {
    Problem::retry_after(ProblemType::Overloaded, detail, OVERLOAD_RETRY_AFTER)
}
