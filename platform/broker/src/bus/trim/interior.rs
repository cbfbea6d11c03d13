//! Removes finished events behind an unfinished one.
//!
//! Otherwise an event that waits for a retry would keep all later events. Messages are removed by subject, each
//! up to the first unfinished event that concerns the subject: one for a consumer of the subject, or one
//! of a function that may return events there. The results of a function are kept from its first unfinished event on, since
//! that event may run again, and its results are looked up then.

use super::super::{Bus, BusError, EVENTS, durables::DurableConsumer, resolve::filters_of};
use async_nats::jetstream::stream::{Info, Stream};
use futures::StreamExt;
use nerve_core::{Pattern, subject::EVENTS_PREFIX};
use std::{collections::HashMap, fmt, sync::Arc};

/// Maximum subjects per trim, those with the most messages.
const MAX_SUBJECTS: usize = 1000;
/// Steps from the oldest to the newest messages.
const STEPS: u64 = 4;
/// Prefix of Nerve's own consumers.
const OWN_PREFIX: &str = "nerve";

/// The output types of each deployed function, by the name of its consumer.
#[derive(Clone)]
pub struct Returns(Arc<dyn Fn() -> HashMap<String, Vec<Pattern>> + Send + Sync>);

impl Returns {
    /// Calls `look` for the current types.
    pub fn new(look: impl Fn() -> HashMap<String, Vec<Pattern>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }
}

impl fmt::Debug for Returns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Returns")
    }
}

/// A consumer with unfinished events.
#[derive(Debug)]
struct UnfinishedConsumer {
    /// The sequence of its first unfinished event.
    first: u64,
    /// The subjects that concern it: its filters, and those of its output events.
    concerns: Vec<Pattern>,
}

/// Removes finished events behind unfinished ones, oldest first, down to `target` bytes. Returns the remaining bytes.
pub(super) async fn trim_interior(
    bus: &Bus,
    stream: &Stream,
    (consumers, returns): (&[DurableConsumer], &Returns),
    target: u64,
) -> Result<u64, BusError> {
    let what = || format!("trimming {EVENTS}");
    let unavailable = |error: async_nats::Error| BusError::unavailable(what(), error);
    // First the last sequence, then the consumers with unfinished events before it.
    let mut info: Info = stream.get_info().await.map_err(|error| unavailable(error.into()))?;
    let (first, end) = (info.state.first_sequence, info.state.last_sequence + 1);
    let unfinished = unfinished(consumers, stream, &returns.0()).await?;
    let subjects = bus.subjects_of(stream).await.map_err(unavailable)?;
    let removable = subjects.into_iter().filter_map(|subject| {
        let until = kept_from(&unfinished, &subject).unwrap_or(end).min(end);
        (until > first).then_some((subject, until))
    });
    let removable: Vec<(String, u64)> = removable.collect();
    for step in 1..=STEPS {
        let line = first + ((end - first) * step).div_ceil(STEPS);
        for (subject, until) in &removable {
            let purge = stream.purge().sequence((*until).min(line)).filter(subject.as_str());
            let purged = purge.await.map_err(|error| unavailable(error.into()))?;
            metrics::counter!("nerve_events_trimmed_total").increment(purged.purged);
        }
        info = stream.get_info().await.map_err(|error| unavailable(error.into()))?;
        if info.state.bytes <= target {
            break;
        }
    }
    Ok(info.state.bytes)
}

/// The consumers with unfinished events.
async fn unfinished(
    consumers: &[DurableConsumer],
    stream: &Stream,
    returns: &HashMap<String, Vec<Pattern>>,
) -> Result<Vec<UnfinishedConsumer>, BusError> {
    let mut unfinished = Vec::new();
    for consumer in consumers {
        if let Some(next) = consumer.next_from(stream, consumer.floor()).await? {
            let takes = filters_of(&consumer.info.config);
            let concerns = concerns(consumer.name(), &takes, returns.get(consumer.name()));
            unfinished.push(UnfinishedConsumer { first: next.sequence, concerns });
        }
    }
    Ok(unfinished)
}

/// The filter and output subjects of a consumer; all if unknown.
fn concerns(consumer: &str, takes: &[String], returns: Option<&Vec<Pattern>>) -> Vec<Pattern> {
    let takes = takes.iter().cloned();
    let all = || vec![">".to_owned()];
    let returns = match returns {
        Some(types) => types.iter().map(|types| format!("{EVENTS_PREFIX}{types}")).collect(),
        None if consumer.starts_with(OWN_PREFIX) => all(),
        None => Vec::new(),
    };
    let parsed: Option<Vec<Pattern>> = takes.chain(returns).map(|subject| Pattern::parse(subject).ok()).collect();
    parsed.unwrap_or_else(|| all().into_iter().filter_map(|all| Pattern::parse(all).ok()).collect())
}

/// The first unfinished event that concerns a subject.
fn kept_from(unfinished: &[UnfinishedConsumer], subject: &str) -> Option<u64> {
    let concerned = unfinished.iter().filter(|one| one.concerns.iter().any(|pattern| pattern.covers(subject)));
    concerned.map(|one| one.first).min()
}

impl Bus {
    /// The subjects of a stream, those with the most messages first.
    async fn subjects_of(&self, stream: &Stream) -> Result<Vec<String>, async_nats::Error> {
        let mut listed = stream.info_with_subjects(">").await?;
        let mut subjects = Vec::new();
        while let Some(subject) = listed.next().await {
            subjects.push(subject?);
        }
        subjects.sort_by_key(|(_, messages)| std::cmp::Reverse(*messages));
        Ok(subjects.into_iter().take(MAX_SUBJECTS).map(|(subject, _)| subject).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_is_kept_from_the_first_unfinished_event_that_concerns_it() {
        let takes = |subject: &str| vec![subject.to_owned()];
        let types = vec![Pattern::parse("b.*").unwrap()];
        let unfinished = [
            UnfinishedConsumer { first: 5, concerns: concerns("nerve-f", &takes("events.a"), Some(&types)) },
            UnfinishedConsumer { first: 9, concerns: concerns("audit", &takes("events.c"), None) },
        ];
        for (subject, expected) in [
            ("events.a", Some(5)),
            ("events.b.x", Some(5)),
            ("events.b", None),
            ("events.c", Some(9)),
            ("events.d", None),
        ] {
            assert_eq!(kept_from(&unfinished, subject), expected, "{subject}");
        }
        // Unknown output types, or an invalid filter.
        for concerns in [concerns("nerve-g", &takes("events.a"), None), concerns("audit", &takes("ä"), None)] {
            assert_eq!(kept_from(&[UnfinishedConsumer { first: 3, concerns }], "events.z"), Some(3));
        }
    }
}
