//! Sinks, the states of their endpoints, and schedules.

use super::{Entry, RecordChange, Registry, ScheduleRecord, SinkRecord, SinkState, name_conflict};
use nerve_broker::bus::{
    BusError, ConsumerSpec, DEAD, MAX_ACK_PENDING, REDRIVE_PREFIX, StartPosition, TICKS, TICKS_CONSUMER, TIMERS,
    consumer_name, due_subject,
};
use nerve_core::{Name, ScheduleSpec, SinkSpec};
use time::OffsetDateTime;

fn sink_key(name: &Name) -> String {
    format!("sink.{name}")
}

fn state_key(name: &Name) -> String {
    format!("sink-state.{name}")
}

fn schedule_key(name: &Name) -> String {
    format!("schedule.{name}")
}

impl Registry {
    /// Returns the deployed sinks, by name.
    ///
    /// # Errors
    /// The broker is unavailable, or a record is of another version.
    pub async fn sinks(&self) -> Result<Vec<Entry<SinkRecord>>, BusError> {
        self.list("sink.").await
    }

    /// Returns one deployed sink.
    ///
    /// # Errors
    /// The broker is unavailable, or the record is of another version.
    pub async fn sink(&self, name: &Name) -> Result<Option<Entry<SinkRecord>>, BusError> {
        self.get(name, &sink_key(name)).await
    }

    /// Deploys a sink. An identical deployment changes nothing. A disabled sink stays disabled.
    ///
    /// # Errors
    /// A function has the name, the stream cannot be resolved, or the broker is unavailable.
    pub async fn deploy_sink(&self, name: &Name, spec: SinkSpec) -> Result<RecordChange, BusError> {
        if self.function(name).await?.is_some() {
            return Err(name_conflict(name, "function"));
        }
        let stream = self.resolve_stream(name, spec.stream.as_deref(), &spec.on).await?;
        let record = SinkRecord { spec, stream, deployed_at: OffsetDateTime::now_utc() };
        let before = self.sink(name).await?;
        // The consumers are created first, so that the broker keeps the sink's events from now on.
        self.ensure_sink_consumers(name, &record).await?;
        if let Some(before) = &before {
            if before.record.spec == record.spec && before.record.stream == record.stream {
                return Ok(RecordChange::Unchanged { revision: before.revision });
            }
            if before.record.stream != record.stream {
                self.delete_consumer(&before.record.stream, name).await?;
            }
        }
        let revision = self.put(&sink_key(name), &record).await?;
        Ok(if before.is_some() { RecordChange::Changed { revision } } else { RecordChange::Created { revision } })
    }

