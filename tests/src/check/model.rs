//! What was sent, as far as the next step depends on it, and which steps there are.

use proptest::{
    prelude::*,
    strategy::{BoxedStrategy, Union},
};
use proptest_state_machine::ReferenceStateMachine;
use serde::Serialize;

/// Where an event comes in. The same ids come in everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Origin {
    /// `POST /v1/events`.
    Api,
    /// A signed webhook with an id in a header.
    Github,
    /// A source that takes CloudEvents, with the id and the source of [`Origin::Api`].
    Cloud,
    /// Another such source.
    OtherCloud,
    /// A third one, where the sender says that it is the source of [`Origin::Github`].
    Forged,
    /// A source without signatures and ids, where the body is all there is.
    Raw,
    /// A source with `dedupe = "none"`, where each delivery is an event.
    Repeating,
    /// A stream of the user's own, which Nerve only reads. Each message is an event.
    Own,
}

/// What the function does with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// How many results it returns.
    pub results: u16,
    /// Whether it emits an event before its end.
    pub early: Early,
    /// Whether and until when it fails.
    pub fails: Fails,
    /// Whether it takes a while.
    pub slow: bool,
}

/// Which runs emit an event before their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Early {
    /// None.
    Never,
    /// Each.
    Always,
    /// Only the first: another run takes another branch.
    First,
}

/// Until when a function fails on an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Fails {
    /// It does not.
    Never,
    /// The first run asks for another try.
    Once,
    /// Every run calls it invalid, until another version is deployed.
    UntilDeployed,
}

/// One event to send. A pair of origin and id that was sent before is sent again as it was, whatever the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Post {
    /// Where.
    pub origin: Origin,
    /// Its id there.
    pub id: u8,
    /// What its function is to do.
    pub plan: Plan,
}

/// A tenant, with a key for its own collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Tenant {
    /// The collection `alpha`.
    Alpha,
    /// The collection `beta`.
    Beta,
}

/// What a tenant asks for, under an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Request {
    /// `POST /v1/answers` with this question.
    Ask(u8),
    /// `POST /v1/documents` with this text.
    Upload(u8),
    /// `DELETE /v1/documents/…`.
    Delete,
    /// `POST /v1/feedback` with this correction, on the tenant's first answer.
    Feedback(u8),
}

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Fault {
    /// `kill -9` of the first worker, which is started again.
    KillWorker,
    /// SIGTERM of the first worker, with a short grace, and another start.
    StopWorker,
    /// `kill -9` of the nats-server, which is started again.
    KillBroker,
    /// A durable consumer is deleted behind Nerve's back.
    DeleteConsumer(Consumer),
}

/// A function's durable consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Consumer {
    /// Of the events of [`Function::Work`].
    Work,
    /// Of the events of [`Function::Next`].
    Next,
    /// Of the messages of [`Function::Own`].
    Own,
    /// Of what is redriven to [`Function::Work`].
    Redriven,
}

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Function {
    /// A process that does what the event says.
    Work,
    /// A component that passes on each result of [`Function::Work`].
    Next,
    /// The same as [`Function::Work`], for the messages of [`Origin::Own`].
    Own,
}

/// When it breaks, of what happens to the events of the same step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Moment {
    /// Before they are sent.
    Before,
    /// When the function begins with the first.
    Run,
    /// When the first result passes the broker.
    Result,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Step {
    /// Events are sent, all at once; a sender that is answered 503 sends the same again.
    Send(Vec<Post>),
    /// The same, and something breaks.
    Break(Fault, Moment, Vec<Post>),
    /// A tenant calls the API, with an idempotency key.
    Call(Tenant, u8, Request),
    /// Another version of the function is deployed, on which nothing is [`Fails::UntilDeployed`].
    Deploy,
    /// All dead letters are redriven, so often, if they come back.
    Redrive(u8),
    /// All dead letters are dropped.
    Drop,
    /// All events of a function come again.
    Replay(Function),
    /// A function that has nothing to do is removed, and deployed again.
    Remove(Function),
    /// The stream of [`Origin::Own`] is deleted when nothing in it is undone, and made again.
    Remake,
    /// Everything comes to rest.
    Settle,
    /// The dedupe windows pass.
    Wait,
}

