//! `nerve sink enable` and `nerve sink disable`

use super::deployed;
use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
};
use clap::Args;
use nerve_core::{Event, Name};
use nerve_events::{
    EventData,
    sinks::{SinkDisabled, SinkEnabled},
};
use nerve_registry::{DisabledInfo, SinkState};
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Debug, Args)]
pub(crate) struct NamedSink {
    /// The sink
    name: Name,
    #[command(flatten)]
    folder: DataFolder,
}

impl NamedSink {
    pub(crate) async fn enable(self, globals: &Globals) -> anyhow::Result<()> {
        let name = &self.name;
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        deployed(&registry, name).await?;
        let state = registry.sink_state(name).await?;
        let changed = match state.filter(|state| state.record.disabled.is_some()) {
            None => false,
            Some(state) => registry.clear_sink_state(name, state.revision).await?,
        };
        if changed {
            let enabled = SinkEnabled { sink: name.to_string() };
            connection.bus.publish_own(&event(name, &enabled)?).await?;
        }
        globals.output.show(&json!({"sink": name, "enabled": true, "changed": changed}), |_| match changed {
            true => format!("enabled {name}; pending events are being posted"),
            false => format!("{name} is not disabled"),
        })
    }

    pub(crate) async fn disable(self, globals: &Globals) -> anyhow::Result<()> {
        let name = &self.name;
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        deployed(&registry, name).await?;
        let (before, revision) = match registry.sink_state(name).await? {
            Some(state) => (state.record, Some(state.revision)),
            None => (SinkState::default(), None),
        };
        let changed = before.disabled.is_none();
        if changed {
            let disabled = DisabledInfo { since: OffsetDateTime::now_utc(), reason: "by hand".to_owned() };
            let state = SinkState { disabled: Some(disabled), ..before };
            if registry.put_sink_state(name, &state, revision).await?.is_none() {
                let cause = "its state changed concurrently";
                return Err(Failure::new(format!("cannot disable {name}")).cause(cause).next("try again").into());
            }
            let (sink, reason) = (name.to_string(), "by hand".to_owned());
            let disabled = SinkDisabled { sink, reason, ..SinkDisabled::default() };
            connection.bus.publish_own(&event(name, &disabled)?).await?;
        }
        globals.output.show(&json!({"sink": name, "enabled": false, "changed": changed}), |_| match changed {
            true => format!("disabled {name}; its events are kept until `nerve sink enable {name}`"),
            false => format!("{name} is already disabled"),
        })
    }
}

fn event<T: EventData + Serialize>(sink: &Name, data: &T) -> anyhow::Result<Event> {
    let event = Event::new(Uuid::now_v7().to_string(), format!("/sinks/{sink}"), T::event_type());
    let mut event = event.with_data("application/json", serde_json::to_vec(data)?);
    event.time = Some(OffsetDateTime::now_utc());
    Ok(event)
}
