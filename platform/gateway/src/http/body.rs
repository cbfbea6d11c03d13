//! Reads request bodies within a size, a time, and a share of memory.
//!
//! Bodies are never decompressed: a webhook is verified as sent, and a small body stays small in memory.

use crate::{
    Gateway, OVERLOAD_RETRY_AFTER,
    http::{
        admission::SlotLimiter,
        completion::was_evicted,
        problem::{HttpResult, Problem, ProblemType},
    },
};
use axum::{BoxError, body::HttpBody, extract::Request};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header, request::Parts};
use http_body_util::BodyExt;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Maximum time for a body to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a body to arrive at any rate; after it, [`MIN_BYTES_PER_SECOND`] applies.
const GRACE_PERIOD: Duration = Duration::from_secs(5);
const MIN_BYTES_PER_SECOND: u32 = 1 << 10;
/// Memory budget of all bodies in use, in bytes.
const BUDGET_BYTES: usize = 512 << 20;
/// The unit of the budget, in bytes.
const UNIT_BYTES: usize = 64 << 10;
/// Size from which hashing or parsing a body would delay other requests of its thread, in bytes.
pub(crate) const LARGE_BODY_BYTES: usize = 256 << 10;
/// Number of requests to evict for memory, and the wait for each.
const MAX_MEMORY_EVICTIONS: u32 = 20;
const MEMORY_WAIT: Duration = Duration::from_millis(20);
/// Maximum size and time for discarding the rest of a body that is too large.
const MAX_DISCARD_BYTES: usize = 32 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads bodies; clones share the budget.
#[derive(Clone)]
pub(crate) struct Bodies {
    budget: Arc<Semaphore>,
    /// The requests of the bodies; idle ones are evicted for memory.
    requests: SlotLimiter,
    deadlines: Deadlines,
}

#[derive(Debug, Clone, Copy)]
struct Deadlines {
    grace: Duration,
    total: Duration,
}

impl Deadlines {
    /// The deadline of a body that began to arrive at `start` and of which `arrived` bytes have been read.
    fn ends(self, start: Instant, arrived: usize) -> Instant {
        let bytes = u32::try_from(arrived).unwrap_or(u32::MAX);
        start + (self.grace + Duration::from_secs(1) * bytes / MIN_BYTES_PER_SECOND).min(self.total)
    }
}

/// A complete body, with its part of the budget.
#[derive(Debug)]
pub(crate) struct ReadBody {
    pub(crate) bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl ReadBody {
    /// Parses the body as the JSON of `what`, which the error names.
    ///
    /// # Errors
    /// 400 if it is not that.
    pub(crate) fn json<'b, T: Deserialize<'b>>(&'b self, what: &str) -> HttpResult<T> {
        serde_json::from_slice(&self.bytes).map_err(|error| Problem::invalid_json(what, &error))
    }
}

impl Gateway {
    /// Reads the body of a request of at most `limit` bytes.
    ///
    /// # Errors
    /// See [`Bodies::read`].
    pub(crate) async fn read(&self, request: Request, limit: usize) -> HttpResult<(Parts, ReadBody)> {
        let (head, body) = request.into_parts();
        let body = self.bodies().read(&head.headers, body, limit).await?;
        Ok((head, body))
    }

    /// Reads the body of a request of at most `gateway.max_api_body` bytes.
    pub(crate) async fn read_api(&self, request: Request) -> HttpResult<(Parts, ReadBody)> {
        self.read(request, self.config().max_api_body).await
    }
}

impl Bodies {
    pub(crate) fn new(requests: SlotLimiter) -> Self {
        Self::within(BUDGET_BYTES, requests, Deadlines { grace: GRACE_PERIOD, total: READ_TIMEOUT })
    }

    fn within(bytes: usize, requests: SlotLimiter, deadlines: Deadlines) -> Self {
        Self { budget: Arc::new(Semaphore::new(bytes.div_ceil(UNIT_BYTES))), requests, deadlines }
    }

    /// Reads the body of a request of at most `limit` bytes.
    ///
    /// # Errors
    /// 413 for a larger body, 415 for a compressed one, 408 for a slow one, 400 for a truncated one, 503 if memory is short.
    pub(crate) async fn read<B>(&self, headers: &HeaderMap, body: B, limit: usize) -> HttpResult<ReadBody>
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        check_encoding(headers)?;
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let expected = usize::try_from(length.unwrap_or_default()).unwrap_or(usize::MAX);
        if expected > limit {
            if !headers.contains_key(header::EXPECT) && expected - limit <= MAX_DISCARD_BYTES {
                Box::pin(discard(body)).await;
            }
            return Err(too_large(limit));
        }
        self.collect(body, limit, expected).await
    }

