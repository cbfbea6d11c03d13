//! Many readers of one answer: cut at random, stuck, and after gateway and worker were killed.

use crate::answers::{ask_story, id_of, names, resume, story, storyteller, text};
use futures::future::join_all;
use nerve_tests::{
    Nats, Nerve, Streams, nerve, seconds,
    sse::{Frame, Reader},
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Reads one answer to its end, cut after a few events again and again.
async fn read_cut(nerve: &Nerve, id: &str, seed: u64) -> (Vec<Frame>, usize) {
    let (mut frames, mut cuts, mut dice) = (Vec::<Frame>::new(), 0, seed);
    loop {
        let after = frames.last().and_then(|frame| frame.id);
        let response = resume(nerve, id, after).await;
        if response.status() == 204 {
            return (frames, cuts);
        }
        if response.status() != 200 {
            // Busy, or on its way up again.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        }
        let mut reader = Reader::new(response);
        dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        for _ in 0..20 + (dice >> 33) % 60 {
            match reader.next().await {
                Some(frame) => {
                    let last = frame.name == "done";
                    frames.push(frame);
                    if last {
                        return (frames, cuts);
                    }
                }
                None => break,
            }
        }
        cuts += 1;
    }
}

#[tokio::test]
async fn a_thousand_readers_cut_at_random_miss_nothing() {
    const READERS: u64 = 1000;
    const TOKENS: usize = 150;
    let nerve = Nerve::up().await;
    nerve.cli().deploy(storyteller().path()).await;
    let mut ids = vec![id_of(&ask_story(&nerve, TOKENS, 0.05).await)];
    for _ in 0..3 {
        ids.push(id_of(&ask_story(&nerve, TOKENS, 0.05).await));
    }
    let readers = (0..READERS).map(|n| read_cut(&nerve, &ids[n as usize % ids.len()], n));
    let read = join_all(readers).await;
    let cuts: usize = read.iter().map(|(_, cuts)| cuts).sum();
    assert!(cuts > 1000, "they were really cut: {cuts}");
    for (frames, _) in &read {
        assert_eq!(text(frames), story(TOKENS));
        assert_eq!(frames.len(), TOKENS + 1);
        assert!(frames.windows(2).all(|pair| pair[0].id < pair[1].id));
    }
}

#[tokio::test]
async fn a_reader_that_stops_reading_holds_up_nobody_else() {
    const TOKENS: usize = 3000;
    // More in all than the buffers between gateway and reader hold.
    const PAD: usize = 4096;
    let nerve = Nerve::up().await;
    nerve.cli().deploy(storyteller().path()).await;
    Reader::new(ask_story(&nerve, 1, 0.0).await).rest().await;
    let address = nerve.gateway.trim_start_matches("http://").to_owned();
    let body = json!({"question": "tell", "tokens": TOKENS, "pad": PAD}).to_string();
    let head = "POST /v1/answers HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut stuck = tokio::net::TcpStream::connect(&address).await.unwrap();
    stuck.write_all(request.as_bytes()).await.unwrap();
    let mut answered = [0; 15];
    stuck.read_exact(&mut answered).await.unwrap();
    assert_eq!(&answered, b"HTTP/1.1 200 OK");
    let streams = Streams::connect(&nerve.nats).await;
    let prompts = streams.read("EVENTS", "events.prompt.received").await;
    let id = prompts.last().unwrap().header("ce-id");
    // From here on it reads nothing, and two others read it all, one of them from another part on.
    let all = Reader::new(resume(&nerve, id, None).await).rest().await;
    assert_eq!((all.len(), all.last().unwrap().name.as_str()), (TOKENS + 1, "done"));
    let later = Reader::new(resume(&nerve, id, all[TOKENS / 2].id).await).rest().await;
    assert_eq!(later, all[TOKENS / 2 + 1..]);
    // When it reads again, it has missed nothing.
    let mut rest = Vec::new();
    let read = tokio::time::timeout(seconds(60), async {
        let mut piece = vec![0; 1 << 16];
        while !rest.windows(11).rev().take(1 << 17).any(|eleven| eleven == b"event: done") {
            let length = stuck.read(&mut piece).await.unwrap();
            assert!(length > 0, "it ended after {} bytes", rest.len());
            rest.extend_from_slice(&piece[..length]);
        }
    });
    read.await.expect("the rest comes");
    let tokens = rest.windows(12).filter(|twelve| twelve == b"event: token").count();
    assert_eq!(tokens, TOKENS);
}

#[tokio::test]
async fn gateway_and_worker_killed_in_the_middle_of_an_answer_that_completes_once() {
    const TOKENS: usize = 100;
    let nats = Nats::start().await;
    let mut first = Nerve::gateway(&nats.url()).await;
    let second = Nerve::gateway(&nats.url()).await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut worker = nerve::worker(&nats.url(), folders[0].path()).await;
    first.cli().deploy(storyteller().path()).await;
    let response = ask_story(&first, TOKENS, 0.03).await;
    let id = id_of(&response);
    let mut reader = Reader::new(response);
    let mut frames = Vec::new();
    while frames.len() < 20 {
        frames.push(reader.next().await.unwrap());
    }
    first.kill9();
    while let Some(frame) = reader.next().await {
        frames.push(frame);
    }
    let mut reader = Reader::new(resume(&second, &id, frames.last().unwrap().id).await);
    while frames.len() < 50 {
        frames.push(reader.next().await.unwrap());
    }
    worker.kill9();
    let _other = nerve::worker(&nats.url(), folders[1].path()).await;
    frames.extend(reader.rest().await);
    assert_eq!(text(&frames), story(TOKENS));
    assert_eq!(names(&frames).iter().filter(|name| **name == "done").count(), 1);
    assert_eq!(frames.last().unwrap().data["answer"], story(TOKENS));
    let streams = Streams::connect(&nats.url()).await;
    assert_eq!(streams.count("EVENTS", "events.answer.generated").await, 1);
    assert_eq!(streams.count("ANSWERS", &format!("answers.{id}")).await, TOKENS + 2, "opened, each token, done");
}
