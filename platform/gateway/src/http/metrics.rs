//! Request metrics, and the recorder of all metrics of the process.

use axum::extract::MatchedPath;
use foldhash::fast::RandomState;
use http::{Method, StatusCode};
use metrics::{Counter, Histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use parking_lot::{Mutex, RwLock};
use std::{
    cell::Cell,
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Span;

/// The upper bounds of a histogram's buckets, in seconds.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Interval at which samples are folded into buckets, which limits their memory.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The recorder of the process; its servers share it.
static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Installs the process's metrics recorder, if there is none, and returns a handle that renders it.
///
/// # Errors
/// When another recorder is installed.
pub fn install(stop: CancellationToken, tasks: &TaskTracker) -> Result<PrometheusHandle, BuildError> {
    let handle = recorder()?;
    let upkeep = handle.clone();
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

fn recorder() -> Result<PrometheusHandle, BuildError> {
    let mut installed = INSTALLED.lock();
    if let Some(handle) = installed.as_ref() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?;
    *installed = Some(handle.clone());
    Ok(handle)
}

/// Counts and times requests by route, so that clients cannot create series.
#[derive(Default)]
pub(crate) struct Requests {
    /// The meters of each series; a lookup here is cheaper than registering them again.
    series: RwLock<HashMap<String, ByAnswer, RandomState>>,
}

/// The meters of a route, by method and status.
type ByAnswer = HashMap<(&'static str, u16), (Counter, Histogram), RandomState>;

/// A request and its start time.
pub(crate) struct Timed {
    route: Label,
    method: &'static str,
    started: Instant,
}

/// The route of a request.
pub(crate) enum Label {
    /// A constant path.
    Named(&'static str),
    /// The path that the router matched.
    Matched(MatchedPath),
}

impl Timed {
    /// Starts timing a request.
    pub(crate) fn begin(route: Label, method: &Method) -> Self {
        Self { route, method: method_label(method), started: Instant::now() }
    }

    /// The path of the request's route.
    pub(crate) fn route(&self) -> &str {
        self.route.as_str()
    }

    /// The span of the request's log lines, with an id of this process.
    pub(crate) fn span(&self) -> Span {
        tracing::info_span!("request", id = next_request_id(), method = self.method, route = self.route.as_str())
    }
}

/// Returns an id that no other request of this process has. Each thread takes a range of ids at a time, so that threads do not
/// contend for each id.
fn next_request_id() -> u64 {
    const RANGE: u64 = 1 << 20;
    static NEXT_RANGE: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static NEXT: Cell<u64> = const { Cell::new(0) };
    }
    NEXT.with(|next| {
        let id = match next.get() {
            id if id % RANGE == 0 => NEXT_RANGE.fetch_add(RANGE, Ordering::Relaxed) + 1,
            id => id,
        };
        next.set(id + 1);
        id
    })
}

impl Label {
    fn as_str(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Matched(path) => path.as_str(),
        }
    }
}

impl Requests {
    /// Counts a request with its response.
    pub(crate) fn end(&self, timed: Timed, status: StatusCode) {
        let took = timed.started.elapsed();
        let route = timed.route.as_str();
        let answer = (timed.method, status.as_u16());
        let known = self.series.read();
        if let Some((counter, histogram)) = known.get(route).and_then(|route| route.get(&answer)) {
            counter.increment(1);
            histogram.record(took);
            return;
        }
        drop(known);
        let (counter, histogram) = meters(route, answer);
        counter.increment(1);
        histogram.record(took);
        let mut series = self.series.write();
        series.entry(route.to_owned()).or_default().insert(answer, (counter, histogram));
    }
}

fn meters(route: &str, (method, status): (&'static str, u16)) -> (Counter, Histogram) {
    let labels = [("route", route.to_owned()), ("method", method.to_owned()), ("status", status.to_string())];
    let histogram = metrics::histogram!("nerve_gateway_request_duration_seconds", "route" => route.to_owned());
    (metrics::counter!("nerve_gateway_requests_total", &labels), histogram)
}

fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn servers_of_one_process_share_the_recorder() {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let first = install(stop.clone(), &tasks).unwrap();
        let second = install(stop.clone(), &tasks).unwrap();
        metrics::counter!("nerve_test_total").increment(1);
        assert!(first.render().contains("nerve_test_total 1") && second.render().contains("nerve_test_total 1"));
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
