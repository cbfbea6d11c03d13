//! What a source takes: from whom, how much at once, and in a time.
//!
//! Addresses are checked before anything of the body is read. The rate and the concurrency count what is verified and was
//! not taken in before: whoever posts garbage, or a delivery that he has recorded, would otherwise use up what a good sender
//! needs. Garbage costs a read and a hash, and requests that have not arrived give way when there are too many. What is over
//! a bound is answered 429 with `Retry-After`, which senders try again; it was not stored.

use super::super::{
    forwarded::Origin,
    problem::{Answer, Problem},
};
use http::{HeaderValue, StatusCode, header};
use nerve_core::{Name, SourceSpec, manifest::Rate, rate_limit::RateLimiter};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// When to come back to a source that takes no more at once.
const SOON: Duration = Duration::from_secs(1);
/// Sources whose use is remembered; those that are used are far fewer.
const REMEMBERED: usize = 10_000;

/// How much of its bounds each source has used, at this gateway.
#[derive(Default)]
pub(in super::super) struct Guards(Mutex<HashMap<Name, Arc<Guard>>>);

/// The bounds of one source as they are deployed.
struct Guard {
    rate: Option<Rate>,
    concurrency: Option<usize>,
    limiter: Option<RateLimiter>,
    slots: Option<Arc<Semaphore>>,
}

impl Guard {
    fn new(spec: &SourceSpec) -> Self {
        let slots = spec.concurrency.map(|slots| Arc::new(Semaphore::new(slots)));
        let limiter = spec.rate.map(|rate| RateLimiter::bursting(rate, Instant::now().into_std()));
        Self { rate: spec.rate, concurrency: spec.concurrency, limiter, slots }
    }
}

impl Guards {
    /// Takes in one delivery that is to be stored, for as long as what is returned lives.
    pub(super) fn admit(&self, source: &Name, spec: &SourceSpec) -> Answer<Option<OwnedSemaphorePermit>> {
        if spec.rate.is_none() && spec.concurrency.is_none() {
            return Ok(None);
        }
        let guard = self.of(source, spec);
        let slot = guard.slots.as_ref().map(|slots| Arc::clone(slots).try_acquire_owned()).transpose();
        let slot = slot.map_err(|_| {
            too_many("as many deliveries of this source as it takes at once are being stored; its `concurrency`", SOON)
        })?;
        match guard.limiter.as_ref().map_or(Ok(()), |limiter| limiter.try_admit(Instant::now().into_std())) {
            Ok(()) => Ok(slot),
            Err(wait) => Err(too_many("this source has had what it takes in a time; its `rate`", wait)),
        }
    }

    fn of(&self, source: &Name, spec: &SourceSpec) -> Arc<Guard> {
        let mut guards = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guard) = guards.get(source)
            && (guard.rate, guard.concurrency) == (spec.rate, spec.concurrency)
        {
            return Arc::clone(guard);
        }
        if guards.len() >= REMEMBERED {
            guards.clear();
        }
        let guard = Arc::new(Guard::new(spec));
        guards.insert(source.clone(), Arc::clone(&guard));
        guard
    }
}

/// Refuses who may not post to the source, and says no more than that.
pub(super) fn check_origin(source: &Name, spec: &SourceSpec, origin: &Origin) -> Answer<()> {
    let allowed = |client| spec.allow.iter().any(|network| network.contains(&client));
    if spec.allow.is_empty() || origin.client.is_some_and(allowed) {
        return Ok(());
    }
    tracing::debug!(%source, client = origin.client.map(display), "a webhook is refused: its sender's address is in no network of `allow`");
    Err(Problem::new(StatusCode::FORBIDDEN, "this source does not take that from you").closing())
}

fn too_many(what: &str, wait: Duration) -> Problem {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let detail = format!("{what} bounds them; nothing was stored, and it may be sent again");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).with(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::manifest::Provider;

    fn name() -> Name {
        Name::parse("s").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_and_a_concurrency_are_kept_to() {
        let guards = Guards::default();
        let mut spec = SourceSpec::new(Provider::Github);
        assert!(guards.admit(&name(), &spec).unwrap().is_none());
        (spec.rate, spec.concurrency) = (Some("3/m".parse().unwrap()), Some(2));
        let [one, two] = [(); 2].map(|()| guards.admit(&name(), &spec).unwrap());
        let busy = guards.admit(&name(), &spec).unwrap_err();
        assert!(busy.status() == 429 && busy.detail().contains("concurrency"), "{busy:?}");
        drop(one);
        drop(guards.admit(&name(), &spec).unwrap());
        let over = guards.admit(&name(), &spec).unwrap_err();
        assert!(over.status() == 429 && over.detail().contains("rate"), "{over:?}");
        assert!(guards.admit(&Name::parse("other").unwrap(), &spec).is_ok(), "each source has its own");
        tokio::time::advance(Duration::from_secs(20)).await;
        drop(guards.admit(&name(), &spec).unwrap());
        spec.rate = Some("100/s".parse().unwrap());
        assert!(guards.admit(&name(), &spec).is_ok(), "a new deployment counts at once");
        drop(two);
    }

    #[test]
    fn only_networks_that_are_allowed_may_post() {
        let check = |allow: &[&str], client: Option<&str>| {
            let allow = allow.iter().map(|network| network.parse().unwrap()).collect();
            let spec = SourceSpec { allow, ..SourceSpec::new(Provider::Github) };
            let origin = Origin { client: client.map(|client| client.parse().unwrap()), ..Default::default() };
            check_origin(&name(), &spec, &origin).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!(check(&[], None), Ok(()));
        assert_eq!(check(&["192.0.2.0/24", "2001:db8::/32"], Some("192.0.2.9")), Ok(()));
        assert_eq!(check(&["192.0.2.0/24", "2001:db8::/32"], Some("2001:db8::1")), Ok(()));
        assert_eq!(check(&["192.0.2.0/24"], Some("198.51.100.1")), Err(403));
        assert_eq!(check(&["192.0.2.0/24"], None), Err(403), "nobody knows where it comes from");
    }
}
