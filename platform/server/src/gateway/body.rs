//! Reads request bodies within a size, a time, and a share of memory.

use super::problem::{Answer, Problem};
use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest that a body may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// What all bodies that are being handled may take of memory, in bytes.
const BUDGET: usize = 512 << 20;
/// The unit in which the budget is given out, in bytes.
const UNIT: usize = 64 << 10;
/// How much of a body that is too large is read and thrown away, in bytes, and for how long.
const DISCARD: usize = 32 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads bodies; all clones share one budget.
#[derive(Clone)]
pub(crate) struct Bodies {
    budget: Arc<Semaphore>,
    read_timeout: Duration,
}

/// A whole body, and its share of the budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ReadBody {
    pub(crate) bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new() -> Self {
        Self::within(BUDGET, READ_TIMEOUT)
    }

    fn within(bytes: usize, read_timeout: Duration) -> Self {
        Self { budget: Arc::new(Semaphore::new(bytes.div_ceil(UNIT))), read_timeout }
    }

    /// Reads the body of a request, at most `limit` bytes; nothing is kept of a body that says it is longer.
    pub(crate) async fn read(&self, headers: &HeaderMap, body: Body, limit: usize) -> Answer<ReadBody> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let expected = usize::try_from(length.unwrap_or_default()).unwrap_or(usize::MAX);
        if expected > limit {
            if !headers.contains_key(header::EXPECT) && expected - limit <= DISCARD {
                discard(body.into_data_stream()).await;
            }
            return Err(too_large(limit));
        }
        match tokio::time::timeout(self.read_timeout, self.collect(body, limit, expected)).await {
            Ok(read) => read,
            Err(_) => {
                let detail = format!("the body did not arrive within {:?}", self.read_timeout);
                Err(closing(Problem::new(StatusCode::REQUEST_TIMEOUT, detail)))
            }
        }
    }

    async fn collect(&self, body: Body, limit: usize, expected: usize) -> Answer<ReadBody> {
        let mut share = None;
        let mut claimed = 0;
        // Neither memory nor a share of it is taken on a sender's word: what has arrived counts.
        let mut bytes = BytesMut::with_capacity(expected.min(UNIT));
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| closing(Problem::bad_request("the body broke off")))?;
            let size = bytes.len().saturating_add(chunk.len());
            if size > limit {
                drop((bytes, share));
                discard(chunks).await;
                return Err(too_large(limit));
            }
            if size > claimed {
                let more = self.claim(size - claimed)?;
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

    fn claim(&self, bytes: usize) -> Answer<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).try_acquire_many_owned(units);
        permit.map_err(|_| {
            closing(Problem::unavailable("too many large bodies are being handled", Duration::from_secs(1)))
        })
    }
}

/// Takes in the rest of a body that is only a little too large, so that a sender that writes it whole before it
/// reads finds the answer, and not a broken connection.
async fn discard(mut chunks: BodyDataStream) {
    let drain = async {
        let mut left = DISCARD;
        while let Some(Ok(chunk)) = chunks.next().await {
            match left.checked_sub(chunk.len()) {
                Some(after) => left = after,
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, drain).await;
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is larger than {limit} bytes, the most that this path takes");
    closing(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
}

/// The rest of the body is not read, so the connection cannot be used again.
fn closing(problem: Problem) -> Problem {
    problem.with(header::CONNECTION, HeaderValue::from_static("close"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let bodies = Bodies::new();
        assert_eq!(read(&bodies, "12345", None, 5).await.unwrap(), "12345");
        assert_eq!(read(&bodies, "12345", Some("5"), 5).await.unwrap(), "12345");
        assert_eq!(read(&bodies, "", None, 5).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_whatever_it_says_of_itself() {
        let bodies = Bodies::new();
        for length in [None, Some("6"), Some("1"), Some("99999999999"), Some("nonsense")] {
            assert_eq!(read(&bodies, "123456", length, 5).await, Err(413), "{length:?}");
        }
        assert_eq!(read(&bodies, "", Some("6"), 5).await, Err(413), "by what it says alone");
    }

    #[tokio::test]
    async fn memory_is_shared_and_given_back() {
        let bodies = Bodies::within(UNIT, READ_TIMEOUT);
        assert_eq!(read(&bodies, "1", None, 9).await.unwrap(), "1");
        let headers = HeaderMap::new();
        let kept = bodies.read(&headers, Body::from("x"), 9).await.unwrap();
        assert_eq!(read(&bodies, "1", None, 9).await, Err(503));
        drop(kept);
        assert_eq!(read(&bodies, "1", None, 9).await.unwrap(), "1");
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::convert::Infallible>>());
        let problem =
            Bodies::within(BUDGET, Duration::from_millis(5)).read(&HeaderMap::new(), body, 5).await.unwrap_err();
        assert_eq!(problem.status(), 408);
    }
}
