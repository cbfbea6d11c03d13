//! Synthetic feedback, for which the right ranking is known.

use super::{
    weights::{WeightsVersion, live_version},
    *,
};
use crate::views::tests::InMemoryViews;
use nerve_core::{EventType, function::Emitter};
use nerve_events::feedback::RankingWeights;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

struct NoEmitter;

#[async_trait]
impl Emitter for NoEmitter {
    async fn emit(&self, _index: usize, _emission: Emission) -> Result<(), FunctionError> {
        Ok(())
    }
}

/// Deterministic pseudo-random numbers (Knuth's MMIX).
struct PseudoRandom(u64);

impl PseudoRandom {
    fn below(&mut self, limit_value: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit_value
    }

    /// Shuffled ranks from 1.
    fn ranks(&mut self, count: usize) -> Vec<usize> {
        let mut ranks: Vec<usize> = (1..=count).collect();
        for at in (1..count).rev() {
            ranks.swap(at, self.below(at + 1));
        }
        ranks
    }
}

/// The document that readers choose.
#[derive(Clone, Copy, PartialEq)]
enum Chosen {
    /// First in the dense ranking.
    Dense,
    /// First in the lexical ranking.
    Lexical,
    /// A random one.
    Any,
}

struct World {
    views: Arc<InMemoryViews>,
    random: PseudoRandom,
    answers: usize,
}

fn learner(options: LearnOptions) -> Learner {
    let ty = |ty: &str| EventType::parse(ty).unwrap();
    let context = FunctionContext {
        emits: ty("weights.updated"),
        auxiliary_outputs: vec![ty(WeightsRejected::TYPE), ty(WeightsRolledBack::TYPE)],
        timeout: Duration::from_secs(30),
    };
    Learner { context, options, logs: LogSink::new(|_| ()) }
}

fn event(ty: &str, answer: &str, data: &Value) -> Event {
    let event = Event::new(format!("{answer}-{ty}"), "/tests", EventType::parse(ty).unwrap());
    event.with_extension("correlationid", answer).with_data("application/json", data.to_string())
}

impl World {
    fn new(seed: u64) -> Self {
        Self { views: Arc::default(), random: PseudoRandom(seed), answers: 0 }
    }

    /// Events of an answer and of feedback on it.
    fn answer_with_feedback(&mut self, chosen: Chosen) -> (String, [Event; 2]) {
        self.answers += 1;
        let answer = format!("answer-{}", self.answers);
        let (lexical, dense) = (self.random.ranks(8), self.random.ranks(8));
        let documents: Vec<Value> = (0..8)
            .map(|at| {
                json!({"id": at.to_string(), "document": format!("d{at}"), "name": "", "text": "", "score": 0,
                       "lexical_rank": lexical[at], "dense_rank": dense[at], "relevance": 0.5})
            })
            .collect();
        let first = |ranks: &[usize]| ranks.iter().position(|rank| *rank == 1).unwrap();
        let chosen = match chosen {
            Chosen::Dense => first(&dense),
            Chosen::Lexical => first(&lexical),
            Chosen::Any => self.random.below(8),
        };
        let (kept, dropped) = documents.split_at(5);
        let found = json!({"question": "?", "collection": "c", "documents": kept, "dropped": dropped});
        let judged = json!({"answer": answer, "citation": chosen.to_string()});
        let events = [event("documents.reranked", &answer, &found), event("feedback.submitted", &answer, &judged)];
        (answer, events)
    }

    async fn submit(&self, learner: &Learner, events: Vec<Event>) -> Vec<(String, Value)> {
        let context = Context { emitter: Arc::new(NoEmitter), views: Some(self.views.clone()), quotas: Arc::default() };
        let outcomes = learner.invoke(events, context).await;
        let emissions = outcomes.into_iter().flat_map(|outcome| outcome.expect("no event fails"));
        let read = |one: Emission| (one.ty.to_string(), serde_json::from_slice(&one.data).unwrap());
        emissions.map(read).collect()
    }

    /// Submits `count` answers with feedback. Returns the events of the learner.
    async fn submit_ratings(&mut self, learner: &Learner, chosen: Chosen, count: usize) -> Vec<(String, Value)> {
        let mut published = Vec::new();
        for _ in 0..count {
            let (_, events) = self.answer_with_feedback(chosen);
            published.extend(self.submit(learner, events.to_vec()).await);
        }
        published
    }

