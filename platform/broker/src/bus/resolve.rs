//! Resolves the stream of a function's or a sink's subjects, and its retention.
//!
//! A consumer reads one stream. A deploy therefore finds every stream whose subjects overlap those of `on`, and continues only
//! if there is exactly one and it has all of them.

use super::error::ResultExt as _;
use super::{Bus, BusError, consumer_name, streams};
use async_nats::jetstream::{
    consumer,
    context::GetStreamErrorKind,
    stream::{Config, RetentionPolicy},
};
use futures::TryStreamExt;
use nerve_core::{Name, Pattern};

/// Nerve's own streams, except those of buckets. Functions can be bound to EVENTS only.
const INTERNAL_STREAMS: [&str; 8] = [
    streams::ANSWERS,
    streams::DEAD,
    streams::LOGS,
    streams::RUNS,
    streams::SEEN,
    super::ATTEMPTS,
    super::TIMERS,
    super::duplicates::DROPS,
];
/// Prefixes of the streams of buckets, Nerve's and the user's.
const BUCKET_PREFIXES: [&str; 2] = ["KV_", "OBJ_"];

/// The retention of a stream, as relevant for a deploy and a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Messages are kept until a limit of the stream removes them.
    Limits,
    /// A message is removed once all its consumers have acknowledged it.
    Interest,
    /// A message has one consumer, and is removed once that has acknowledged it.
    WorkQueue,
}

impl Bus {
    /// Resolves the stream of `name` for the subjects `on`: the named one, or the only one that has them.
    ///
    /// # Errors
    /// If the stream does not exist, is Nerve's own or has none of the subjects; or if none is named, and the subjects are in
    /// several streams, in none, or only partly in one.
    pub async fn resolve_stream(&self, name: &Name, named: Option<&str>, on: &[Pattern]) -> Result<String, BusError> {
        let what = || format!("deploying {name}");
        let config = match named {
            Some(stream) => {
                let config = without_own_subjects(self.config_of(stream, what).await?);
                check_named(&config, on).map_err(|why| BusError::refused(what(), why))?;
                config
            }
            None => {
                let streams: Vec<_> = self.jetstream.streams().try_collect().await.unavailable(what)?;
                let streams: Vec<Config> = streams.into_iter().map(|info| without_own_subjects(info.config)).collect();
                choose(&streams, on).map_err(|why| BusError::refused(what(), why))?.clone()
            }
        };
        if config.retention == RetentionPolicy::WorkQueue {
            self.check_work_queue(name, &config.name, on).await?;
        }
        Ok(config.name)
    }

    /// The retention of a stream.
    pub async fn retention_of(&self, stream: &str) -> Result<Retention, BusError> {
        let config = self.config_of(stream, || format!("inspecting the stream {stream}")).await?;
        Ok(match config.retention {
            RetentionPolicy::Limits => Retention::Limits,
            RetentionPolicy::Interest => Retention::Interest,
            RetentionPolicy::WorkQueue => Retention::WorkQueue,
        })
    }

    async fn config_of(&self, stream: &str, what: impl Fn() -> String) -> Result<Config, BusError> {
        match self.jetstream.get_stream(stream).await {
            Ok(found) => Ok(found.cached_info().config.clone()),
            Err(error) => Err(match error.kind() {
                GetStreamErrorKind::JetStream(why) => {
                    BusError::refused(what(), format!("its stream {stream} cannot be used: {why}"))
                }
                GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
                    BusError::refused(what(), format!("`{stream}` is not the name of a stream"))
                }
                _ => BusError::unavailable(what(), error),
            }),
        }
    }

    /// A work queue gives each message to one consumer, so the subjects of two consumers must not overlap.
    async fn check_work_queue(&self, name: &Name, stream: &str, on: &[Pattern]) -> Result<(), BusError> {
        let what = || format!("deploying {name}");
        let handle = self.stream(stream, what).await?;
        let consumers: Vec<consumer::Info> = handle.consumers().try_collect().await.unavailable(what)?;
        let own = consumer_name(name);
        for other in consumers.iter().filter(|other| other.name != own) {
            let filters = filters_of(&other.config);
            let Some(filter) = filters.iter().find(|filter| on.iter().any(|on| overlaps(filter, on))) else { continue };
            let holder = match other.name.strip_prefix("nerve-") {
                Some(deployed) => format!("`{deployed}`"),
                None => format!("the consumer `{}`", other.name),
            };
            let why = format!(
                "the stream {stream} is a work queue, which gives each message to one consumer, and {holder} takes \
                 `{filter}`: choose subjects that do not overlap, or remove {holder} first"
            );
            return Err(BusError::refused(what(), why));
        }
        Ok(())
    }
}

