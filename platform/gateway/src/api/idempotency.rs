//! `Idempotency-Key`: a repeated request is not executed again.
//!
//! A key is scoped by its caller and its route, and bound to the digest of its request. Its record is stored before the event and
//! names the event's id, and gets the event's receipt afterwards. So a request that ends in between is completed by the next one
//! under its key: the event is published under the same id, unless the log has it.

use crate::{
    api::auth::Caller,
    http::problem::{HttpResult, Problem, ProblemType},
    publish::{Receipt, broker_problem, check_connected, publish},
};
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderValue, Method, Uri, header, request};
use nerve_broker::bus::{Bus, DuplicateReason, DuplicateScope, RequestRecord, StoredRequest};
use nerve_core::{Event, Identity, Origin};
use sha2::{Digest, Sha256};
use std::time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

const HEADER: &str = "idempotency-key";
/// Maximum length of a key, in bytes.
pub(crate) const MAX_KEY_BYTES: usize = 255;
/// The age up to which JetStream certainly knows the id of the event: `streams.dedupe_window` is at least 10 s, and one publish
/// takes up to 5 s.
const DEDUPE_CERTAIN: Duration = Duration::from_secs(4);
/// `Retry-After` while the record of the key changes.
const RECORD_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A request that may have a key.
pub(crate) struct Keyed<'r> {
    /// Who sent it.
    pub(crate) caller: &'r Caller,
    /// Its method and path, without what varies.
    pub(crate) route: &'static str,
    /// Its head.
    pub(crate) head: &'r request::Parts,
    /// Its body.
    pub(crate) body: &'r [u8],
}

impl Keyed<'_> {
    /// The key, if the request has one.
    fn key(&self) -> HttpResult<Option<&str>> {
        let mut keys = self.head.headers.get_all(HEADER).iter();
        match (keys.next(), keys.next()) {
            (None, _) => Ok(None),
            (Some(key), None) => {
                let valid = |key: &&str| (1..=MAX_KEY_BYTES).contains(&key.len());
                key.to_str().ok().filter(valid).map(Some).ok_or_else(|| {
                    let detail = format!("`Idempotency-Key` must be 1 to {MAX_KEY_BYTES} printable characters");
                    Problem::invalid_request(detail)
                })
            }
            (Some(_), Some(_)) => Err(Problem::invalid_request("there must be one `Idempotency-Key`")),
        }
    }

    fn digest(&self) -> String {
        digest(&self.head.method, &self.head.uri, &self.head.headers, self.body)
    }
}

/// The digest of all that makes one request differ from another. `Accept` is not among it: it chooses how the same answer is shown.
fn digest(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> String {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let (path, query) = (uri.path().as_bytes(), uri.query().unwrap_or_default().as_bytes());
    let mut digest = Sha256::new();
    for part in [method.as_str().as_bytes(), path, query, content_type, body] {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    }
    HEXLOWER.encode(&digest.finalize())
}

/// A request that is executed once: the id of its event, and its record if it has a key.
pub(crate) struct Once<'g> {
    bus: &'g Bus,
    id: String,
    recorded: Option<Recorded>,
}

struct Recorded {
    caller: Origin,
    identity: Identity,
    request: StoredRequest,
    /// Whether this request stored the record, rather than an earlier one.
    is_first: bool,
}

impl<'g> Once<'g> {
    /// Finds or stores the record of this request.
    ///
    /// # Errors
    /// 422 if another request has the same key.
    pub(crate) async fn open(bus: &'g Bus, keyed: Keyed<'_>) -> HttpResult<Self> {
        let Some(key) = keyed.key()? else {
            return Ok(Self { bus, id: Uuid::now_v7().to_string(), recorded: None });
        };
        check_connected(bus)?;
        let caller = keyed.caller.origin();
        let identity = Identity::of_request(&caller, keyed.route, key);
        let recorded = record(bus, (caller, identity), keyed.digest()).await?;
        let once = Self { bus, id: recorded.request.record.id.clone(), recorded: Some(recorded) };
        once.count_duplicate(once.receipt().as_ref());
        Ok(once)
    }

    /// Counts the request if the receipt is that of an earlier one.
    fn count_duplicate(&self, receipt: Option<&Receipt>) {
        if let (Some(recorded), Some(true)) = (&self.recorded, receipt.map(Receipt::is_duplicate)) {
            self.bus.drops().count(DuplicateScope::Caller, &recorded.caller.to_string(), DuplicateReason::Key, 1);
        }
    }

    /// The id of the event or answer of this request.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The receipt of an earlier request under this key, whose event is stored.
    pub(crate) fn receipt(&self) -> Option<Receipt> {
        let receipt = self.recorded.as_ref()?.request.record.receipt.clone()?;
        serde_json::from_value::<Receipt>(receipt).ok().map(Receipt::repeated)
    }

    /// When an earlier request under this key began that may have published the event, if JetStream may have forgotten its id.
    fn doubtful_since(&self) -> Option<OffsetDateTime> {
        let Recorded { request, is_first, .. } = self.recorded.as_ref()?;
        let is_old = OffsetDateTime::now_utc() - request.stored > DEDUPE_CERTAIN;
        (!is_first && is_old).then_some(request.stored)
    }

