//! What several nodes on one Redis cost and how long they take: Redis' computing time for a commit and for each node
//! that follows, an event's way to another node, following again after a cut, presence after a node was
//! killed, and thousands of clients that come back at once.
//! `cargo bench --bench cluster`; with `-- catch_up` only that: cpu, latency, follow, ghosts or
//! catch_up, for which a number says how many clients.

#[path = "cluster/catch_up.rs"]
mod catch_up;
#[path = "cluster/cpu.rs"]
mod cpu;
#[path = "cluster/follow.rs"]
mod follow;
#[path = "cluster/ghosts.rs"]
mod ghosts;
#[path = "cluster/latency.rs"]
mod latency;
#[path = "support/node.rs"]
mod node;
#[path = "support/process.rs"]
mod process;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/socket.rs"]
mod socket;
#[path = "support/times.rs"]
mod times;

use socket::Client;
use tokio::task::LocalSet;

/// Clients that connect at the same time, at the start.
const CONNECTING: usize = 32;
/// No heartbeats while this runs, and room for all.
const SETTINGS: &str = "ping_interval_ms = 600000\nmax_connections = 30000\n";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let number = arguments.iter().find_map(|argument| argument.parse().ok());
    let wanted = |name: &str| {
        arguments.iter().all(|name| name.parse::<usize>().is_ok()) || arguments.iter().any(|argument| argument == name)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if wanted("cpu") {
        LocalSet::new().block_on(&runtime, cpu::measure());
    }
    if wanted("latency") {
        LocalSet::new().block_on(&runtime, latency::measure());
    }
    if wanted("follow") {
        LocalSet::new().block_on(&runtime, follow::measure());
    }
    if wanted("ghosts") {
        LocalSet::new().block_on(&runtime, ghosts::measure());
    }
    if wanted("catch_up") {
        LocalSet::new().block_on(&runtime, catch_up::measure(number));
    }
}

/// Puts a client into a room of its tenant.
async fn join(client: &mut Client, room: &str) {
    let answer = client.ask("join_room", &format!("{{\"room\":\"{room}\"}}")).await;
    assert!(answer.contains("room_name"), "{answer}");
}
