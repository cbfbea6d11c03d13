//! The file and its counters; publishing is tested with a real broker in tests/it.

use super::*;
use nerve_core::{EventType, Origin};
use tempfile::TempDir;

const MAX_BYTES: u64 = 1 << 20;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn event(id: &str) -> Event {
    let event = Event::new(id, "/hooks/a", EventType::parse("a.b").unwrap());
    event.with_data("application/json", format!("{{ \"id\":\n\"{id}\" }}").into_bytes())
}

fn key(source: &str, id: &str) -> Identity {
    Origin::source(&name(source)).identify(&event(id))
}

fn delivery(source: &str, ids: &[&str]) -> Spooled {
    let events = ids.iter().map(|id| (key(source, id), event(id))).collect();
    Spooled { source: name(source), events, signed: Some(key(source, "signed")), tried: false }
}

async fn open(folder: &TempDir, room: u64) -> Result<(Spool, TaskTracker), SpoolError> {
    let tasks = TaskTracker::new();
    Ok((Spool::open(&folder.path().join("data/spool.sqlite"), room, &tasks).await?, tasks))
}

/// Ends the thread, which releases the file.
async fn close(spool: Spool, tasks: TaskTracker) {
    drop(spool);
    tasks.close();
    tasks.wait().await;
}

async fn ids(spool: &Spool) -> Vec<String> {
    spool.shared.disk.oldest().await.unwrap().into_iter().map(|placed| placed.row.event.id).collect()
}

#[tokio::test]
async fn events_survive_a_restart_unchanged_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, tasks) = open(&folder, MAX_BYTES).await.unwrap();
    assert!(!folder.path().join("data").exists(), "no file before one is needed");
    spool.put(delivery("a", &["1", "2"])).await.unwrap();
    spool.put(delivery("b", &["3"])).await.unwrap();
    close(spool, tasks).await;

    let (spool, tasks) = open(&folder, MAX_BYTES).await.unwrap();
    assert!(spool.holds(&name("a")) && spool.holds(&name("b")) && !spool.holds(&name("c")));
    for known in [key("a", "1"), key("a", "2"), key("a", "signed"), key("b", "3")] {
        assert!(spool.has(known));
    }
    assert!(!spool.has(key("b", "1")));
    let rows = spool.shared.disk.oldest().await.unwrap();
    assert_eq!(
        rows.iter().map(|placed| &placed.row.event).collect::<Vec<_>>(),
        [&event("1"), &event("2"), &event("3")]
    );

    let first = rows.first().unwrap();
    spool.shared.disk.remove(vec![first.sequence]).await.unwrap();
    spool.forget(std::slice::from_ref(&first.row.entry));
    assert!(!spool.has(key("a", "1")) && spool.holds(&name("a")));
    spool.shared.disk.refuse(rows[1].sequence, "no".to_owned()).await.unwrap();
    assert_eq!(ids(&spool).await, ["3"]);
    close(spool, tasks).await;
    let (spool, _tasks) = open(&folder, MAX_BYTES).await.unwrap();
    assert_eq!(ids(&spool).await, ["3"], "what was put aside stays aside");
    assert!(!spool.holds(&name("a")));
}

#[tokio::test]
async fn delivery_over_the_limit_is_refused_whole_and_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _tasks) = open(&folder, 2 * disk::size_of(&event("1"))).await.unwrap();
    assert!(matches!(spool.put(delivery("a", &["1", "2", "3"])).await, Err(SpoolError::Full)));
    assert!(!spool.holds(&name("a")) && !spool.has(key("a", "1")));
    spool.put(delivery("a", &["1", "2"])).await.unwrap();
    assert!(!spool.has_space());
    assert!(matches!(spool.put(delivery("a", &["3"])).await, Err(SpoolError::Full)));
    assert_eq!(ids(&spool).await, ["1", "2"]);
}

#[tokio::test]
async fn concurrent_writes_are_all_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _tasks) = open(&folder, MAX_BYTES).await.unwrap();
    let puts = (0..200).map(|n| {
        let spool = spool.clone();
        async move { spool.put(delivery("a", &[&n.to_string()])).await }
    });
    for put in futures::future::join_all(puts).await {
        put.unwrap();
    }
    let mut found = ids(&spool).await;
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), 200);
}

#[tokio::test]
async fn events_of_a_disconnected_sender_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _tasks) = open(&folder, MAX_BYTES).await.unwrap();
    let mut put = Box::pin(spool.put(delivery("a", &["1"])));
    assert!(futures::poll!(put.as_mut()).is_pending());
    drop(put);
    assert_eq!(ids(&spool).await, ["1"]);
    assert!(spool.holds(&name("a")), "else nobody would bring it into the log");
    assert!(spool.has(key("a", "1")));
}

#[tokio::test]
async fn event_is_accepted_only_after_it_is_synced() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _tasks) = open(&folder, MAX_BYTES).await.unwrap();
    let claim = spool.claim(rows_of(delivery("a", &["1"])).into_iter().map(|row| row.entry).collect()).unwrap();
    assert!(spool.holds(&name("a")) && !spool.has(key("a", "1")), "others wait behind it, and it may still fail");
    spool.put(delivery("a", &["1"])).await.unwrap();
    drop(claim);
    assert!(spool.has(key("a", "1")), "what fails takes nothing from what was synced");
}

#[tokio::test]
async fn unwritable_disk_accepts_nothing_until_it_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _tasks) = open(&folder, MAX_BYTES).await.unwrap();
    std::fs::write(folder.path().join("data"), "where the spool's folder should be").unwrap();
    let puts = ["1", "2"].map(|id| spool.put(delivery("a", &[id])));
    for put in futures::future::join_all(puts).await {
        let error = put.unwrap_err();
        assert!(matches!(error, SpoolError::Disk { .. }) && std::error::Error::source(&error).is_some(), "{error:?}");
    }
    assert!(matches!(spool.shared.disk.oldest().await, Err(SpoolError::Disk { .. })));
    assert!(!spool.holds(&name("a")) && !spool.has(key("a", "1")));
    std::fs::remove_file(folder.path().join("data")).unwrap();
    spool.put(delivery("a", &["1"])).await.unwrap();
    assert_eq!(ids(&spool).await, ["1"]);
}

#[tokio::test]
async fn file_in_use_and_invalid_file_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, tasks) = open(&folder, MAX_BYTES).await.unwrap();
    spool.put(delivery("a", &["1"])).await.unwrap();
    let error = open(&folder, MAX_BYTES).await.unwrap_err().to_string();
    assert!(error.contains("another gateway") && error.contains("spool.sqlite"), "{error}");
    close(spool, tasks).await;
    std::fs::write(folder.path().join("data/spool.sqlite"), "this is no database, whatever its name says").unwrap();
    let _ = std::fs::remove_file(folder.path().join("data/spool.sqlite-wal"));
    let error = open(&folder, MAX_BYTES).await.unwrap_err();
    assert!(error.to_string().contains("keep the file") && std::error::Error::source(&error).is_some(), "{error}");
}
