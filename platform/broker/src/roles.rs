//! The permissions on the nats-server of `nerve up`: one user per role.
//!
//! Permissions are subjects. Clients publish data to a stream's subjects and JetStream requests to the API's subjects, so
//! both are listed here. Nerve's streams and buckets are named once, in [`STREAMS`] and [`SUBJECTS`].

use serde::Serialize;

/// Nerve's streams, including those of buckets and object stores.
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

/// The subjects in these streams, except events.
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

/// Subjects between Nerve servers: direct calls, cancellations.
const CONTROL: &str = "nerve.>";
/// Events that request something from Nerve.
const CONTROL_EVENTS: &str = "events.control.>";
/// Inbox prefix of Nerve's own clients, so that no other role can read or forge replies.
pub const INBOX_PREFIX: &str = "_NERVE";

/// A user of the nats-server of `nerve up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A gateway: stores events, reads answers and deployed resources.
    Gateway,
    /// A worker: runs deployed functions, and cannot change them.
    Worker,
    /// The operator: all permissions.
    Operator,
    /// The user's own programs: their own subjects and streams, and events.
    App,
}

/// The publish and subscribe permissions of a user. A denial takes precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Permissions {
    /// Publish permissions.
    #[serde(rename = "pub")]
    pub publish: Subjects,
    /// Subscribe permissions.
    #[serde(rename = "sub")]
    pub subscribe: Subjects,
}

/// Allowed and denied subjects; an empty allow list allows all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Subjects {
    /// Allowed subjects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Denied subjects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Worker, Self::Operator, Self::App];

    /// The role's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::Operator => "operator",
            Self::App => "app",
        }
    }

    /// The name of its credentials file.
    pub fn file(self) -> String {
        format!("{}.creds", self.name())
    }

    /// Its permissions.
    pub fn permissions(self) -> Permissions {
        match self {
            Self::Operator => Permissions::default(),
            Self::Gateway => server(gateway()),
            Self::Worker => server(worker()),
            Self::App => app(),
        }
    }
}

/// The permissions of a server: replies to it, and Nerve's own subjects.
fn server(publish: Vec<String>) -> Permissions {
    let inboxes = [format!("{INBOX_PREFIX}.>"), "_INBOX.>".to_owned()];
    let subscribe = inboxes.iter().cloned().chain([CONTROL.to_owned()]).collect();
    // Every server creates and migrates the streams at startup, and keeps EVENTS within its limit.
    let making = STREAMS.iter().flat_map(|stream| ["CREATE", "UPDATE"].map(|verb| stream_api(verb, stream)));
    let common = ["$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*"];
    // Storing a large body again replaces its chunks.
    let purged = ["EVENTS", "OBJ_bodies"].map(|stream| stream_api("PURGE", stream));
    let common = common.into_iter().map(str::to_owned).chain(purged).chain([CONTROL.to_owned()]);
    // The first server stores the public key that secrets are encrypted for.
    let stored = ["events.>", "empty.>", "answers.>", "seen.>", "drops.>", "$JS.ACK.>", "$JS.FC.>"];
    let kept = ["$KV.requests.>", "$KV.places.>", "$KV.secrets.nerve.>", "$O.bodies.>"];
    let stored = stored.into_iter().chain(kept).map(str::to_owned);
    let allow = publish.into_iter().chain(common).chain(making).chain(stored).chain(inboxes).collect();
    Permissions { publish: allowed(allow), subscribe: allowed(subscribe) }
}

/// The gateway reads everything that Nerve stores, and writes rates only.
fn gateway() -> Vec<String> {
    let reading = STREAMS.iter().flat_map(|stream| consumers_of(stream).into_iter().chain(reads_of(stream)));
    // Stores how far a collection is ahead of its rate; the rest of the bucket belongs to functions.
    reading.chain(["$KV.views.usage.rate.>".to_owned()]).collect()
}

/// The worker reads any stream that a function may be bound to.
fn worker() -> Vec<String> {
    let any = ["$JS.API.CONSUMER.>", "$JS.API.DIRECT.GET.>", "$JS.API.STREAM.MSG.GET.*"];
    let stored = ["dead.>", "redrive.>", "logs.>", "timers.>", "attempts.>", "runs.>", "$KV.views.>"];
    let stored = stored.into_iter().chain(["$KV.functions.sink-state.>"]);
    let kept = ["ANSWERS", "DEAD", "TIMERS", "RUNS", "ATTEMPTS"];
    let kept = kept.into_iter().flat_map(|stream| ["PURGE", "MSG.DELETE"].map(|verb| stream_api(verb, stream)));
    any.into_iter().chain(stored).map(str::to_owned).chain(kept).collect()
}

/// Apps have all permissions except on Nerve's subjects. Of those: events, and reads without a consumer.
fn app() -> Permissions {
    let owned = SUBJECTS.into_iter().chain([CONTROL, CONTROL_EVENTS]).map(str::to_owned);
    let owned = owned.chain([format!("{INBOX_PREFIX}.>")]);
    let api = STREAMS.iter().flat_map(|stream| {
        let changes = ["CREATE", "UPDATE", "DELETE", "PURGE", "SNAPSHOT", "RESTORE", "MSG.DELETE", "PEER.REMOVE"];
        let mut subjects: Vec<String> = changes.map(|verb| stream_api(verb, stream)).into();
        subjects.push(format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"));
        subjects.extend(consumers_of(stream));
        // Since nats-server 2.15 a domain and a hash of the account precede the stream.
        subjects.extend([format!("$JS.ACK.{stream}.>"), format!("$JS.ACK.*.*.{stream}.>")]);
        if !["EVENTS", "ANSWERS"].contains(stream) {
            subjects.extend(reads_of(stream));
        }
        subjects
    });
    // Answers are readable, so they can be followed as well.
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

/// The API subjects of consumers of a stream.
fn consumers_of(stream: &str) -> [String; 3] {
    // CREATE.stream[.name[.filter]], DURABLE.CREATE.stream.name, MSG.NEXT.stream.name, LIST.stream, …
    [
        format!("$JS.API.CONSUMER.*.{stream}"),
        format!("$JS.API.CONSUMER.*.{stream}.>"),
        format!("$JS.API.CONSUMER.*.*.{stream}.>"),
    ]
}

/// The API subjects that read messages without a consumer.
fn reads_of(stream: &str) -> [String; 3] {
    [stream_api("MSG.GET", stream), format!("$JS.API.DIRECT.GET.{stream}"), format!("$JS.API.DIRECT.GET.{stream}.>")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_cannot_access_the_subjects_of_nerve() {
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
