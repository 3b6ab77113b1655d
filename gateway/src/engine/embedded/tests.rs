//! What only the embedded engine can be asked. The contract is tested by `tests/it/engine_suite.rs`.

use std::sync::atomic::AtomicU64;

use futures_util::FutureExt;

use super::*;
use crate::commit::{CommitId, Effect, TimerChange, TimerKey, Write};
use crate::engine::{COMMIT_ID_KEPT_MS, FEED_ENTRIES_MAX, Feed};
use crate::event::Payload;

mod disk;

const START: Millis = 1_700_000_000_000;

/// An engine whose time the test drives.
fn engine(options: Options) -> (Arc<EmbeddedEngine>, Arc<AtomicU64>) {
    let time = Arc::new(AtomicU64::new(START));
    let clock = Arc::clone(&time);
    let clock: Clock = Arc::new(move || clock.load(Ordering::SeqCst));
    (EmbeddedEngine::in_memory(Options { clock, ..options }).unwrap(), time)
}

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn say(text: &str) -> Commit {
    let data = Payload::one(&text.into());
    Commit::publish(Publication { room: Room::parse("flat:a1").unwrap(), event: "said".into(), data, except: None })
}

fn put(key: &str, ttl_ms: Option<Millis>) -> Commit {
    let write = Write::Put { value: Bytes::from_static(b"1"), ttl_ms };
    Commit { writes: vec![(StateKey::stored(key), write)], ..Commit::new(CommitId::random()) }
}

impl EmbeddedEngine {
    async fn apply(&self, commit: Commit) -> Position {
        match self.commit(&acme(), Arc::new(commit)).await.unwrap() {
            Outcome::Committed(position) => position,
            other => panic!("{other:?}"),
        }
    }

    async fn swept(&self) {
        self.ask(|answer| Job::Sweep { answer }).await.unwrap();
    }
}

#[tokio::test]
async fn what_has_expired_is_removed_however_much_it_is() {
    let (engine, time) = engine(Options::default());
    for batch in 0..3 {
        let writes = (0..900).flat_map(|n| put(&format!("p/{batch}-{n}"), Some(1_000)).writes).collect();
        engine.apply(Commit { writes, ..put("", None) }).await;
    }
    engine.apply(put("p/renewed", Some(1_000))).await;
    engine.apply(put("p/renewed", Some(5_000))).await;
    engine.apply(put("p/stays", None)).await;
    time.fetch_add(2_000, Ordering::SeqCst);
    engine.swept().await;
    assert_eq!(engine.shared.store.rows().unwrap().state, 2);
    time.fetch_add(5_000, Ordering::SeqCst);
    engine.swept().await;
    let rows = engine.shared.store.rows().unwrap();
    assert_eq!((rows.state, rows.expiry), (1, 0));
}

#[tokio::test]
async fn commit_ids_are_kept_on_disk_for_their_time_and_not_for_ever() {
    let (engine, time) = engine(Options::default());
    for n in 0..20 {
        engine.apply(put(&n.to_string(), None)).await;
    }
    time.fetch_add(COMMIT_ID_KEPT_MS, Ordering::SeqCst);
    engine.swept().await;
    assert_eq!(engine.shared.store.rows().unwrap().done, 20);
    time.fetch_add(COMMIT_ID_KEPT_MS + 1, Ordering::SeqCst);
    engine.swept().await;
    assert_eq!(engine.shared.store.rows().unwrap().done, 0);
}

#[tokio::test]
async fn settled_timers_leave_nothing_behind() {
    let (engine, time) = engine(Options::default());
    let key = |n: usize| TimerKey { plugin: "p".into(), name: n.to_string().into() };
    let change = |n, change| Commit { timers: vec![(key(n), change)], ..Commit::new(CommitId::random()) };
    let set = || TimerChange::Set { after_ms: 10, data: "1".into() };
    for n in 0..3 {
        engine.apply(change(n, set())).await;
    }
    time.fetch_add(20, Ordering::SeqCst);
    let due = engine.claim_timers(10).await.unwrap();
    let fired = crate::commit::FiredTimer { key: key(0), token: due[0].token.clone() };
    engine.apply(Commit { fired: Some(fired), ..Commit::new(CommitId::random()) }).await;
    engine.apply(change(1, TimerChange::Cancel)).await;
    engine.apply(change(2, set())).await;
    engine.apply(change(2, TimerChange::Cancel)).await;
    let rows = engine.shared.store.rows().unwrap();
    assert_eq!((rows.timers, rows.due), (0, 0));
    assert!(engine.shared.leases.lock().0.is_empty());
}