/// The filter subjects of a consumer.
pub(super) fn filters_of(config: &consumer::Config) -> Vec<String> {
    match (&config.filter_subject, &config.filter_subjects) {
        (one, several) if !several.is_empty() => {
            several.iter().chain(Some(one).filter(|one| !one.is_empty())).cloned().collect()
        }
        (one, _) if !one.is_empty() => vec![one.clone()],
        _ => vec![">".to_owned()],
    }
}

/// Returns whether a broker subject and a pattern can match the same message; an invalid pattern matches none.
fn overlaps(subject: &str, on: &Pattern) -> bool {
    Pattern::parse(subject).is_ok_and(|subject| subject.overlaps(on))
}

/// Returns whether `subject` covers every message that `on` can match.
fn contains(subject: &str, on: &Pattern) -> bool {
    let (mut ours, mut theirs) = (subject.split('.'), on.as_str().split('.'));
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(one), Some(two)) if one == two => {}
            _ => return false,
        }
    }
}

/// The stream as functions see it: subjects of EVENTS other than events are internal.
fn without_own_subjects(mut config: Config) -> Config {
    if config.name == streams::EVENTS {
        config.subjects.retain(|subject| !subject.starts_with(streams::EMPTY_PREFIX));
    }
    config
}

fn is_internal(stream: &str) -> bool {
    INTERNAL_STREAMS.contains(&stream) || BUCKET_PREFIXES.iter().any(|prefix| stream.starts_with(prefix))
}

/// Returns whether a stream has messages on subjects that it does not list.
fn has_other_subjects(config: &Config) -> bool {
    config.mirror.is_some()
        || config.sources.as_ref().is_some_and(|sources| !sources.is_empty())
        || config.subject_transform.is_some()
}

/// Checks the stream that a manifest names.
fn check_named(config: &Config, on: &[Pattern]) -> Result<(), String> {
    let name = &config.name;
    if is_internal(name) {
        return Err(format!(
            "`stream = \"{name}\"` is one of Nerve's own streams: only EVENTS and your own take functions"
        ));
    }
    if has_other_subjects(config) {
        return Ok(());
    }
    match on.iter().find(|on| !config.subjects.iter().any(|subject| overlaps(subject, on))) {
        None => Ok(()),
        Some(on) => Err(format!(
            "its stream {name} has no subject that matches `{on}`, only {}: correct `on`, or name another stream",
            quoted(&config.subjects)
        )),
    }
}

/// The only stream that has all subjects of `on`.
fn choose<'s>(streams: &'s [Config], on: &[Pattern]) -> Result<&'s Config, String> {
    let candidates = || streams.iter().filter(|stream| !is_internal(&stream.name));
    let has = |stream: &Config, on: &Pattern| stream.subjects.iter().any(|subject| overlaps(subject, on));
    if let Some(nowhere) = on.iter().find(|on| !candidates().any(|stream| has(stream, on))) {
        return Err(format!(
            "no stream has the subject `{nowhere}`: correct `on`, make a stream for it, or name a mirror with `stream = \"…\"`"
        ));
    }
    let mut holders: Vec<&Config> = candidates().filter(|stream| on.iter().any(|on| has(stream, on))).collect();
    holders.sort_by(|one, other| one.name.cmp(&other.name));
    match holders.as_slice() {
        [only] => {
            let part = on.iter().find(|on| !only.subjects.iter().any(|subject| contains(subject, on)));
            part.map_or(Ok(only), |on| {
                let (name, subjects) = (&only.name, quoted(&only.subjects));
                Err(format!(
                    "the stream {name} has only a part of `{on}`: its subjects are {subjects}. Say `stream = \"{name}\"` if \
                     that part is what you want, or choose narrower subjects"
                ))
            })
        }
        several => {
            let named: Vec<String> =
                several.iter().map(|stream| format!("{} ({})", stream.name, quoted(&stream.subjects))).collect();
            let example = several.first().map_or("", |stream| stream.name.as_str());
            Err(format!(
                "the subjects of `on` are in {} streams, and a function reads one: {}. Say `stream = \"{example}\"` to read \
                 only that, choose narrower subjects, or deploy one function per stream",
                several.len(),
                named.join(", ")
            ))
        }
    }
}

