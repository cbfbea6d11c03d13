//! Histories written by hand, and what the verdict says of them.

use bytes::Bytes;
use nerve_tests::{
    check::{
        history::{End, Entry, Fact, Letter, Run},
        model::{Early, Fails, Fault, Function, Moment, Origin, Plan, Post, Request, Tenant},
        system::WINDOWS,
        verdict::{Kind, check},
    },
    streams::Stored,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use time::{Duration, OffsetDateTime};

/// A run that is written by hand: each thing happens a second after the one before it.
#[derive(Default)]
struct Report {
    seconds: i64,
    history: Vec<Entry>,
    end: End,
}

fn plan(results: u16, fails: Fails) -> Plan {
    Plan { results, early: Early::Never, fails, slow: false }
}

impl Report {
    fn at(&mut self) -> OffsetDateTime {
        self.seconds += 1;
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(self.seconds)
    }

    fn fact(mut self, fact: Fact) -> Self {
        let at = self.at();
        self.history.push(Entry { at, fact });
        self
    }

    /// Event 0 is sent and accepted; a duplicate is counted.
    fn sent(self, plan: Plan, duplicate: bool) -> Self {
        let sent = self.sent_to(Origin::Github, plan, duplicate);
        if duplicate { sent.counted("drops.source.gh.id") } else { sent }
    }

    fn sent_to(self, origin: Origin, plan: Plan, duplicate: bool) -> Self {
        let post = Post { origin, id: 1, plan };
        self.fact(Fact::Sent { n: 0, post, status: Some(202), duplicate })
    }

    fn stored(mut self, subject: &str, data: Value) -> Self {
        let time = self.at();
        let sequence = time.unix_timestamp().unsigned_abs();
        let stored = Stored {
            sequence,
            time,
            subject: subject.to_owned(),
            headers: BTreeMap::new(),
            data: Bytes::from(data.to_string()),
        };
        if subject.starts_with("events.") || subject.starts_with("own.") {
            self.end.events.push(stored);
        } else {
            self.end.dead.push(stored);
        }
        self
    }

    fn logged(self) -> Self {
        self.stored("events.gh.task", json!({"n": 0}))
    }

    /// A result of a run, and what the next function makes of it.
    fn result(self, run: &str, index: usize, total: usize) -> Self {
        let data = json!({"n": 0, "run": run, "index": index, "total": total});
        self.stored("events.work.done", data.clone()).stored("events.next.done", data)
    }

    fn ran(mut self, version: u32) -> Self {
        let at = self.at().unix_timestamp() as f64;
        self.end.runs.push(Run { n: 0, run: "r".into(), version, at });
        self
    }

    /// A dead letter, in the list or not.
    fn letter(mut self, listed: bool) -> Self {
        self = self.stored("dead.work", json!({"n": 0}));
        let stored = self.end.dead.last().unwrap();
        let letter = Letter { id: stored.sequence, n: Some(0), time: stored.time };
        if listed {
            self.end.letters.push(letter);
        }
        self
    }

    /// The last dead letter is redriven.
    fn redriven(mut self) -> Self {
        let stored = self.end.dead.pop().unwrap();
        self.end.letters.pop();
        let letter = Letter { id: stored.sequence, n: Some(0), time: stored.time };
        self.fact(Fact::Letter(letter.clone())).fact(Fact::Redriven(letter))
    }

    fn waited(mut self) -> Self {
        self.seconds += 11;
        self.fact(Fact::Waited)
    }

    fn replayed(mut self, function: Function) -> Self {
        let at = self.at();
        let fact = Fact::Replayed { function, until: self.at() };
        self.history.push(Entry { at, fact });
        self
    }

    fn counted(mut self, counter: &str) -> Self {
        self.end.dropped.push((counter.to_owned(), 1));
        self
    }

    fn called(self, tenant: Tenant, request: Request, status: u16, body: Value) -> Self {
        self.fact(Fact::Called { tenant, key: 1, request, status: Some(status), body })
    }

    #[track_caller]
    fn is(&self, kinds: &[Kind]) {
        let end = End { window: WINDOWS[0], ..self.end.clone() };
        let found = check(&self.history, &end);
        assert_eq!(found.iter().map(|finding| finding.kind).collect::<Vec<_>>(), kinds, "{found:#?}");
    }
}

const GOOD: Plan = Plan { results: 2, early: Early::Never, fails: Fails::Never, slow: false };

#[test]
fn event_with_its_results_is_no_finding() {
    Report::default().is(&[]);
    Report::default().sent(GOOD, false).logged().ran(1).result("a", 0, 2).result("a", 1, 2).is(&[]);
    // Sent again within the window; and after it, when it may be stored again.
    let again = || Report::default().sent(GOOD, false).logged().result("a", 0, 2).result("a", 1, 2).sent(GOOD, true);
    again().is(&[]);
    again().waited().sent(GOOD, false).logged().result("b", 0, 2).result("b", 1, 2).is(&[]);
    let early = Plan { early: Early::Always, ..GOOD };
    let emitted = |told: Report| told.stored("events.work.early", json!({"n": 0, "version": 1}));
    let early = || Report::default().sent(early, false).logged().ran(1).result("r", 0, 2).result("r", 1, 2);
    emitted(early()).is(&[]);
    early().is(&[Kind::Lost]);
    emitted(emitted(early())).is(&[Kind::Doubled]);
    let none = plan(0, Fails::Never);
    Report::default().sent(none, false).logged().ran(1).is(&[]);
    Report::default().sent(plan(1, Fails::UntilDeployed), false).logged().ran(1).letter(true).is(&[]);
}

#[test]
fn delivery_that_repeats_nothing_is_an_event_of_its_own() {
    let twice = || {
        let told = Report::default().sent_to(Origin::Repeating, plan(0, Fails::Never), false);
        told.sent_to(Origin::Repeating, plan(0, Fails::Never), false)
    };
    let stored = |told: Report| told.stored("events.repeating.task", json!({"n": 0}));
    stored(stored(twice())).ran(1).is(&[]);
    stored(twice()).ran(1).is(&[Kind::Lost]);
    stored(stored(stored(twice()))).ran(1).is(&[Kind::Doubled]);
    let answered = Report::default().sent_to(Origin::Repeating, plan(0, Fails::Never), true);
    answered.is(&[Kind::Foreign, Kind::OutOfSight]);
}

#[test]
fn duplicate_that_is_not_counted_is_out_of_sight() {
    let again = || Report::default().sent(GOOD, false).logged().result("a", 0, 2).result("a", 1, 2);
    again().sent(GOOD, true).sent(GOOD, true).is(&[]);
    again().sent(GOOD, true).sent_to(Origin::Github, GOOD, true).is(&[Kind::OutOfSight]);
    let request = Request::Upload(0);
    let stored = json!({"text": request.text(Tenant::Alpha, 1), "collection": "alpha"});
    let called = |told: Report| told.called(Tenant::Alpha, request, 202, json!({"duplicate": true}));
    let counter = "drops.caller.collection%2Falpha.key";
    let uploaded = called(called(Report::default().stored("events.document.uploaded", stored))).counted(counter);
    uploaded.is(&[Kind::OutOfSight]);
    uploaded.counted(counter).is(&[]);
}

#[test]
fn replay_of_a_stream_that_was_made_again_is_of_what_is_in_it_now() {
    let one = plan(1, Fails::Never);
    let own = |told: Report| told.sent_to(Origin::Own, one, false).stored("own.task", json!({"n": 0}));
    let remade = || own(Report::default()).result("a", 0, 1).fact(Fact::Remade);
    remade().is(&[]);
    remade().replayed(Function::Own).is(&[]);
    own(remade()).is(&[Kind::Lost]);
    let again = || own(remade()).result("b", 0, 1);
    again().is(&[]);
    again().replayed(Function::Own).is(&[Kind::Lost]);
    again().replayed(Function::Work).is(&[]);
    again().replayed(Function::Own).result("c", 0, 1).is(&[]);
    again().replayed(Function::Own).result("c", 0, 1).result("d", 0, 1).is(&[Kind::Doubled]);
}

#[test]
fn event_without_outcome_is_lost() {
    Report::default().sent(GOOD, false).is(&[Kind::Lost]);
    Report::default().sent(GOOD, false).logged().is(&[Kind::Lost]);
    Report::default().sent(plan(0, Fails::Never), false).logged().is(&[Kind::Lost]);
    let done = || Report::default().sent(GOOD, false).logged().result("a", 0, 2).result("a", 1, 2);
    // A generation each, for the function and for the one that passes its results on.
    done().replayed(Function::Work).is(&[Kind::Lost]);
    done().replayed(Function::Next).is(&[Kind::Lost, Kind::Lost]);
    done().replayed(Function::Work).result("b", 0, 2).result("b", 1, 2).is(&[]);
}

#[test]
fn redrive_without_outcome_is_lost_or_out_of_sight() {
    let failing =
        || Report::default().sent(plan(1, Fails::UntilDeployed), false).logged().ran(1).letter(true).redriven();
    failing().is(&[Kind::Lost]);
    failing().stored("redrive.work", json!({"n": 0})).is(&[Kind::OutOfSight]);
    failing().ran(2).result("a", 0, 1).is(&[]);
    failing().ran(1).letter(true).is(&[]);
    failing().ran(1).letter(false).is(&[Kind::OutOfSight]);
}

#[test]
fn dead_letter_needs_as_many_failures_as_there_are_attempts() {
    let letter = |fails| Report::default().sent(plan(1, fails), false).logged().ran(1);
    letter(Fails::Never).letter(true).is(&[Kind::Lost]);
    letter(Fails::Once).letter(true).is(&[Kind::Lost]);
    letter(Fails::Once).fact(Fact::Broke(Fault::StopWorker, Moment::Run)).letter(true).is(&[Kind::Lost]);
    letter(Fails::Once).fact(Fact::Broke(Fault::KillWorker, Moment::Run)).letter(true).is(&[]);
}

#[test]
fn part_of_a_set_is_mixed_and_more_than_a_set_is_doubled() {
    let logged = || Report::default().sent(GOOD, false).logged();
    logged().result("a", 0, 2).result("b", 1, 2).is(&[Kind::Mixed, Kind::Mixed, Kind::Doubled]);
    logged().result("a", 0, 2).is(&[Kind::Mixed]);
    let twice = logged().result("a", 0, 2).result("a", 1, 2).result("b", 0, 2).result("b", 1, 2);
    twice.is(&[Kind::Doubled]);
    logged().logged().result("a", 0, 2).result("a", 1, 2).result("b", 0, 2).result("b", 1, 2).is(&[Kind::Doubled]);
    let part = json!({"n": 0, "run": "a", "index": 1, "total": 2});
    // By the function, and by the next, which was given it twice and has passed it on once since.
    let repeated = logged().result("a", 0, 2).stored("events.work.done", part).result("a", 1, 2);
    repeated.is(&[Kind::Doubled]);
}

#[test]
fn other_senders_duplicate_is_foreign() {
    Report::default().sent(GOOD, true).is(&[Kind::Foreign]);
    let upload = |tenant, body| Report::default().called(tenant, Request::Upload(0), 202, body);
    let counter = "drops.caller.collection%2Falpha.key";
    upload(Tenant::Alpha, json!({"duplicate": true})).counted(counter).is(&[Kind::Foreign]);
    upload(Tenant::Alpha, json!({"duplicate": false})).is(&[Kind::Lost]);
    let text = Request::Upload(0).text(Tenant::Alpha, 1);
    let uploaded = || {
        let stored = json!({"text": text, "collection": "alpha"});
        upload(Tenant::Alpha, json!({})).stored("events.document.uploaded", stored)
    };
    uploaded().is(&[]);
    uploaded().called(Tenant::Alpha, Request::Upload(1), 422, json!({})).is(&[]);
    let other = uploaded().called(Tenant::Alpha, Request::Upload(1), 202, json!({"duplicate": true}));
    other.counted(counter).is(&[Kind::Foreign]);
    Report::default().called(Tenant::Beta, Request::Delete, 422, json!({})).is(&[Kind::Foreign]);
}

#[test]
fn other_tenants_answer_is_foreign() {
    let ask = Request::Ask(0);
    let [alphas, betas] = [Tenant::Alpha, Tenant::Beta].map(|tenant| ask.text(tenant, 1));
    let asked = |question: &str, answer: &str| {
        Report::default().stored("events.prompt.received", json!({"question": betas, "collection": "beta"})).called(
            Tenant::Beta,
            ask,
            200,
            json!({"question": question, "answer": answer}),
        )
    };
    asked(&betas, "1").is(&[]);
    asked(&alphas, "1").is(&[Kind::Foreign]);
    asked(&betas, "1").called(Tenant::Beta, ask, 200, json!({"question": betas, "answer": "2"})).is(&[Kind::Doubled]);
    let peeked = |status| Fact::Peeked { tenant: Tenant::Alpha, id: "x".into(), status: Some(status) };
    asked(&betas, "1").fact(peeked(404)).is(&[]);
    asked(&betas, "1").fact(peeked(200)).is(&[Kind::Foreign]);
}
