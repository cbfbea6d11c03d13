//! Message ids for JetStream deduplication.
//!
//! JetStream drops a message with a known id. An id must therefore be the same when a message is published again, and
//! different for a different message. All such ids are derived here from parts that external senders cannot choose
//! freely: the origin of an event, the location of its message, the run of a function.
//!
//! # Layout
//! - [`Origin`]: the entry point of an event. [`Input`]: the message given to a function. [`Generation`]: the redrive
//!   or replay. [`Run`]: a function's run on an input, from which the ids of all its output are derived.
//! - [`Identity`]: the digest of such parts.
//!
//! An identity is the first half of the SHA-256 of its parts. Each part is preceded by its length, so that different
//! lists of parts are different bytes. Names of keys and tokens may be parts, the keys and tokens never are.

use crate::{Event, Name};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, sync::Arc};
use time::OffsetDateTime;

/// Size of an identity in bytes.
pub const BYTES: usize = 16;

/// A deduplication id: 128 bits of a digest, displayed as 32 lower-case hexadecimal digits.
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

    /// Identity of a webhook's event in the format that older versions stored in SEEN, so that their deliveries are
    /// still recognized after an update.
    pub fn of_legacy_webhook(name: &Name, source: &str, id: &str) -> Self {
        let parts = [name.as_str(), "\0id\0", source, "#", id];
        Self::from_bytes(&Sha256::digest(parts.concat()))
    }

    /// Id of a result in the format of older versions: derived from the function, its event, and the index of the
    /// output event.
    pub fn legacy_result(function: &Name, event: &Event, number: usize) -> String {
        let mut digest = Sha256::new();
        for part in [function.as_str(), &event.source, &event.id] {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        }
        let digest = HEXLOWER.encode(&digest.finalize());
        format!("{function}-{}-{number}", digest.get(..24).unwrap_or(&digest))
    }

    /// Identity of a webhook delivery, by its signed bytes.
    pub fn of_signed(source: &Name, signed: &[u8]) -> Self {
        Self::of("signed", &[source.as_str().as_bytes(), signed])
    }

    /// Identity of a request with an `Idempotency-Key`, by its caller and route.
    pub fn of_request(caller: &Origin, route: &str, key: &str) -> Self {
        Self::of("request", &[caller.0.as_bytes(), route.as_bytes(), key.as_bytes()])
    }

    /// Identity of the redriven copy of a dead letter.
    pub fn of_redrive(dead: &Input) -> Self {
        Self::of("redrive", &dead.parts().each_ref().map(Vec::as_slice))
    }

    /// Identity of an outbound webhook (its `webhook-id`): derived from the original stored event, the same for each
    /// attempt.
    pub fn of_webhook(input: &Input) -> Self {
        Self::of("webhook", &input.parts().each_ref().map(Vec::as_slice))
    }

    /// Identity of a copy of a message, such as a redriven dead letter.
    pub fn of_copy(purpose: &str, original: &str) -> Self {
        Self::of("copy", &[purpose.as_bytes(), original.as_bytes()])
    }

    /// Reads the first 16 bytes; fewer bytes are padded with zeros.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut identity = [0; BYTES];
        identity.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self(identity)
    }

    /// Parses the output of [`Display`](fmt::Display).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// Returns the bytes.
    pub fn to_bytes(self) -> [u8; BYTES] {
        self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// The entry point of an event, or the caller of a request: a name, never a key.
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

    /// An API key, by its name.
    pub fn key(name: &str) -> Self {
        Self::new("key", name)
    }

    /// The keys of a collection.
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

    /// Identity of an event of this origin by `source` and `id`, which its sender chose.
    pub fn identify(&self, event: &Event) -> Identity {
        Identity::of("event", &[self.0.as_bytes(), event.source.as_bytes(), event.id.as_bytes()])
    }

    /// Identity of an event whose sender may reuse ids: by `source`, `id` and the SHA-256 of the body.
    pub fn identify_content(&self, event: &Event, body_sha256: &[u8]) -> Identity {
        Identity::of("content", &[self.0.as_bytes(), event.source.as_bytes(), event.id.as_bytes(), body_sha256])
    }

    /// Identity of an event where every delivery is a separate event. `delivery` is unique.
    pub fn identify_delivery(&self, delivery: &[u8]) -> Identity {
        Identity::of("delivery", &[self.0.as_bytes(), delivery])
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The stored message that a function or sink was given, independent of where its copies are.
///
/// The storage time identifies the incarnation of the stream: a stream that is deleted and created again assigns the
/// same sequence a different time. Every delivery carries the time, so it is never stale.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Input {
    /// The stream.
    pub stream: Arc<str>,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Storage time in nanoseconds since the Unix epoch.
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

    /// Storage time.
    pub fn stored(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(self.stored_ns).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// The run of a function on one input: the first, a redrive or a replay.
///
/// The ids of everything that a run publishes contain the generation, so a redrive or replay publishes its output
/// again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(Option<Arc<str>>);

impl Generation {
    /// The generation of events that were neither redriven nor replayed.
    pub fn first() -> Self {
        Self(None)
    }

    /// The generation of a redrive of this dead letter. A second redrive has the same generation.
    pub fn redriven(dead: &Input) -> Self {
        Self(Some(Identity::of_redrive(dead).to_string().into()))
    }

    /// The generation of a replay. `replay` is its unique id.
    pub fn replayed(replay: &str) -> Self {
        Self(Some(Identity::of_copy("replay", replay).to_string().into()))
    }

    /// Parses the output of [`as_str`](Self::as_str).
    pub fn parse(text: &str) -> Self {
        Self(Some(text).filter(|text| !text.is_empty()).map(Into::into))
    }

    /// The generation as text; empty for the first.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

/// One run of a function on one input in one generation.
#[derive(Debug, Clone, Copy)]
pub struct Run<'r> {
    /// The function or sink.
    pub function: &'r Name,
    /// The input.
    pub input: &'r Input,
    /// The generation.
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

    /// Identity of the result at `index` in the returned list. An empty list has the identity of index 0.
    pub fn result(&self, index: usize) -> Identity {
        self.identity("result", &[&number(index)])
    }

    /// Identity of an event published before the function returned: by its content and the number of its earlier
    /// occurrences in this run.
    pub fn emission(&self, ty: &str, data: &[u8], occurrence: usize) -> Identity {
        self.identity("emission", &[ty.as_bytes(), data, &number(occurrence)])
    }

    /// Identity of an answer part, by its index.
    pub fn part(&self, index: usize) -> Identity {
        self.identity("part", &[&number(index)])
    }

    /// Identity of the dead letter of a failure at this attempt.
    pub fn dead_letter(&self, attempt: u32) -> Identity {
        self.identity("dead", &[&attempt.to_be_bytes()])
    }

    /// Identity of the delayed copy that is scheduled after this delivery (stream, sequence, delivery count).
    pub fn delayed(&self, from: (&str, u64, u32)) -> Identity {
        let (stream, sequence, delivery) = from;
        self.identity("delayed", &[stream.as_bytes(), &sequence.to_be_bytes(), &delivery.to_be_bytes()])
    }

    /// Identity of the record of this run's attempts.
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
    fn different_parts_give_different_identities() {
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
    fn ids_of_different_runs_differ() {
        let (f, g) = (name("f"), name("g"));
        let first = at("EVENTS", 7, 1);
        let (other_sequence, recreated, other_stream) = (at("EVENTS", 8, 1), at("EVENTS", 7, 2), at("ORDERS", 7, 1));
        let (none, replayed) = (Generation::first(), Generation::replayed("r"));
        let redriven = Generation::redriven(&at("DEAD", 7, 1));
        let run = |function, input, generation| Run { function, input, generation };
        let base = run(&f, &first, &none);
        let (same_input, same_generation) = (at("EVENTS", 7, 1), Generation::parse(""));
        assert_eq!(base.result(0), run(&f, &same_input, &same_generation).result(0));
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
            run(&f, &recreated, &none).result(0),
            run(&f, &other_stream, &none).result(0),
            run(&f, &first, &replayed).result(0),
            run(&f, &first, &redriven).result(0),
        ];
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }

    #[test]
    fn generation_and_identity_round_trip() {
        let redriven = Generation::redriven(&at("DEAD", 7, 1));
        assert_eq!(Generation::parse(redriven.as_str()), redriven);
        assert_eq!(Generation::parse(""), Generation::first());
        let identity = Identity::of_copy("a", "b");
        assert_eq!(Identity::from_bytes(&identity.to_bytes()), identity);
        assert_eq!((Identity::parse(&identity.to_string()), Identity::parse("abcd")), (Some(identity), None));
        assert_eq!(identity.to_string().len(), 2 * BYTES);
    }
}