    /// Removes a sink, its consumers and its delayed retries. Returns `false` if it is not deployed.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn remove_sink(&self, name: &Name) -> Result<bool, BusError> {
        let Some(entry) = self.sink(name).await? else { return Ok(false) };
        self.delete(&sink_key(name)).await?;
        self.delete(&state_key(name)).await?;
        for stream in [entry.record.stream.as_str(), DEAD, TIMERS] {
            self.delete_consumer(stream, name).await?;
        }
        self.bus.purge_delayed(name).await?;
        Ok(true)
    }

    /// Creates or updates the durable consumers of a sink: for its subjects, its delayed retries and its redriven dead letters.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn ensure_sink_consumers(&self, name: &Name, record: &SinkRecord) -> Result<(), BusError> {
        let subjects = record.spec.on.iter().map(ToString::to_string).collect();
        let in_flight = if record.spec.order { 1 } else { MAX_ACK_PENDING };
        for (stream, subjects, in_flight) in [
            (record.stream.as_str(), subjects, in_flight),
            (TIMERS, vec![due_subject(name)], MAX_ACK_PENDING),
            (DEAD, vec![format!("{REDRIVE_PREFIX}{name}")], MAX_ACK_PENDING),
        ] {
            let description = format!("Nerve's sink {name}");
            let consumer = consumer_name(name);
            let ack_wait = self.ack_wait;
            let beginning = if stream == DEAD || stream == TIMERS { StartPosition::All } else { StartPosition::New };
            let binding = ConsumerSpec { stream, consumer, description, subjects, ack_wait, in_flight, beginning };
            self.bus.bind(binding).await?;
        }
        Ok(())
    }

    /// Returns the state of a sink, or `None` if it is healthy.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn sink_state(&self, name: &Name) -> Result<Option<Entry<SinkState>>, BusError> {
        self.get(name, &state_key(name)).await
    }

    /// Stores the state of a sink over the revision `after`, or as the first one if `after` is `None`. Returns its revision, or
    /// `None` if the state has changed meanwhile.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn put_sink_state(
        &self,
        name: &Name,
        state: &SinkState,
        after: Option<u64>,
    ) -> Result<Option<u64>, BusError> {
        let (key, what) = (state_key(name), format!("writing the state of the sink {name}"));
        let body = serde_json::to_vec(state).map_err(|error| BusError::refused(&what, error))?;
        match after {
            Some(revision) => self.functions.update((&key, revision), body, what).await,
            None => self.functions.create(&key, body, what).await,
        }
    }

    /// Deletes the state of a sink, which also enables it. Returns `false` if the state has changed since `revision`.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn clear_sink_state(&self, name: &Name, revision: u64) -> Result<bool, BusError> {
        let what = format!("writing the state of the sink {name}");
        self.functions.delete_revision(&state_key(name), revision, what).await
    }

    /// Returns the deployed schedules, by name.
    ///
    /// # Errors
    /// The broker is unavailable, or a record is of another version.
    pub async fn schedules(&self) -> Result<Vec<Entry<ScheduleRecord>>, BusError> {
        self.list("schedule.").await
    }

    /// Returns one deployed schedule.
    ///
    /// # Errors
    /// The broker is unavailable, or the record is of another version.
    pub async fn schedule(&self, name: &Name) -> Result<Option<Entry<ScheduleRecord>>, BusError> {
        self.get(name, &schedule_key(name)).await
    }

    /// Deploys a schedule. An identical deployment changes nothing, so that the period of `@every` is not restarted.
    ///
    /// # Errors
    /// The broker rejects the schedule or is unavailable.
    pub async fn deploy_schedule(&self, name: &Name, spec: ScheduleSpec) -> Result<RecordChange, BusError> {
        let record = ScheduleRecord { spec, deployed_at: OffsetDateTime::now_utc() };
        let before = self.schedule(name).await?;
        if let Some(before) = before.as_ref().filter(|before| before.record.spec == record.spec) {
            self.ensure_schedule(name, &record.spec).await?;
            return Ok(RecordChange::Unchanged { revision: before.revision });
        }
        self.ensure_ticks_consumer().await?;
        // The broker validates the schedule, so it is set first: a rejected one is not deployed.
        self.bus.set_schedule(name, &record.spec).await?;
        let revision = self.put(&schedule_key(name), &record).await?;
        Ok(if before.is_some() { RecordChange::Changed { revision } } else { RecordChange::Created { revision } })
    }

    /// Removes a schedule. Returns `false` if it is not deployed.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn remove_schedule(&self, name: &Name) -> Result<bool, BusError> {
        if self.schedule(name).await?.is_none() {
            return Ok(false);
        }
        self.delete(&schedule_key(name)).await?;
        self.bus.remove_schedule(name).await.map(|()| true)
    }

    /// Restores a schedule that the broker has lost, as after a purge of its stream.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn ensure_schedule(&self, name: &Name, spec: &ScheduleSpec) -> Result<(), BusError> {
        match self.bus.has_schedule(name).await? {
            true => Ok(()),
            false => self.bus.set_schedule(name, spec).await,
        }
    }

    /// Creates or updates the consumer of all ticks.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn ensure_ticks_consumer(&self) -> Result<(), BusError> {
        let binding = ConsumerSpec {
            stream: TIMERS,
            consumer: TICKS_CONSUMER.to_owned(),
            description: "Nerve's schedules".to_owned(),
            subjects: vec![TICKS.to_owned()],
            ack_wait: self.ack_wait,
            in_flight: MAX_ACK_PENDING,
            beginning: StartPosition::New,
        };
        self.bus.bind(binding).await
    }
}