    /// Whether the log has this event already from an earlier request under this key.
    pub(crate) async fn has_stored(&self, event: &Event, id: Identity) -> HttpResult<bool> {
        let Some(since) = self.doubtful_since() else { return Ok(false) };
        let stored = self.bus.stored_since(&[(id, event)], since).await.map_err(|error| broker_problem(&error))?;
        Ok(stored.first() == Some(&true))
    }

    /// Publishes the event that the request makes, unless an earlier request under this key did.
    pub(crate) async fn publish(&self, event: &Event, id: Identity) -> HttpResult<Receipt> {
        if self.has_stored(event, id).await? {
            return Ok(Receipt::known(event));
        }
        publish(self.bus, event, id).await
    }

    /// Records the outcome of the request. The record of a refused one is deleted, so that it can be corrected under its key.
    pub(crate) async fn settle(self, outcome: HttpResult<Receipt>) -> HttpResult<Receipt> {
        self.count_duplicate(outcome.as_ref().ok());
        let Some(Recorded { identity, request, is_first, .. }) = self.recorded else { return outcome };
        let StoredRequest { mut record, revision, .. } = request;
        let recorded = match &outcome {
            Ok(receipt) => {
                record.receipt = serde_json::to_value(receipt).ok();
                self.bus.finish_request(identity, &record, revision).await
            }
            Err(problem) if problem.status().is_client_error() && is_first => {
                self.bus.withdraw_request(identity, revision).await
            }
            Err(_) => Ok(()),
        };
        if let Err(error) = recorded {
            // The next request under this key looks for the event in the log.
            tracing::debug!(error = &error as &dyn std::error::Error, "the outcome of a request was not recorded");
        }
        outcome
    }
}

async fn record(bus: &Bus, (caller, identity): (Origin, Identity), digest: String) -> HttpResult<Recorded> {
    let record = RequestRecord { digest, id: Uuid::now_v7().to_string(), receipt: None };
    let created = bus.create_request(identity, &record).await.map_err(|error| broker_problem(&error))?;
    if let Some(revision) = created {
        let request = StoredRequest { record, revision, stored: OffsetDateTime::now_utc() };
        return Ok(Recorded { caller, identity, request, is_first: true });
    }
    let found = bus.request(identity).await.map_err(|error| broker_problem(&error))?;
    let detail = "another request with this `Idempotency-Key` is being recorded; retry";
    let request = found.ok_or_else(|| Problem::retry_after(ProblemType::InProgress, detail, RECORD_RETRY_INTERVAL))?;
    if request.record.digest != record.digest {
        let detail = "this `Idempotency-Key` was sent with another request: its path, query, content type or body differ. \
                      Send the same request again, or this one under a new key";
        return Err(Problem::new(ProblemType::IdempotencyKeyReused, detail));
    }
    Ok(Recorded { caller, identity, request, is_first: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn digest_differs_by_each_part_of_a_request() {
        let of = |method: Method, uri: &'static str, content_type: &'static str, body: &str| {
            let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))].into_iter().collect();
            digest(&method, &Uri::from_static(uri), &headers, body.as_bytes())
        };
        let digests = [
            of(Method::POST, "/v1/documents", "text/plain", "a"),
            of(Method::POST, "/v1/documents", "text/plain", "b"),
            of(Method::POST, "/v1/documents", "text/markdown", "a"),
            of(Method::POST, "/v1/documents?document=a", "text/plain", "a"),
            of(Method::POST, "/v1/documents?document=b", "text/plain", "a"),
            of(Method::POST, "/v1/documents/a", "text/plain", "a"),
            of(Method::DELETE, "/v1/documents/a", "text/plain", "a"),
        ];
        assert_eq!(digests.iter().collect::<BTreeSet<_>>().len(), digests.len());
        assert_eq!(of(Method::POST, "http://h/v1/documents", "text/plain", "a"), digests[0]);
    }

    #[test]
    fn key_must_be_one_and_printable() {
        let key = |keys: &[&[u8]]| {
            let mut head = http::Request::new(()).into_parts().0;
            for key in keys {
                head.headers.append(HEADER, HeaderValue::from_bytes(key).unwrap());
            }
            let keyed = Keyed { caller: &Caller::Any(String::new()), route: "POST /", head: &head, body: b"" };
            keyed.key().map(|key| key.map(str::to_owned)).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!((key(&[]), key(&[b"my key/1".as_slice()])), (Ok(None), Ok(Some("my key/1".to_owned()))));
        let long = "k".repeat(256);
        for wrong in [&[b"".as_slice()][..], &[long.as_bytes()], &["ü".as_bytes()], &[b"a".as_slice(), b"b"]] {
            assert_eq!(key(wrong), Err(400), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn request_without_a_key_needs_no_record() {
        let bus = Bus::disconnected().await.unwrap();
        let caller = Caller::Any(String::new());
        let head = http::Request::new(()).into_parts().0;
        let open = || Once::open(&bus, Keyed { caller: &caller, route: "POST /", head: &head, body: b"" });
        let (one, other) = (open().await.unwrap(), open().await.unwrap());
        assert!(one.id() != other.id() && one.receipt().is_none());
        let refused = one.settle(Err(Problem::invalid_request("no"))).await.unwrap_err();
        assert_eq!(refused.status(), 400);
    }
}
