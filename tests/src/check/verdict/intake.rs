//! What was sent and what tenants called, against what is in the log.

use super::{Finding, Kind, number, posts, read};
use crate::{
    check::{
        history::{End, Entry, Fact},
        model::{Origin, Request, Tenant},
    },
    seconds,
};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use time::OffsetDateTime;

/// The subjects that the function takes its events from.
const INPUTS: [&str; 8] = [
    "events.gh.",
    "events.ce.",
    "events.cf.",
    "events.cg.",
    "events.raw.",
    "events.repeating.",
    "events.task",
    "own.task",
];

/// What the end of a window may be early.
const MARGIN: Duration = seconds(1);

/// When each copy of an event was stored.
pub(super) fn copies(end: &End, n: usize) -> Vec<OffsetDateTime> {
    let inputs = read::<Value>(&end.events, &INPUTS);
    inputs.iter().filter(|(_, data)| number(data) == Some(n)).map(|(stored, _)| stored.time).collect()
}

/// An event that was accepted is in the log, once within the windows.
pub(super) fn events(history: &[Entry], end: &End) -> Vec<Finding> {
    let mut found = Vec::new();
    for (n, post) in posts(history) {
        let mut finding = |kind, what: String| {
            let what = format!("event {n} (id-{} of {:?}): {what}", post.id, post.origin);
            found.push(Finding { kind, what });
        };
        let answers: Vec<_> = history.iter().filter_map(|entry| sent(entry, n)).collect();
        let accepted = |(status, _): &&(Option<u16>, bool)| status.is_some_and(|status| status / 100 == 2);
        let refused = answers.iter().find_map(|(status, _)| status.filter(|status| status / 100 == 4));
        // Who says that he is one of Nerve's own sources may be refused.
        if let Some(status) = refused.filter(|_| post.origin != Origin::Forged) {
            finding(Kind::Lost, format!("it was refused with {status}"));
        }
        let copies = copies(end, n);
        if post.origin.stores_each() {
            let (accepted, tries) = (answers.iter().filter(accepted).count(), answers.len());
            let there = copies.len();
            if there < accepted {
                let kind = if answers.iter().any(|(_, duplicate)| *duplicate) { Kind::Foreign } else { Kind::Lost };
                finding(kind, format!("it was accepted {accepted} times, and is in the log {there} times"));
            } else if there > tries {
                finding(Kind::Doubled, format!("it was sent {tries} times, and is in the log {there} times"));
            }
            continue;
        }
        if let Some((status, duplicate)) = answers.iter().find(accepted).filter(|_| copies.is_empty()) {
            // Of what its own sender was refused before it is a duplicate of nothing.
            let kind = if answers[0].1 { Kind::Foreign } else { Kind::Lost };
            let duplicate = if *duplicate { " as a duplicate" } else { "" };
            finding(kind, format!("it was answered {}{duplicate}, and is not in the log", status.unwrap_or_default()));
        }
        // Whatever was sent when: each copy is stored when the window of the one before it is over.
        if copies.windows(2).any(|copies| copies[1] - copies[0] + MARGIN < end.window) {
            finding(Kind::Doubled, format!("it is in the log {} times, within the window", copies.len()));
        }
    }
    found
}

fn sent(entry: &Entry, wanted: usize) -> Option<(Option<u16>, bool)> {
    match &entry.fact {
        Fact::Sent { n, status, duplicate, .. } if *n == wanted => Some((*status, *duplicate)),
        _ => None,
    }
}

/// What was answered as a duplicate and is not counted.
pub(in crate::check) fn uncounted(history: &[Entry], dropped: &[(String, u64)]) -> Vec<Finding> {
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    for entry in history {
        let counters = match &entry.fact {
            Fact::Sent { post, duplicate: true, .. } => counters(post.origin).to_owned(),
            Fact::Called { tenant, body, .. } if body["duplicate"] == true => {
                format!("drops.caller.collection%2F{}.", tenant.collection())
            }
            _ => continue,
        };
        *answered.entry(counters).or_default() += 1;
    }
    let uncounted = answered.into_iter().filter_map(|(counters, answered)| {
        let of = dropped.iter().filter(|(subject, _)| subject.starts_with(&counters));
        let counted: u64 = of.map(|(_, number)| number).sum();
        let what = format!("{answered} were answered as duplicates, and {counters}* counts {counted}");
        (counted < answered).then_some(Finding { kind: Kind::OutOfSight, what })
    });
    uncounted.collect()
}

