//! Thousands of clients of both protocols in shared rooms on two nodes, and broadcasts all the time.

pub(crate) mod check;
mod http;
mod member;
#[path = "../support/memory.rs"]
mod memory;
#[path = "../support/node.rs"]
mod node;
mod plan;
mod presence;
#[path = "../support/process.rs"]
mod process;
mod publishing;
#[path = "../support/redis_server.rs"]
mod redis_server;
mod report;
#[path = "../support/times.rs"]
mod times;
mod wire;
mod world;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use member::{Leaving, Member};
use memory::resident_bytes;
use node::{Node, tenant};
pub(crate) use plan::Plan;
use process::Cpu;
use redis_server::RedisServer;
pub(crate) use report::Report;
use tokio::task::LocalSet;
use world::{BACKEND_TOKEN, TENANT, World};

/// Nodes on one Redis.
const NODES: usize = 2;
/// Clients that connect at the same time at most.
const CONNECTING: usize = 64;
/// How long the last deliveries may take.
const SETTLE_MAX: Duration = Duration::from_secs(20);
/// What comes twice comes within this time.
const LATER: Duration = Duration::from_millis(500);
/// Clients that leave or come back, a second.
const CHURN_PER_SECOND: u32 = 250;

/// One run, with processes of its own.
pub(crate) fn run(plan: Plan) -> Result<Report, String> {
    plan.open_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let redis = RedisServer::start();
    let more = format!(
        "backend_token = \"{BACKEND_TOKEN}\"\npresence_events = [\"desk\"]\npresence_grace_ms = {}\n\
         socketio_recovery = true\nlimits.api_requests_per_minute = \"unlimited\"\n",
        plan.grace_ms
    );
    let tenants = [tenant(TENANT, "bench", &more)];
    let settings = format!("max_connections = {}\nnode_lease_ms = {}\n", plan.connections + 100, plan.lease_ms);
    let nodes: Vec<Node> = (0..NODES).map(|_| Node::start(&tenants, &settings, Some(&redis.url()))).collect();
    let world = Rc::new(World::new(plan, nodes));
    Ok(LocalSet::new().block_on(&runtime, load(&world, &redis)))
}

/// Computing time so far.
struct Used {
    nodes: Vec<Cpu>,
    redis: redis_server::Used,
    /// Of whoever makes the load: this process.
    load: Cpu,
    at: Instant,
}

impl Used {
    fn of(world: &World, redis: &RedisServer) -> Used {
        Used {
            nodes: world.nodes.iter().map(|node| Cpu::of(node.process())).collect(),
            redis: redis.used(),
            load: Cpu::of(std::process::id()),
            at: Instant::now(),
        }
    }
}

async fn load(world: &Rc<World>, redis: &RedisServer) -> Report {
    let members: Rc<Vec<Rc<Member>>> =
        Rc::new((0..world.plan.connections).map(|n| Rc::new(Member::new(world, n))).collect());
    let resident = || world.nodes.iter().map(|node| resident_bytes(node.process()).0).collect::<Vec<_>>();
    let mut report = Report::new(world.plan.clone());
    report.resident_empty = resident();
    let begun = Instant::now();
    report.connects = connect(world, &members).await;
    report.connected_in = begun.elapsed();
    report.presence.push(("all are there", presence::right(world, &members, "when all are there").await));
    report.resident_full = resident();

    let (stop, before) = (Rc::new(Cell::new(false)), Used::of(world, redis));
    let publishing = [
        tokio::task::spawn_local(publishing::to_rooms(world.clone(), members.clone(), stop.clone())),
        tokio::task::spawn_local(publishing::to_all(world.clone(), members.clone(), stop.clone())),
    ];
    let during = world.plan.during;
    tokio::time::sleep(during / 3).await;
    churn(world, &members, &mut report).await;
    tokio::time::sleep(during.saturating_sub(before.at.elapsed())).await;
    stop.set(true);
    report.broadcast_for = before.at.elapsed();
    for task in publishing {
        task.await.expect("publishing does not panic");
    }
    let settling = Instant::now();
    while (world.under_way.get() > 0 || !world.settled(&members)) && settling.elapsed() < SETTLE_MAX {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(LATER).await;
    report.used(&before, &Used::of(world, redis));
    report.presence.push(("all are back", presence::right(world, &members, "after it").await));
    report.resident_after = resident();
    report.wrong = world.check(&members);
    report.publications = world.published() as usize;
    report.latencies = world.latencies.take();
    report.caught_up = world.caught_up.get();

    for member in members.iter() {
        member.leave(Leaving::Goodbye).await;
    }
    report.presence.push(("nobody is there", presence::right(world, &members, "when all have gone").await));
    report.faults = world.faults();
    report
}

/// Lets everybody in, one after the other; how long each took.
async fn connect(world: &Rc<World>, members: &[Rc<Member>]) -> Vec<Duration> {
    let every = Duration::from_secs(1) / world.plan.connects_per_second;
    let begun = tokio::time::Instant::now();
    let coming = futures_util::stream::iter((0_u32..).zip(members)).map(|(n, member)| async move {
        tokio::time::sleep_until(begun + every * n).await;
        member.connect(world, n as usize % NODES).await
    });
    let came: Vec<_> = coming.buffer_unordered(CONNECTING).collect().await;
    let mut times = Vec::with_capacity(came.len());
    for came in came {
        came.map_or_else(|error| world.fault(error), |time| times.push(time));
    }
    times
}

/// Some leave, half of them without a goodbye, and come back on another node.
async fn churn(world: &Rc<World>, members: &[Rc<Member>], report: &mut Report) {
    let leaving: Vec<(usize, &Rc<Member>)> =
        members.iter().enumerate().filter(|(n, _)| world.plan.churns(*n)).collect();
    let every = Duration::from_secs(1) / CHURN_PER_SECOND;
    let how = |place: usize| if place.is_multiple_of(2) { Leaving::Goodbye } else { Leaving::Break };
    world.churn.set(true);
    for (place, (_, member)) in leaving.iter().enumerate() {
        member.leave(how(place)).await;
        tokio::time::sleep(every).await;
    }
    let when = format!("while {} are away", leaving.len());
    report.presence.push(("some have left", presence::right(world, members, &when).await));
    for (place, (n, member)) in leaving.iter().enumerate() {
        let node = (n + 1) % NODES;
        let back = match how(place) {
            Leaving::Goodbye => member.connect(world, node).await.map(drop),
            Leaving::Break => member.come_back(world, node).await,
        };
        if let Err(error) = back {
            world.fault(error);
        }
        tokio::time::sleep(every).await;
    }
    report.presence.push(("they are back", presence::right(world, members, "when they are back").await));
    report.churned = leaving.len();
    world.churn.set(false);
}