    async fn live(&self) -> Option<WeightsVersion> {
        live_version(Some(self.views.as_ref()), "c").await.unwrap()
    }
}

fn types(published: &[(String, Value)]) -> Vec<&str> {
    published.iter().map(|(ty, _)| ty.as_str()).collect()
}

#[tokio::test]
async fn weights_follow_the_ranking_that_readers_prefer() {
    for (chosen, seed) in [(Chosen::Dense, 1), (Chosen::Lexical, 2)] {
        let mut world = World::new(seed);
        let learner = learner(LearnOptions::default());
        let published = world.submit_ratings(&learner, chosen, 20).await;
        assert_eq!(types(&published), ["weights.updated"], "once there is enough");
        let (_, updated) = &published[0];
        let weights: RankingWeights = serde_json::from_value(updated["weights"].clone()).unwrap();
        assert_eq!(weights.dense > 1.5, chosen == Chosen::Dense, "{updated}");
        assert_eq!(weights.lexical > 1.5, chosen == Chosen::Lexical, "{updated}");
        let ndcg = |name: &str| updated["ndcg"][name].as_f64().unwrap();
        assert!(ndcg("after") > ndcg("before") + 0.1, "{updated}");
        assert_eq!(
            (&updated["collection"], &updated["version"], &updated["from"]),
            (&json!("c"), &json!(1), &json!(0))
        );
        let counted = updated["training"].as_u64().unwrap() + updated["held_out"].as_u64().unwrap();
        assert_eq!((counted, updated["held_out"].as_u64() > Some(1)), (20, true));
        assert_eq!(world.live().await.map(|live| live.weights), Some(weights));
        assert_eq!(
            live_version(Some(world.views.as_ref()), "other").await.unwrap(),
            None,
            "each collection has its own"
        );
        // More feedback of the same kind changes little and rolls nothing back.
        let published = world.submit_ratings(&learner, chosen, 60).await;
        assert!(!types(&published).contains(&WeightsRolledBack::TYPE), "{published:?}");
    }
}

#[tokio::test]
async fn random_feedback_changes_no_weights() {
    let (mut fitted, mut adopted) = (0, 0);
    for seed in 0..10 {
        let mut world = World::new(seed + 100);
        let published = world.submit_ratings(&learner(LearnOptions::default()), Chosen::Any, 60).await;
        fitted += published.len();
        adopted += types(&published).iter().filter(|ty| **ty == "weights.updated").count();
    }
    assert!(fitted >= 20, "{fitted}: weights were fitted to the noise");
    assert!(adopted * 8 <= fitted, "{adopted} of {fitted} were adopted");
}

#[tokio::test]
async fn feedback_that_avoids_held_out_answers_is_rejected() {
    let mut world = World::new(7);
    let learner = learner(LearnOptions { enough: 60, every: 500, ..LearnOptions::default() });
    let mut published = Vec::new();
    let mut judged = 0;
    while judged < 60 {
        // A client that can choose answer ids can choose which feedback is used for fitting.
        let (answer, events) = world.answer_with_feedback(Chosen::Lexical);
        let events = match memory::is_held_out(&answer) {
            false => events,
            true => world.answer_with_feedback(Chosen::Dense).1.map(|event| {
                let mut data: Value = serde_json::from_slice(&event.data).unwrap();
                if data.get("answer").is_some() {
                    data["answer"] = answer.clone().into();
                }
                super::tests::event(event.ty.as_str(), &answer, &data)
            }),
        };
        published.extend(world.submit(&learner, events.to_vec()).await);
        judged += 1;
    }
    assert_eq!(types(&published), [WeightsRejected::TYPE]);
    let (_, rejected) = &published[0];
    assert!(rejected["ndcg"]["after"].as_f64() < rejected["ndcg"]["before"].as_f64(), "{rejected}");
    assert!(rejected.get("version").is_none() && world.live().await.is_none(), "{rejected}");
}