    async fn collect<B>(&self, mut body: B, limit: usize, expected: usize) -> HttpResult<ReadBody>
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        let start = Instant::now();
        let mut share = None;
        let mut claimed = 0;
        // Memory is claimed for received bytes only, not for the declared length.
        let mut bytes = BytesMut::with_capacity(expected.min(UNIT_BYTES));
        while !body.is_end_stream() {
            let until = self.deadlines.ends(start, bytes.len());
            let next = tokio::time::timeout_at(until, body.frame()).await;
            let Some(frame) = next.map_err(|_| self.too_slow())? else { break };
            let frame = frame.map_err(|error| truncated(&error.into()))?;
            // Trailers are ignored.
            let Ok(chunk) = frame.into_data() else { continue };
            let size = bytes.len().saturating_add(chunk.len());
            if size > limit {
                drop((bytes, share));
                Box::pin(discard(body)).await;
                return Err(too_large(limit));
            }
            if size > claimed {
                let more = self.claim(size - claimed).await?;
                claimed += more.num_permits() * UNIT_BYTES;
                match &mut share {
                    Some(share) => OwnedSemaphorePermit::merge(share, more),
                    None => share = Some(more),
                }
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(ReadBody { bytes: bytes.freeze(), _share: share })
    }

    /// Claims memory for so many bytes. If the budget is used up, evicts requests whose body has been arriving longest.
    async fn claim(&self, bytes: usize) -> HttpResult<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(&self.budget).try_acquire_many_owned(units) {
            return Ok(permit);
        }
        Box::pin(self.claim_from_others(units)).await
    }

    async fn claim_from_others(&self, units: u32) -> HttpResult<OwnedSemaphorePermit> {
        for _ in 0..MAX_MEMORY_EVICTIONS {
            self.requests.evict();
            let freed = Arc::clone(&self.budget).acquire_many_owned(units);
            if let Ok(Ok(permit)) = tokio::time::timeout(MEMORY_WAIT, freed).await {
                return Ok(permit);
            }
        }
        let detail = "memory budget of request bodies used up; retry";
        Err(Problem::retry_after(ProblemType::Overloaded, detail, OVERLOAD_RETRY_AFTER).closing())
    }

    fn too_slow(&self) -> Problem {
        let Deadlines { grace, total } = self.deadlines;
        let detail = format!(
            "timeout while reading the body: it may take {grace:?}, plus one second per {MIN_BYTES_PER_SECOND} bytes, at \
             most {total:?}"
        );
        Problem::new(ProblemType::SlowBody, detail).closing()
    }
}

/// Whether a body declares a size below [`LARGE_BODY_BYTES`].
pub(crate) fn is_small(body: &impl HttpBody) -> bool {
    body.size_hint().upper().and_then(|size| usize::try_from(size).ok()).is_some_and(|size| size < LARGE_BODY_BYTES)
}