/// What was sent, in the order of first sending; an event's number is its place here.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// How many workers there are.
    pub workers: usize,
    /// Whether ids are known for so long only that the windows can pass. Nerve then asks the log rather than JetStream what an
    /// earlier attempt has stored.
    pub short_windows: bool,
    /// Each event once.
    pub log: Vec<Post>,
    waits: u8,
    kills: u8,
}

impl Model {
    /// The number of an event, and what was sent under its origin and id the first time.
    ///
    /// # Panics
    /// If it was not sent.
    pub fn sent(&self, post: &Post) -> (usize, Post) {
        let number = self.log.iter().position(|sent| (sent.origin, sent.id) == (post.origin, post.id));
        let number = number.expect("what is sent is in the model");
        (number, self.log[number])
    }

    fn has_failing(&self) -> bool {
        self.log.iter().any(|sent| sent.plan.fails == Fails::UntilDeployed)
    }
}

/// The steps, for `proptest`.
pub struct Steps;

impl ReferenceStateMachine for Steps {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        let model = |(workers, short_windows)| Model { workers, short_windows, ..Model::default() };
        (1..=2_usize, any::<bool>()).prop_map(model).boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let faults = |fault| broken(fault).boxed();
        let steps = [
            ("send", 8, posts(1..4, 1).prop_map(Step::Send).boxed()),
            ("call", 6, call().boxed()),
            ("kill-worker", 4, faults(Fault::KillWorker)),
            ("stop-worker", 2, faults(Fault::StopWorker)),
            ("kill-broker", 2, faults(Fault::KillBroker)),
            ("delete-consumer", 1, faults(Fault::DeleteConsumer(Consumer::Work))),
            ("delete-consumer", 1, faults(Fault::DeleteConsumer(Consumer::Next))),
            ("delete-consumer", 1, faults(Fault::DeleteConsumer(Consumer::Own))),
            ("delete-consumer", 1, faults(Fault::DeleteConsumer(Consumer::Redriven))),
            ("deploy", 2, Just(Step::Deploy).boxed()),
            ("redrive", 4, (1..4_u8).prop_map(Step::Redrive).boxed()),
            ("drop", 3, Just(Step::Drop).boxed()),
            ("replay", 5, function().prop_map(Step::Replay).boxed()),
            ("remove", 2, function().prop_map(Step::Remove).boxed()),
            ("remake", 2, Just(Step::Remake).boxed()),
            ("settle", 4, Just(Step::Settle).boxed()),
            ("wait", 2, Just(Step::Wait).boxed()),
        ];
        chosen("CHECK_STEPS", steps).boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        if let Step::Send(posts) | Step::Break(_, _, posts) = step {
            for post in posts {
                if !model.log.iter().any(|sent| (sent.origin, sent.id) == (post.origin, post.id)) {
                    model.log.push(*post);
                }
            }
        }
        model.kills += u8::from(matches!(step, Step::Break(Fault::KillWorker | Fault::StopWorker, ..)));
        model.waits += u8::from(*step == Step::Wait);
        model
    }

    fn preconditions(model: &Model, step: &Step) -> bool {
        match step {
            Step::Redrive(_) | Step::Drop => model.has_failing(),
            Step::Replay(_) | Step::Remove(_) | Step::Deploy => !model.log.is_empty(),
            Step::Remake => model.log.iter().any(|sent| sent.origin == Origin::Own),
            // They take the longest.
            Step::Wait => model.short_windows && model.waits == 0 && !model.log.is_empty(),
            Step::Break(Fault::KillWorker | Fault::StopWorker, ..) => model.kills < 3,
            _ => true,
        }
    }
}

/// One of these, by its weight; of those alone that the variable names, if it is set.
fn chosen<T, const N: usize>(variable: &str, from: [(&str, u32, BoxedStrategy<T>); N]) -> Union<BoxedStrategy<T>>
where
    T: std::fmt::Debug,
{
    let chosen = std::env::var(variable).ok();
    let is_chosen = |name: &str| chosen.as_ref().is_none_or(|names| names.split(',').any(|chosen| chosen == name));
    let named = from.into_iter().filter(|(name, ..)| is_chosen(name));
    Union::new_weighted(named.map(|(_, weight, strategy)| (weight, strategy)).collect())
}

