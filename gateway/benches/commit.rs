//! What a commit costs in each engine: a relayed publication, and what a handler does with two reads,
//! two writes, a timer and two publications. One at a time and many at once, each with one
//! follower. `cargo bench --bench commit`.

#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/times.rs"]
mod times;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use postern::commit::{Commit, CommitId, Effect, Publication, StateKey, TimerChange, TimerKey, Write};
use postern::engine::embedded::{Durability, EmbeddedEngine, Options};
use postern::engine::{Engine, Outcome, redis};
use postern::event::Payload;
use postern::room::Room;
use postern::tenant::TenantId;
use redis_server::RedisServer;
use serde_json::json;
use times::Times;

/// Commits in flight when many are.
const CONCURRENT: usize = 64;
/// How long one measurement takes.
const MEASURED: Duration = Duration::from_secs(2);
/// Measurements of the same; the fastest counts.
const REPEATED: usize = 3;
/// When the timers would fire, in milliseconds: not while this runs.
const TIMER_MS: u64 = 600_000;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Relayed,
    Handler,
}

/// One engine under measurement.
struct Subject {
    name: String,
    engine: Arc<dyn Engine>,
    redis: Option<RedisServer>,
}

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the data");
    for durability in [Durability::Immediate, Durability::Relaxed] {
        let path = dir.path().join(format!("{durability:?}.redb"));
        let options = Options { durability, ..Options::default() };
        let engine = EmbeddedEngine::open(&path, options).expect("an engine");
        measure(Subject { name: format!("embedded, {durability:?}"), engine, redis: None }).await;
    }
    let server = RedisServer::start();
    let engine = redis::connect(&server.url(), redis::Options::default()).await.expect("an engine");
    measure(Subject { name: "redis".into(), engine, redis: Some(server) }).await;
}

async fn measure(subject: Subject) {
    let tenant = TenantId::parse("bench").expect("a name");
    let mut follower = subject.engine.follow(&tenant).await.expect("a feed");
    let following = tokio_util::task::AbortOnDropHandle::new({
        #[expect(clippy::disallowed_methods, reason = "ends with this function")]
        tokio::spawn(async move { while follower.feed.recv().await.is_some() {} })
    });
    for kind in [Kind::Relayed, Kind::Handler] {
        for at_once in [1, CONCURRENT] {
            let mut runs = Vec::new();
            for _ in 0..REPEATED {
                runs.push(run(&subject, &tenant, kind, at_once).await);
            }
            runs.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
            let best = &runs[0];
            println!(
                "{}, {kind:?}, {at_once} at a time: {:.0} a second, {}{}",
                subject.name, best.per_second, best.times, best.redis
            );
        }
    }
    drop(following);
}

struct Run {
    per_second: f64,
    times: Times,
    /// What Redis says, as a part of the line.
    redis: String,
}

/// Commits for [`MEASURED`]. The times are of the commits alone, without the reads before them.
async fn run(subject: &Subject, tenant: &TenantId, kind: Kind, at_once: usize) -> Run {
    let before = subject.redis.as_ref().map(RedisServer::used);
    let begun = Instant::now();
    let ends = begun + MEASURED;
    let lanes = futures_util::stream::iter(0..at_once).map(|lane| lane_of_commits(subject, tenant, kind, lane, ends));
    let times: Vec<Vec<Duration>> = lanes.buffer_unordered(at_once).collect().await;
    let elapsed = begun.elapsed();
    let times = times.concat();
    let count = times.len() as f64;
    let redis = before.map_or(String::new(), |before| {
        let after = subject.redis.as_ref().expect("there before").used();
        let cpu = (after.cpu_us - before.cpu_us) / count;
        let script = after.command_us(&before, "evalsha") / count;
        format!("; Redis CPU {cpu:.1} µs a commit, with its reads and its follower; the script {script:.1} µs")
    });
    Run { per_second: count / elapsed.as_secs_f64(), times: Times::new(times), redis }
}

/// One commit after the other; lanes do not touch each other's keys.
async fn lane_of_commits(
    subject: &Subject,
    tenant: &TenantId,
    kind: Kind,
    lane: usize,
    ends: Instant,
) -> Vec<Duration> {
    let mut times = Vec::new();
    while Instant::now() < ends {
        let commit = Arc::new(match kind {
            Kind::Relayed => Commit::publish(publication("flat:a1")),
            Kind::Handler => handled(subject, tenant, lane).await,
        });
        let begun = Instant::now();
        let outcome = subject.engine.commit(tenant, commit).await.expect("a commit");
        times.push(begun.elapsed());
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }
    times
}

/// What a handler does that reads and writes a request and a counter.
async fn handled(subject: &Subject, tenant: &TenantId, lane: usize) -> Commit {
    let keys = [StateKey::of("bench", &format!("request/{lane}")), StateKey::of("bench", &format!("flat/{lane}"))];
    let read = subject.engine.read(tenant, &keys).await.expect("values");
    let reads = keys.iter().cloned().zip(read).map(|(key, value)| (key, value.map(|value| value.version))).collect();
    let value = json!({ "state": "pending", "visitor": "Asha", "flat": "a1", "since": 1_790_000_000_000_u64 });
    let put = Write::Put { value: value.to_string().into(), ttl_ms: Some(TIMER_MS) };
    let timer = TimerKey { plugin: "bench".into(), name: format!("expire/{lane}").into() };
    Commit {
        reads,
        writes: keys.into_iter().map(|key| (key, put.clone())).collect(),
        timers: vec![(timer, TimerChange::Set { after_ms: TIMER_MS, data: "{\"request\":\"r1\"}".into() })],
        effects: ["flat:a1", "user:guard-7"].map(|room| Effect::Publish(publication(room))).into(),
        ..Commit::new(CommitId::random())
    }
}

fn publication(room: &str) -> Publication {
    Publication {
        room: Room::parse(room).expect("a room"),
        event: "visitor_request".into(),
        data: Payload::one(&json!({ "flat_id": "a1", "visitor_name": "Asha", "purpose": "delivery", "count": 2 })),
        except: None,
    }
}
