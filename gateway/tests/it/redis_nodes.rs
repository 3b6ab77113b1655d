//! Nodes on one Redis: who lives, who is counted as gone, and what becomes of what the dead leave behind.

use std::sync::Arc;
use std::time::Duration;

use postern::commit::{Commit, CommitId, Effect, Entry, Grant, TimerChange, TimerKey, Who};
use postern::engine::redis::{Options, RedisEngine, connect};
use postern::engine::{
    Engine, EngineError, Feed, Follower, NodeStat, Orphan, Outcome, Registration, Seat, SeatLimits, Seating, Whose,
};
use postern::room::Room;
use postern::tenant::TenantId;
use tokio::time::{Instant, sleep, timeout};

use crate::support::redis_server::RedisServer;

const LEASE: Duration = Duration::from_millis(400);

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

fn lively() -> Options {
    Options { beat: LEASE / 8, lease: LEASE, ..Options::default() }
}

/// One that beats once and then is silent, as if it was stopped.
fn sluggish() -> Options {
    Options { beat: Duration::from_secs(3_600), lease: LEASE, ..Options::default() }
}

async fn node(server: &RedisServer, name: &str, options: Options) -> Arc<RedisEngine> {
    let engine = connect(&server.url(), options).await.unwrap();
    engine.report(NodeStat { server: name.into(), connections: 1 });
    engine
}

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn room(name: &str) -> Room {
    Room::parse(name).unwrap()
}

fn arrival(id: &str, subject: &str) -> Commit {
    let arrive = Effect::Arrive { id: id.into(), subject: subject.into(), namespace: "/".into() };
    let who = Who::Connection(id.into());
    let join = Effect::Join { who, room: room("flat:a1"), grant: Grant::default() };
    Commit { effects: vec![arrive, join], ..Commit::new(CommitId::random()) }
}

fn gone(id: &str) -> Commit {
    Commit { effects: vec![Effect::Gone { id: id.into() }], ..Commit::new(CommitId::random()) }
}

async fn apply(engine: &RedisEngine, tenant: &TenantId, commit: Commit) {
    let outcome = engine.commit(tenant, Arc::new(commit)).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
}

async fn users(engine: &RedisEngine, name: &str) -> Vec<String> {
    let members = engine.members(&acme(), &room(name), 100).await.unwrap();
    members.iter().map(|member| member.subject.to_string()).collect()
}

