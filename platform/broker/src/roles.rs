//! Who may do what on the nats-server of `nerve up`: one user a role, with what the role needs.
//!
//! Rights are subjects. What a client stores, it publishes to a stream's subject, and what it asks of JetStream to the API's, so
//! both are listed here. Nerve's streams and buckets are named once, in [`STREAMS`] and [`SUBJECTS`].

use serde::Serialize;

/// The streams of Nerve, those of buckets and object stores included.
pub const STREAMS: [&str; 16] = [
    "EVENTS",
    "ANSWERS",
    "DEAD",
    "LOGS",
    "TIMERS",
    "ATTEMPTS",
    "RUNS",
    "SEEN",
    "DROPS",
    "KV_functions",
    "KV_secrets",
    "KV_requests",
    "KV_places",
    "KV_views",
    "OBJ_artifacts",
    "OBJ_bodies",
];

/// What is in them, besides events.
const SUBJECTS: [&str; 17] = [
    "empty.>",
    "answers.>",
    "dead.>",
    "redrive.>",
    "logs.>",
    "timers.>",
    "attempts.>",
    "runs.>",
    "seen.>",
    "drops.>",
    "$KV.functions.>",
    "$KV.secrets.>",
    "$KV.requests.>",
    "$KV.places.>",
    "$KV.views.>",
    "$O.artifacts.>",
    "$O.bodies.>",
];

/// Subjects between servers of Nerve: direct calls, cancellations.
const CONTROL: &str = "nerve.>";
/// Events that ask Nerve for something.
const CONTROL_EVENTS: &str = "events.control.>";
/// What answers to Nerve's own clients begin with, so that no other role reads or forges them.
pub const INBOX_PREFIX: &str = "_NERVE";

/// A user of the nats-server of `nerve up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A gateway: stores events, reads answers and what is deployed.
    Gateway,
    /// A worker: runs what is deployed, and changes none of it.
    Worker,
    /// Whoever deploys and operates: everything.
    Operator,
    /// The user's own programs: their subjects and streams, and events.
    App,
}

/// What a user may publish and subscribe to; what is denied wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Permissions {
    /// Subjects to publish to.
    #[serde(rename = "pub")]
    pub publish: Subjects,
    /// Subjects to subscribe to.
    #[serde(rename = "sub")]
    pub subscribe: Subjects,
}

/// Subjects that are allowed and denied; all are allowed where none is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Subjects {
    /// What is allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// What is not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Worker, Self::Operator, Self::App];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::Operator => "operator",
            Self::App => "app",
        }
    }

    /// The file of its credentials.
    pub fn file(self) -> String {
        format!("{}.creds", self.name())
    }

    /// What it may do.
    pub fn permissions(self) -> Permissions {
        match self {
            Self::Operator => Permissions::default(),
            Self::Gateway => server(gateway()),
            Self::Worker => server(worker()),
            Self::App => app(),
        }
    }
}

/// A server's: answers to it, and Nerve's own subjects.
fn server(publish: Vec<String>) -> Permissions {
    let inboxes = [format!("{INBOX_PREFIX}.>"), "_INBOX.>".to_owned()];
    let subscribe = inboxes.iter().cloned().chain([CONTROL.to_owned()]).collect();
    // Every server makes and migrates the streams when it starts, and keeps EVENTS within its bound.
    let making = STREAMS.iter().flat_map(|stream| ["CREATE", "UPDATE"].map(|verb| stream_api(verb, stream)));
    let common = ["$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*"];
    // A large body that is stored again replaces its chunks.
    let purged = ["EVENTS", "OBJ_bodies"].map(|stream| stream_api("PURGE", stream));
    let common = common.into_iter().map(str::to_owned).chain(purged).chain([CONTROL.to_owned()]);
    // Whichever server is first stores the public key that secrets are encrypted for.
    let stored = ["events.>", "empty.>", "answers.>", "seen.>", "drops.>", "$JS.ACK.>", "$JS.FC.>"];
    let kept = ["$KV.requests.>", "$KV.places.>", "$KV.secrets.nerve.>", "$O.bodies.>"];
    let stored = stored.into_iter().chain(kept).map(str::to_owned);
    let allow = publish.into_iter().chain(common).chain(making).chain(stored).chain(inboxes).collect();
    Permissions { publish: allowed(allow), subscribe: allowed(subscribe) }
}

/// Reads what Nerve stores, and stores rates only.
fn gateway() -> Vec<String> {
    let reading = STREAMS.iter().flat_map(|stream| consumers_of(stream).into_iter().chain(reads_of(stream)));
    // How far ahead of its rate a collection is; the rest of that bucket is functions'.
    reading.chain(["$KV.views.usage.rate.>".to_owned()]).collect()
}