#[tokio::test]
async fn worse_version_is_rolled_back() {
    let mut world = World::new(3);
    let learner = learner(LearnOptions { enough: 40, every: 500, ..LearnOptions::default() });
    assert_eq!(types(&world.submit_ratings(&learner, Chosen::Lexical, 40).await), ["weights.updated"]);
    let published = world.submit_ratings(&learner, Chosen::Dense, 20).await;
    assert_eq!(
        types(&published),
        [WeightsRolledBack::TYPE],
        "once, as there is nothing before the first to go back to"
    );
    let (_, back) = &published[0];
    assert_eq!((&back["from"], &back["to"], &back["version"]), (&json!(1), &json!(0), &json!(2)), "{back}");
    assert!(back["ndcg"]["after"].as_f64() > back["ndcg"]["before"].as_f64(), "{back}");
    let live = world.live().await.unwrap();
    assert_eq!((live.version, live.weights), (2, RankingWeights::default()));
}

#[tokio::test]
async fn version_is_rolled_back_on_request() {
    let mut world = World::new(4);
    let learner = learner(LearnOptions { enough: 40, every: 500, ..LearnOptions::default() });
    let ask = |data: Value| event("weights.rollback_requested", "x", &data);
    let context = Context { emitter: Arc::new(NoEmitter), views: Some(world.views.clone()), quotas: Arc::default() };
    let refused = learner.invoke(vec![ask(json!({"collection": "c"}))], context.clone()).await;
    assert!(refused[0].as_ref().unwrap_err().message.contains("only one version"), "{refused:?}");
    world.submit_ratings(&learner, Chosen::Dense, 40).await;
    let refused = learner.invoke(vec![ask(json!({"collection": "c", "version": 9}))], context).await;
    assert!(refused[0].as_ref().unwrap_err().message.contains("version 9 is unknown"), "{refused:?}");
    let learned = world.live().await.unwrap();
    let published = world.submit(&learner, vec![ask(json!({"collection": "c"}))]).await;
    assert_eq!((types(&published), &published[0].1["reason"]), (vec![WeightsRolledBack::TYPE], &json!("requested")));
    assert_eq!(world.live().await.unwrap().weights, RankingWeights::default());
    world.submit(&learner, vec![ask(json!({"collection": "c", "version": 1}))]).await;
    let live = world.live().await.unwrap();
    assert_eq!((live.version, live.weights), (3, learned.weights));
}

#[tokio::test]
async fn concurrent_learners_create_each_version_once() {
    let mut world = World::new(5);
    let options = LearnOptions { every: 5, ..LearnOptions::default() };
    let all: Vec<Event> = (0..80)
        .flat_map(|n| world.answer_with_feedback(if n < 40 { Chosen::Dense } else { Chosen::Lexical }).1)
        .collect();
    let batches: Vec<Vec<Event>> = all.chunks(4).map(<[Event]>::to_vec).collect();
    let (even, odd): (Vec<_>, Vec<_>) = batches.into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
    let run = async |batches: Vec<(usize, Vec<Event>)>| {
        let learner = learner(options);
        let mut published = Vec::new();
        for (_, batch) in batches {
            published.extend(world.submit(&learner, batch).await);
        }
        published
    };
    let (one, two) = tokio::join!(run(even), run(odd));
    let published = [one, two].concat();
    let mut versions: Vec<u64> = published.iter().filter_map(|(_, published)| published["version"].as_u64()).collect();
    versions.sort_unstable();
    assert!(!versions.is_empty());
    assert_eq!(versions, (1..=world.live().await.unwrap().version).collect::<Vec<_>>());
    let feedback: CollectionFeedback =
        views::read(world.views.as_ref(), &memory::feedback_key("c")).await.unwrap().unwrap();
    assert_eq!((feedback.judged.len(), feedback.newest), (80, 80), "no opinion was lost");
}

#[tokio::test]
async fn feedback_without_information_is_ignored() {
    let mut world = World::new(6);
    let learner = learner(LearnOptions::default());
    let unknown = event("feedback.submitted", "x", &json!({"answer": "x", "rating": 1}));
    assert!(world.submit(&learner, vec![unknown]).await.is_empty());
    let (answer, [found, _]) = world.answer_with_feedback(Chosen::Any);
    let generated = event("answer.generated", &answer, &json!({"answer": "…", "citations": [{"chunk": "2"}]}));
    let judged = event("feedback.submitted", &answer, &json!({"answer": answer, "rating": 1}));
    assert!(world.submit(&learner, vec![generated, found, judged]).await.is_empty());
    let feedback: CollectionFeedback =
        views::read(world.views.as_ref(), &memory::feedback_key("c")).await.unwrap().unwrap();
    let gains: Vec<f32> = feedback.judged[0].ranking.iter().map(|one| one.gain).collect();
    assert_eq!(gains, [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]);
}
