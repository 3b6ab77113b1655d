//! The Redis engine: the suite, and what can happen to Redis only.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postern::commit::{Commit, CommitId, Millis, Position, Publication, StateKey, TimerChange, TimerKey, Write};
use postern::engine::redis::{Options, RedisEngine, connect};
use postern::engine::{Engine, EngineError, Feed, Follower, Health, Outcome, Range};
use postern::event::Payload;
use postern::room::Room;
use postern::tenant::TenantId;
use tokio::time::{Instant, sleep, timeout};

use crate::engine_suite::{Fixture, engine_suite};
use crate::support::proxy::Proxy;
use crate::support::redis_server::RedisServer;

engine_suite!(suite, super::OneServer);

/// A server with one node's engine on it.
pub(crate) struct OneServer {
    server: RedisServer,
    engine: Arc<RedisEngine>,
    options: Options,
}

impl OneServer {
    async fn with(options: Options) -> OneServer {
        let server = RedisServer::start();
        let engine = connect(&server.url(), options.clone()).await.unwrap();
        OneServer { server, engine, options }
    }

    async fn node(&self) -> Arc<RedisEngine> {
        connect(&self.server.url(), self.options.clone()).await.unwrap()
    }
}

#[async_trait]
impl Fixture for OneServer {
    async fn start() -> Self {
        // Leases run by Redis's clock, which no test can turn.
        OneServer::with(Options { timer_lease_ms: 400, ..Options::default() }).await
    }

    async fn with_log(entries: usize) -> Self {
        OneServer::with(Options { log_entries_max: entries, ..Options::default() }).await
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone()
    }

    async fn another(&self) -> Arc<dyn Engine> {
        self.node().await
    }

    async fn pass(&self, ms: Millis) {
        sleep(Duration::from_millis(ms + 5)).await;
    }

    fn lease_ms(&self) -> Millis {
        self.options.timer_lease_ms
    }

    async fn lose_log(&mut self) {
        self.server.command(&["FLUSHALL"]);
    }
}

pub(crate) fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

pub(crate) fn counter() -> StateKey {
    StateKey::of("visits", "count")
}

/// A publication that also counts.
pub(crate) fn say(text: &str) -> Commit {
    let publication = Publication {
        room: Room::parse("flat:a1").unwrap(),
        event: "said".into(),
        data: Payload::one(&text.into()),
        except: None,
    };
    Commit { writes: vec![(counter(), Write::Add(1))], ..Commit::publish(publication) }
}

pub(crate) async fn apply(engine: &RedisEngine, commit: Commit) -> Position {
    match engine.commit(&acme(), Arc::new(commit)).await.unwrap() {
        Outcome::Committed(position) => position,
        other => panic!("not committed: {other:?}"),
    }
}

/// Sends a commit as a gateway does: again, while nobody knows what became of it or nobody is there.
pub(crate) async fn apply_whatever_happens(engine: &RedisEngine, commit: Commit) -> (Position, usize) {
    let commit = Arc::new(commit);
    for attempt in 1..200 {
        match engine.commit(&acme(), commit.clone()).await {
            Ok(Outcome::Committed(position)) => return (position, attempt),
            Err(EngineError::Unavailable(_) | EngineError::Ambiguous(_)) => sleep(Duration::from_millis(10)).await,
            other => panic!("{other:?}"),
        }
    }
    panic!("Redis never came back");
}

pub(crate) async fn count(engine: &RedisEngine) -> String {
    let read = engine.read(&acme(), &[counter()]).await.unwrap().remove(0).unwrap();
    String::from_utf8(read.value.to_vec()).unwrap()
}

pub(crate) async fn next(follower: &mut Follower) -> Feed {
    timeout(Duration::from_secs(10), follower.feed.recv()).await.expect("nothing came").expect("the feed ended")
}

pub(crate) async fn next_position(follower: &mut Follower) -> Position {
    match next(follower).await {
        Feed::Entry(entry) => entry.position,
        other => panic!("no entry but {other:?}"),
    }
}

pub(crate) async fn next_reset(follower: &mut Follower) -> Position {
    match next(follower).await {
        Feed::Reset(position) => position,
        other => panic!("no reset but {other:?}"),
    }
}

