//! What every request passes on its way in and out: it is bounded, timed and counted, and has an answer whatever becomes of
//! its handler.

use super::{
    Gateway, LATER,
    forwarded::Peer,
    hooks,
    metrics::{Label, Timed},
    places::Place,
    problem::{self, Problem},
    watched::{Arriving, arriving},
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

impl Gateway {
    /// These routes, with what surrounds each request.
    pub(super) fn surround(&self, routes: Router<Self>) -> Router {
        // One layer, since each costs a request as much as checking its signature does; not axum's own, which boxes twice.
        let gateway = self.clone();
        routes.layer(layer_fn(move |inner| Surrounded { gateway: gateway.clone(), inner })).with_state(self.clone())
    }

    /// A small webhook for `source`, surrounded as its route is, but past the router, which costs as much as all that is
    /// checked of it. `arrived` is called when the whole of it has arrived, and says whether it may go on.
    pub(super) fn answer_webhook<B>(
        self,
        source: Name,
        peer: Peer,
        request: http::Request<B>,
        arrived: impl FnOnce() -> bool + Send + Unpin + 'static,
    ) -> impl Future<Output = Response> + Send + 'static
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let timed = Timed::begin(Label::Named(hooks::PATH), request.method());
        let page = self.part.shared.access.check_page(request.uri(), request.headers());
        let admitted = match (page, self.part.shared.requests.try_enter()) {
            (Err(problem), _) => Admitted::Barred(problem),
            (Ok(()), None) => Admitted::Refused,
            (Ok(()), Some(place)) => {
                let works = place.when_it_works();
                let request = request.map(|body| Arriving::new(body, move || arrived() && works()));
                let taken = hooks::take(self.clone(), source, peer, request).map(IntoResponse::into_response);
                // Boxed, since it is far larger than what surrounds it.
                Admitted::Placed(Box::pin(taken), place)
            }
        };
        self.answer(timed, admitted)
    }

    async fn answer(self, timed: Timed, admitted: Admitted<impl Future<Output = Response>>) -> Response {
        let response = AssertUnwindSafe(admitted.answer()).catch_unwind().await;
        let response = problem::uniform(response.unwrap_or_else(problem::after_panic));
        self.part.shared.requests_timed.end(timed, response.status());
        response
    }
}

/// A route with what surrounds it.
#[derive(Clone)]
struct Surrounded {
    gateway: Gateway,
    inner: Route,
}

impl Service<Request> for Surrounded {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let route = request.extensions().get::<MatchedPath>().cloned();
        let timed = Timed::begin(route.map_or(Label::Named("none"), Label::Matched), request.method());
        let admitted = self.admit(request);
        let gateway = self.gateway.clone();
        Box::pin(async move { Ok(gateway.answer(timed, admitted).await) })
    }
}

impl Surrounded {
    /// What comes on top of `max_requests` is refused, but requests that have not arrived yet give way first; whoever asks how
    /// Nerve is gets an answer all the same.
    fn admit(&mut self, request: Request) -> Admitted<impl Future<Output = Response> + use<>> {
        let answered = |answer: Result<Response, Infallible>| {
            let Ok(response) = answer;
            response
        };
        if let Err(problem) = self.gateway.part.shared.access.check_page(request.uri(), request.headers()) {
            return Admitted::Barred(problem);
        }
        if matches!(request.uri().path(), "/healthz" | "/readyz" | "/metrics") {
            return Admitted::Free(self.inner.call(request).map(answered));
        }
        let Some(place) = self.gateway.part.shared.requests.try_enter() else { return Admitted::Refused };
        let works = place.when_it_works();
        let request = request.map(|body| arriving(body, works));
        Admitted::Placed(self.inner.call(request).map(answered), place)
    }
}

/// What becomes of a request.
enum Admitted<F> {
    Refused,
    /// A browser sends it for a page that may not act here.
    Barred(Problem),
    Free(F),
    Placed(F, Place),
}

impl<F: Future<Output = Response>> Admitted<F> {
    async fn answer(self) -> Response {
        let problem = match self {
            Self::Refused => Problem::unavailable("too many requests at once; gateway.max_requests bounds them", LATER),
            Self::Barred(problem) => problem,
            Self::Free(answer) => return answer.await,
            Self::Placed(answer, place) => tokio::select! {
                biased;
                response = answer => return response,
                () = place.evicted() => {
                    let detail =
                        "the body took so long that this request gave way to others: gateway.max_requests bounds them";
                    Problem::unavailable(detail, LATER).closing()
                }
            },
        };
        problem.into_response()
    }
}
