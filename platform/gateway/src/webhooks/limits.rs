//! Limits of a webhook source: sender addresses, rate, concurrency.
//!
//! Addresses are checked before the body is read. Rate and concurrency count verified new deliveries only: otherwise invalid or replayed
//! requests would use up the limits of honest senders. Requests over a limit get 429 with `Retry-After`, and are not stored.

use crate::http::{
    forwarded::Origin,
    problem::{HttpResult, Problem, ProblemType},
};
use nerve_core::{Name, SourceSpec, manifest::Rate, rate_limit::RateLimiter};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// `Retry-After` if the concurrency limit is reached.
const CONCURRENCY_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Maximum number of sources with a limiter; far more than are used.
const MAX_SOURCES: usize = 10_000;

/// The limiters of all sources, at this gateway.
#[derive(Default)]
pub(crate) struct SourceLimits(Mutex<HashMap<Name, Arc<SourceLimit>>>);

/// The limiters of a source, as deployed.
struct SourceLimit {
    rate: Option<Rate>,
    concurrency: Option<usize>,
    limiter: Option<RateLimiter>,
    slots: Option<Arc<Semaphore>>,
}

impl SourceLimit {
    fn new(spec: &SourceSpec) -> Self {
        let slots = spec.concurrency.map(|slots| Arc::new(Semaphore::new(slots)));
        let limiter = spec.rate.map(|rate| RateLimiter::bursting(rate, Instant::now().into_std()));
        Self { rate: spec.rate, concurrency: spec.concurrency, limiter, slots }
    }
}

impl SourceLimits {
    /// Admits a delivery; the permit is held while it is stored.
    ///
    /// # Errors
    /// 429 if the rate or the concurrency is reached.
    pub(crate) fn admit(&self, source: &Name, spec: &SourceSpec) -> HttpResult<Option<OwnedSemaphorePermit>> {
        if spec.rate.is_none() && spec.concurrency.is_none() {
            return Ok(None);
        }
        let limit = self.of(source, spec);
        let slot = limit.slots.as_ref().map(|slots| Arc::clone(slots).try_acquire_owned()).transpose();
        let slot = slot.map_err(|_| {
            too_many("concurrency limit of this source reached (`concurrency`)", CONCURRENCY_RETRY_AFTER)
        })?;
        match limit.limiter.as_ref().map_or(Ok(()), |limiter| limiter.try_admit(Instant::now().into_std())) {
            Ok(()) => Ok(slot),
            Err(wait) => Err(too_many("rate limit of this source exceeded (`rate`)", wait)),
        }
    }

    fn of(&self, source: &Name, spec: &SourceSpec) -> Arc<SourceLimit> {
        let mut limits = self.0.lock();
        if let Some(limit) = limits.get(source)
            && (limit.rate, limit.concurrency) == (spec.rate, spec.concurrency)
        {
            return Arc::clone(limit);
        }
        if limits.len() >= MAX_SOURCES {
            limits.clear();
        }
        let limit = Arc::new(SourceLimit::new(spec));
        limits.insert(source.clone(), Arc::clone(&limit));
        limit
    }
}

/// Refuses senders outside the networks of `allow`.
pub(crate) fn check_address(source: &Name, spec: &SourceSpec, origin: &Origin) -> HttpResult<()> {
    let allowed = |client| spec.allow.iter().any(|network| network.contains(&client));
    if spec.allow.is_empty() || origin.client.is_some_and(allowed) {
        return Ok(());
    }
    tracing::debug!(%source, client = origin.client.map(display), "webhook refused: the sender's address is in no network of `allow`");
    Err(Problem::new(ProblemType::Forbidden, "sender address not allowed for this source").closing())
}

fn too_many(what: &str, wait: Duration) -> Problem {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let detail = format!("{what}; nothing was stored, retry after {} s", seconds.max(1));
    Problem::retry_after(ProblemType::RateLimited, detail, wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::manifest::Provider;

    fn name() -> Name {
        Name::parse("s").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn rate_and_concurrency_are_enforced() {
        let limits = SourceLimits::default();
        let mut spec = SourceSpec::new(Provider::Github);
        assert!(limits.admit(&name(), &spec).unwrap().is_none());
        (spec.rate, spec.concurrency) = (Some("3/m".parse().unwrap()), Some(2));
        let [one, two] = [(); 2].map(|()| limits.admit(&name(), &spec).unwrap());
        let busy = limits.admit(&name(), &spec).unwrap_err();
        assert!(busy.status() == 429 && busy.detail().contains("concurrency"), "{busy:?}");
        drop(one);
        drop(limits.admit(&name(), &spec).unwrap());
        let over = limits.admit(&name(), &spec).unwrap_err();
        assert!(over.status() == 429 && over.detail().contains("rate"), "{over:?}");
        assert!(limits.admit(&Name::parse("other").unwrap(), &spec).is_ok(), "limits are per source");
        tokio::time::advance(Duration::from_secs(20)).await;
        drop(limits.admit(&name(), &spec).unwrap());
        spec.rate = Some("100/s".parse().unwrap());
        assert!(limits.admit(&name(), &spec).is_ok(), "a new deployment takes effect immediately");
        drop(two);
    }

    #[test]
    fn only_allowed_networks_may_post() {
        let check = |allow: &[&str], client: Option<&str>| {
            let allow = allow.iter().map(|network| network.parse().unwrap()).collect();
            let spec = SourceSpec { allow, ..SourceSpec::new(Provider::Github) };
            let origin = Origin { client: client.map(|client| client.parse().unwrap()), ..Default::default() };
            check_address(&name(), &spec, &origin).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!(check(&[], None), Ok(()));
        assert_eq!(check(&["192.0.2.0/24", "2001:db8::/32"], Some("192.0.2.9")), Ok(()));
        assert_eq!(check(&["192.0.2.0/24", "2001:db8::/32"], Some("2001:db8::1")), Ok(()));
        assert_eq!(check(&["192.0.2.0/24"], Some("198.51.100.1")), Err(403));
        assert_eq!(check(&["192.0.2.0/24"], None), Err(403), "the address is unknown");
    }
}
