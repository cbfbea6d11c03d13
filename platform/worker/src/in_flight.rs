//! The running events, in shared memory that outlives this process.
//!
//! A killed process cannot report what it was running. So each running event is recorded in a slot of an in-memory file, which the
//! parent process reads after this process has died.

use memmap2::MmapMut;
use nerve_core::Name;
use parking_lot::Mutex;
use std::{
    fs::File,
    io::{self, Read, Seek},
    sync::Arc,
};

/// Bytes of a slot: function name, stream name and sequence, padded with zeros.
const SLOT_BYTES: usize = 128;
/// Maximum number of recorded events. Events beyond it run unrecorded.
const MAX_RECORDED_EVENTS: usize = 1024;

/// The running events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InFlight(Arc<Mutex<Slots>>);

#[derive(Debug)]
struct Slots {
    memory: MmapMut,
    /// A stack: the slot freed last is used first, so that few pages of the memory are in use.
    free: Vec<usize>,
}

impl InFlight {
    /// Records events in `file`, which is cleared and resized.
    ///
    /// # Errors
    /// The I/O error if the file cannot be resized or mapped.
    #[allow(unsafe_code)]
    pub fn in_file(file: &File) -> io::Result<Self> {
        file.set_len(0)?;
        file.set_len((MAX_RECORDED_EVENTS * SLOT_BYTES) as u64)?;
        // SAFETY: the map must not be read while another process writes or shrinks the file. This process never reads the map, and
        // the file has no name: its only other holder is the parent process, which reads it after this one has ended.
        let memory = unsafe { MmapMut::map_mut(file) }?;
        Ok(Self(Arc::new(Mutex::new(Slots { memory, free: (0..MAX_RECORDED_EVENTS).rev().collect() }))))
    }

    /// Records that `function` runs the event at `sequence` of `stream`, until the returned value is dropped.
    pub(super) fn enter(&self, function: &Name, stream: &str, sequence: u64) -> Option<InFlightRecord> {
        let mut slots = self.0.lock();
        let slot = slots.free.pop()?;
        let text = format!("{function} {stream} {sequence}");
        let bytes = text.as_bytes().get(..SLOT_BYTES).unwrap_or(text.as_bytes());
        slots.write(slot, bytes);
        Some(InFlightRecord { slots: Arc::clone(&self.0), slot })
    }

    /// Returns the events in `file`, which a process that has ended was running.
    ///
    /// # Errors
    /// The I/O error if the file cannot be read.
    pub fn read(mut file: &File) -> io::Result<Vec<InFlightEvent>> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take((MAX_RECORDED_EVENTS * SLOT_BYTES) as u64).read_to_end(&mut bytes)?;
        let mut events: Vec<_> = bytes.chunks(SLOT_BYTES).filter_map(InFlightEvent::parse).collect();
        events.sort_unstable();
        Ok(events)
    }
}

impl Slots {
    fn write(&mut self, slot: usize, bytes: &[u8]) {
        let start = slot * SLOT_BYTES;
        if let Some(memory) = self.memory.get_mut(start..start + SLOT_BYTES) {
            let (text, rest) = memory.split_at_mut(bytes.len().min(SLOT_BYTES));
            text.copy_from_slice(bytes);
            rest.fill(0);
        }
    }
}

/// The record of a running event. Dropping it frees its slot.
#[derive(Debug)]
pub(super) struct InFlightRecord {
    slots: Arc<Mutex<Slots>>,
    slot: usize,
}

impl Drop for InFlightRecord {
    fn drop(&mut self) {
        let mut slots = self.slots.lock();
        slots.write(self.slot, &[]);
        slots.free.push(self.slot);
    }
}

/// An event that a process was running when it ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InFlightEvent {
    /// The function that ran it.
    pub function: String,
    /// The stream of the event.
    pub stream: String,
    /// Its sequence in the stream.
    pub sequence: u64,
}

impl InFlightEvent {
    fn parse(slot: &[u8]) -> Option<Self> {
        let text = slot.split(|byte| *byte == 0).next()?;
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let (function, stream, sequence) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
        Some(Self { function: function.to_owned(), stream: stream.to_owned(), sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_lists_running_events_and_no_finished_ones() {
        let file = tempfile::tempfile().unwrap();
        let in_flight = InFlight::in_file(&file).unwrap();
        let name = |text: &str| Name::parse(text).unwrap();
        let long = in_flight.enter(&name("a-function-with-a-long-name"), "EVENTS", 7).unwrap();
        drop(in_flight.enter(&name("ended"), "EVENTS", 8));
        let short = in_flight.enter(&name("b"), "ORDERS", u64::MAX).unwrap();
        let seen =
            |events: Vec<InFlightEvent>| events.into_iter().map(|e| (e.function, e.sequence)).collect::<Vec<_>>();
        let both = [("a-function-with-a-long-name".to_owned(), 7), ("b".to_owned(), u64::MAX)];
        assert_eq!(seen(InFlight::read(&file).unwrap()), both);
        drop((long, short));
        assert!(InFlight::read(&file).unwrap().is_empty());
    }

    #[test]
    fn events_beyond_the_limit_run_unrecorded() {
        let file = tempfile::tempfile().unwrap();
        let in_flight = InFlight::in_file(&file).unwrap();
        let name = Name::parse("f").unwrap();
        let running: Vec<_> =
            (0..MAX_RECORDED_EVENTS as u64 + 1).map(|sequence| in_flight.enter(&name, "EVENTS", sequence)).collect();
        assert_eq!(running.iter().flatten().count(), MAX_RECORDED_EVENTS);
        assert_eq!(InFlight::read(&file).unwrap().len(), MAX_RECORDED_EVENTS);
        drop(running);
        assert!(in_flight.enter(&name, "EVENTS", 1).is_some());
    }
}