/// How the subjects of an origin's counters begin.
fn counters(origin: Origin) -> &'static str {
    match origin {
        Origin::Api => "drops.caller.key",
        Origin::Github => "drops.source.gh.",
        Origin::Cloud => "drops.source.ce.",
        Origin::OtherCloud => "drops.source.cf.",
        Origin::Forged => "drops.source.cg.",
        Origin::Raw => "drops.source.raw.",
        Origin::Repeating => "drops.source.repeating.",
        Origin::Own => "own.",
    }
}

/// A call of a tenant.
struct Call<'h> {
    tenant: Tenant,
    key: u8,
    request: Request,
    status: u16,
    body: &'h Value,
}

impl Call<'_> {
    fn finding(&self, kind: Kind, what: &str) -> Finding {
        let Self { tenant, key, request, .. } = self;
        Finding { kind, what: format!("{request:?} of {tenant:?} under key {key}: {what}") }
    }

    /// Whether another request came before under the same key, of the same tenant at the same route.
    fn takes_key_of(&self, other: &Self) -> bool {
        (self.tenant, self.key) == (other.tenant, other.key)
            && self.request.same_route(other.request)
            && self.request != other.request
    }
}

/// Each call has its effect once under its key, and no caller sees the answer of another.
pub(super) fn calls(history: &[Entry], end: &End) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut before: Vec<Call<'_>> = Vec::new();
    for entry in history {
        match &entry.fact {
            Fact::Called { tenant, key, request, status: Some(status), body } => {
                let call = Call { tenant: *tenant, key: *key, request: *request, status: *status, body };
                found.extend(wrong_call(&call, &before, end));
                before.push(call);
            }
            Fact::Peeked { tenant, id, status: Some(status) } if *status != 404 => {
                let what = format!("{tenant:?} is answered {status} for the answer {id} of the other tenant");
                found.push(Finding { kind: Kind::Foreign, what });
            }
            _ => {}
        }
    }
    found.extend(more_than_once(&before, end));
    found
}

fn wrong_call(call: &Call<'_>, before: &[Call<'_>], end: &End) -> Option<Finding> {
    let key_is_taken = before.iter().any(|other| other.status < 300 && call.takes_key_of(other));
    let text = call.request.text(call.tenant, call.key);
    match call.status {
        // A broker or a worker that is away for a moment.
        500.. => None,
        422 if key_is_taken => None,
        200..300 if key_is_taken => {
            Some(call.finding(Kind::Foreign, "it was accepted, though its key stands for another request"))
        }
        200..300 => match call.request {
            Request::Ask(_) if call.body["question"] != text.as_str() => {
                Some(call.finding(Kind::Foreign, &format!("it was answered {}", call.body)))
            }
            _ if stored(call, end) == 0 => {
                let duplicate = call.body["duplicate"] == true;
                let kind = if duplicate { Kind::Foreign } else { Kind::Lost };
                Some(call.finding(kind, &format!("it was answered {}, and is not in the log", call.body)))
            }
            _ => None,
        },
        status => Some(call.finding(Kind::Foreign, &format!("it was refused with {status}: {}", call.body))),
    }
}

/// How often the event of a call is in the log.
fn stored(call: &Call<'_>, end: &End) -> usize {
    let (subject, field) = match call.request {
        Request::Ask(_) => ("events.prompt.received", "question"),
        Request::Upload(_) => ("events.document.uploaded", "text"),
        Request::Delete => ("events.document.deleted", "document"),
        // The answer says whose it is.
        Request::Feedback(_) => ("events.feedback.submitted", "correction"),
    };
    let (text, has_collection) =
        (call.request.text(call.tenant, call.key), !matches!(call.request, Request::Feedback(_)));
    let is_own = |data: &Value| data["collection"] == call.tenant.collection();
    let is_of = |data: &Value| data[field] == text.as_str() && (!has_collection || is_own(data));
    read::<Value>(&end.events, &[subject]).iter().filter(|(_, data)| is_of(data)).count()
}

/// The same request under the same key is one, and has one answer.
fn more_than_once(calls: &[Call<'_>], end: &End) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut same: BTreeMap<_, Vec<&Call<'_>>> = BTreeMap::new();
    for call in calls {
        same.entry((call.tenant, call.key, call.request)).or_default().push(call);
    }
    for calls in same.values() {
        let stored = stored(calls[0], end);
        if stored > 1 {
            found.push(calls[0].finding(Kind::Doubled, &format!("it is in the log {stored} times")));
        }
        let answers = calls.iter().filter(|call| call.status == 200).map(|call| &call.body["answer"]);
        let mut answers: Vec<&Value> = answers.collect();
        answers.dedup();
        if answers.len() > 1 {
            found.push(calls[0].finding(Kind::Doubled, &format!("it was answered differently: {answers:?}")));
        }
    }
    found
}
