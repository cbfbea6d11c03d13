use super::*;
use futures::FutureExt;
use parking_lot::Mutex;
use std::{
    sync::{atomic::AtomicUsize, atomic::Ordering},
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

const BATCH_LIMITS: BatchLimits = BatchLimits { jobs: 4, tokens: 100, padding: 20, queue: 8 };

/// Batches that the engine received, and a gate that blocks it.
#[derive(Default)]
struct Seen {
    batches: Mutex<Vec<Vec<String>>>,
    created: AtomicUsize,
}

type Gate = Arc<(Mutex<bool>, parking_lot::Condvar)>;

fn open(gate: &Gate) {
    *gate.0.lock() = true;
    gate.1.notify_all();
}

fn start(seen: &Arc<Seen>, gate: &Gate, limits: BatchLimits) -> Batcher<Word, usize> {
    let (seen, gate) = (seen.clone(), gate.clone());
    let factory = move || {
        seen.created.fetch_add(1, Ordering::SeqCst);
        let (seen, gate) = (seen.clone(), gate.clone());
        let engine: Engine<Word, usize> = Box::new(move |jobs, stop| {
            seen.batches.lock().push(jobs.iter().map(|job| job.0.to_owned()).collect());
            let mut opened = gate.0.lock();
            let wait = |open: &mut bool| !*open && !stop.is_stopped();
            gate.1.wait_while_for(&mut opened, wait, Duration::from_secs(20));
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
    Batcher::start("test", 1, limits, &TaskTracker::new(), Arc::new(factory)).unwrap()
}

async fn until(mut done: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.expect("it never came");
}

/// A batcher whose thread is blocked in a first batch, so that the next jobs are batched together.
async fn held(limits: BatchLimits) -> (Batcher<Word, usize>, Arc<Seen>, Gate, JobHandle<usize>) {
    let (seen, gate) = (Arc::new(Seen::default()), Gate::default());
    let batcher = start(&seen, &gate, limits);
    let first = batcher.submit(Word("first", 9), &mut CallRounds::default()).await;
    until(|| !seen.batches.lock().is_empty()).await;
    (batcher, seen, gate, first)
}

#[tokio::test]
async fn batch_has_the_oldest_job_and_similar_lengths() {
    let (batcher, seen, gate, first) = held(BATCH_LIMITS).await;
    let mut handles = Vec::new();
    for (word, group) in
        [("aaaaaaaaaa", 0), ("b", 0), ("cccccccccc", 1), ("ddddddddd", 0), ("eeeeeeeeeee", 0), ("f", 0)]
    {
        handles.push(batcher.submit(Word(word, group), &mut CallRounds::default()).await);
    }
    open(&gate);
    assert_eq!(first.await.unwrap(), 5);
    let lengths: Vec<usize> = futures_of(handles).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(lengths, [10, 1, 10, 9, 11, 1]);
    let batches = seen.batches.lock().clone();
    let expected: [&[&str]; 4] =
        [&["first"], &["aaaaaaaaaa", "eeeeeeeeeee", "ddddddddd"], &["b", "f"], &["cccccccccc"]];
    assert_eq!(batches, expected);
}

async fn futures_of(handles: Vec<JobHandle<usize>>) -> Vec<Result<usize, JobError>> {
    let mut results = Vec::new();
    for job_handle in handles {
        results.push(job_handle.await);
    }
    results
}

#[tokio::test]
async fn batch_respects_its_limits() {
    let (batcher, seen, gate, first) = held(BatchLimits { tokens: 9, ..BATCH_LIMITS }).await;
    let mut handles = Vec::new();
    for word in ["aaaa", "bbbb", "cccc", "a-very-long-word"] {
        handles.push(batcher.submit(Word(word, 0), &mut CallRounds::default()).await);
    }
    open(&gate);
    first.await.unwrap();
    futures_of(handles).await;
    let batches = seen.batches.lock().clone();
    let expected: [&[&str]; 4] = [&["first"], &["aaaa", "bbbb"], &["cccc"], &["a-very-long-word"]];
    assert_eq!(batches, expected);
}

#[tokio::test]
async fn cancelled_job_is_not_run() {
    let (batcher, seen, gate, first) = held(BATCH_LIMITS).await;
    let leaves = batcher.submit(Word("leaves", 0), &mut CallRounds::default()).await;
    let stays = batcher.submit(Word("stays!", 0), &mut CallRounds::default()).await;
    drop(leaves);
    open(&gate);
    first.await.unwrap();
    assert_eq!(stays.await, Ok(6));
    assert_eq!(seen.batches.lock().concat(), ["first", "stays!"]);
}

#[tokio::test]
async fn batch_of_cancelled_jobs_is_stopped() {
    let (batcher, _seen, gate, first) = held(BATCH_LIMITS).await;
    drop(first);
    // The gate is closed, so the first batch ends only when it is stopped.
    gate.1.notify_all();
    let next = TaskTracker::new().spawn(batcher.submit(Word("next", 0), &mut CallRounds::default()).await);
    let notify = gate.clone();
    let finished = tokio::time::timeout(Duration::from_secs(10), async move {
        open(&notify);
        next.await.unwrap()
    });
    assert_eq!(finished.await.unwrap(), Ok(4));
}

#[tokio::test]
async fn full_queue_is_reported_until_a_job_ends() {
    let (batcher, _seen, gate, first) = held(BatchLimits { queue: 2, ..BATCH_LIMITS }).await;
    assert_eq!(batcher.check_capacity(), Ok(()));
    let second = batcher.submit(Word("second", 0), &mut CallRounds::default()).await;
    assert_eq!(batcher.check_capacity(), Err(JobError::Busy(2)));
    let mut rounds = CallRounds::default();
    let is_waiting = batcher.submit(Word("third", 0), &mut rounds);
    assert!(tokio::time::timeout(Duration::from_millis(20), is_waiting).await.is_err(), "it must wait for room");
    open(&gate);
    first.await.unwrap();
    second.await.unwrap();
    until(|| batcher.check_capacity().is_ok()).await;
}

#[tokio::test]
async fn single_job_does_not_wait_behind_a_large_call() {
    let (batcher, seen, gate, first) = held(BatchLimits { jobs: 1, queue: 64, ..BATCH_LIMITS }).await;
    let mut many = CallRounds::default();
    let mut handles = Vec::new();
    for _ in 0..20 {
        handles.push(batcher.submit(Word("many", 0), &mut many).await);
    }
    let one = batcher.submit(Word("one", 0), &mut CallRounds::default()).await;
    open(&gate);
    first.await.unwrap();
    one.await.unwrap();
    let position = seen.batches.lock().iter().position(|batch| batch == &["one"]);
    assert_eq!(position, Some(2), "it is served in the first turn");
    futures_of(handles).await;
}

#[tokio::test]
async fn events_and_requests_share_the_queue_fairly() {
    for (kind, other) in [(CallKind::Events, CallKind::Request), (CallKind::Request, CallKind::Events)] {
        let (batcher, _seen, gate, first) = held(BATCH_LIMITS).await;
        let mut rounds = CallRounds::of(kind);
        let mut handles = Vec::new();
        while let Some(job_handle) = batcher.submit(Word("many", 0), &mut rounds).now_or_never() {
            handles.push(job_handle);
        }
        assert!((4..=7).contains(&handles.len()), "{kind:?}: {}", handles.len());
        assert!(batcher.submit(Word("one", 0), &mut CallRounds::of(other)).now_or_never().is_some(), "{kind:?}");
        open(&gate);
        first.await.unwrap();
    }
}

#[tokio::test]
async fn failed_job_does_not_fail_its_batch() {
    let (batcher, _seen, gate, first) = held(BATCH_LIMITS).await;
    let good = batcher.submit(Word("goodly", 0), &mut CallRounds::default()).await;
    let poison = batcher.submit(Word("poison", 0), &mut CallRounds::default()).await;
    open(&gate);
    first.await.unwrap();
    assert_eq!(good.await, Ok(6));
    assert_eq!(poison.await, Err(JobError::Failed("cannot be read".to_owned())));
}

#[tokio::test]
async fn panic_fails_its_batch_and_the_engine_is_recreated() {
    let (batcher, seen, gate, first) = held(BATCH_LIMITS).await;
    let panics = batcher.submit(Word("panic", 0), &mut CallRounds::default()).await;
    let is_waiting = batcher.submit(Word("waits for the next", 1), &mut CallRounds::default()).await;
    open(&gate);
    first.await.unwrap();
    assert_eq!(panics.await, Err(JobError::Panicked));
    assert_eq!(is_waiting.await, Ok(18), "what waited is not lost");
    assert_eq!(seen.created.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn close_fails_queued_jobs_and_ends_threads() {
    let (seen, gate, tasks) = (Arc::new(Seen::default()), Gate::default(), TaskTracker::new());
    let factory: Arc<EngineFactory<Engine<Word, usize>>> = Arc::new({
        let gate = gate.clone();
        move || {
            let gate = gate.clone();
            let engine: Engine<Word, usize> = Box::new(move |jobs, _| {
                let mut opened = gate.0.lock();
                gate.1.wait_while_for(&mut opened, |open| !*open, Duration::from_secs(20));
                Ok(jobs.iter().map(Job::length).collect())
            });
            Ok(engine)
        }
    });
    let batcher = Batcher::start("test", 1, BATCH_LIMITS, &tasks, factory).unwrap();
    let runs = batcher.submit(Word("runs", 0), &mut CallRounds::default()).await;
    until(|| batcher.queue_is_empty()).await;
    let is_waiting = batcher.submit(Word("waits", 0), &mut CallRounds::default()).await;
    drop(batcher);
    assert_eq!(is_waiting.await, Err(JobError::Closed));
    open(&gate);
    assert_eq!(runs.await, Ok(4), "what runs ends");
    tasks.close();
    tokio::time::timeout(Duration::from_secs(10), tasks.wait()).await.expect("the thread ends");
    drop(seen);
}

#[test]
fn engine_creation_error_is_reported() {
    let factory: Arc<EngineFactory<Engine<Word, usize>>> = Arc::new(|| Err("no such file".to_owned()));
    let started = Batcher::start("test", 2, BATCH_LIMITS, &TaskTracker::new(), factory);
    assert_eq!(started.err().unwrap(), "no such file");
}
