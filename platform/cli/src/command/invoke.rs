//! `nerve invoke`

use super::{describe::no_function, tail};
use crate::{
    connection::Connection,
    event_args::EventArgs,
    failure::Failure,
    globals::{DataFolder, Globals},
    output,
};
use clap::Args;
use nerve_broker::bus::InvokeError;
use nerve_core::{EventType, Name};
use std::time::Duration;

/// Run a function once and print its output events without publishing them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve invoke word-count --data '{\"text\": \"one two\"}'
  nerve invoke github-labels --type github.issues.opened --data @issue.json --output json")]
pub(crate) struct Invoke {
    /// The function
    name: Name,
    /// Event type
    #[arg(long = "type", value_name = "TYPE", default_value = "nerve.invoke")]
    ty: EventType,
    /// Timeout [default: the function's timeout plus 5s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    event: EventArgs,
}

/// Added to a function's timeout for the round trip.
const ROUND_TRIP_ALLOWANCE: Duration = Duration::from_secs(5);

impl Invoke {
    pub(crate) async fn run(mut self, globals: &Globals) -> anyhow::Result<()> {
        let folder = DataFolder { data: self.event.data_dir.take() };
        let event = self.event.into_event(self.ty)?;
        let connection = Connection::open(globals, &folder).await?;
        let registry = connection.registry().await?;
        let Some(deployed) = registry.function(&self.name).await? else {
            return Err(no_function(&self.name, &registry).await.into());
        };
        let wait = self.timeout.unwrap_or(deployed.record.spec.timeout + ROUND_TRIP_ALLOWANCE);
        let events =
            connection.bus.invoke(&self.name, &event, wait).await.map_err(|error| failed(&self.name, error))?;
        if globals.output.is_json() {
            return Ok(output::line(&serde_json::to_string(&events)?)?);
        }
        for event in &events {
            output::line(&tail::event_text(event))?;
        }
        Ok(())
    }
}

fn failed(name: &Name, error: InvokeError) -> Failure {
    let failure = Failure::new(format!("cannot invoke `{name}`"));
    let next = match &error {
        InvokeError::NoWorker(_) => format!("start `nerve worker`, or see `nerve logs {name}` for a load error"),
        InvokeError::Timeout(..) => "raise --timeout, or see `nerve logs`".to_owned(),
        InvokeError::Function(_) => format!("see `nerve logs {name}`, then deploy a corrected version"),
        InvokeError::Bus(_) => "check that NATS is running".to_owned(),
    };
    failure.because(error).next(next)
}