async fn count(engine: &RedisEngine, tenant: &TenantId) -> usize {
    engine.count(tenant, &room("everyone")).await.unwrap()
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for orphans.
async fn orphans(engine: &RedisEngine) -> Vec<Orphan> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = engine.orphans(100).await.unwrap();
        if !found.is_empty() {
            return found;
        }
        assert!(Instant::now() < deadline, "no orphans within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn next_entry(follower: &mut Follower) -> Arc<Entry> {
    match timeout(PATIENCE, follower.feed.recv()).await.expect("nothing came").expect("the feed ended") {
        Feed::Entry(entry) => entry,
        other => panic!("no entry but {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_node_left_is_taken_out_once_however_many_do_it() {
    let server = RedisServer::start();
    let nodes = [node(&server, "one", lively()).await, node(&server, "two", lively()).await];
    let dead = node(&server, "dead", lively()).await;
    for (id, subject) in [("c1", "ann"), ("c2", "bob"), ("c3", "bob")] {
        apply(&dead, &acme(), arrival(id, subject)).await;
    }
    apply(&dead, &TenantId::parse("globex").unwrap(), arrival("c1", "eve")).await;
    apply(&nodes[0], &acme(), arrival("c4", "bob")).await;
    eventually("all see each other", || async { nodes[1].nodes().len() == 3 }).await;
    dead.close().await;
    let silent = Instant::now();
    let mut follower = nodes[1].follow(&acme()).await.unwrap();

    let globex = TenantId::parse("globex").unwrap();
    let reap_all = async |engine: &RedisEngine| {
        let mut did = 0;
        while count(engine, &acme()).await + count(engine, &globex).await > 1 {
            for orphan in engine.orphans(2).await.unwrap() {
                did += usize::from(engine.reap(&orphan, Vec::new()).await.unwrap());
            }
            sleep(Duration::from_millis(5)).await;
        }
        did
    };
    let both = async { tokio::join!(reap_all(&nodes[0]), reap_all(&nodes[1])) };
    let (one, two) = timeout(PATIENCE, both).await.expect("they are out in time");
    assert_eq!(one + two, 4, "each once");
    assert!(silent.elapsed() >= LEASE / 2, "nobody is counted as gone before the lease is over");

    let mut left = Vec::new();
    for _ in 0..3 {
        let entry = next_entry(&mut follower).await;
        assert!(matches!(entry.effects[..], [Effect::Gone { .. }]), "{entry:?}");
        left.extend(entry.presence.iter().map(|change| (change.subject.to_string(), change.joined)));
    }
    assert_eq!(left, [("ann".to_owned(), false)], "bob is there with another connection");
    assert_eq!(users(&nodes[0], "flat:a1").await, ["bob"]);
    eventually("nothing is left", || async { nodes[0].orphans(9).await.unwrap().is_empty() }).await;
    eventually("it is not counted", || async { nodes[0].nodes().len() == 2 && nodes[1].nodes().len() == 2 }).await;
    assert!(timeout(Duration::from_millis(100), follower.feed.recv()).await.is_err(), "nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_counted_as_gone_registers_nobody_and_goes_on_as_another() {
    let server = RedisServer::start();
    let slow = node(&server, "slow", sluggish()).await;
    apply(&slow, &acme(), arrival("c1", "ann")).await;
    let other = node(&server, "other", lively()).await;
    for orphan in orphans(&other).await {
        assert_eq!((orphan.connection.as_str(), &*orphan.subject, &*orphan.namespace), ("c1", "ann", "/"));
        assert!(other.reap(&orphan, Vec::new()).await.unwrap());
    }
    let arrives = Arc::new(arrival("c2", "bob"));
    let error = slow.commit(&acme(), arrives.clone()).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable(_)), "{error:?}");
    assert_eq!(users(&other, "everyone").await, [""; 0], "nothing of it was applied");
    assert!(matches!(slow.commit(&acme(), arrives).await, Ok(Outcome::Committed(_))), "as another it may");
    assert_eq!(users(&other, "flat:a1").await, ["bob"]);
    assert_eq!(slow.registered(&acme()).await.unwrap(), ["c2".into()]);
}

async fn take_seat(engine: &RedisEngine, subject: &str, connection: &str, limits: [u32; 2]) -> Result<(), Whose> {
    let seat = Seat { subject: subject.into(), connection: connection.into() };
    let limits = SeatLimits { per_user: limits[0], per_tenant: limits[1] };
    match engine.take_seat(&acme(), &seat, limits, None).await.unwrap() {
        Seating::Taken { .. } => Ok(()),
        Seating::Full(whose) => Err(whose),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seats_of_a_dead_node_do_not_count_once_it_is_counted_as_gone() {
    let server = RedisServer::start();
    let node_of = async |name| node(&server, name, lively()).await;
    let (one, dead, two) = (node_of("one").await, node_of("dead").await, node_of("two").await);
    for (engine, connection) in [(&one, "c1"), (&dead, "c2"), (&dead, "c3"), (&two, "c4")] {
        assert_eq!(take_seat(engine, "bob", connection, [4, 4]).await, Ok(()));
    }
    eventually("all see each other", || async { one.nodes().len() == 3 }).await;
    dead.close().await;
    assert_eq!(take_seat(&one, "bob", "c5", [4, 9]).await, Err(Whose::User), "its lease is not over");
    eventually("bob has room again", || async {
        assert_eq!(one.orphans(9).await.unwrap(), []);
        take_seat(&one, "bob", "c5", [4, 9]).await == Ok(())
    })
    .await;
    assert_eq!(take_seat(&two, "bob", "c6", [4, 9]).await, Ok(()));
    assert_eq!(take_seat(&two, "bob", "c7", [4, 9]).await, Err(Whose::User));
    // Those of the dead count against the tenant no more, either.
    assert_eq!(take_seat(&two, "eve", "e1", [4, 5]).await, Ok(()));
    assert_eq!(take_seat(&two, "eve", "e2", [4, 5]).await, Err(Whose::Tenant));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seats_of_a_node_that_has_said_nothing_for_long_do_not_count() {
    let server = RedisServer::start();
    let (one, silent) = (node(&server, "one", lively()).await, node(&server, "silent", lively()).await);
    assert_eq!(take_seat(&silent, "bob", "c1", [1, 9]).await, Ok(()));
    assert_eq!(take_seat(&one, "bob", "c2", [1, 9]).await, Err(Whose::User));
    let strings = |words: &[&str]| redis::from_redis_value::<Vec<String>>(server.command(words)).unwrap();
    let told = &strings(&["KEYS", "*:acme:ut"])[0];
    let incarnation = &strings(&["ZRANGE", told, "0", "-1"])[0];
    server.command(&["ZADD", told, "1", incarnation]);
    assert_eq!(take_seat(&one, "bob", "c2", [1, 9]).await, Ok(()));
    // It speaks again.
    let seat = Seat { subject: "bob".into(), connection: "c1".into() };
    silent.keep_seats(&acme(), &[seat], &[]).await.unwrap();
    assert_eq!(take_seat(&one, "bob", "c3", [2, 9]).await, Err(Whose::User));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_counted_as_gone_takes_seats_as_another() {
    let server = RedisServer::start();
    let slow = node(&server, "slow", sluggish()).await;
    apply(&slow, &acme(), arrival("c1", "ann")).await;
    assert_eq!(take_seat(&slow, "ann", "c1", [1, 9]).await, Ok(()));
    let other = node(&server, "other", lively()).await;
    orphans(&other).await;
    assert_eq!(take_seat(&slow, "ann", "c2", [1, 9]).await, Ok(()), "what it had counts no more");
    assert_eq!(take_seat(&other, "ann", "c3", [1, 9]).await, Err(Whose::User), "what it has does");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_has_forgotten_everything_takes_connections_of_nodes_with_a_lease_only() {
    let server = RedisServer::start();
    let dies = node(&server, "dies", sluggish()).await;
    eventually("it has said so once", || async { server.command(&["ZCARD", "ps:{n}:nodes"]) == redis::Value::Int(1) })
        .await;
    let other = node(&server, "other", lively()).await;
    for register in [false, true] {
        server.command(&["FLUSHALL"]);
        if register {
            let follower = dies.follow(&acme()).await.unwrap();
            let rooms = vec![room("user:ann"), room("everyone"), room("flat:a1")];
            let (connection, subject, namespace, session) = ("c1".into(), "ann".into(), "/".into(), "s".into());
            let there = [Registration { connection, subject, namespace, session, rooms }];
            assert!(dies.register(&acme(), follower.position, &there, &[]).await.unwrap());
        } else {
            apply(&dies, &acme(), arrival("c1", "ann")).await;
        }
        assert_eq!(users(&other, "flat:a1").await, ["ann"]);
        // From here on it is silent.
        for orphan in orphans(&other).await {
            assert!(other.reap(&orphan, Vec::new()).await.unwrap());
        }
        assert_eq!(users(&other, "flat:a1").await, [""; 0], "with `register` {register}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_came_back_elsewhere_is_not_taken_out_and_nobody_is_told_that_it_left() {
    let server = RedisServer::start();
    let slow = node(&server, "slow", sluggish()).await;
    apply(&slow, &acme(), arrival("c1", "ann")).await;
    let other = node(&server, "other", lively()).await;
    let orphan = orphans(&other).await.remove(0);
    apply(&other, &acme(), gone("c1")).await;
    let timer =
        (TimerKey { plugin: "visits".into(), name: "left".into() }, TimerChange::Set { after_ms: 0, data: "1".into() });
    assert!(!other.reap(&orphan, vec![timer]).await.unwrap());
    assert_eq!(other.claim_timers(10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_the_nodes_of_now_hears_of_one_that_has_only_just_come() {
    let server = RedisServer::start();
    let beats_seldom = Options { beat: Duration::from_secs(3_600), ..Options::default() };
    let one = node(&server, "one", beats_seldom.clone()).await;
    eventually("the first beats", || async { one.nodes_now().await.is_ok_and(|all| all[0].server == "one") }).await;
    let two = node(&server, "two", beats_seldom).await;
    let names = |all: Vec<NodeStat>| all.into_iter().map(|node| node.server).collect::<Vec<_>>();
    eventually("the second beats", || async { names(two.nodes_now().await.unwrap()) == ["two", "one"] }).await;
    assert_eq!(names(one.nodes()), ["one"]);
    assert_eq!(names(one.nodes_now().await.unwrap()), ["one", "two"]);
    assert_eq!(names(one.nodes()), ["one", "two"], "what was heard is not forgotten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_counted_as_gone_because_redis_was_away() {
    let server = RedisServer::start();
    let nodes = [node(&server, "one", lively()).await, node(&server, "two", lively()).await];
    apply(&nodes[0], &acme(), arrival("c1", "ann")).await;
    eventually("both see each other", || async { nodes.iter().all(|node| node.nodes().len() == 2) }).await;
    server.signal("STOP");
    // Longer than a lease, and than a command is waited for.
    sleep(Duration::from_secs(3)).await;
    server.signal("CONT");
    eventually("Redis is back", || async { nodes[0].ping().await.is_ok() && nodes[1].ping().await.is_ok() }).await;
    sleep(LEASE * 3).await;
    for node in &nodes {
        assert_eq!(node.orphans(9).await.unwrap(), []);
        assert_eq!(node.nodes().len(), 2);
    }
    assert_eq!(users(&nodes[1], "everyone").await, ["ann"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_retires_is_not_counted_and_its_connections_keep_their_places_for_a_while() {
    let server = RedisServer::start();
    let nodes = [node(&server, "one", lively()).await, node(&server, "two", lively()).await];
    apply(&nodes[0], &acme(), arrival("c1", "ann")).await;
    eventually("both see each other", || async { nodes[1].nodes().len() == 2 }).await;
    let since = Instant::now();
    nodes[0].retire(&[(acme(), 700)]).await.unwrap();
    eventually("it is not counted", || async { nodes[1].nodes().len() == 1 }).await;
    assert!(since.elapsed() < Duration::from_millis(700));
    assert_eq!(users(&nodes[1], "flat:a1").await, ["ann"]);
    assert_eq!(orphans(&nodes[1]).await.len(), 1);
    assert!(since.elapsed() >= Duration::from_millis(700), "too early: {:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_a_node_that_retired_keep_their_places_for_as_long_as_their_tenant_says() {
    let server = RedisServer::start();
    let nodes = [node(&server, "one", lively()).await, node(&server, "two", lively()).await];
    let globex = TenantId::parse("globex").unwrap();
    apply(&nodes[0], &acme(), arrival("c1", "ann")).await;
    apply(&nodes[0], &globex, arrival("c2", "eve")).await;
    let since = Instant::now();
    nodes[0].retire(&[(acme(), 2_000), (globex.clone(), 100)]).await.unwrap();
    let first = orphans(&nodes[1]).await;
    assert!(since.elapsed() < Duration::from_millis(2_000), "globex waits for acme: {:?}", since.elapsed());
    assert_eq!(first.iter().map(|orphan| (&orphan.tenant, orphan.retired)).collect::<Vec<_>>(), [(&globex, true)]);
    assert!(nodes[1].reap(&first[0], Vec::new()).await.unwrap());
    let second = orphans(&nodes[1]).await;
    assert!(since.elapsed() >= Duration::from_millis(2_000), "too early: {:?}", since.elapsed());
    assert_eq!(second.iter().map(|orphan| &orphan.tenant).collect::<Vec<_>>(), [&acme()]);
    assert!(nodes[1].reap(&second[0], Vec::new()).await.unwrap());
    eventually("nothing is left", || async {
        nodes[1].orphans(9).await.unwrap().is_empty()
            && server.command(&["EXISTS", "ps:{n}:kept"]) == redis::Value::Int(0)
    })
    .await;
}

fn text(value: redis::Value) -> String {
    redis::from_redis_value(value).unwrap()
}

fn set(server: &RedisServer, key: &str) -> Vec<String> {
    assert!(matches!(&*text(server.command(&["TYPE", key])), "set" | "none"));
    let mut members: Vec<String> = redis::from_redis_value(server.command(&["SMEMBERS", key])).unwrap();
    members.sort();
    members
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_keys_say_who_is_online_and_where() {
    let server = RedisServer::start();
    let options = Options { default_tenant: Some(acme()), ..lively() };
    let engine = node(&server, "one", options.clone()).await;
    let globex = TenantId::parse("globex").unwrap();
    server.command(&["SET", "globex:presence:online", "another program's"]);
    apply(&engine, &globex, arrival("x1", "eve")).await;
    for (id, subject) in [("c1", "ann"), ("c2", "bob"), ("c3", "bob")] {
        apply(&engine, &acme(), arrival(id, subject)).await;
    }
    assert_eq!(set(&server, "presence:online"), ["ann", "bob"]);
    assert_eq!(set(&server, "room:flat:a1:users"), ["ann", "bob"]);
    assert_eq!(set(&server, "globex:room:flat:a1:users"), ["eve"]);
    assert_eq!(text(server.command(&["TYPE", "user:bob:socket"])), "string");
    assert_eq!(text(server.command(&["GET", "user:bob:socket"])), "c3");
    assert_eq!(text(server.command(&["GET", "globex:presence:online"])), "another program's");

    apply(&engine, &acme(), gone("c3")).await;
    assert_eq!(text(server.command(&["GET", "user:bob:socket"])), "c2", "another one of his");
    assert_eq!(set(&server, "presence:online"), ["ann", "bob"]);
    apply(&engine, &acme(), gone("c2")).await;
    assert_eq!(set(&server, "presence:online"), ["ann"]);
    assert_eq!(set(&server, "room:flat:a1:users"), ["ann"]);
    assert_eq!(server.command(&["EXISTS", "user:bob:socket"]), redis::Value::Int(0));

    // A dead node's go from there too.
    let other = node(&server, "two", options).await;
    engine.close().await;
    let orphan = orphans(&other).await.into_iter().find(|orphan| orphan.tenant == acme()).unwrap();
    assert!(other.reap(&orphan, Vec::new()).await.unwrap());
    assert_eq!(set(&server, "presence:online"), [""; 0]);
    assert_eq!(server.command(&["EXISTS", "user:ann:socket"]), redis::Value::Int(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_setting_no_documented_key_is_written() {
    let server = RedisServer::start();
    let engine = node(&server, "one", Options { presence_view: false, ..lively() }).await;
    apply(&engine, &acme(), arrival("c1", "ann")).await;
    let keys: Vec<String> = redis::from_redis_value(server.command(&["KEYS", "*"])).unwrap();
    assert!(keys.iter().all(|key| key.starts_with("ps:")), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_looks_after_timers_of_its_own_and_sweeps_the_others_now_and_then() {
    let server = RedisServer::start();
    let options = Options { timer_sweep_every: Duration::from_millis(1_500), ..lively() };
    let nodes = [node(&server, "one", options.clone()).await, node(&server, "two", options).await];
    eventually("both see each other", || async { nodes.iter().all(|node| node.nodes().len() == 2) }).await;
    for node in &nodes {
        assert_eq!(node.claim_timers(1).await.unwrap(), [], "the first look is a sweep");
    }
    let swept = Instant::now();
    for n in 0..40 {
        let timer = TimerKey { plugin: "visits".into(), name: "t".into() };
        let timers = vec![(timer, TimerChange::Set { after_ms: 0, data: "1".into() })];
        let tenant = TenantId::parse(&format!("tenant-{n}")).unwrap();
        apply(&nodes[0], &tenant, Commit { timers, ..Commit::new(CommitId::random()) }).await;
    }
    let own = nodes[0].claim_timers(100).await.unwrap().len();
    assert!(swept.elapsed() < Duration::from_millis(1_500), "this machine is too slow for the test");
    assert!((5..=35).contains(&own), "{own} of 40");
    let (sweeper, mut all) = (nodes[0].clone(), own);
    let deadline = Instant::now() + PATIENCE;
    while all < 40 {
        assert!(Instant::now() < deadline, "{all} of 40");
        all += sweeper.claim_timers(100).await.unwrap().len();
        sleep(Duration::from_millis(20)).await;
    }
    assert!(swept.elapsed() >= Duration::from_millis(1_500), "those of the other node come with a sweep");
}
