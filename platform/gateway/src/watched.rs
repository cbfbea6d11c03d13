//! Bodies that tell when a request has arrived whole, and when an answer has left.

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

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
#[error("the sender took too long, and gave way to others")]
struct Evicted;

/// Whether a body ended because its request was given up for others, and not because of its sender.
pub(super) fn gave_way(error: &BoxError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        if error.is::<Evicted>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A body that tells when the whole of it has arrived.
pub(super) struct Arriving<B, F> {
    body: B,
    arrived: Option<F>,
}

impl<B: HttpBody, F: FnOnce() -> bool> Arriving<B, F> {
    /// Calls `arrived` when the whole of `body` has arrived; what it says is whether the request may go on.
    pub(super) fn new(body: B, arrived: F) -> Self {
        let mut arriving = Self { body, arrived: Some(arrived) };
        if arriving.body.is_end_stream() {
            arriving.tell();
        }
        arriving
    }

    /// Whether the request may go on, now that all of it is there.
    fn tell(&mut self) -> bool {
        self.arrived.take().is_none_or(|arrived| arrived())
    }
}

/// [`Arriving`], of one type whatever it wraps.
pub(super) fn arriving<B, F>(body: B, arrived: F) -> Body
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
    F: FnOnce() -> bool + Send + Unpin + 'static,
{
    let body = Arriving::new(body, arrived);
    if body.is_end_stream() { Body::empty() } else { Body::new(body) }
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
        // The last frame tells, where it is known to be the last: most readers ask for no further one then.
        let ended = match &polled {
            Some(Ok(_)) => this.body.is_end_stream(),
            Some(Err(_)) => false,
            None => true,
        };
        if ended && !this.tell() {
            return Poll::Ready(Some(Err(Evicted.into())));
        }
        Poll::Ready(polled.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        // Until it is known to have ended, nobody was told.
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
        assert!(gave_way(&error.into_inner()));
        assert!(!gave_way(&"broken off".into()));
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