/// Reads any stream that a function may be bound to.
fn worker() -> Vec<String> {
    let any = ["$JS.API.CONSUMER.>", "$JS.API.DIRECT.GET.>", "$JS.API.STREAM.MSG.GET.*"];
    let stored = ["dead.>", "redrive.>", "logs.>", "timers.>", "attempts.>", "runs.>", "$KV.views.>"];
    let stored = stored.into_iter().chain(["$KV.functions.sink-state.>"]);
    let kept = ["ANSWERS", "DEAD", "TIMERS", "RUNS", "ATTEMPTS"];
    let kept = kept.into_iter().flat_map(|stream| ["PURGE", "MSG.DELETE"].map(|verb| stream_api(verb, stream)));
    any.into_iter().chain(stored).map(str::to_owned).chain(kept).collect()
}

/// Everything but what is Nerve's. Of that: events, and what is read without a consumer.
fn app() -> Permissions {
    let owned = SUBJECTS.into_iter().chain([CONTROL, CONTROL_EVENTS]).map(str::to_owned);
    let owned = owned.chain([format!("{INBOX_PREFIX}.>")]);
    let api = STREAMS.iter().flat_map(|stream| {
        let changes = ["CREATE", "UPDATE", "DELETE", "PURGE", "SNAPSHOT", "RESTORE", "MSG.DELETE", "PEER.REMOVE"];
        let mut subjects: Vec<String> = changes.map(|verb| stream_api(verb, stream)).into();
        subjects.push(format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"));
        subjects.extend(consumers_of(stream));
        // Since nats-server 2.15 a domain and a hash of the account stand before the stream.
        subjects.extend([format!("$JS.ACK.{stream}.>"), format!("$JS.ACK.*.*.{stream}.>")]);
        if !["EVENTS", "ANSWERS"].contains(stream) {
            subjects.extend(reads_of(stream));
        }
        subjects
    });
    // Answers may be read, and so they may be followed.
    let hidden = SUBJECTS.into_iter().filter(|subject| *subject != "answers.>").map(str::to_owned);
    let hidden = hidden.chain([CONTROL, "$JS.ACK.>", "$JS.API.>"].map(str::to_owned));
    let hidden = hidden.chain([format!("{INBOX_PREFIX}.>")]).collect();
    Permissions {
        publish: Subjects { allow: Vec::new(), deny: owned.chain(api).collect() },
        subscribe: Subjects { allow: Vec::new(), deny: hidden },
    }
}

fn allowed(allow: Vec<String>) -> Subjects {
    Subjects { allow, deny: Vec::new() }
}

fn stream_api(verb: &str, stream: &str) -> String {
    format!("$JS.API.STREAM.{verb}.{stream}")
}

/// Everything about consumers of a stream.
fn consumers_of(stream: &str) -> [String; 3] {
    // CREATE.stream[.name[.filter]], DURABLE.CREATE.stream.name, MSG.NEXT.stream.name, LIST.stream, …
    [
        format!("$JS.API.CONSUMER.*.{stream}"),
        format!("$JS.API.CONSUMER.*.{stream}.>"),
        format!("$JS.API.CONSUMER.*.*.{stream}.>"),
    ]
}

/// What reads a stream's messages without a consumer.
fn reads_of(stream: &str) -> [String; 3] {
    [stream_api("MSG.GET", stream), format!("$JS.API.DIRECT.GET.{stream}"), format!("$JS.API.DIRECT.GET.{stream}.>")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_of_nerve_is_closed_to_apps() {
        let app = Role::App.permissions();
        for subject in SUBJECTS.into_iter().chain([CONTROL]) {
            assert!(app.publish.deny.contains(&subject.to_owned()), "{subject}");
            assert!(subject == "answers.>" || app.subscribe.deny.contains(&subject.to_owned()), "{subject}");
        }
        assert!(app.publish.deny.contains(&"$JS.API.CONSUMER.*.KV_secrets.>".to_owned()));
        assert!(!app.publish.deny.contains(&"$JS.API.DIRECT.GET.EVENTS".to_owned()));
        assert_eq!(Role::Operator.permissions(), Permissions::default());
        for server in [Role::Gateway, Role::Worker] {
            let allow = server.permissions().publish.allow;
            for closed in ["$KV.functions.>", "$KV.secrets.>", "$O.artifacts.>", ">", "$JS.API.>"] {
                assert!(!allow.contains(&closed.to_owned()), "{server:?}: {closed}");
            }
        }
    }
}
