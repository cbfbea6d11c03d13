//! Endpoint health: disables an endpoint that fails for long, and publishes an event.

use super::{super::WorkerShared, verdict::PostResult};
use nerve_broker::bus::BusError;
use nerve_core::{Event, Name};
use nerve_events::{EventData, sinks::SinkDisabled};
use nerve_registry::{DisabledInfo, SinkState};
use std::time::Duration;
use time::OffsetDateTime;

/// The change of an endpoint's state after a post.
#[derive(Debug, Clone, PartialEq, Eq)]
enum StateChange {
    None,
    SetFailing,
    Clear,
    Disable,
}

/// Decides the change from the current state, as a pure function.
fn change(state: Option<&SinkState>, result: &PostResult, now: OffsetDateTime, after: Duration) -> StateChange {
    let disabled = state.is_some_and(|state| state.disabled.is_some());
    let since = state.and_then(|state| state.failing_since);
    match (result.is_success(), since) {
        _ if disabled => StateChange::None,
        (true, None) => StateChange::None,
        (true, Some(_)) => StateChange::Clear,
        (false, _) if result.is_gone() => StateChange::Disable,
        (false, None) => StateChange::SetFailing,
        (false, Some(since)) if now - since >= after => StateChange::Disable,
        (false, Some(_)) => StateChange::None,
    }
}

/// The health of one sink, shared by all workers.
pub(super) struct Health {
    pub(super) shared: WorkerShared,
    pub(super) sink: Name,
    pub(super) host: String,
    pub(super) disable_after: Duration,
}

impl Health {
    /// Updates the state after a post.
    pub(super) async fn update(&self, result: &PostResult) {
        let (state, revision) = match self.shared.catalogue.borrow().sink_states.get(&self.sink) {
            Some(entry) => (Some(entry.record.clone()), Some(entry.revision)),
            None => (None, None),
        };
        let now = OffsetDateTime::now_utc();
        let since = state.as_ref().and_then(|state| state.failing_since);
        let written = match (change(state.as_ref(), result, now, self.disable_after), revision) {
            (StateChange::None, _) | (StateChange::Clear, None) => return,
            (StateChange::SetFailing, _) => self.failing(now, revision).await.map(drop),
            (StateChange::Clear, Some(revision)) => {
                self.shared.registry.clear_sink_state(&self.sink, revision).await.map(drop)
            }
            (StateChange::Disable, _) => {
                let reason = match since {
                    Some(since) if !result.is_gone() => {
                        let why = result.error.as_deref().unwrap_or_default();
                        format!("the endpoint has failed since {} without a success: {why}", super::format_time(since))
                    }
                    _ => "the endpoint responded 410 Gone".to_owned(),
                };
                self.disable(reason, since.unwrap_or(now), revision).await
            }
        };
        if let Err(error) = written {
            tracing::warn!(sink = %self.sink, %error, "state of the sink could not be stored");
        }
    }

    /// Stores the time of the first failure. Returns `None` if another worker changed the state meanwhile.
    async fn failing(&self, since: OffsetDateTime, revision: Option<u64>) -> Result<Option<u64>, BusError> {
        let failing = SinkState { failing_since: Some(since), disabled: None };
        self.shared.registry.put_sink_state(&self.sink, &failing, revision).await
    }

    async fn disable(&self, reason: String, since: OffsetDateTime, revision: Option<u64>) -> Result<(), BusError> {
        // Disabling replaces a revision of the state, so that only one worker disables it.
        let revision = match revision {
            Some(revision) => revision,
            None => match self.failing(since, None).await? {
                Some(revision) => revision,
                None => return Ok(()),
            },
        };
        let disabled = DisabledInfo { since: OffsetDateTime::now_utc(), reason: reason.clone() };
        // The event first: its id deduplicates it among workers and attempts.
        let announced = self.shared.bus.publish_own(&self.disabled_event(&disabled, since, revision)?).await;
        announced.map_err(|error| BusError::unavailable("publishing sink.disabled", error))?;
        let state = SinkState { failing_since: Some(since), disabled: Some(disabled) };
        if self.shared.registry.put_sink_state(&self.sink, &state, Some(revision)).await?.is_some() {
            tracing::warn!(sink = %self.sink, reason, "sink disabled: nerve sink enable {}", self.sink);
        }
        Ok(())
    }

    /// Builds the event `sink.disabled`. Its id contains the replaced revision of the state.
    fn disabled_event(
        &self,
        disabled: &DisabledInfo,
        failing_since: OffsetDateTime,
        revision: u64,
    ) -> Result<Event, BusError> {
        let sink = &self.sink;
        let data = SinkDisabled {
            sink: sink.to_string(),
            host: Some(self.host.clone()),
            reason: disabled.reason.clone(),
            failing_since: Some(super::format_time(failing_since)),
        };
        let data = serde_json::to_vec(&data).map_err(|error| BusError::refused("publishing sink.disabled", error))?;
        let (id, source) = (format!("{sink}-disabled-{revision}"), format!("/sinks/{sink}"));
        let mut event = Event::new(id, source, SinkDisabled::event_type()).with_data("application/json", data);
        event.time = Some(disabled.since);
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_disabled_after_long_failure_or_gone() {
        let (start, day) = (OffsetDateTime::UNIX_EPOCH, Duration::from_secs(86_400));
        let failing = SinkState { failing_since: Some(start), disabled: None };
        let disabled = DisabledInfo { since: start, reason: String::new() };
        let off = SinkState { disabled: Some(disabled), ..failing.clone() };
        let answered = |status| PostResult {
            status: Some(status),
            retry_after: None,
            error: None,
            timed_out: false,
            body: String::new(),
        };
        for (state, status, after, expected) in [
            (None, 200, day, StateChange::None),
            (None, 500, day, StateChange::SetFailing),
            (None, 410, day, StateChange::Disable),
            (Some(&failing), 200, day, StateChange::Clear),
            (Some(&failing), 500, day / 2, StateChange::None),
            (Some(&failing), 500, 5 * day, StateChange::Disable),
            (Some(&off), 500, 9 * day, StateChange::None),
            (Some(&off), 200, 9 * day, StateChange::None),
        ] {
            assert_eq!(
                change(state, &answered(status), start + after, 5 * day),
                expected,
                "{state:?} {status} {after:?}"
            );
        }
    }
}
