//! `nerve sink test`

use super::{attempts, deployed};
use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
};
use clap::Args;
use nerve_broker::bus::SinkOutcome;
use nerve_core::{Event, EventType, Name};
use serde_json::json;
use std::{path::PathBuf, time::Duration};
use time::OffsetDateTime;
use uuid::Uuid;

/// Added to the sink's timeout for the worker.
const WORKER_ALLOWANCE: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// The sink
    name: Name,
    /// Event data, as JSON
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// Event type
    #[arg(long = "type", value_name = "TYPE", default_value = "sink.test")]
    ty: EventType,
    /// Data directory; used to find the running `nerve up` [default: .nerve]
    #[arg(long, value_name = "DIR", env = "NERVE_DATA_DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
}

impl Test {
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
        connection.bus.test_sink(name, &event).await?;
        let attempt = async {
            loop {
                let attempt = attempts.next().await;
                if attempt.event == event.id {
                    return attempt;
                }
            }
        };
        let Ok(attempt) = tokio::time::timeout(spec.timeout + WORKER_ALLOWANCE, attempt).await else {
            let cause = "no worker has posted it: none is running, or the sink fails to start there";
            let next = "check /readyz of the gateway, the worker's log, and `nerve secrets list`";
            return Err(Failure::new(format!("the test of {name} timed out")).cause(cause).next(next).into());
        };
        globals.output.show(&attempt, |attempt| attempts::table(std::slice::from_ref(attempt)))?;
        match attempt.outcome {
            SinkOutcome::Delivered => Ok(()),
            _ => Err(Failure::new(format!("delivery to sink `{name}` failed"))
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
