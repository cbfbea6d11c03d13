//! Identities: what makes two stored things the same thing.
//!
//! JetStream drops a message whose id it has seen. So an id must be the same each time the same thing is published again, and
//! differ whenever it is something else. Every id of that kind is made here, from parts that nobody outside can choose freely:
//! where an event came in, where its message is stored, which run of a function it belongs to.
//!
//! # Layout
//! - [`Origin`]: where an event came in. [`Input`]: the message that a function was given. [`Generation`]: which redrive or
//!   replay it is run for. [`Run`]: the three together, from which the ids of everything that the run publishes are made.
//! - [`Identity`]: the digest of such parts.
//!
//! An identity is the first half of the SHA-256 of its parts, each preceded by its length, so that no two lists of parts are the
//! same bytes. Keys and tokens are never parts; their names are.

use crate::{Event, Name};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, sync::Arc};
use time::OffsetDateTime;

/// Bytes of an identity.
pub const BYTES: usize = 16;

/// Names one thing that is stored once: 128 bits of a digest, shown as 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity([u8; BYTES]);

impl Identity {
    fn of(kind: &str, parts: &[&[u8]]) -> Self {
        let mut digest = Sha256::new();
        for part in std::iter::once(kind.as_bytes()).chain(parts.iter().copied()) {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        }
        Self::from_bytes(&digest.finalize())
    }

    /// A webhook's event as an older Nerve recorded it in SEEN, so that what it accepted is known after an update.
    pub fn of_webhook_before(name: &Name, source: &str, id: &str) -> Self {
        let parts = [name.as_str(), "\0id\0", source, "#", id];
        Self::from_bytes(&Sha256::digest(parts.concat()))
    }

    /// The id of a result as an older Nerve made it: of the function, its event, and the result's number among all that it
    /// emitted.
    pub fn old_result(function: &Name, event: &Event, number: usize) -> String {
        let mut digest = Sha256::new();
        for part in [function.as_str(), &event.source, &event.id] {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        }
        let digest = HEXLOWER.encode(&digest.finalize());
        format!("{function}-{}-{number}", digest.get(..24).unwrap_or(&digest))
    }

    /// What a webhook source received, by the bytes that were signed.
    pub fn of_signed(source: &Name, signed: &[u8]) -> Self {
        Self::of("signed", &[source.as_str().as_bytes(), signed])
    }

    /// A request with an `Idempotency-Key`, by who sent it and to which route.
    pub fn of_request(caller: &Origin, route: &str, key: &str) -> Self {
        Self::of("request", &[caller.0.as_bytes(), route.as_bytes(), key.as_bytes()])
    }

    /// The copy of a dead letter that goes back to its function.
    pub fn of_redrive(dead: &Input) -> Self {
        Self::of("redrive", &dead.parts().each_ref().map(Vec::as_slice))
    }

    /// What an endpoint knows a webhook by: of the event as it was stored first, the same for each attempt.
    pub fn of_webhook(input: &Input) -> Self {
        Self::of("webhook", &input.parts().each_ref().map(Vec::as_slice))
    }

    /// A message that is published again because of something else, such as a dead letter on its way back.
    pub fn of_copy(purpose: &str, original: &str) -> Self {
        Self::of("copy", &[purpose.as_bytes(), original.as_bytes()])
    }

