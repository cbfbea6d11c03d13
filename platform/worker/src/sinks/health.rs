//! An endpoint that fails for long is disabled, and an event says so.

use super::{super::Shared, verdict::Answer};
use nerve_broker::bus::BusError;
use nerve_core::{Event, EventType, Name};
use nerve_registry::{Disabled, SinkState};
use serde_json::json;
use std::time::Duration;
use time::OffsetDateTime;

/// What is to be written of an endpoint after a post.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Nothing,
    Failing,
    Well,
    Disable,
}

/// Decides it from what stands there, as a pure function.
fn change(state: Option<&SinkState>, answer: &Answer, now: OffsetDateTime, after: Duration) -> Change {
    let disabled = state.is_some_and(|state| state.disabled.is_some());
    let since = state.and_then(|state| state.failing_since);
    match (answer.is_good(), since) {
        _ if disabled => Change::Nothing,
        (true, None) => Change::Nothing,
        (true, Some(_)) => Change::Well,
        (false, _) if answer.is_gone() => Change::Disable,
        (false, None) => Change::Failing,
        (false, Some(since)) if now - since >= after => Change::Disable,
        (false, Some(_)) => Change::Nothing,
    }
}

/// How one sink is doing, as all workers together know it.
pub(super) struct Health {
    pub(super) shared: Shared,
    pub(super) sink: Name,
    pub(super) host: String,
    pub(super) disable_after: Duration,
}

impl Health {
    /// Takes note of a post's end.
    pub(super) async fn note(&self, answer: &Answer) {
        let (state, revision) = match self.shared.catalogue.borrow().sink_states.get(&self.sink) {
            Some(entry) => (Some(entry.record.clone()), Some(entry.revision)),
            None => (None, None),
        };
        let now = OffsetDateTime::now_utc();
        let since = state.as_ref().and_then(|state| state.failing_since);
        let written = match (change(state.as_ref(), answer, now, self.disable_after), revision) {
            (Change::Nothing, _) | (Change::Well, None) => return,
            (Change::Failing, _) => self.failing(now, revision).await.map(drop),
            (Change::Well, Some(revision)) => {
                self.shared.registry.clear_sink_state(&self.sink, revision).await.map(drop)
            }
            (Change::Disable, _) => {
                let reason = match since {
                    Some(since) if !answer.is_gone() => {
                        let why = answer.error.as_deref().unwrap_or_default();
                        format!("it has failed since {} without a success: {why}", super::shown(since))
                    }
                    _ => "its endpoint answered 410 Gone".to_owned(),
                };
                self.disable(reason, since.unwrap_or(now), revision).await
            }
        };
        if let Err(error) = written {
            tracing::warn!(sink = %self.sink, %error, "how an endpoint is doing could not be written");
        }
    }

    /// Writes since when it fails; none if somebody else wrote something.
    async fn failing(&self, since: OffsetDateTime, revision: Option<u64>) -> Result<Option<u64>, BusError> {
        let failing = SinkState { failing_since: Some(since), disabled: None };
        self.shared.registry.put_sink_state(&self.sink, &failing, revision).await
    }

    async fn disable(&self, reason: String, since: OffsetDateTime, revision: Option<u64>) -> Result<(), BusError> {
        // A state is disabled once, whoever does it, so there must be one.
        let revision = match revision {
            Some(revision) => revision,
            None => match self.failing(since, None).await? {
                Some(revision) => revision,
                None => return Ok(()),
            },
        };
        let disabled = Disabled { since: OffsetDateTime::now_utc(), reason: reason.clone() };
        // First the event: of two workers, or of two tries, it is stored once.
        let announced = self.shared.bus.publish_own(&self.disabled_event(&disabled, since, revision)?).await;
        announced.map_err(|error| BusError::unavailable("publishing sink.disabled", error))?;
        let state = SinkState { failing_since: Some(since), disabled: Some(disabled) };
        if self.shared.registry.put_sink_state(&self.sink, &state, Some(revision)).await?.is_some() {
            tracing::warn!(sink = %self.sink, reason, "disabled: nerve sink enable {}", self.sink);
        }
        Ok(())
    }

    /// The event `sink.disabled`; its id is of the state that it ends.
    fn disabled_event(
        &self,
        disabled: &Disabled,
        failing_since: OffsetDateTime,
        revision: u64,
    ) -> Result<Event, BusError> {
        let sink = &self.sink;
        let ty =
            EventType::parse("sink.disabled").map_err(|error| BusError::refused("publishing sink.disabled", error))?;
        let data = json!({
            "sink": sink,
            "host": self.host,
            "reason": disabled.reason,
            "failing_since": super::shown(failing_since),
        });
        let mut event = Event::new(format!("{sink}-disabled-{revision}"), format!("/sinks/{sink}"), ty)
            .with_data("application/json", data.to_string());
        event.time = Some(disabled.since);
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_disabled_once_it_has_failed_for_long() {
        let (start, day) = (OffsetDateTime::UNIX_EPOCH, Duration::from_secs(86_400));
        let failing = SinkState { failing_since: Some(start), disabled: None };
        let disabled = Disabled { since: start, reason: String::new() };
        let off = SinkState { disabled: Some(disabled), ..failing.clone() };
        let answered = |status| Answer {
            status: Some(status),
            retry_after: None,
            error: None,
            timed_out: false,
            body: String::new(),
        };
        for (state, status, after, expected) in [
            (None, 200, day, Change::Nothing),
            (None, 500, day, Change::Failing),
            (None, 410, day, Change::Disable),
            (Some(&failing), 200, day, Change::Well),
            (Some(&failing), 500, day / 2, Change::Nothing),
            (Some(&failing), 500, 5 * day, Change::Disable),
            (Some(&off), 500, 9 * day, Change::Nothing),
            (Some(&off), 200, 9 * day, Change::Nothing),
        ] {
            assert_eq!(
                change(state, &answered(status), start + after, 5 * day),
                expected,
                "{state:?} {status} {after:?}"
            );
        }
    }
}
