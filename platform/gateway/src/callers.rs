//! Fair shares of the requests and event streams that a gateway serves at once, among the names of its keys.
//!
//! One caller has no use for all of them: where it already has most, what is free is left to the others. A gateway whose keys have
//! one name, or that has none, has one caller, which may have all.

use super::{
    LATER,
    access::Caller,
    problem::{Answer, Problem},
};
use http::{HeaderValue, StatusCode, header};
use nerve_config::GatewayConfig;
use nerve_core::shares::{Share, Shares, Slot};
use std::collections::HashMap;

/// What each caller has of them; nothing where there is one caller.
#[derive(Debug, Default)]
pub(super) struct Callers(HashMap<Caller, Held>);

#[derive(Debug)]
struct Held {
    requests: Share,
    streams: Share,
}

/// What a caller may have so many of at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounded {
    /// Requests.
    Requests,
    /// Event streams.
    Streams,
}

impl Callers {
    /// Shares for these callers.
    pub(super) fn new(callers: impl IntoIterator<Item = Caller>, config: &GatewayConfig) -> Self {
        let (requests, streams) = (Shares::new(config.max_requests), Shares::new(config.max_streams));
        let held = |caller| (caller, Held { requests: requests.share(), streams: streams.share() });
        let callers: HashMap<Caller, Held> = callers.into_iter().map(held).collect();
        if callers.len() > 1 { Self(callers) } else { Self::default() }
    }

    /// Counts one more for the caller, until what this returns is dropped.
    ///
    /// # Errors
    /// The caller has its share.
    pub(super) fn hold(&self, caller: &Caller, what: Bounded) -> Answer<Option<Slot>> {
        let Some(held) = self.0.get(caller) else { return Ok(None) };
        let (share, what, setting) = match what {
            Bounded::Requests => (&held.requests, "requests", "gateway.max_requests"),
            Bounded::Streams => (&held.streams, "event streams", "gateway.max_streams"),
        };
        share.try_acquire().map(Some).ok_or_else(|| {
            let detail = format!(
                "this key has its share of the {what} that the gateway serves at once; {setting} bounds them, and the names \
                 of gateway.keys and the collections share them"
            );
            let wait = HeaderValue::from(LATER.as_secs().max(1));
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).with(header::RETRY_AFTER, wait)
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
    fn one_caller_leaves_room_for_another() {
        let [one, other] = [Caller::Any("a".into()), Caller::Collection("a".into())];
        let callers = Callers::new([one.clone(), other.clone()], &config());
        let all = |caller: &Caller, what| -> Vec<Option<Slot>> {
            std::iter::from_fn(|| callers.hold(caller, what).ok()).take(99).collect()
        };
        let held = all(&one, Bounded::Requests);
        assert_eq!(held.len(), 12);
        let refused = callers.hold(&one, Bounded::Requests).unwrap_err();
        assert!(refused.status() == 429 && refused.detail().contains("gateway.max_requests"), "{refused:?}");
        assert!(!all(&other, Bounded::Requests).is_empty() && !all(&one, Bounded::Streams).is_empty());
        drop(held);
        assert!(callers.hold(&one, Bounded::Requests).is_ok());
    }

    #[test]
    fn only_caller_may_have_all() {
        let one = Caller::Any(String::new());
        let callers = Callers::new([one.clone()], &config());
        let held: Vec<_> = (0..99).map(|_| callers.hold(&one, Bounded::Requests).unwrap()).collect();
        assert!(held.iter().all(Option::is_none), "`Places` bounds them");
    }
}
