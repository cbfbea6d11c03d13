//! Removes what is finished behind an event that is not.
//!
//! An event that waits for its next attempt would otherwise keep everything that came after it. Messages go by subject, each
//! up to the first event that concerns the subject and is not finished: one that a consumer of the subject has left, or one
//! of a function that may return events there. The results of a function are kept from its first unfinished event on, since
//! that event may be run again, and its results are then looked for.

use super::super::{Bus, BusError, EVENTS, durables::Durable, resolve::filters_of};
use async_nats::jetstream::stream::{Info, Stream};
use futures::StreamExt;
use nerve_core::{Pattern, subject::EVENTS_PREFIX};
use std::{collections::HashMap, fmt, sync::Arc};

/// Subjects of which messages are removed in one go, those with the most messages.
const MAX_SUBJECTS: usize = 1000;
/// Steps from the oldest messages to the newest.
const STEPS: u64 = 4;
/// How the names of Nerve's own consumers begin.
const OWN: &str = "nerve";

/// What each deployed function may return (types), by the name of its consumer.
#[derive(Clone)]
pub struct Returns(Arc<dyn Fn() -> HashMap<String, Vec<Pattern>> + Send + Sync>);

impl Returns {
    /// As `look` says, whenever it is asked.
    pub fn new(look: impl Fn() -> HashMap<String, Vec<Pattern>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }
}

impl fmt::Debug for Returns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Returns")
    }
}

/// A consumer that has not finished all.
#[derive(Debug)]
struct Unfinished {
    /// The first event that it has not finished.
    first: u64,
    /// The subjects that it concerns: those it takes, and those it may return events on.
    concerns: Vec<Pattern>,
}

/// Removes, oldest first, what is finished behind unfinished events, down to `target` bytes; tells how many are left.
pub(super) async fn trim_within(
    bus: &Bus,
    stream: &Stream,
    (consumers, returns): (&[Durable], &Returns),
    target: u64,
) -> Result<u64, BusError> {
    let what = || format!("trimming {EVENTS}");
    let unavailable = |error: async_nats::Error| BusError::unavailable(what(), error);
    // First the end, then who has not finished what is before it.
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

/// What each consumer has not finished; those that have finished all are left out.
async fn unfinished(
    consumers: &[Durable],
    stream: &Stream,
    returns: &HashMap<String, Vec<Pattern>>,
) -> Result<Vec<Unfinished>, BusError> {
    let mut unfinished = Vec::new();
    for consumer in consumers {
        if let Some(next) = consumer.next_from(stream, consumer.floor()).await? {
            let takes = filters_of(&consumer.info.config);
            let concerns = concerns(consumer.name(), &takes, returns.get(consumer.name()));
            unfinished.push(Unfinished { first: next.sequence, concerns });
        }
    }
    Ok(unfinished)
}

/// The subjects that a consumer takes and returns events on; any where that is not known.
fn concerns(consumer: &str, takes: &[String], returns: Option<&Vec<Pattern>>) -> Vec<Pattern> {
    let takes = takes.iter().cloned();
    let all = || vec![">".to_owned()];
    let returns = match returns {
        Some(types) => types.iter().map(|types| format!("{EVENTS_PREFIX}{types}")).collect(),
        None if consumer.starts_with(OWN) => all(),
        None => Vec::new(),
    };
    let parsed: Option<Vec<Pattern>> = takes.chain(returns).map(|subject| Pattern::parse(subject).ok()).collect();
    parsed.unwrap_or_else(|| all().into_iter().filter_map(|all| Pattern::parse(all).ok()).collect())
}

/// The first unfinished event that concerns a subject.
fn kept_from(unfinished: &[Unfinished], subject: &str) -> Option<u64> {
    let concerned = unfinished.iter().filter(|one| one.concerns.iter().any(|pattern| pattern.covers(subject)));
    concerned.map(|one| one.first).min()
}

impl Bus {
    /// The subjects in a stream, those with the most messages first.
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
    fn a_subject_is_kept_from_the_first_unfinished_event_that_concerns_it() {
        let takes = |subject: &str| vec![subject.to_owned()];
        let types = vec![Pattern::parse("b.*").unwrap()];
        let unfinished = [
            Unfinished { first: 5, concerns: concerns("nerve-f", &takes("events.a"), Some(&types)) },
            Unfinished { first: 9, concerns: concerns("audit", &takes("events.c"), None) },
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
        // What it returns is not known, or what it takes is no pattern of ours.
        for concerns in [concerns("nerve-g", &takes("events.a"), None), concerns("audit", &takes("ä"), None)] {
            assert_eq!(kept_from(&[Unfinished { first: 3, concerns }], "events.z"), Some(3));
        }
    }
}
