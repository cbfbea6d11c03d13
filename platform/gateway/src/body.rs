//! Reads request bodies within a size, a time, and a share of memory.
//!
//! None is decompressed: a webhook is verified as it was sent, and what is small on the wire stays small in memory.

use super::{
    LATER,
    places::Places,
    problem::{Answer, Problem},
    watched::gave_way,
};
use axum::{BoxError, body::HttpBody};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// The longest that a body may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may take however slow it is; after that, each further second must have brought [`LEAST`] bytes.
const PATIENCE: Duration = Duration::from_secs(5);
const LEAST: u32 = 1 << 10;
/// What all bodies that are being handled may take of memory, in bytes.
const BUDGET: usize = 512 << 20;
/// The unit in which the budget is given out, in bytes.
const UNIT: usize = 64 << 10;
/// A body from this size on may take long: to hash it or to parse it would hold up other requests of its thread.
pub(crate) const LARGE: usize = 256 << 10;
/// How often one request is made to give its memory back for another, and how long that may take.
const MEMORY_TRIES: u32 = 20;
const MEMORY_WAIT: Duration = Duration::from_millis(20);
/// How much of a body that is too large is read and thrown away, in bytes, and for how long.
const DISCARD: usize = 32 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads bodies; all clones share one budget.
#[derive(Clone)]
pub(crate) struct Bodies {
    budget: Arc<Semaphore>,
    /// The requests that the bodies are of; those that wait for theirs give way.
    requests: Places,
    patience: Patience,
}

#[derive(Debug, Clone, Copy)]
struct Patience {
    at_first: Duration,
    in_all: Duration,
}

impl Patience {
    /// When a body that began to arrive at `start` is given up, unless more than `arrived` bytes have come until then.
    fn ends(self, start: Instant, arrived: usize) -> Instant {
        let bytes = u32::try_from(arrived).unwrap_or(u32::MAX);
        start + (self.at_first + Duration::from_secs(1) * bytes / LEAST).min(self.in_all)
    }
}

/// A whole body, and its share of the budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ReadBody {
    pub(crate) bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new(requests: Places) -> Self {
        Self::within(BUDGET, requests, Patience { at_first: PATIENCE, in_all: READ_TIMEOUT })
    }

    fn within(bytes: usize, requests: Places, patience: Patience) -> Self {
        Self { budget: Arc::new(Semaphore::new(bytes.div_ceil(UNIT))), requests, patience }
    }

    /// Reads the body of a request, at most `limit` bytes; nothing is kept of a body that says it is longer.
    pub(crate) async fn read<B>(&self, headers: &HeaderMap, body: B, limit: usize) -> Answer<ReadBody>
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        check_encoding(headers)?;
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let expected = usize::try_from(length.unwrap_or_default()).unwrap_or(usize::MAX);
        if expected > limit {
            if !headers.contains_key(header::EXPECT) && expected - limit <= DISCARD {
                Box::pin(discard(body)).await;
            }
            return Err(too_large(limit));
        }
        self.collect(body, limit, expected).await
    }

    async fn collect<B>(&self, mut body: B, limit: usize, expected: usize) -> Answer<ReadBody>
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        let start = Instant::now();
        let mut share = None;
        let mut claimed = 0;
        // Neither memory nor a share of it is taken on a sender's word: what has arrived counts.
        let mut bytes = BytesMut::with_capacity(expected.min(UNIT));
        while !body.is_end_stream() {
            let until = self.patience.ends(start, bytes.len());
            let next = tokio::time::timeout_at(until, body.frame()).await;
            let Some(frame) = next.map_err(|_| self.too_slow())? else { break };
            let frame = frame.map_err(|error| broken_off(&error.into()))?;
            // Trailers say nothing to us.
            let Ok(chunk) = frame.into_data() else { continue };
            let size = bytes.len().saturating_add(chunk.len());
            if size > limit {
                drop((bytes, share));
                Box::pin(discard(body)).await;
                return Err(too_large(limit));
            }
            if size > claimed {
                let more = self.claim(size - claimed).await?;
                claimed += more.num_permits() * UNIT;
                match &mut share {
                    Some(share) => OwnedSemaphorePermit::merge(share, more),
                    None => share = Some(more),
                }
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(ReadBody { bytes: bytes.freeze(), _share: share })
    }

    /// A share of memory for so many bytes. When all of it is taken, whoever has waited longest for its body gives its own
    /// back.
    async fn claim(&self, bytes: usize) -> Answer<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(&self.budget).try_acquire_many_owned(units) {
            return Ok(permit);
        }
        Box::pin(self.claim_from_others(units)).await
    }

    async fn claim_from_others(&self, units: u32) -> Answer<OwnedSemaphorePermit> {
        for _ in 0..MEMORY_TRIES {
            self.requests.evict();
            let freed = Arc::clone(&self.budget).acquire_many_owned(units);
            if let Ok(Ok(permit)) = tokio::time::timeout(MEMORY_WAIT, freed).await {
                return Ok(permit);
            }
        }
        Err(Problem::unavailable("too many large bodies are being handled", Duration::from_secs(1)).closing())
    }

    fn too_slow(&self) -> Problem {
        let Patience { at_first, in_all } = self.patience;
        let detail = format!(
            "the body did not arrive in time: it may take {at_first:?}, and a second more for each {LEAST} bytes of it, but \
             no more than {in_all:?}"
        );
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail).closing()
    }
}