/// The only key that ends so.
fn key_of(server: &RedisServer, end: &str) -> String {
    let mut keys: Vec<String> = redis::from_redis_value(server.command(&["KEYS", &format!("ps:*{end}")])).unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_scripts_are_sent_again() {
    let OneServer { server, engine, .. } = OneServer::start().await;
    let first = apply(&engine, say("1")).await;
    server.command(&["SCRIPT", "FLUSH"]);
    assert_eq!(apply(&engine, say("2")).await, first.next());
    server.command(&["SCRIPT", "FLUSH"]);
    let timer =
        (TimerKey { plugin: "visits".into(), name: "t".into() }, TimerChange::Set { after_ms: 0, data: "1".into() });
    apply(&engine, Commit { timers: vec![timer], ..Commit::new(CommitId::random()) }).await;
    server.command(&["SCRIPT", "FLUSH"]);
    let due = engine.claim_timers(10).await.unwrap();
    assert_eq!(due.len(), 1);
    server.command(&["SCRIPT", "FLUSH"]);
    engine.release_timer(&due[0], 0).await.unwrap();
    server.command(&["SCRIPT", "FLUSH"]);
    assert_eq!(engine.list_keys(&acme(), "visits/", None, 10).await.unwrap().keys, [counter()]);
    server.command(&["SCRIPT", "FLUSH"]);
    assert_eq!(engine.follow(&acme()).await.unwrap().position, first.next());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_goes_on_without_loss_when_its_subscriptions_are_cut() {
    let OneServer { server, engine, options } = OneServer::start().await;
    let other = connect(&server.url(), options).await.unwrap();
    let mut followers = [engine.follow(&acme()).await.unwrap(), other.follow(&acme()).await.unwrap()];
    let mut committed = Vec::new();
    for n in 0..300 {
        if n % 60 == 30 {
            server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        committed.push(apply(&engine, say(&n.to_string())).await);
    }
    for follower in &mut followers {
        for position in &committed {
            assert_eq!(next_position(follower).await, *position);
        }
    }
    // Subscribed again, not only caught up once: this comes long before a quiet log is looked at.
    sleep(Duration::from_millis(300)).await;
    let position = apply(&other, say("afterwards")).await;
    for follower in &mut followers {
        assert_eq!(timeout(Duration::from_secs(5), next_position(follower)).await, Ok(position));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_done_once_although_connections_are_cut() {
    let OneServer { server, engine, .. } = OneServer::start().await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    let writers = (0..4).map(|writer| {
        let engine = engine.clone();
        async move {
            let mut attempts = 0;
            for n in 0..50 {
                attempts += apply_whatever_happens(&engine, say(&format!("{writer}.{n}"))).await.1;
            }
            attempts
        }
    });
    let cut = async {
        for _ in 0..8 {
            sleep(Duration::from_millis(15)).await;
            server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
    };
    tokio::join!(futures_util::future::join_all(writers), cut);
    assert_eq!(count(&engine).await, "200");
    let mut before = follower.position;
    for _ in 0..200 {
        let position = next_position(&mut follower).await;
        assert!(position == before.next() || (position.epoch > before.epoch && position.seq == 1));
        before = position;
    }
    assert!(timeout(Duration::from_millis(100), follower.feed.recv()).await.is_err(), "nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_not_answered_is_ambiguous_and_done_once() {
    let OneServer { server, engine, .. } = OneServer::start().await;
    let first = apply(&engine, say("1")).await;
    server.signal("STOP");
    let commit = say("2");
    let error = engine.commit(&acme(), Arc::new(commit.clone())).await.unwrap_err();
    assert!(matches!(error, EngineError::Ambiguous(_)), "{error:?}");
    server.signal("CONT");
    let (position, _) = apply_whatever_happens(&engine, commit).await;
    assert_eq!((position, &*count(&engine).await), (first.next(), "2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty_means_a_reset_and_a_new_epoch() {
    let OneServer { mut server, engine, .. } = OneServer::start().await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    let old = apply(&engine, say("old")).await;
    assert_eq!(next_position(&mut follower).await, old);

    server.kill();
    assert!(matches!(engine.ping().await, Err(EngineError::Unavailable(_))));
    let error = engine.commit(&acme(), Arc::new(say("away"))).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable(_)), "{error:?}");
    server.start_again();

    let (new, _) = apply_whatever_happens(&engine, say("new")).await;
    assert!(new.epoch > old.epoch && new.seq == 1, "{old} {new}");
    let mut at = next_reset(&mut follower).await;
    while at != new {
        at = match next(&mut follower).await {
            Feed::Entry(entry) => entry.position,
            Feed::Reset(position) => position,
            Feed::Ephemeral(_) => at,
        };
    }
    assert!(matches!(engine.range(&acme(), old, 10).await.unwrap(), Range::Gone));
}

/// What a failover to a replica that lagged looks like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_its_end_is_noticed_and_nothing_comes_twice() {
    let OneServer { server, engine, .. } = OneServer::start().await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    let kept = apply(&engine, say("kept")).await;
    let lost = apply(&engine, say("lost")).await;
    assert_eq!([next_position(&mut follower).await, next_position(&mut follower).await], [kept, lost]);

    server.command(&["XDEL", &key_of(&server, ":acme:log"), &lost.to_string()]);
    server.command(&["HSET", &key_of(&server, ":acme:meta"), "g", "another-history"]);
    let new = apply(&engine, say("new")).await;
    assert!(new.epoch > lost.epoch && new.seq == 1);
    assert_eq!(next_reset(&mut follower).await, kept);
    assert_eq!(next_position(&mut follower).await, new);
    let Range::Entries(after_kept) = engine.range(&acme(), kept, 10).await.unwrap() else { panic!("gone") };
    assert_eq!(after_kept.len(), 1, "whoever had not seen what was lost goes on as if nothing was");
    assert!(matches!(engine.range(&acme(), lost, 10).await.unwrap(), Range::Gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_vanished_alone_begins_anew() {
    let OneServer { server, engine, .. } = OneServer::start().await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    let old = apply(&engine, say("old")).await;
    assert_eq!(next_position(&mut follower).await, old);
    server.command(&["DEL", &key_of(&server, ":acme:log")]);
    let new = apply(&engine, say("new")).await;
    assert!(new.epoch > old.epoch && new.seq == 1);
    assert_eq!(next_reset(&mut follower).await, Position { seq: 0, ..new });
    assert_eq!(next_position(&mut follower).await, new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_entries_go_with_the_commits_that_follow() {
    let options = Options { log_age_max: Duration::from_millis(300), ..Options::default() };
    let OneServer { engine, server: _server, .. } = OneServer::with(options).await;
    let first = apply(&engine, say("first")).await;
    for n in 0..400 {
        apply(&engine, say(&n.to_string())).await;
    }
    sleep(Duration::from_millis(400)).await;
    let last = apply(&engine, say("last")).await;
    assert!(matches!(engine.range(&acme(), first, 10).await.unwrap(), Range::Gone));
    assert!(matches!(engine.range(&acme(), last, 10).await.unwrap(), Range::Entries(none) if none.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_are_gone_at_once_or_kept_for_ages_are_no_error() {
    let OneServer { engine, server: _server, .. } = OneServer::start().await;
    let put = |ttl_ms| {
        let value = Bytes::from_static(b"v");
        let writes = vec![(counter(), Write::Put { value, ttl_ms: Some(ttl_ms) })];
        Commit { writes, ..Commit::new(CommitId::random()) }
    };
    apply(&engine, put(Millis::MAX)).await;
    assert!(engine.read(&acme(), &[counter()]).await.unwrap()[0].is_some());
    apply(&engine, put(0)).await;
    assert_eq!(engine.read(&acme(), &[counter()]).await.unwrap(), [None]);
    assert!(engine.list_keys(&acme(), "", None, 10).await.unwrap().keys.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_engine_ends_its_feeds_and_refuses() {
    let OneServer { engine, server: _server, .. } = OneServer::start().await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    timeout(Duration::from_secs(5), engine.close()).await.expect("closing ends");
    assert!(follower.feed.recv().await.is_none());
    assert!(matches!(engine.follow(&acme()).await, Err(EngineError::Unavailable(_))));
    assert!(matches!(engine.ping().await, Err(EngineError::Unavailable(_))));
}

/// Waits until a tenant is well or not.
pub(crate) async fn health(engine: &RedisEngine, up: bool, patience: Duration) {
    let mut health = engine.health(&acme());
    let told = timeout(patience, health.wait_for(|health| (*health == Health::Up) == up)).await;
    told.unwrap_or_else(|_| panic!("up: {up} not within {patience:?}")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_no_master_any_more_is_left_within_two_seconds() {
    let OneServer { server, engine, .. } = OneServer::start().await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    let first = apply(&engine, say("1")).await;
    assert_eq!(next_position(&mut follower).await, first);
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    health(&engine, false, Duration::from_secs(6)).await;
    let error = engine.commit(&acme(), Arc::new(say("refused"))).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable(_)), "{error:?}");
    server.command(&["REPLICAOF", "NO", "ONE"]);
    health(&engine, true, Duration::from_secs(5)).await;
    let (second, _) = apply_whatever_happens(&engine, say("2")).await;
    assert!(second.epoch > first.epoch, "a promotion begins another history");
    assert_eq!(next_position(&mut follower).await, second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_answering_is_down_until_it_goes_on() {
    let OneServer { server, engine, .. } = OneServer::start().await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    server.signal("STOP");
    health(&engine, false, Duration::from_secs(6)).await;
    server.signal("CONT");
    health(&engine, true, Duration::from_secs(6)).await;
    let (position, _) = apply_whatever_happens(&engine, say("1")).await;
    assert_eq!(next_position(&mut follower).await, position);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_feed_was_given_is_read_without_the_server() {
    let OneServer { server, engine, .. } = OneServer::start().await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    let mut positions = Vec::new();
    for n in 0..5 {
        positions.push(apply(&engine, say(&n.to_string())).await);
        assert_eq!(next_position(&mut follower).await, positions[n]);
    }
    // Whoever took the entry may be a moment before the memory.
    sleep(Duration::from_millis(20)).await;
    server.signal("STOP");
    let asked = timeout(Duration::from_millis(500), engine.range(&acme(), positions[1], 10)).await;
    let Ok(Ok(Range::Entries(entries))) = asked else { panic!("not from memory: {asked:?}") };
    assert_eq!(entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), positions[2..]);
    let room = Room::parse("flat:a1").unwrap();
    let history = timeout(Duration::from_millis(500), engine.history(&acme(), &room, Some(positions[4]), 2)).await;
    assert_eq!(history.unwrap().unwrap().len(), 2);
    server.signal("CONT");
    drop(follower);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_is_open_and_carries_nothing_is_replaced() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    let engine = connect(&proxy.url(), Options::default()).await.unwrap();
    let mut follower = engine.follow(&acme()).await.unwrap();
    let position = apply(&engine, say("heard")).await;
    assert_eq!(next_position(&mut follower).await, position);
    proxy.swallow_messages();
    let position = apply(&engine, say("unheard")).await;
    // Quiet for five seconds, then a probe that has three: long before a quiet log is looked at.
    let came = timeout(Duration::from_secs(20), next(&mut follower)).await.expect("the connection is not replaced");
    assert!(matches!(came, Feed::Entry(entry) if entry.position == position));
    let position = apply(&engine, say("heard again")).await;
    assert_eq!(timeout(Duration::from_secs(10), next_position(&mut follower)).await, Ok(position));
}

/// Dials of one node at one server, in any second on average: commands and subscriptions together.
const DIALS_PER_SECOND_MAX: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flapping_server_is_not_dialled_in_a_storm() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    let engine = connect(&proxy.url(), Options::default()).await.unwrap();
    let mut follower = engine.follow(&acme()).await.unwrap();
    let before = proxy.accepted();
    let since = Instant::now();
    const FLAPPING: Duration = Duration::from_secs(4);
    while since.elapsed() < FLAPPING {
        sleep(Duration::from_millis(200)).await;
        proxy.cut();
    }
    let dials = proxy.accepted() - before;
    let bound = DIALS_PER_SECOND_MAX * usize::try_from(FLAPPING.as_secs()).unwrap();
    assert!((2..=bound).contains(&dials), "{dials} dials in {FLAPPING:?}");
    let (position, _) = apply_whatever_happens(&engine, say("afterwards")).await;
    assert_eq!(next_position(&mut follower).await, position);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_large_entries_holds_fewer_of_them_and_is_read_in_small_pages() {
    let options = Options { log_bytes_max: 8 << 20, ..Options::default() };
    let OneServer { server, engine, .. } = OneServer::with(options).await;
    let large = "x".repeat(256 << 10);
    let first = apply(&engine, say(&large)).await;
    for _ in 0..200 {
        apply(&engine, say(&large)).await;
    }
    let length = redis::from_redis_value::<usize>(server.command(&["XLEN", &key_of(&server, ":acme:log")])).unwrap();
    assert!((20..=50).contains(&length), "{length} entries of 256 KiB in 8 MiB");
    assert!(matches!(engine.range(&acme(), first, 10).await.unwrap(), Range::Gone));
    let last = apply(&engine, say("last")).await;
    let mut at = Position { seq: last.seq - 20, ..last };
    while at < last {
        let Range::Entries(some) = engine.range(&acme(), at, 500).await.unwrap() else { panic!("gone") };
        assert!((1..=20).contains(&some.len()));
        at = some[some.len() - 1].position;
    }
}
