//! Overload and cancellation.

use crate::Rig;
use nerve_core::{
    Inference,
    inference::{EmbedRequest, InferenceError},
};
use std::time::{Duration, Instant};
use tokio_util::task::TaskTracker;

fn long(count: usize) -> EmbedRequest {
    EmbedRequest {
        texts: (0..count).map(|index| format!("{index} {}", "word ".repeat(250))).collect(),
        ..EmbedRequest::default()
    }
}

fn short() -> EmbedRequest {
    EmbedRequest { texts: vec!["a".into()], ..EmbedRequest::default() }
}

#[tokio::test]
async fn request_beyond_the_queue_is_refused_then_accepted() {
    let rig = Rig::with(|settings| settings.queue = 16);
    let model = rig.model("all-MiniLM-L6-v2").await;
    rig.onnx.embed(&model, short()).await.unwrap();
    let (onnx, busy) = (rig.onnx.clone(), model.clone());
    let running = TaskTracker::new().spawn(async move { onnx.embed(&busy, long(64)).await });
    let refused = async {
        loop {
            if let Err(error) = rig.onnx.embed(&model, short()).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
    assert!(matches!(&error, InferenceError::Busy(why) if why.contains("16 texts are queued")), "{error:?}");
    assert_eq!(running.await.unwrap().unwrap().len(), 64);
    rig.onnx.embed(&model, short()).await.unwrap();
}

#[tokio::test]
async fn cancelled_call_cancels_queued_and_running_jobs() {
    let rig = Rig::start();
    let model = rig.model("all-MiniLM-L6-v2").await;
    rig.onnx.embed(&model, short()).await.unwrap();
    let left = tokio::time::timeout(Duration::from_millis(100), rig.onnx.embed(&model, long(1000))).await;
    assert!(left.is_err());
    let started = Instant::now();
    rig.onnx.embed(&model, short()).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn shutdown_stops_jobs_and_waits_for_threads() {
    let rig = Rig::start();
    let model = rig.model("all-MiniLM-L6-v2").await;
    let (onnx, busy) = (rig.onnx.clone(), model.clone());
    let running = TaskTracker::new().spawn(async move { onnx.embed(&busy, long(8)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let closing = TaskTracker::new().spawn(rig.close());
    assert_eq!(running.await.unwrap().unwrap().len(), 8, "what was begun is finished");
    closing.await.unwrap();
}
