//! `/healthz`, `/readyz` and `/metrics`.

use crate::{
    Gateway,
    api::{auth::Caller, openapi::Docs},
    http::{
        forwarded::Origin,
        problem::{HttpResult, Problem},
    },
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, Uri, header};
use serde::Serialize;
use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};
use utoipa::ToSchema;

/// Maximum time of the JetStream check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// The health checks of the worker in this process.
#[derive(Clone)]
pub struct Checks(Arc<dyn Fn() -> Vec<Check> + Send + Sync>);

/// The health of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Check {
    /// The component, such as `function word-count`.
    pub name: String,
    /// Whether it is healthy.
    pub ok: bool,
    /// The failure, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Checks {
    /// Checks that `look` reports. It is called per request and must not block.
    pub fn new(look: impl Fn() -> Vec<Check> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }

    /// No checks, for a gateway without a worker.
    pub fn none() -> Self {
        Self::new(Vec::new)
    }
}

impl std::fmt::Debug for Checks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checks")
    }
}

/// The body of `/readyz`.
#[derive(Serialize, ToSchema)]
struct Readiness {
    /// Whether every check succeeded.
    ready: bool,
    checks: Vec<Check>,
}

/// The body of `/healthz`.
pub(crate) const LIVE: &str = "ok\n";

/// Liveness: the process responds.
pub(crate) async fn live() -> &'static str {
    LIVE
}

/// Readiness: 200 or 503 with the health of each component. Names and causes are for callers of the API only.
pub(crate) async fn ready(
    State(gateway): State<Gateway>,
    origin: Result<Origin, Problem>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let checks = checks(&gateway).await;
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let caller = origin.and_then(|origin| gateway.shared().access.check(&uri, &headers, &origin));
    let checks = match caller {
        Ok(Caller::Any(_)) => checks,
        Ok(Caller::Collection(_)) | Err(_) => without_details(checks),
    };
    (status, Json(Readiness { ready, checks })).into_response()
}

/// One check per kind, without details.
fn without_details(checks: Vec<Check>) -> Vec<Check> {
    let mut kinds: BTreeMap<Cow<'static, str>, bool> = BTreeMap::new();
    for check in checks {
        // A name such as `function word-count` reveals what is deployed.
        let kind = match check.name.split_once(' ') {
            Some(("function", _)) => "functions".into(),
            Some(("sink", _)) => "sinks".into(),
            Some(_) => "others".into(),
            None => check.name.into(),
        };
        *kinds.entry(kind).or_insert(true) &= check.ok;
    }
    kinds.into_iter().map(|(name, ok)| Check { name: name.into_owned(), ok, detail: None }).collect()
}

async fn checks(gateway: &Gateway) -> Vec<Check> {
    let connected = gateway.bus().connected();
    let answer = tokio::time::timeout(CHECK_TIMEOUT, gateway.bus().ready()).await;
    let trouble = match answer {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {CHECK_TIMEOUT:?}")),
    };
    // With a spool, the gateway is useful to webhook senders without NATS.
    let spools = gateway.spool().has_space() && gateway.catalogue().sources.values().any(|one| one.record.spec.spool);
    let mut checks = vec![
        Check { name: "nats".into(), ok: connected || spools, detail: (!connected).then(|| "not connected".into()) },
        Check { name: "jetstream".into(), ok: trouble.is_none() || spools, detail: trouble },
    ];
    if spools && !checks.iter().all(|check| check.detail.is_none()) {
        let detail = "webhooks of sources with `spool = true` are stored on disk; other requests get 503";
        checks.push(Check { name: "spool".into(), ok: true, detail: Some(detail.into()) });
    }
    if let Some(full) = gateway.bus().space().full() {
        // Other requests succeed, and another gateway would refuse the same.
        checks.push(Check { name: "events".into(), ok: true, detail: Some(full.to_string()) });
    }
    if let Some(full) = gateway.bus().space().disk_full() {
        // A full disk of the broker affects all gateways.
        checks.push(Check { name: "disk".into(), ok: spools || !full.is_local_disk(), detail: Some(full.to_string()) });
    }
    let buckets = gateway.bus().space().buckets();
    if !buckets.is_empty() {
        // Requests that need a full bucket fail by themselves.
        let details: Vec<String> = buckets.iter().map(ToString::to_string).collect();
        checks.push(Check { name: "buckets".into(), ok: true, detail: Some(details.join("; ")) });
    }
    if gateway.shutdown().is_cancelled() {
        checks.push(Check { name: "gateway".into(), ok: false, detail: Some("shutting down".into()) });
    }
    checks.extend((gateway.checks().0)());
    checks
}

/// Metrics in the Prometheus text format.
pub(crate) async fn metrics(State(gateway): State<Gateway>) -> HttpResult {
    let text = gateway.metrics().render();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// The documentation of [`metrics`].
pub(crate) fn metrics_docs(docs: Docs) -> Docs {
    docs.text(200, "Metrics in the Prometheus text format")
}

/// The documentation of [`live`].
pub(crate) fn live_docs(docs: Docs) -> Docs {
    docs.text(200, "The process responds")
}

/// The documentation of [`ready`].
pub(crate) fn ready_docs(docs: Docs) -> Docs {
    docs.json::<Readiness>(200, "Every component is healthy").json::<Readiness>(503, "A component is not healthy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_without_details_reveal_no_function_and_no_cause() {
        let check =
            |name: &str, ok, detail: Option<&str>| Check { name: name.into(), ok, detail: detail.map(str::to_owned) };
        let checks = vec![
            check("nats", true, None),
            check("jetstream", false, Some("no answer from nats://10.0.0.7")),
            check("function billing", true, None),
            check("function secret-plan", false, Some("its consumer does not answer")),
            check("sink crm", true, None),
        ];
        let expected = [("functions", false), ("jetstream", false), ("nats", true), ("sinks", true)];
        assert_eq!(without_details(checks), expected.map(|(name, ok)| check(name, ok, None)));
    }
}
