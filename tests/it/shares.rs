//! Fair shares: what one function, tenant or key holds of something bounded leaves room for others.

use crate::post_event;
use nerve_sandbox::{Limits, Pool, Request, SandboxError, Settings, Setup};
use nerve_tests::{Nerve, Streams, eventually, guest, nerve_binary, seconds};

const MIB: u64 = 1 << 20;

/// A function that wants `"bad"` to be tried again, and `"later"` once; it answers everything else.
const SCRIPT: &str = "import json, pathlib, sys\nfor line in sys.stdin:\n    call = json.loads(line)\n    \
                      data = call['event']['data']\n    tried = pathlib.Path('tried')\n    \
                      again = data == 'bad' or (data == 'later' and not tried.exists())\n    \
                      if data == 'later': tried.touch()\n    \
                      error = {'id': call['id'], 'error': {'kind': 'retry', 'message': 'not now'}}\n    \
                      good = {'id': call['id'], 'events': [{'type': 'b', 'data': data}]}\n    \
                      print(json.dumps(error if again else good), flush=True)\n";

#[tokio::test]
async fn events_that_wait_for_a_retry_hold_up_no_other() {
    let nerve = Nerve::up().await;
    let retry = "retry = { attempts = 3, backoff = [\"10s\", \"1h\"] }\n";
    nerve.cli().deploy(guest::python("moody", "events.a", "b", retry, SCRIPT).path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    let posted = (0..200).map(|n| {
        let nerve = &nerve;
        async move { post_event(nerve, "a", &format!("bad-{n}"), "\"bad\"").await }
    });
    assert!(futures::future::join_all(posted).await.into_iter().all(|status| status == 202));
    assert_eq!(post_event(&nerve, "a", "later", "\"later\"").await, 202);
    // They are copies in TIMERS, and none of them is in flight at the function's consumer.
    streams.reaches("TIMERS", "timers.wait.moody.>", 201, seconds(30)).await;
    eventually("the consumer has nothing in flight", seconds(20), || async {
        let info = streams.consumer("EVENTS", "moody").await?;
        (info.num_ack_pending == 0).then_some(())
    })
    .await;
    assert_eq!(post_event(&nerve, "a", "good", "\"good\"").await, 202);
    streams.reaches("EVENTS", "events.b", 1, seconds(20)).await;
    // The one that may succeed does, once; the others wait for an hour with one attempt more.
    streams.reaches("EVENTS", "events.b", 2, seconds(40)).await;
    let results = streams.read("EVENTS", "events.b").await;
    let causes: Vec<&str> = results.iter().map(|event| event.header("ce-causationid")).collect();
    assert_eq!(causes, ["good", "later"]);
    streams.reaches("TIMERS", "timers.wait.moody.>", 200, seconds(40)).await;
    let lines = eventually("each has failed twice", seconds(30), || async {
        let lines = streams.read("LOGS", "logs.moody").await;
        let lines: Vec<String> = lines.iter().map(|line| String::from_utf8_lossy(&line.data).into_owned()).collect();
        (lines.iter().filter(|line| line.contains("attempt 2 of 3 failed")).count() == 200).then_some(lines)
    })
    .await;
    assert!(!lines.iter().any(|line| line.contains("attempt 3 of 3")));
    nerve.cli().run(&["remove", "moody"]).await.ok();
    assert_eq!(
        streams.count("TIMERS", "timers.>").await,
        0,
        "what waits goes with the function, and what was due is done"
    );
}

fn probe(tenant: &str, words: &str) -> Request {
    Request {
        work: "probe",
        tenant: tenant.to_owned(),
        setup: Setup::default(),
        parts: vec![words.to_owned().into()],
        limits: Limits { memory: 128 * MIB, stack: 16 * MIB, input: MIB, output: MIB },
        timeout: seconds(20),
    }
}

#[tokio::test]
async fn tenant_whose_documents_never_end_leaves_a_helper_to_others() {
    let settings = Settings { program: nerve_binary(), memory: 384 * MIB, helpers: 3, idle: seconds(5) };
    let pool = Pool::new(settings);
    let hostile = futures::future::join_all((0..6).map(|_| {
        let pool = pool.clone();
        async move { pool.run(&probe("hostile", "spin")).await }
    }));
    let mut hostile = std::pin::pin!(hostile);
    // All that the hostile tenant may have is at work before the other one comes.
    let warm = tokio::time::timeout(seconds(1), hostile.as_mut()).await;
    assert!(warm.is_err());
    let good = probe("good", "echo fine");
    let answered = tokio::select! {
        _ = hostile => panic!("the other tenant waited for the hostile one"),
        answered = pool.run(&good) => answered,
    };
    assert_eq!(answered, Ok::<_, SandboxError>(b"fine".to_vec()));
}

#[tokio::test]
async fn key_that_opens_many_streams_leaves_some_to_other_keys() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("settings.toml");
    let (one, other) = ("key-of-the-first-caller", "key-of-the-other-caller");
    let text = format!("[gateway]\nmax_streams = 8\n[gateway.keys]\none = \"{one}\"\nother = \"{other}\"\n");
    std::fs::write(&settings, text).unwrap();
    let nerve = Nerve::up_configured(&settings).await;
    let open = |key: &'static str| {
        let request = reqwest::Client::new().get(nerve.url("/v1/events")).bearer_auth(key);
        async move { request.send().await.unwrap() }
    };
    let mut opened = Vec::new();
    let refused = loop {
        let response = open(one).await;
        match response.status().as_u16() {
            200 => opened.push(response),
            _ => break response,
        }
    };
    assert!((4..=7).contains(&opened.len()), "{}", opened.len());
    assert!(refused.headers().contains_key("retry-after"));
    let (status, document) = crate::problem(refused).await;
    assert!(status == 429 && document["detail"].to_string().contains("gateway.max_streams"), "{document}");
    assert_eq!(open(other).await.status(), 200);
    drop(opened);
    eventually("its streams are given back", seconds(20), || async { (open(one).await.status() == 200).then_some(()) })
        .await;
}