/// Whether a body says of itself that it is smaller than [`LARGE`].
pub(crate) fn is_small(body: &impl HttpBody) -> bool {
    body.size_hint().upper().and_then(|size| usize::try_from(size).ok()).is_some_and(|size| size < LARGE)
}

/// Refuses a body that would have to be decompressed.
fn check_encoding(headers: &HeaderMap) -> Answer<()> {
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let plain = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| text.trim().is_empty() || text.trim().eq_ignore_ascii_case("identity"))
    };
    if encodings.into_iter().all(plain) {
        return Ok(());
    }
    let detail = "the body is compressed (Content-Encoding), and is taken as it is or not at all: send it uncompressed";
    let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
    Err(problem.with(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")).closing())
}

/// Takes in the rest of a body that is only a little too large, so that a sender that writes it whole before it
/// reads finds the answer, and not a broken connection.
async fn discard(mut body: impl HttpBody<Data = Bytes> + Unpin) {
    let drain = async {
        let mut left = DISCARD;
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

/// What is at fault when a body has no end: a sender that hears 400 does not send it again.
fn broken_off(error: &BoxError) -> Problem {
    match gave_way(error) {
        true => {
            Problem::unavailable("the request gave way to others: gateway.max_requests bounds them", LATER).closing()
        }
        false => Problem::bad_request("the body broke off").closing(),
    }
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is larger than {limit} bytes, the most that this path takes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).closing()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watched::arriving;
    use axum::body::Body;
    use futures::StreamExt;

    const PATIENT: Patience = Patience { at_first: PATIENCE, in_all: READ_TIMEOUT };

    fn requests() -> Places {
        Places::new("test", 10)
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
    async fn a_body_within_the_limit_is_read_whole() {
        let bodies = bodies();
        assert_eq!(read(&bodies, "12345", None, 5).await.unwrap(), "12345");
        assert_eq!(read(&bodies, "12345", Some("5"), 5).await.unwrap(), "12345");
        assert_eq!(read(&bodies, "", None, 5).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_whatever_it_says_of_itself() {
        let bodies = bodies();
        for length in [None, Some("6"), Some("1"), Some("99999999999"), Some("nonsense")] {
            assert_eq!(read(&bodies, "123456", length, 5).await, Err(413), "{length:?}");
        }
        assert_eq!(read(&bodies, "", Some("6"), 5).await, Err(413), "by what it says alone");
    }

    #[tokio::test]
    async fn a_body_without_an_end_says_whose_fault_that_is() {
        let chunk = || futures::stream::once(async { Ok::<_, BoxError>(Bytes::from_static(b"x")) });
        let broken = Body::from_stream(chunk().chain(futures::stream::once(async { Err("the sender left".into()) })));
        let evicted = || arriving(Body::from_stream(chunk()), || false);
        let twice = arriving(evicted(), || true);
        for (body, status) in [(broken, 400), (evicted(), 503), (twice, 503)] {
            let problem = bodies().read(&HeaderMap::new(), body, 9).await.unwrap_err();
            assert_eq!(problem.status().as_u16(), status);
        }
    }

    #[tokio::test]
    async fn memory_is_shared_and_given_back() {
        let bodies = Bodies::within(UNIT, requests(), PATIENT);
        assert_eq!(read(&bodies, "1", None, 9).await.unwrap(), "1");
        let headers = HeaderMap::new();
        let kept = bodies.read(&headers, Body::from("x"), 9).await.unwrap();
        assert_eq!(read(&bodies, "1", None, 9).await, Err(503));
        drop(kept);
        assert_eq!(read(&bodies, "1", None, 9).await.unwrap(), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_too_slowly_is_given_up() {
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
            // It keeps to the rate, and takes too long in all.
            (&[b'x'; 2048], second, Duration::from_secs(30)),
        ] {
            let start = Instant::now();
            let headers = HeaderMap::new();
            let problem = bodies.read(&headers, sent(chunk, every), 1 << 20).await.unwrap_err();
            assert_eq!((problem.status().as_u16(), start.elapsed().as_secs()), (408, given_up.as_secs()));
        }
        assert_eq!(PATIENT.ends(Instant::now(), 0), Instant::now() + PATIENCE);
        assert_eq!(PATIENT.ends(Instant::now(), 3 << 10), Instant::now() + Duration::from_secs(8));
        assert_eq!(PATIENT.ends(Instant::now(), usize::MAX), Instant::now() + READ_TIMEOUT);
    }

    #[tokio::test]
    async fn a_compressed_body_is_refused_unread() {
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
    async fn when_memory_is_full_whoever_has_waited_longest_gives_it_back() {
        let requests = requests();
        let bodies = Bodies::within(UNIT, requests.clone(), PATIENT);
        let slow = requests.try_enter().unwrap();
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
            let place = requests.try_enter().unwrap();
            let read = read(&bodies, "good", None, 9).await;
            assert!(place.works());
            read
        };
        let ((), good) = tokio::join!(held, good);
        assert_eq!(good.unwrap(), "good");
    }
}