/// Refuses a compressed body.
fn check_encoding(headers: &HeaderMap) -> HttpResult<()> {
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let plain = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| text.trim().is_empty() || text.trim().eq_ignore_ascii_case("identity"))
    };
    if encodings.into_iter().all(plain) {
        return Ok(());
    }
    let detail = "compressed bodies (Content-Encoding) are not supported: send it uncompressed";
    let problem = Problem::new(ProblemType::UnsupportedMediaType, detail);
    Err(problem.with(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")).closing())
}

/// Reads the rest of a body that is slightly too large, so that a sender that writes it completely before it reads gets the response
/// instead of a broken connection.
async fn discard(mut body: impl HttpBody<Data = Bytes> + Unpin) {
    let drain = async {
        let mut left = MAX_DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(size) {
                Some(after) => left = after,
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, drain).await;
}

/// The problem of a truncated body: 503 after an eviction, since senders do not retry after 400.
fn truncated(error: &BoxError) -> Problem {
    match was_evicted(error) {
        true => {
            let detail = "request shed: gateway.max_requests reached";
            Problem::retry_after(ProblemType::Overloaded, detail, OVERLOAD_RETRY_AFTER)
        }
        false => Problem::new(ProblemType::TruncatedBody, "the body is truncated"),
    }
    .closing()
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("the body exceeds the limit of {limit} bytes of this path");
    Problem::new(ProblemType::BodyTooLarge, detail).closing()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::completion::on_complete;
    use axum::body::Body;
    use futures::StreamExt;

    const DEADLINES: Deadlines = Deadlines { grace: GRACE_PERIOD, total: READ_TIMEOUT };

    fn requests() -> SlotLimiter {
        SlotLimiter::new("test", 10)
    }

    fn bodies() -> Bodies {
        Bodies::new(requests())
    }

    async fn read(bodies: &Bodies, body: &'static str, length: Option<&str>, limit: usize) -> Result<Bytes, u16> {
        let mut headers = HeaderMap::new();
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.parse().unwrap());
        }
        let chunks = body.as_bytes().chunks(2).map(Ok::<_, std::convert::Infallible>);
        let read = bodies.read(&headers, Body::from_stream(futures::stream::iter(chunks)), limit).await;
        read.map(|read| read.bytes).map_err(|problem| problem.status().as_u16())
    }

    #[tokio::test]
    async fn body_within_the_limit_is_read() {
        let bodies = bodies();
        assert_eq!(read(&bodies, "12345", None, 5).await.unwrap(), "12345");
        assert_eq!(read(&bodies, "12345", Some("5"), 5).await.unwrap(), "12345");
        assert_eq!(read(&bodies, "", None, 5).await.unwrap(), "");
    }

    #[tokio::test]
    async fn body_over_the_limit_is_refused_whatever_its_declared_length() {
        let bodies = bodies();
        for length in [None, Some("6"), Some("1"), Some("99999999999"), Some("nonsense")] {
            assert_eq!(read(&bodies, "123456", length, 5).await, Err(413), "{length:?}");
        }
        assert_eq!(read(&bodies, "", Some("6"), 5).await, Err(413), "by its declared length alone");
    }

    #[tokio::test]
    async fn truncated_body_gets_400_and_evicted_one_503() {
        let chunk = || futures::stream::once(async { Ok::<_, BoxError>(Bytes::from_static(b"x")) });
        let broken = Body::from_stream(chunk().chain(futures::stream::once(async { Err("the sender left".into()) })));
        let evicted = || on_complete(Body::from_stream(chunk()), || false);
        let twice = on_complete(evicted(), || true);
        for (body, status) in [(broken, 400), (evicted(), 503), (twice, 503)] {
            let problem = bodies().read(&HeaderMap::new(), body, 9).await.unwrap_err();
            assert_eq!(problem.status().as_u16(), status);
        }
    }

    #[tokio::test]
    async fn memory_is_shared_and_released() {
        let bodies = Bodies::within(UNIT_BYTES, requests(), DEADLINES);
        assert_eq!(read(&bodies, "1", None, 9).await.unwrap(), "1");
        let headers = HeaderMap::new();
        let kept = bodies.read(&headers, Body::from("x"), 9).await.unwrap();
        assert_eq!(read(&bodies, "1", None, 9).await, Err(503));
        drop(kept);
        assert_eq!(read(&bodies, "1", None, 9).await.unwrap(), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_body_times_out() {
        let sent = |chunk: &'static [u8], every: Duration| {
            let one = move |()| async move {
                tokio::time::sleep(every).await;
                Some((Ok::<_, std::convert::Infallible>(Bytes::from_static(chunk)), ()))
            };
            Body::from_stream(futures::stream::unfold((), one))
        };
        let bodies = bodies();
        let second = Duration::from_secs(1);
        for (chunk, every, given_up) in [
            (&b"x"[..], Duration::from_secs(3600), Duration::from_secs(5)),
            (b"x", second, Duration::from_secs(5)),
            // It keeps the minimum rate and exceeds the total time.
            (&[b'x'; 2048], second, Duration::from_secs(30)),
        ] {
            let start = Instant::now();
            let headers = HeaderMap::new();
            let problem = bodies.read(&headers, sent(chunk, every), 1 << 20).await.unwrap_err();
            assert_eq!((problem.status().as_u16(), start.elapsed().as_secs()), (408, given_up.as_secs()));
        }
        assert_eq!(DEADLINES.ends(Instant::now(), 0), Instant::now() + GRACE_PERIOD);
        assert_eq!(DEADLINES.ends(Instant::now(), 3 << 10), Instant::now() + Duration::from_secs(8));
        assert_eq!(DEADLINES.ends(Instant::now(), usize::MAX), Instant::now() + READ_TIMEOUT);
    }

    #[tokio::test]
    async fn compressed_body_is_refused_unread() {
        let bodies = bodies();
        for (encoding, refused) in
            [("gzip", true), ("br", true), ("identity, gzip", true), ("Identity", false), ("", false)]
        {
            let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, encoding.parse().unwrap())]);
            let unread = futures::stream::once(async move {
                assert!(!refused, "{encoding} is read");
                Ok::<_, std::convert::Infallible>(Bytes::from_static(b"x"))
            });
            let read = bodies.read(&headers, Body::from_stream(unread), 9).await;
            assert_eq!(read.err().map(|problem| problem.status().as_u16()), refused.then_some(415), "{encoding}");
        }
    }

    #[tokio::test]
    async fn memory_of_the_request_idle_longest_is_reclaimed() {
        let requests = requests();
        let bodies = Bodies::within(UNIT_BYTES, requests.clone(), DEADLINES);
        let slow = requests.try_acquire().unwrap();
        let stalled = futures::stream::once(async { Ok::<_, std::convert::Infallible>(Bytes::from_static(b"x")) });
        let stalled = Body::from_stream(stalled.chain(futures::stream::pending()));
        let headers = HeaderMap::new();
        let held = async {
            tokio::select! {
                read = bodies.read(&headers, stalled, 9) => panic!("{read:?}"),
                () = slow.evicted() => {}
            }
        };
        let good = async {
            tokio::task::yield_now().await;
            let slot = requests.try_acquire().unwrap();
            let read = read(&bodies, "good", None, 9).await;
            assert!(slot.activate());
            read
        };
        let ((), good) = tokio::join!(held, good);
        assert_eq!(good.unwrap(), "good");
    }
}