fn quoted(subjects: &[String]) -> String {
    let quoted: Vec<String> = subjects.iter().map(|subject| format!("`{subject}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str, subjects: &[&str]) -> Config {
        let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
        Config { name: name.to_owned(), subjects, ..<_>::default() }
    }

    fn patterns(on: &[&str]) -> Vec<Pattern> {
        on.iter().map(|on| Pattern::parse(*on).unwrap()).collect()
    }

    #[test]
    fn only_stream_with_all_subjects_is_chosen() {
        let streams = [
            stream("EVENTS", &["events.>"]),
            stream("TIMERS", &["timers.>"]),
            stream("KV_mine", &["$KV.mine.>"]),
            stream("OA", &["orders.a.>"]),
            stream("OB", &["orders.b.>"]),
            stream("TWO", &["two.a", "two.b"]),
        ];
        for (on, expected) in [
            (&["events.a", "events.b.>"][..], Ok("EVENTS")),
            (&["orders.a.x"], Ok("OA")),
            (&["two.a", "two.b"], Ok("TWO")),
            (&["orders.>"], Err("OA (`orders.a.>`), OB (`orders.b.>`)")),
            (&["orders.a.x", "events.a"], Err("EVENTS (`events.>`), OA (`orders.a.>`)")),
            (&["*.a.x"], Err("EVENTS (`events.>`), OA (`orders.a.>`)")),
            (&["two.*"], Err("the stream TWO has only a part of `two.*`")),
            (&["orders.a.x", "nowhere.x"], Err("no stream has the subject `nowhere.x`")),
            (&["timers.due.x"], Err("no stream has the subject `timers.due.x`")),
            (&["$KV.mine.x"], Err("no stream has the subject `$KV.mine.x`")),
        ] {
            let chosen = choose(&streams, &patterns(on)).map(|stream| stream.name.as_str());
            match (chosen, expected) {
                (Ok(chosen), Ok(expected)) => assert_eq!(chosen, expected, "{on:?}"),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{on:?}: {why}"),
                other => panic!("{on:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn named_stream_has_each_subject_and_is_not_internal() {
        let named = stream("OA", &["orders.a.>"]);
        assert_eq!(check_named(&named, &patterns(&["orders.>"])), Ok(()));
        let missing = check_named(&named, &patterns(&["orders.>", "orders.b.x"])).unwrap_err();
        assert!(missing.contains("no subject that matches `orders.b.x`, only `orders.a.>`"), "{missing}");
        for own in ["TIMERS", "DEAD", "LOGS", "KV_functions", "OBJ_bodies"] {
            assert!(check_named(&stream(own, &[">"]), &patterns(&["a"])).unwrap_err().contains("Nerve's own"), "{own}");
        }
        let mirror = Config { mirror: Some(<_>::default()), ..stream("COPY", &[]) };
        assert_eq!(check_named(&mirror, &patterns(&["orders.a.x"])), Ok(()));
    }

    #[test]
    fn subject_contains_the_patterns_that_it_covers() {
        for (subject, on, expected) in [
            ("a.>", "a.b", true),
            ("a.>", "a.>", true),
            ("a.>", "a.*.c", true),
            ("a.*", "a.>", false),
            ("a.*", "a.*", true),
            ("a.b", "a.*", false),
            (">", ">", true),
            ("*.a", ">", false),
            ("a.>", "a", false),
        ] {
            assert_eq!(contains(subject, &Pattern::parse(on).unwrap()), expected, "{subject} {on}");
        }
    }
}
