//! Bodies that tell when a request has arrived whole, and when an answer has left.

use axum::{
    BoxError,
    body::{Body, HttpBody},
};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
#[error("the sender took too long, and gave way to others")]
struct Evicted;

/// Calls `arrived` when the whole of `body` has arrived; what it says is whether the request may go on.
pub(super) fn arriving<B, F>(body: B, arrived: F) -> Body
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
    F: FnOnce() -> bool + Send + Unpin + 'static,
{
    if body.is_end_stream() {
        arrived();
        return Body::empty();
    }
    Body::new(Arriving { body, arrived: Some(arrived) })
}

struct Arriving<B, F> {
    body: B,
    arrived: Option<F>,
}

impl<B, F> HttpBody for Arriving<B, F>
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
        if polled.is_none() && this.arrived.take().is_some_and(|arrived| !arrived()) {
            return Poll::Ready(Some(Err(Evicted.into())));
        }
        Poll::Ready(polled.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        // Until it was polled to its end, nobody was told.
        self.arrived.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Holds `held` until the whole of an answer has left, or will not leave.
pub(super) fn leaving<T: Send + Unpin + 'static>(body: Body, held: T) -> Body {
    Body::new(Leaving { body, _held: held })
}

struct Leaving<T> {
    body: Body,
    _held: T,
}

impl<T: Unpin> HttpBody for Leaving<T> {
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
    async fn a_body_tells_once_that_it_has_arrived() {
        let told = Arc::new(AtomicUsize::new(0));
        let body = |text: &'static str, may: bool| {
            let told = Arc::clone(&told);
            let stream = futures::stream::iter(text.as_bytes().chunks(2).map(Ok::<_, std::convert::Infallible>));
            let body = if text.is_empty() { Body::empty() } else { Body::from_stream(stream) };
            arriving(body, move || {
                told.fetch_add(1, Ordering::Relaxed);
                may
            })
        };
        let read = |body| axum::body::to_bytes(body, 100);
        let whole = body("12345", true);
        assert_eq!(told.load(Ordering::Relaxed), 0);
        assert_eq!(read(whole).await.unwrap(), "12345");
        assert_eq!(told.load(Ordering::Relaxed), 1);
        drop(body("", true));
        assert_eq!(told.load(Ordering::Relaxed), 2, "nothing is to come");
        drop(body("12345", true));
        assert_eq!(told.load(Ordering::Relaxed), 2, "it did not arrive");
        let error = read(body("1", false)).await.unwrap_err();
        assert!(format!("{error:?}").contains("Evicted"), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_held_goes_with_the_answer() {
        let held = Arc::new(());
        let body = leaving(Body::from("answer"), Arc::clone(&held));
        assert_eq!((body.size_hint().exact(), Arc::strong_count(&held)), (Some(6), 2));
        assert_eq!(axum::body::to_bytes(body, 100).await.unwrap(), "answer");
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
