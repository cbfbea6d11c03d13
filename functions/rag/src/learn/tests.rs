//! Feedback that is made up, so that it is known which ranking is right.

use super::{
    weights::{Version, Weights, live},
    *,
};
use crate::views::tests::InMemory;
use nerve_core::{EventType, function::Emitter};
use serde_json::json;
use std::{sync::Arc, time::Duration};

struct Nobody;

#[async_trait]
impl Emitter for Nobody {
    async fn emit(&self, _index: usize, _emission: Emission) -> Result<(), FunctionError> {
        Ok(())
    }
}

/// Numbers that look like chance and are the same each time (Knuth's MMIX).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    /// Ranks from 1, shuffled.
    fn ranks(&mut self, count: usize) -> Vec<usize> {
        let mut ranks: Vec<usize> = (1..=count).collect();
        for at in (1..count).rev() {
            ranks.swap(at, self.below(at + 1));
        }
        ranks
    }
}

/// Which document readers find right.
#[derive(Clone, Copy, PartialEq)]
enum Right {
    /// The first by meaning.
    Dense,
    /// The first by words.
    Lexical,
    /// Any.
    Any,
}

struct World {
    views: Arc<InMemory>,
    chance: Chance,
    asked: usize,
}

fn learner(options: LearnOptions) -> Learner {
    let ty = |ty: &str| EventType::parse(ty).unwrap();
    let frame = Frame {
        emits: ty("weights.updated"),
        side_events: vec![ty(REJECTED), ty(ROLLED_BACK)],
        timeout: Duration::from_secs(30),
    };
    Learner { frame, options, logs: LogSink::new(|_| ()) }
}

fn event(ty: &str, answer: &str, data: &Value) -> Event {
    let event = Event::new(format!("{answer}-{ty}"), "/tests", EventType::parse(ty).unwrap());
    event.with_extension("correlationid", answer).with_data("application/json", data.to_string())
}

impl World {
    fn new(seed: u64) -> Self {
        Self { views: Arc::default(), chance: Chance(seed), asked: 0 }
    }

    /// An answer and what a reader says of it, as the log has them.
    fn answered(&mut self, right: Right) -> (String, [Event; 2]) {
        self.asked += 1;
        let answer = format!("answer-{}", self.asked);
        let (lexical, dense) = (self.chance.ranks(8), self.chance.ranks(8));
        let documents: Vec<Value> = (0..8)
            .map(|at| {
                json!({"id": at.to_string(), "document": format!("d{at}"), "name": "", "text": "", "score": 0,
                       "lexical_rank": lexical[at], "dense_rank": dense[at], "relevance": 0.5})
            })
            .collect();
        let first = |ranks: &[usize]| ranks.iter().position(|rank| *rank == 1).unwrap();
        let chosen = match right {
            Right::Dense => first(&dense),
            Right::Lexical => first(&lexical),
            Right::Any => self.chance.below(8),
        };
        let (kept, dropped) = documents.split_at(5);
        let found = json!({"question": "?", "collection": "c", "documents": kept, "dropped": dropped});
        let said = json!({"answer": answer, "citation": chosen.to_string()});
        let events = [event("documents.reranked", &answer, &found), event("feedback.submitted", &answer, &said)];
        (answer, events)
    }

    async fn tell(&self, learner: &Learner, events: Vec<Event>) -> Vec<(String, Value)> {
        let context = Context { emitter: Arc::new(Nobody), views: Some(self.views.clone()), quotas: Arc::default() };
        let outcomes = learner.invoke(events, context).await;
        let emissions = outcomes.into_iter().flat_map(|outcome| outcome.expect("no event fails"));
        let read = |one: Emission| (one.ty.to_string(), serde_json::from_slice(&one.data).unwrap());
        emissions.map(read).collect()
    }

    /// So many answers with an opinion each, one after another; what the learner tells meanwhile.
    async fn opinions(&mut self, learner: &Learner, right: Right, count: usize) -> Vec<(String, Value)> {
        let mut told = Vec::new();
        for _ in 0..count {
            let (_, events) = self.answered(right);
            told.extend(self.tell(learner, events.to_vec()).await);
        }
        told
    }