    /// Reads an identity; of more bytes the first 16 count, fewer are filled with zeros.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut identity = [0; BYTES];
        identity.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self(identity)
    }

    /// Reads what [`Display`](fmt::Display) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// The bytes.
    pub fn to_bytes(self) -> [u8; BYTES] {
        self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// Where an event came in, or who sent a request: a name, never a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin(Arc<str>);

impl Origin {
    fn new(kind: &str, name: &str) -> Self {
        Self([kind, "/", name].concat().into())
    }

    /// A webhook source.
    pub fn source(name: &Name) -> Self {
        Self::new("source", name.as_str())
    }

    /// The holder of an API key, by the key's name.
    pub fn key(name: &str) -> Self {
        Self::new("key", name)
    }

    /// The holders of the keys of a collection.
    pub fn collection(name: &str) -> Self {
        Self::new("collection", name)
    }

    /// The command line.
    pub fn cli() -> Self {
        Self::new("cli", "")
    }

    /// Nerve itself.
    pub fn nerve() -> Self {
        Self::new("nerve", "")
    }

    /// The identity of an event that came in here: of its `source` and `id`, which its sender chose.
    pub fn identify(&self, event: &Event) -> Identity {
        Identity::of("event", &[self.0.as_bytes(), event.source.as_bytes(), event.id.as_bytes()])
    }

    /// The same where the sender may use an id again: of `source`, `id` and the SHA-256 of the body.
    pub fn identify_content(&self, event: &Event, body_sha256: &[u8]) -> Identity {
        Identity::of("content", &[self.0.as_bytes(), event.source.as_bytes(), event.id.as_bytes(), body_sha256])
    }

    /// The same where every delivery is an event of its own; `delivery` is unique to it.
    pub fn identify_delivery(&self, delivery: &[u8]) -> Identity {
        Identity::of("delivery", &[self.0.as_bytes(), delivery])
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A stored message that a function or a sink was given, wherever a copy of it lies now.
///
/// The time at which the stream stored it stands for the stream's incarnation: a stream that is deleted and made again gives the
/// same sequence another time. It comes with every delivery, so it is never out of date.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Input {
    /// The stream.
    pub stream: Arc<str>,
    /// Its sequence there.
    pub sequence: u64,
    /// When the stream stored it, in nanoseconds since 1970.
    pub stored_ns: i128,
}

impl Input {
    /// The message at `sequence` of `stream`, stored at `stored`.
    pub fn new(stream: impl Into<Arc<str>>, sequence: u64, stored: OffsetDateTime) -> Self {
        Self { stream: stream.into(), sequence, stored_ns: stored.unix_timestamp_nanos() }
    }

    fn parts(&self) -> [Vec<u8>; 3] {
        [self.stream.as_bytes().to_vec(), self.sequence.to_be_bytes().to_vec(), self.stored_ns.to_be_bytes().to_vec()]
    }

    /// When the stream stored it.
    pub fn stored(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(self.stored_ns).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// Which run of a function on one input: the first, or one that a redrive or a replay asked for.
///
/// Everything that a run publishes has the generation in its id, so what is asked for again is published again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(Option<Arc<str>>);

impl Generation {
    /// The generation of events that nobody sent back.
    pub fn first() -> Self {
        Self(None)
    }

    /// The generation that redriving this dead letter begins. Redriving it twice begins one.
    pub fn redriven(dead: &Input) -> Self {
        Self(Some(Identity::of_redrive(dead).to_string().into()))
    }

    /// The generation of a replay; `replay` is unique to it.
    pub fn replayed(replay: &str) -> Self {
        Self(Some(Identity::of_copy("replay", replay).to_string().into()))
    }

    /// Reads what [`as_str`](Self::as_str) wrote.
    pub fn parse(text: &str) -> Self {
        Self(Some(text).filter(|text| !text.is_empty()).map(Into::into))
    }

    /// The generation as text; empty for the first.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

/// One function's run on one input, for one generation.
#[derive(Debug, Clone, Copy)]
pub struct Run<'r> {
    /// The function or sink.
    pub function: &'r Name,
    /// What it was given.
    pub input: &'r Input,
    /// Which run.
    pub generation: &'r Generation,
}

impl Run<'_> {
    fn identity(&self, kind: &str, parts: &[&[u8]]) -> Identity {
        let (sequence, stored) = (self.input.sequence.to_be_bytes(), self.input.stored_ns.to_be_bytes());
        let run: [&[u8]; 5] = [
            self.function.as_str().as_bytes(),
            self.input.stream.as_bytes(),
            &sequence,
            &stored,
            self.generation.as_str().as_bytes(),
        ];
        match parts {
            [] => Identity::of(kind, &run),
            parts => Identity::of(kind, &[&run, parts].concat()),
        }
    }

    /// The result at `index` of what the function returned. An empty set has the identity of index 0.
    pub fn result(&self, index: usize) -> Identity {
        self.identity("result", &[&number(index)])
    }

    /// An event that the function published before it returned: by its content, and how often that has occurred in this run.
    pub fn emission(&self, ty: &str, data: &[u8], occurrence: usize) -> Identity {
        self.identity("emission", &[ty.as_bytes(), data, &number(occurrence)])
    }

    /// A part of an answer, by its index among the parts.
    pub fn part(&self, index: usize) -> Identity {
        self.identity("part", &[&number(index)])
    }

    /// The dead letter of a failure at this attempt.
    pub fn dead_letter(&self, attempt: u32) -> Identity {
        self.identity("dead", &[&attempt.to_be_bytes()])
    }

    /// The copy that waits for its next attempt, after this delivery of this message.
    pub fn delayed(&self, from: (&str, u64, u32)) -> Identity {
        let (stream, sequence, delivery) = from;
        self.identity("delayed", &[stream.as_bytes(), &sequence.to_be_bytes(), &delivery.to_be_bytes()])
    }

    /// The run itself: what is remembered of its attempts.
    pub fn attempts(&self) -> Identity {
        self.identity("attempts", &[])
    }
}

fn number(index: usize) -> [u8; 8] {
    u64::try_from(index).unwrap_or(u64::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventType;
    use std::collections::BTreeSet;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn at(stream: &str, sequence: u64, stored_ns: i128) -> Input {
        Input { stream: stream.into(), sequence, stored_ns }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let [a, b] = [name("a"), name("ab")].map(|name| Origin::source(&name));
        let event = |source: &str, id: &str| Event::new(id, source, EventType::parse("t").unwrap());
        let ids = [
            a.identify(&event("x", "y")),
            b.identify(&event("x", "y")),
            a.identify(&event("xy", "")),
            a.identify(&event("", "xy")),
            Origin::key("a").identify(&event("x", "y")),
            Origin::collection("a").identify(&event("x", "y")),
            a.identify_content(&event("x", "y"), b"z"),
            a.identify_content(&event("x", "yz"), b""),
            b.identify_content(&event("x", "y"), b"z"),
            a.identify_delivery(b"xy"),
            a.identify_delivery(b"xz"),
            Identity::of_request(&a, "x", "y"),
            Identity::of_signed(&name("a"), b"xy"),
        ];
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }

    #[test]
    fn ids_of_a_run_differ_by_function_place_incarnation_generation_and_kind() {
        let (f, g) = (name("f"), name("g"));
        let first = at("EVENTS", 7, 1);
        let (other_sequence, made_again, other_stream) = (at("EVENTS", 8, 1), at("EVENTS", 7, 2), at("ORDERS", 7, 1));
        let (none, replayed) = (Generation::first(), Generation::replayed("r"));
        let redriven = Generation::redriven(&at("DEAD", 7, 1));
        let run = |function, input, generation| Run { function, input, generation };
        let base = run(&f, &first, &none);
        let (same_place, same_generation) = (at("EVENTS", 7, 1), Generation::parse(""));
        assert_eq!(base.result(0), run(&f, &same_place, &same_generation).result(0));
        let ids = [
            base.result(0),
            base.result(1),
            base.part(0),
            base.emission("t", b"1", 0),
            base.emission("t", b"1", 1),
            base.emission("t1", b"", 0),
            base.dead_letter(1),
            base.dead_letter(2),
            base.attempts(),
            base.delayed(("TIMERS", 1, 1)),
            run(&g, &first, &none).result(0),
            run(&f, &other_sequence, &none).result(0),
            run(&f, &made_again, &none).result(0),
            run(&f, &other_stream, &none).result(0),
            run(&f, &first, &replayed).result(0),
            run(&f, &first, &redriven).result(0),
        ];
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }

    #[test]
    fn a_generation_and_an_identity_are_read_as_they_were_written() {
        let redriven = Generation::redriven(&at("DEAD", 7, 1));
        assert_eq!(Generation::parse(redriven.as_str()), redriven);
        assert_eq!(Generation::parse(""), Generation::first());
        let identity = Identity::of_copy("a", "b");
        assert_eq!(Identity::from_bytes(&identity.to_bytes()), identity);
        assert_eq!((Identity::parse(&identity.to_string()), Identity::parse("abcd")), (Some(identity), None));
        assert_eq!(identity.to_string().len(), 2 * BYTES);
    }
}
