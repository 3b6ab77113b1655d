//! Redis' computing time for a commit, and for each node that it is delivered to. The nodes are engines of this
//! process: Redis sees of each the two connections that a gateway has.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use postern::commit::{Commit, Publication};
use postern::engine::redis::{Options, RedisEngine, connect};
use postern::engine::{Engine, Feed, Outcome};
use postern::event::Payload;
use postern::room::Room;
use postern::tenant::TenantId;
use serde_json::json;
use tokio::task::AbortHandle;

use crate::redis_server::RedisServer;
use crate::times::Times;

/// Nodes that follow, at most.
const NODES_MAX: usize = 3;
/// Commits in flight at most; at a steady pace, one after the other in each lane.
const LANES: usize = 64;
/// Commits a second at a steady pace.
const STEADY_PER_SECOND: u32 = 2_000;
/// How long one measurement takes.
const MEASURED: Duration = Duration::from_secs(3);
/// Measurements of the same; the one with the least computing time counts.
const REPEATED: usize = 3;

struct Figures {
    /// Of the whole server for one commit, in microseconds.
    cpu_us: f64,
    /// Of the commit's script alone.
    script_us: f64,
    per_second: f64,
    times: Times,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { cpu_us, script_us, per_second, times } = self;
        write!(f, "{cpu_us:.1} µs of Redis a commit (the script {script_us:.1}), {per_second:.0} a second, {times}")
    }
}

pub(crate) async fn measure() {
    for pace in [Some(STEADY_PER_SECOND), None] {
        let named = pace.map_or("as fast as it goes".into(), |rate| format!("{rate} a second"));
        let mut cpu = Vec::new();
        for nodes in 1..=NODES_MAX {
            let figures = best(nodes, pace).await;
            println!("redis, a relayed publication, {nodes} following, {named}: {figures}");
            cpu.push(figures.cpu_us);
        }
        let delivery = (cpu[NODES_MAX - 1] - cpu[0]) / (NODES_MAX - 1) as f64;
        println!("  a delivery to one node more: {delivery:.1} µs of Redis");
    }
}

async fn best(nodes: usize, pace: Option<u32>) -> Figures {
    let server = RedisServer::start();
    let tenant = TenantId::parse("bench").expect("a name");
    let mut engines = Vec::new();
    let mut followers = Vec::new();
    for _ in 0..nodes {
        let engine = connect(&server.url(), Options::default()).await.expect("an engine");
        followers.push(follow(&engine, &tenant).await);
        engines.push(engine);
    }
    let mut runs = Vec::new();
    for _ in 0..REPEATED {
        runs.push(run(&server, &engines[0], &tenant, pace, &followers).await);
    }
    followers.iter().for_each(|(task, _)| task.abort());
    runs.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
    runs.swap_remove(0)
}

/// Takes what a node is handed, and counts it.
async fn follow(engine: &Arc<RedisEngine>, tenant: &TenantId) -> (AbortHandle, Rc<Cell<usize>>) {
    let mut follower = engine.follow(tenant).await.expect("a feed");
    let seen = Rc::new(Cell::new(0));
    let counter = seen.clone();
    let task = tokio::task::spawn_local(async move {
        while let Some(Feed::Entry(_)) = follower.feed.recv().await {
            counter.set(counter.get() + 1);
        }
    });
    (task.abort_handle(), seen)
}

async fn run(
    server: &RedisServer,
    engine: &Arc<RedisEngine>,
    tenant: &TenantId,
    pace: Option<u32>,
    followers: &[(AbortHandle, Rc<Cell<usize>>)],
) -> Figures {
    let (before, seen): (_, Vec<_>) = (server.used(), followers.iter().map(|(_, seen)| seen.get()).collect());
    let begun = Instant::now();
    let lanes = futures_util::stream::iter(0..LANES).map(|lane| lane_of_commits(engine, tenant, pace, lane, begun));
    let times: Vec<Vec<Duration>> = lanes.buffer_unordered(LANES).collect().await;
    let elapsed = begun.elapsed();
    let times = times.concat();
    let count = times.len();
    for ((_, now), before) in followers.iter().zip(seen) {
        while now.get() < before + count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let after = server.used();
    Figures {
        cpu_us: (after.cpu_us - before.cpu_us) / count as f64,
        script_us: after.command_us(&before, "evalsha") / count as f64,
        per_second: count as f64 / elapsed.as_secs_f64(),
        times: Times::new(times),
    }
}

async fn lane_of_commits(
    engine: &Arc<RedisEngine>,
    tenant: &TenantId,
    pace: Option<u32>,
    lane: usize,
    begun: Instant,
) -> Vec<Duration> {
    let every = pace.map(|rate| Duration::from_secs(LANES as u64) / rate);
    let mut beat = every.map(|every| {
        let first = tokio::time::Instant::from_std(begun) + every * lane as u32 / LANES as u32;
        tokio::time::interval_at(first, every)
    });
    let mut times = Vec::new();
    while begun.elapsed() < MEASURED {
        if let Some(beat) = &mut beat {
            beat.tick().await;
        }
        let asked = Instant::now();
        let outcome = engine.commit(tenant, Arc::new(Commit::publish(publication()))).await.expect("a commit");
        times.push(asked.elapsed());
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }
    times
}

fn publication() -> Publication {
    Publication {
        room: Room::parse("flat:a1").expect("a room"),
        event: "visitor_request".into(),
        data: Payload::one(&json!({ "flat_id": "a1", "visitor_name": "Asha", "purpose": "delivery", "count": 2 })),
        except: None,
    }
}
