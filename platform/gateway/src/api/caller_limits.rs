//! Fair limits on the concurrent requests and event streams per caller, which is the name of an API key.
//!
//! A caller that has most of the slots leaves the free ones to others. If all keys have one name, or there is no key, the only caller may
//! have all slots.

use crate::{
    OVERLOAD_RETRY_AFTER,
    api::auth::Caller,
    http::problem::{HttpResult, Problem, ProblemType},
};
use nerve_config::GatewayConfig;
use nerve_core::shares::{Share, Shares, Slot};
use std::collections::HashMap;

/// The limits per caller; empty if there is only one.
#[derive(Debug, Default)]
pub(crate) struct CallerLimits(HashMap<Caller, Held>);

#[derive(Debug)]
struct Held {
    requests: Share,
    streams: Share,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limited {
    /// Requests.
    Requests,
    /// Event streams.
    Streams,
}

impl CallerLimits {
    /// Limits for these callers.
    pub(crate) fn new(callers: impl IntoIterator<Item = Caller>, config: &GatewayConfig) -> Self {
        let (requests, streams) = (Shares::new(config.max_requests), Shares::new(config.max_streams));
        let held = |caller| (caller, Held { requests: requests.share(), streams: streams.share() });
        let callers: HashMap<Caller, Held> = callers.into_iter().map(held).collect();
        if callers.len() > 1 { Self(callers) } else { Self::default() }
    }

    /// Takes a slot for the caller; `None` if callers are not limited.
    ///
    /// # Errors
    /// 429 if the caller has its share.
    pub(crate) fn hold(&self, caller: &Caller, what: Limited) -> HttpResult<Option<Slot>> {
        let Some(held) = self.0.get(caller) else { return Ok(None) };
        let (share, what, setting) = match what {
            Limited::Requests => (&held.requests, "requests", "gateway.max_requests"),
            Limited::Streams => (&held.streams, "event streams", "gateway.max_streams"),
        };
        share.try_acquire().map(Some).ok_or_else(|| {
            let detail = format!(
                "limit of concurrent {what} of this key reached: {setting} is shared fairly among the names of gateway.keys \
                 and the collections"
            );
            Problem::retry_after(ProblemType::RateLimited, detail, OVERLOAD_RETRY_AFTER)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GatewayConfig {
        let none = std::iter::empty::<(String, String)>();
        let config = nerve_config::Config::load(None, none).unwrap().gateway;
        GatewayConfig { max_requests: 16, max_streams: 16, ..config }
    }

    #[test]
    fn one_caller_leaves_slots_to_another() {
        let [one, other] = [Caller::Any("a".into()), Caller::Collection("a".into())];
        let callers = CallerLimits::new([one.clone(), other.clone()], &config());
        let all = |caller: &Caller, what| -> Vec<Option<Slot>> {
            std::iter::from_fn(|| callers.hold(caller, what).ok()).take(99).collect()
        };
        let held = all(&one, Limited::Requests);
        assert_eq!(held.len(), 12);
        let refused = callers.hold(&one, Limited::Requests).unwrap_err();
        assert!(refused.status() == 429 && refused.detail().contains("gateway.max_requests"), "{refused:?}");
        assert!(!all(&other, Limited::Requests).is_empty() && !all(&one, Limited::Streams).is_empty());
        drop(held);
        assert!(callers.hold(&one, Limited::Requests).is_ok());
    }

    #[test]
    fn only_caller_may_have_all_slots() {
        let one = Caller::Any(String::new());
        let callers = CallerLimits::new([one.clone()], &config());
        let held: Vec<_> = (0..99).map(|_| callers.hold(&one, Limited::Requests).unwrap()).collect();
        assert!(held.iter().all(Option::is_none), "`SlotLimiter` limits them");
    }
}
