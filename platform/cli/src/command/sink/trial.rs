//! `nerve sink test`

use super::{attempts, deployed};
use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
};
use clap::Args;
use nerve_broker::bus::SinkOutcome;
use nerve_core::{Event, EventType, Name};
use serde_json::json;
use std::{path::PathBuf, time::Duration};
use time::OffsetDateTime;
use uuid::Uuid;

/// How long a worker may take beside the post itself.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(crate) struct Trial {
    /// The sink
    name: Name,
    /// The event's data, as JSON
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// The event's type
    #[arg(long = "type", value_name = "TYPE", default_value = "sink.test")]
    ty: EventType,
    /// The data folder; a `nerve up` that runs on it says where NATS is [default: .nerve]
    #[arg(long, value_name = "DIR", env = "NERVE_DATA_DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
}

impl Trial {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let name = &self.name;
        let connection = Connection::open(globals, &DataFolder { data: self.data_dir.clone() }).await?;
        let registry = connection.registry().await?;
        let spec = deployed(&registry, name).await?.record.spec;
        if registry.sink_state(name).await?.is_some_and(|state| state.record.disabled.is_some()) {
            let next = format!("enable it first: nerve sink enable {name}");
            return Err(Failure::new(format!("cannot test {name}")).cause("it is disabled").next(next).into());
        }
        let event = self.event()?;
        let mut attempts = connection.bus.follow_sink_attempts(name, None).await?;
        connection.bus.try_sink(name, &event).await?;
        let ours = async {
            loop {
                let attempt = attempts.next().await;
                if attempt.event == event.id {
                    return attempt;
                }
            }
        };
        let Ok(attempt) = tokio::time::timeout(spec.timeout + PATIENCE, ours).await else {
            let cause = "no worker has posted it: none runs, or the sink cannot run there";
            let next = "look at /readyz of the gateway, or at the worker's log; `nerve secrets list` shows which secrets are set";
            return Err(Failure::new(format!("no word of the test of {name}")).cause(cause).next(next).into());
        };
        globals.output.show(&attempt, |attempt| attempts::table(std::slice::from_ref(attempt)))?;
        match attempt.outcome {
            SinkOutcome::Delivered => Ok(()),
            _ => Err(Failure::new(format!("the endpoint of {name} did not take it"))
                .cause(attempt.error.unwrap_or_default())
                .into()),
        }
    }

    fn event(&self) -> anyhow::Result<Event> {
        let data = match &self.data {
            Some(text) => {
                serde_json::from_str::<serde::de::IgnoredAny>(text)
                    .map_err(|error| Failure::usage("--data is not JSON").because(error))?;
                text.clone()
            }
            None => json!({"sink": self.name, "text": "A test of this sink."}).to_string(),
        };
        let event = Event::new(Uuid::now_v7().to_string(), "/nerve/cli", self.ty.clone());
        let mut event = event.with_data("application/json", data);
        event.time = Some(OffsetDateTime::now_utc());
        Ok(event)
    }
}
