//! A node with a thousand tenants of three plugins each and 300 components: how long it takes to start, cold and with
//! what it compiled before, what it needs of memory, and what a round trip takes beside a node with one tenant.
//! `cargo bench --bench tenants [TENANTS]`.

#[path = "support/memory.rs"]
mod memory;
#[path = "support/node.rs"]
mod node;
#[path = "support/socket.rs"]
mod socket;
#[path = "support/times.rs"]
mod times;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memory::resident_bytes;
use node::{Node, components, tenant, token};
use socket::Client;
use times::Times;
use tokio::task::LocalSet;

/// Tenants, unless the command line says otherwise.
const TENANTS: usize = 1_000;
/// Components with a digest of their own, of each of the three kinds.
const COMPONENTS_EACH: usize = 100;
/// Clients that ask, each of another tenant where there are enough.
const CLIENTS: usize = 200;
/// Questions a second, of all clients together.
const RATE: u32 = 500;
/// How long is measured.
const MEASURED: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let count = std::env::args().nth(1).and_then(|number| number.parse().ok()).unwrap_or(TENANTS);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the components");
    let kinds = ["room-authorization", "bench", "visitor-approvals"].map(|kind| stamped(kind, dir.path()));
    let tenants: Vec<_> = (0..count).map(|number| of_three(number, &kinds)).collect();

    let one = Node::start(&tenants[..1], "", None);
    let (alone, _) = LocalSet::new().run_until(measure(&one, 1)).await;
    let (all, own) = resident_bytes(one.process());
    println!(
        "1 tenant: accepts after {:.2} s, {} MB in memory ({} its own), {alone}",
        one.started_in.as_secs_f64(),
        all >> 20,
        own >> 20
    );
    drop(one);

    let cold = Node::start(&tenants, "", None);
    println!(
        "{count} tenants, {} components, nothing compiled yet: accepts after {:.1} s",
        kinds.len() * COMPONENTS_EACH,
        cold.started_in.as_secs_f64()
    );
    let warm = cold.restart();
    let (all, own) = resident_bytes(warm.process());
    println!(
        "… once more, with what was compiled: accepts after {:.1} s, {} MB in memory ({} its own)",
        warm.started_in.as_secs_f64(),
        all >> 20,
        own >> 20
    );
    let (beside, failed) = LocalSet::new().run_until(measure(&warm, count)).await;
    let (all, own) = resident_bytes(warm.process());
    println!(
        "… {CLIENTS} clients of {} tenants, {RATE} questions a second: {beside}, {failed} failed; then {} MB in memory ({} its own)",
        CLIENTS.min(count),
        all >> 20,
        own >> 20
    );
    println!("p99 is {:.2} × that of one tenant", beside.percentile_ms(99) / alone.percentile_ms(99));
}

/// Copies of a component that differ in a custom section, and so in their digest.
fn stamped(kind: &str, dir: &Path) -> Vec<PathBuf> {
    let original = std::fs::read(components().join(format!("{kind}.wasm"))).expect("the component is built");
    let copy = |number: usize| {
        let stamp = format!("{number:04}");
        let mut bytes = original.clone();
        // A custom section: id 0, size, the name's length, the name, the rest.
        bytes.extend([0, 10, 5]);
        bytes.extend(b"stamp");
        bytes.extend(stamp.as_bytes());
        let path = dir.join(format!("{kind}-{stamp}.wasm"));
        std::fs::write(&path, bytes).expect("a component is written");
        path
    };
    (0..COMPONENTS_EACH).map(copy).collect()
}

/// A tenant with an authorizer and two handlers, of which one answers `echo`.
fn of_three(number: usize, kinds: &[Vec<PathBuf>; 3]) -> (String, String) {
    let name = format!("t{number}");
    let (_, file) = tenant(&name, "bench", "limits.connections_per_user = 1000");
    let (head, _) = file.split_once("[[plugins]]").expect("plugins come last");
    let mut file = head.to_owned();
    let [rooms, bench, visits] = kinds.each_ref().map(|copies| &copies[number % COMPONENTS_EACH]);
    for (plugin, role, path, events) in [
        ("access", "authorizer", rooms, ""),
        ("echo", "handler", bench, "events = [\"echo\"]\n"),
        ("visits", "handler", visits, "events = [\"visitor_*\"]\n"),
    ] {
        file += &format!("[[plugins]]\nname = \"{plugin}\"\nrole = \"{role}\"\ncomponent = {path:?}\n{events}");
    }
    (name, file)
}

/// Round trips at a steady rate; how long they took, and how many failed.
async fn measure(node: &Node, tenants: usize) -> (Times, usize) {
    let mut clients = Vec::with_capacity(CLIENTS);
    for number in 0..CLIENTS {
        let name = format!("t{}", number * tenants.max(1) / CLIENTS % tenants);
        clients.push(Client::connect(node.address, &name, &token(&name, &format!("user{number}"))).await);
    }
    let (begun, mut times, mut failed) = (Instant::now(), Vec::new(), 0);
    for number in 0.. {
        let due = begun + number * Duration::from_secs(1) / RATE;
        if due >= begun + MEASURED {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let client = &mut clients[number as usize % CLIENTS];
        let answer = client.ask("echo", r#"{"flat_id":"a1","visitor_name":"Asha","purpose":"delivery"}"#).await;
        // From when it was due: a late answer delays those behind it, and that counts.
        times.push(due.elapsed());
        failed += usize::from(!answer.contains("\"data\":{\"flat_id\""));
    }
    (Times::new(times), failed)
}