#[tokio::test]
async fn an_idle_tenants_log_grows_old_and_its_sessions_end() {
    let (engine, time) = engine(Options::default());
    let first = engine.apply(say("1")).await;
    let before = Position { seq: 0, ..first };
    time.fetch_add(149_000, Ordering::SeqCst);
    engine.swept().await;
    assert!(matches!(engine.range(&acme(), before, 10).await.unwrap(), Range::Entries(entries) if entries.len() == 1));
    time.fetch_add(2_000, Ordering::SeqCst);
    engine.swept().await;
    assert!(matches!(engine.range(&acme(), before, 10).await.unwrap(), Range::Gone));
    assert!(matches!(engine.range(&acme(), first, 10).await.unwrap(), Range::Entries(entries) if entries.is_empty()));
    assert_eq!(engine.apply(say("2")).await, first.next());
}

/// The feed is full, the log is not: nothing is lost, and commits did not wait.
#[tokio::test]
async fn a_full_feed_is_filled_from_the_log_when_there_is_room() {
    let (engine, _) = engine(Options::default());
    let mut follower = engine.follow(&acme()).await.unwrap();
    for n in 1..=3 * FEED_ENTRIES_MAX as u64 {
        assert_eq!(engine.apply(say("x")).await.seq, n);
        engine.publish_ephemeral(&acme(), typing()).await.unwrap();
    }
    assert_eq!(follower.feed.len(), FEED_ENTRIES_MAX);
    let mut last = follower.position;
    while last.seq < 3 * FEED_ENTRIES_MAX as u64 {
        match follower.feed.recv().await.unwrap() {
            Feed::Entry(entry) => {
                assert_eq!(entry.position, last.next());
                last = entry.position;
            }
            Feed::Ephemeral(_) => {}
            Feed::Reset(position) => panic!("reset to {position}"),
        }
    }
    // It has caught up: what comes now reaches it at once, what is not logged too.
    engine.apply(say("afterwards")).await;
    engine.publish_ephemeral(&acme(), typing()).await.unwrap();
    assert!(matches!(follower.feed.try_recv(), Ok(Feed::Entry(entry)) if entry.position == last.next()));
    assert!(matches!(follower.feed.try_recv(), Ok(Feed::Ephemeral(_))));
}

fn typing() -> Publication {
    match say("typing").effects.remove(0) {
        Effect::Publish(publication) => publication,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_feed_ends_with_the_engine_and_a_follower_that_leaves_is_forgotten() {
    let (engine, _) = engine(Options::default());
    let (gone, mut stays) = (engine.follow(&acme()).await.unwrap(), engine.follow(&acme()).await.unwrap());
    let tasks = engine.tasks.clone();
    drop(gone);
    while tasks.len() > 1 {
        tokio::task::yield_now().await;
    }
    engine.apply(say("last")).await;
    drop(engine);
    assert!(matches!(stays.feed.recv().await, Some(Feed::Entry(_))));
    assert!(stays.feed.recv().await.is_none());
    tasks.wait().await;
}

#[tokio::test]
async fn an_artifact_that_is_too_large_is_refused_with_the_limit() {
    let (engine, _) = engine(Options::default());
    let error = engine.put_artifact("00", Bytes::from(vec![0; ARTIFACT_BYTES_MAX + 1])).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the engine is not available: an artefact has at most 67108864 bytes, this one has 67108865"
    );
}

/// Commits wait in the queue while the writer is busy; those that find no place are told.
#[tokio::test]
async fn a_full_queue_refuses_and_loses_nothing_that_it_took() {
    let (engine, _) = engine(Options::default());
    let busy = engine.shared.leases.lock();
    // The writer takes a batch and then waits for the leases.
    let (tenant, mut taken, mut refused) = (acme(), Vec::new(), 0);
    for n in 0..QUEUED_JOBS_MAX + 1_000 {
        let (answer, answered) = oneshot::channel();
        let commit = Arc::new(put(&n.to_string(), None));
        let job = Job::Commit(CommitJob { tenant: tenant.clone(), commit, answer });
        match engine.jobs.as_ref().unwrap().try_send(job) {
            Ok(()) => taken.push(answered),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0);
    let error = engine.commit(&tenant, Arc::new(put("one more", None))).now_or_never().unwrap().unwrap_err();
    assert!(error.to_string().contains("4096 jobs wait"), "{error}");
    drop(busy);
    for answered in taken {
        assert!(matches!(answered.await, Ok(Ok(Outcome::Committed(_)))));
    }
}
