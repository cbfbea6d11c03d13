//! Body wrappers that report when a request body is complete and when a response body has been sent.

use axum::{
    BoxError,
    body::{Body, HttpBody},
};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};

/// The error of a body whose request was evicted.
#[derive(Debug, thiserror::Error)]
#[error("the request was evicted, since its sender took too long")]
struct Evicted;

/// Whether the error is an eviction, and not a failure of the sender.
pub(crate) fn was_evicted(error: &BoxError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        if error.is::<Evicted>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A request body that calls a function once it is complete.
pub(crate) struct OnComplete<B, F> {
    body: B,
    on_complete: Option<F>,
}

impl<B: HttpBody, F: FnOnce() -> bool> OnComplete<B, F> {
    /// Calls `on_complete` once `body` is complete; it returns whether the request may proceed.
    pub(crate) fn new(body: B, on_complete: F) -> Self {
        let mut wrapped = Self { body, on_complete: Some(on_complete) };
        if wrapped.body.is_end_stream() {
            wrapped.report();
        }
        wrapped
    }

    /// Reports that the body is complete. Returns whether the request may proceed.
    fn report(&mut self) -> bool {
        self.on_complete.take().is_none_or(|on_complete| on_complete())
    }
}

/// [`OnComplete`] as a [`Body`].
pub(crate) fn on_complete<B, F>(body: B, completed: F) -> Body
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
    F: FnOnce() -> bool + Send + Unpin + 'static,
{
    let body = OnComplete::new(body, completed);
    if body.is_end_stream() { Body::empty() } else { Body::new(body) }
}

impl<B, F> HttpBody for OnComplete<B, F>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    F: FnOnce() -> bool + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        // Reported with the last frame if it is known to be the last: most readers do not poll again after it.
        let ended = match &polled {
            Some(Ok(_)) => this.body.is_end_stream(),
            Some(Err(_)) => false,
            None => true,
        };
        if ended && !this.report() {
            return Poll::Ready(Some(Err(Evicted.into())));
        }
        Poll::Ready(polled.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        // Not before it was reported.
        self.on_complete.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Holds `held` until the response body has been sent or dropped.
pub(crate) fn hold_until_sent<T: Send + Unpin + 'static>(body: Body, held: T) -> Body {
    Body::new(HoldUntilSent { body, _held: held })
}

struct HoldUntilSent<T> {
    body: Body,
    _held: T,
}

impl<T: Unpin> HttpBody for HoldUntilSent<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    #[tokio::test]
    async fn complete_body_is_reported_once() {
        let reported = Arc::new(AtomicUsize::new(0));
        let body = |text: &'static str, may: bool| {
            let reported = Arc::clone(&reported);
            let stream = futures::stream::iter(text.as_bytes().chunks(2).map(Ok::<_, std::convert::Infallible>));
            let body = if text.is_empty() { Body::empty() } else { Body::from_stream(stream) };
            on_complete(body, move || {
                reported.fetch_add(1, Ordering::Relaxed);
                may
            })
        };
        let read = |body| axum::body::to_bytes(body, 100);
        let whole = body("12345", true);
        assert_eq!(reported.load(Ordering::Relaxed), 0);
        assert_eq!(read(whole).await.unwrap(), "12345");
        assert_eq!(reported.load(Ordering::Relaxed), 1);
        drop(body("", true));
        assert_eq!(reported.load(Ordering::Relaxed), 2, "an empty body is complete");
        drop(body("12345", true));
        assert_eq!(reported.load(Ordering::Relaxed), 2, "a dropped body is not complete");
        let error = read(body("1", false)).await.unwrap_err();
        assert!(was_evicted(&error.into_inner()));
        assert!(!was_evicted(&"broken off".into()));
    }

    #[tokio::test]
    async fn held_value_is_dropped_with_the_response_body() {
        let held = Arc::new(());
        let body = hold_until_sent(Body::from("answer"), Arc::clone(&held));
        assert_eq!((body.size_hint().exact(), Arc::strong_count(&held)), (Some(6), 2));
        assert_eq!(axum::body::to_bytes(body, 100).await.unwrap(), "answer");
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