    async fn live(&self) -> Option<Version> {
        live(Some(self.views.as_ref()), "c").await.unwrap()
    }
}

fn types(told: &[(String, Value)]) -> Vec<&str> {
    told.iter().map(|(ty, _)| ty.as_str()).collect()
}

#[tokio::test]
async fn weights_follow_the_ranking_that_readers_find_right() {
    for (right, seed) in [(Right::Dense, 1), (Right::Lexical, 2)] {
        let mut world = World::new(seed);
        let learner = learner(LearnOptions::default());
        let told = world.opinions(&learner, right, 20).await;
        assert_eq!(types(&told), ["weights.updated"], "once there is enough");
        let (_, updated) = &told[0];
        let weights: Weights = serde_json::from_value(updated["weights"].clone()).unwrap();
        assert_eq!(weights.dense > 1.5, right == Right::Dense, "{updated}");
        assert_eq!(weights.lexical > 1.5, right == Right::Lexical, "{updated}");
        let ndcg = |name: &str| updated["ndcg"][name].as_f64().unwrap();
        assert!(ndcg("after") > ndcg("before") + 0.1, "{updated}");
        assert_eq!(
            (&updated["collection"], &updated["version"], &updated["from"]),
            (&json!("c"), &json!(1), &json!(0))
        );
        let counted = updated["training"].as_u64().unwrap() + updated["held_out"].as_u64().unwrap();
        assert_eq!((counted, updated["held_out"].as_u64() > Some(1)), (20, true));
        assert_eq!(world.live().await.map(|live| live.weights), Some(weights));
        assert_eq!(live(Some(world.views.as_ref()), "other").await.unwrap(), None, "each collection has its own");
        // More of the same changes little, and rolls nothing back.
        let told = world.opinions(&learner, right, 60).await;
        assert!(!types(&told).contains(&ROLLED_BACK), "{told:?}");
    }
}

#[tokio::test]
async fn noise_teaches_nothing() {
    let (mut fitted, mut adopted) = (0, 0);
    for seed in 0..10 {
        let mut world = World::new(seed + 100);
        let told = world.opinions(&learner(LearnOptions::default()), Right::Any, 60).await;
        fitted += told.len();
        adopted += types(&told).iter().filter(|ty| **ty == "weights.updated").count();
    }
    assert!(fitted >= 20, "{fitted}: weights were fitted to the noise");
    assert!(adopted * 8 <= fitted, "{adopted} of {fitted} were adopted");
}

#[tokio::test]
async fn who_speaks_for_a_part_only_is_held_against_the_others() {
    let mut world = World::new(7);
    let learner = learner(LearnOptions { enough: 60, every: 500, ..LearnOptions::default() });
    let mut told = Vec::new();
    let mut said = 0;
    while said < 60 {
        // Whoever can choose the ids of answers may choose those that weights are made from.
        let (answer, events) = world.answered(Right::Lexical);
        let events = match memory::is_held_out(&answer) {
            false => events,
            true => world.answered(Right::Dense).1.map(|event| {
                let mut data: Value = serde_json::from_slice(&event.data).unwrap();
                if data.get("answer").is_some() {
                    data["answer"] = answer.clone().into();
                }
                super::tests::event(event.ty.as_str(), &answer, &data)
            }),
        };
        told.extend(world.tell(&learner, events.to_vec()).await);
        said += 1;
    }
    assert_eq!(types(&told), [REJECTED]);
    let (_, rejected) = &told[0];
    assert!(rejected["ndcg"]["after"].as_f64() < rejected["ndcg"]["before"].as_f64(), "{rejected}");
    assert!(rejected.get("version").is_none() && world.live().await.is_none(), "{rejected}");
}

#[tokio::test]
async fn a_version_that_turns_out_worse_is_rolled_back() {
    let mut world = World::new(3);
    let learner = learner(LearnOptions { enough: 40, every: 500, ..LearnOptions::default() });
    assert_eq!(types(&world.opinions(&learner, Right::Lexical, 40).await), ["weights.updated"]);
    let told = world.opinions(&learner, Right::Dense, 20).await;
    assert_eq!(types(&told), [ROLLED_BACK], "once, as there is nothing before the first to go back to");
    let (_, back) = &told[0];
    assert_eq!((&back["from"], &back["to"], &back["version"]), (&json!(1), &json!(0), &json!(2)), "{back}");
    assert!(back["ndcg"]["after"].as_f64() > back["ndcg"]["before"].as_f64(), "{back}");
    let live = world.live().await.unwrap();
    assert_eq!((live.version, live.weights), (2, Weights::default()));
}

