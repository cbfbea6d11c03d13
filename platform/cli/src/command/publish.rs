//! `nerve publish`

use crate::{
    connection::Connection,
    event_args::EventArgs,
    globals::{DataFolder, Globals},
};
use clap::Args;
use nerve_core::EventType;
use serde_json::json;

/// Publish an event and wait until JetStream has stored it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve publish document.uploaded --data '{\"name\": \"a.txt\"}'
  nerve publish document.uploaded --data @event.json --id upload-17
  echo hello | nerve publish note.written --data - --content-type text/plain")]
pub(crate) struct Publish {
    /// Event type; an event of type T is published to the subject events.T
    #[arg(value_name = "TYPE")]
    ty: EventType,
    #[command(flatten)]
    event: EventArgs,
}

impl Publish {
    pub(crate) async fn run(mut self, globals: &Globals) -> anyhow::Result<()> {
        let folder = DataFolder { data: self.event.data_dir.take() };
        let event = self.event.into_event(self.ty)?;
        let connection = Connection::open(globals, &folder).await?;
        let stored = connection.bus.publish_from_cli(&event).await?;
        let result =
            json!({"id": event.id, "type": event.ty, "sequence": stored.sequence, "duplicate": stored.duplicate});
        globals.output.show(&result, |_| {
            let (ty, id, sequence) = (&event.ty, &event.id, stored.sequence);
            match stored.duplicate {
                false => format!("stored {ty} {id} as {sequence}"),
                true => format!(
                    "already stored: sequence {sequence} of EVENTS is an event of the command line with this source and id; \
                     {ty} {id} was dropped regardless of its data"
                ),
            }
        })
    }
}