fn broken(fault: Fault) -> impl Strategy<Value = Step> {
    let moment = prop_oneof![Just(Moment::Before), Just(Moment::Run), Just(Moment::Result)];
    // What breaks in the middle of something needs something with a middle.
    (moment, posts(0..4, 4)).prop_map(move |(moment, posts)| Step::Break(fault, moment, posts))
}

/// Events, of which some have hundreds of results, by this weight.
fn posts(count: std::ops::Range<usize>, large: u32) -> impl Strategy<Value = Vec<Post>> {
    let origins = [
        ("api", 2, Origin::Api),
        ("github", 2, Origin::Github),
        ("cloud", 2, Origin::Cloud),
        ("other-cloud", 1, Origin::OtherCloud),
        ("forged", 1, Origin::Forged),
        ("raw", 1, Origin::Raw),
        ("repeating", 1, Origin::Repeating),
        ("own", 2, Origin::Own),
    ];
    let origin = chosen("CHECK_ORIGINS", origins.map(|(name, weight, origin)| (name, weight, Just(origin).boxed())));
    let post = (origin, 0..6_u8, plan(large)).prop_map(|(origin, id, plan)| Post { origin, id, plan });
    proptest::collection::vec(post, count)
}

/// Results of a large set: more bytes than the buffers between a worker and the broker hold, so that a kill cuts it.
const LARGE: u16 = 600;

fn plan(large: u32) -> impl Strategy<Value = Plan> {
    let results = prop_oneof![4 => Just(1), 1 => Just(0), 2 => Just(2), 1 => Just(5), large => Just(LARGE)];
    let fails = prop_oneof![4 => Just(Fails::Never), 1 => Just(Fails::Once), 3 => Just(Fails::UntilDeployed)];
    let early = prop_oneof![4 => Just(Early::Never), 1 => Just(Early::Always), 1 => Just(Early::First)];
    let slow = prop::bool::weighted(0.3);
    let plan = |(results, early, fails, slow)| Plan { results, early, fails, slow };
    (results, early, fails, slow).prop_map(plan)
}

fn function() -> impl Strategy<Value = Function> {
    prop_oneof![2 => Just(Function::Work), 2 => Just(Function::Next), 1 => Just(Function::Own)]
}

fn call() -> impl Strategy<Value = Step> {
    let tenant = prop_oneof![Just(Tenant::Alpha), Just(Tenant::Beta)];
    let request = prop_oneof![
        2 => (0..2_u8).prop_map(Request::Ask),
        2 => (0..2_u8).prop_map(Request::Upload),
        1 => Just(Request::Delete),
        1 => (0..2_u8).prop_map(Request::Feedback),
    ];
    (tenant, 0..2_u8, request).prop_map(|(tenant, key, request)| Step::Call(tenant, key, request))
}

impl Origin {
    /// Whether each delivery is an event, whatever came before.
    pub fn stores_each(self) -> bool {
        matches!(self, Self::Repeating | Self::Own)
    }

    /// The function that takes its events.
    pub fn function(self) -> Function {
        if self == Self::Own { Function::Own } else { Function::Work }
    }
}

impl Function {
    /// Its name in `nerve.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Next => "next",
            Self::Own => "own",
        }
    }
}

impl Tenant {
    /// Its collection.
    pub fn collection(self) -> &'static str {
        match self {
            Self::Alpha => "alpha",
            Self::Beta => "beta",
        }
    }
}

impl Request {
    /// What tells this request of this tenant under this key from all others: the question, the document's text or its name.
    pub fn text(self, tenant: Tenant, key: u8) -> String {
        let what = match self {
            Self::Ask(n) => format!("question-{n}"),
            Self::Upload(n) => format!("text-{n}"),
            Self::Delete => "document".to_owned(),
            Self::Feedback(n) => format!("correction-{n}"),
        };
        format!("{what}-of-{}-under-{key}", tenant.collection())
    }

    /// Whether an idempotency key means the same at both.
    pub fn same_route(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}
