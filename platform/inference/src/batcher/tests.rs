use super::*;
use futures::FutureExt;
use std::{
    sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
    time::Duration,
};

#[derive(Debug, Clone, PartialEq)]
struct Word(&'static str, u64);

impl Job for Word {
    fn length(&self) -> usize {
        self.0.len()
    }
    fn group(&self) -> u64 {
        self.1
    }
}

const PLAN: Plan = Plan { jobs: 4, tokens: 100, padding: 20, queue: 8 };

/// What the engine was given, and a gate that holds it.
#[derive(Default)]
struct Seen {
    batches: Mutex<Vec<Vec<String>>>,
    made: AtomicUsize,
}

type Gate = Arc<(Mutex<bool>, std::sync::Condvar)>;

fn open(gate: &Gate) {
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
}

fn start(seen: &Arc<Seen>, gate: &Gate, plan: Plan) -> Batcher<Word, usize> {
    let (seen, gate) = (seen.clone(), gate.clone());
    let make = move || {
        seen.made.fetch_add(1, Ordering::SeqCst);
        let (seen, gate) = (seen.clone(), gate.clone());
        let engine: Engine<Word, usize> = Box::new(move |jobs, stop| {
            seen.batches.lock().unwrap().push(jobs.iter().map(|job| job.0.to_owned()).collect());
            let opened = gate.0.lock().unwrap();
            let wait = |open: &mut bool| !*open && !stop.is_asked();
            drop(gate.1.wait_timeout_while(opened, Duration::from_secs(20), wait).unwrap());
            if jobs.iter().any(|job| job.0 == "panic") {
                panic!("as asked");
            }
            if jobs.iter().any(|job| job.0 == "poison") {
                return Err("cannot be read".to_owned());
            }
            Ok(jobs.iter().map(Job::length).collect())
        });
        Ok(engine)
    };
    Batcher::start("test", 1, plan, &TaskTracker::new(), Arc::new(make)).unwrap()
}

async fn until(mut done: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.expect("it never came");
}

/// A batcher whose thread is held in a first batch of its own, so that what is queued next is batched together.
async fn held(plan: Plan) -> (Batcher<Word, usize>, Arc<Seen>, Gate, Ticket<usize>) {
    let (seen, gate) = (Arc::new(Seen::default()), Gate::default());
    let batcher = start(&seen, &gate, plan);
    let first = batcher.submit(Word("first", 9), &mut Turns::default()).await;
    until(|| !seen.batches.lock().unwrap().is_empty()).await;
    (batcher, seen, gate, first)
}

#[tokio::test]
async fn jobs_of_like_length_and_one_group_go_together_and_the_oldest_first() {
    let (batcher, seen, gate, first) = held(PLAN).await;
    let mut tickets = Vec::new();
    for (word, group) in
        [("aaaaaaaaaa", 0), ("b", 0), ("cccccccccc", 1), ("ddddddddd", 0), ("eeeeeeeeeee", 0), ("f", 0)]
    {
        tickets.push(batcher.submit(Word(word, group), &mut Turns::default()).await);
    }
    open(&gate);
    assert_eq!(first.await.unwrap(), 5);
    let lengths: Vec<usize> = futures_of(tickets).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(lengths, [10, 1, 10, 9, 11, 1]);
    let batches = seen.batches.lock().unwrap().clone();
    let expected: [&[&str]; 4] =
        [&["first"], &["aaaaaaaaaa", "eeeeeeeeeee", "ddddddddd"], &["b", "f"], &["cccccccccc"]];
    assert_eq!(batches, expected);
}

async fn futures_of(tickets: Vec<Ticket<usize>>) -> Vec<Result<usize, JobError>> {
    let mut results = Vec::new();
    for ticket in tickets {
        results.push(ticket.await);
    }
    results
}

#[tokio::test]
async fn a_batch_keeps_to_its_plan() {
    let (batcher, seen, gate, first) = held(Plan { tokens: 9, ..PLAN }).await;
    let mut tickets = Vec::new();
    for word in ["aaaa", "bbbb", "cccc", "a-very-long-word"] {
        tickets.push(batcher.submit(Word(word, 0), &mut Turns::default()).await);
    }
    open(&gate);
    first.await.unwrap();
    futures_of(tickets).await;
    let batches = seen.batches.lock().unwrap().clone();
    let expected: [&[&str]; 4] = [&["first"], &["aaaa", "bbbb"], &["cccc"], &["a-very-long-word"]];
    assert_eq!(batches, expected);
}

#[tokio::test]
async fn a_job_whose_caller_left_is_not_run() {
    let (batcher, seen, gate, first) = held(PLAN).await;
    let leaves = batcher.submit(Word("leaves", 0), &mut Turns::default()).await;
    let stays = batcher.submit(Word("stays!", 0), &mut Turns::default()).await;
    drop(leaves);
    open(&gate);
    first.await.unwrap();
    assert_eq!(stays.await, Ok(6));
    assert_eq!(seen.batches.lock().unwrap().concat(), ["first", "stays!"]);
}

#[tokio::test]
async fn a_batch_that_nobody_waits_for_is_stopped() {
    let (batcher, _seen, gate, first) = held(PLAN).await;
    drop(first);
    // The gate is shut: only being asked to stop lets the first batch end.
    gate.1.notify_all();
    let next = TaskTracker::new().spawn(batcher.submit(Word("next", 0), &mut Turns::default()).await);
    let notify = gate.clone();
    let finished = tokio::time::timeout(Duration::from_secs(10), async move {
        open(&notify);
        next.await.unwrap()
    });
    assert_eq!(finished.await.unwrap(), Ok(4));
}

#[tokio::test]
async fn a_full_queue_says_so_and_has_room_again() {
    let (batcher, _seen, gate, first) = held(Plan { queue: 2, ..PLAN }).await;
    assert_eq!(batcher.has_room(), Ok(()));
    let second = batcher.submit(Word("second", 0), &mut Turns::default()).await;
    assert_eq!(batcher.has_room(), Err(JobError::Busy(2)));
    let mut turns = Turns::default();
    let waits = batcher.submit(Word("third", 0), &mut turns);
    assert!(tokio::time::timeout(Duration::from_millis(20), waits).await.is_err(), "it must wait for room");
    open(&gate);
    first.await.unwrap();
    second.await.unwrap();
    until(|| batcher.has_room().is_ok()).await;
}

#[tokio::test]
async fn one_job_does_not_wait_behind_all_jobs_of_another_call() {
    let (batcher, seen, gate, first) = held(Plan { jobs: 1, queue: 64, ..PLAN }).await;
    let mut many = Turns::default();
    let mut tickets = Vec::new();
    for _ in 0..20 {
        tickets.push(batcher.submit(Word("many", 0), &mut many).await);
    }
    let one = batcher.submit(Word("one", 0), &mut Turns::default()).await;
    open(&gate);
    first.await.unwrap();
    one.await.unwrap();
    let position = seen.batches.lock().unwrap().iter().position(|batch| batch == &["one"]);
    assert_eq!(position, Some(2), "it is served in the first turn");
    futures_of(tickets).await;
}

#[tokio::test]
async fn events_leave_room_for_requests_and_requests_for_events() {
    for (kind, other) in [(CallKind::Events, CallKind::Request), (CallKind::Request, CallKind::Events)] {
        let (batcher, _seen, gate, first) = held(PLAN).await;
        let mut turns = Turns::of(kind);
        let mut tickets = Vec::new();
        while let Some(ticket) = batcher.submit(Word("many", 0), &mut turns).now_or_never() {
            tickets.push(ticket);
        }
        assert!((4..=7).contains(&tickets.len()), "{kind:?}: {}", tickets.len());
        assert!(batcher.submit(Word("one", 0), &mut Turns::of(other)).now_or_never().is_some(), "{kind:?}");
        open(&gate);
        first.await.unwrap();
    }
}

#[tokio::test]
async fn one_job_that_fails_does_not_fail_its_neighbours() {
    let (batcher, _seen, gate, first) = held(PLAN).await;
    let good = batcher.submit(Word("goodly", 0), &mut Turns::default()).await;
    let poison = batcher.submit(Word("poison", 0), &mut Turns::default()).await;
    open(&gate);
    first.await.unwrap();
    assert_eq!(good.await, Ok(6));
    assert_eq!(poison.await, Err(JobError::Failed("cannot be read".to_owned())));
}

#[tokio::test]
async fn a_panic_costs_its_batch_and_the_engine_is_made_again() {
    let (batcher, seen, gate, first) = held(PLAN).await;
    let panics = batcher.submit(Word("panic", 0), &mut Turns::default()).await;
    let waits = batcher.submit(Word("waits for the next", 1), &mut Turns::default()).await;
    open(&gate);
    first.await.unwrap();
    assert_eq!(panics.await, Err(JobError::Panicked));
    assert_eq!(waits.await, Ok(18), "what waited is not lost");
    assert_eq!(seen.made.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn closing_tells_those_that_wait_and_ends_the_threads() {
    let (seen, gate, tasks) = (Arc::new(Seen::default()), Gate::default(), TaskTracker::new());
    let make: Arc<MakeEngine<Engine<Word, usize>>> = Arc::new({
        let gate = gate.clone();
        move || {
            let gate = gate.clone();
            let engine: Engine<Word, usize> = Box::new(move |jobs, _| {
                let opened = gate.0.lock().unwrap();
                drop(gate.1.wait_timeout_while(opened, Duration::from_secs(20), |open| !*open).unwrap());
                Ok(jobs.iter().map(Job::length).collect())
            });
            Ok(engine)
        }
    });
    let batcher = Batcher::start("test", 1, PLAN, &tasks, make).unwrap();
    let runs = batcher.submit(Word("runs", 0), &mut Turns::default()).await;
    until(|| batcher.queue_is_empty()).await;
    let waits = batcher.submit(Word("waits", 0), &mut Turns::default()).await;
    drop(batcher);
    assert_eq!(waits.await, Err(JobError::Closed));
    open(&gate);
    assert_eq!(runs.await, Ok(4), "what runs ends");
    tasks.close();
    tokio::time::timeout(Duration::from_secs(10), tasks.wait()).await.expect("the thread ends");
    drop(seen);
}

#[test]
fn an_engine_that_cannot_be_made_is_told() {
    let make: Arc<MakeEngine<Engine<Word, usize>>> = Arc::new(|| Err("no such file".to_owned()));
    let started = Batcher::start("test", 2, PLAN, &TaskTracker::new(), make);
    assert_eq!(started.err().unwrap(), "no such file");
}