#[tokio::test]
async fn a_version_is_rolled_back_when_somebody_asks() {
    let mut world = World::new(4);
    let learner = learner(LearnOptions { enough: 40, every: 500, ..LearnOptions::default() });
    let ask = |data: Value| event("weights.rollback_requested", "x", &data);
    let context = Context { emitter: Arc::new(Nobody), views: Some(world.views.clone()), quotas: Arc::default() };
    let refused = learner.invoke(vec![ask(json!({"collection": "c"}))], context.clone()).await;
    assert!(refused[0].as_ref().unwrap_err().message.contains("only one version"), "{refused:?}");
    world.opinions(&learner, Right::Dense, 40).await;
    let refused = learner.invoke(vec![ask(json!({"collection": "c", "version": 9}))], context).await;
    assert!(refused[0].as_ref().unwrap_err().message.contains("version 9 is not known"), "{refused:?}");
    let learned = world.live().await.unwrap();
    let told = world.tell(&learner, vec![ask(json!({"collection": "c"}))]).await;
    assert_eq!((types(&told), &told[0].1["reason"]), (vec![ROLLED_BACK], &json!("requested")));
    assert_eq!(world.live().await.unwrap().weights, Weights::default());
    world.tell(&learner, vec![ask(json!({"collection": "c", "version": 1}))]).await;
    let live = world.live().await.unwrap();
    assert_eq!((live.version, live.weights), (3, learned.weights));
}

#[tokio::test]
async fn learners_that_race_make_each_version_once() {
    let mut world = World::new(5);
    let options = LearnOptions { every: 5, ..LearnOptions::default() };
    let all: Vec<Event> =
        (0..80).flat_map(|n| world.answered(if n < 40 { Right::Dense } else { Right::Lexical }).1).collect();
    let batches: Vec<Vec<Event>> = all.chunks(4).map(<[Event]>::to_vec).collect();
    let (even, odd): (Vec<_>, Vec<_>) = batches.into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
    let run = async |batches: Vec<(usize, Vec<Event>)>| {
        let learner = learner(options);
        let mut told = Vec::new();
        for (_, batch) in batches {
            told.extend(world.tell(&learner, batch).await);
        }
        told
    };
    let (one, two) = tokio::join!(run(even), run(odd));
    let told = [one, two].concat();
    let mut versions: Vec<u64> = told.iter().filter_map(|(_, told)| told["version"].as_u64()).collect();
    versions.sort_unstable();
    assert!(!versions.is_empty());
    assert_eq!(versions, (1..=world.live().await.unwrap().version).collect::<Vec<_>>());
    let feedback: Feedback = views::read(world.views.as_ref(), &memory::feedback_key("c")).await.unwrap().unwrap();
    assert_eq!((feedback.said.len(), feedback.newest), (80, 80), "no opinion was lost");
}

#[tokio::test]
async fn feedback_that_says_nothing_is_no_mistake() {
    let mut world = World::new(6);
    let learner = learner(LearnOptions::default());
    let unknown = event("feedback.submitted", "x", &json!({"answer": "x", "rating": 1}));
    assert!(world.tell(&learner, vec![unknown]).await.is_empty());
    let (answer, [found, _]) = world.answered(Right::Any);
    let generated = event("answer.generated", &answer, &json!({"answer": "…", "citations": [{"chunk": "2"}]}));
    let said = event("feedback.submitted", &answer, &json!({"answer": answer, "rating": 1}));
    assert!(world.tell(&learner, vec![generated, found, said]).await.is_empty());
    let feedback: Feedback = views::read(world.views.as_ref(), &memory::feedback_key("c")).await.unwrap().unwrap();
    let gains: Vec<f32> = feedback.said[0].ranking.iter().map(|one| one.gain).collect();
    assert_eq!(gains, [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]);
}
