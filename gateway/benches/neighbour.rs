//! What one tenant's round trip through a handler takes while another tenant's calls loop without end, fill their memory,
//! flood the host and exhaust their stack. `cargo bench --bench neighbour`; fails where the bound is not kept.

#[path = "support/node.rs"]
mod node;
#[path = "support/process.rs"]
mod process;
#[path = "support/socket.rs"]
mod socket;
#[path = "support/times.rs"]
mod times;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use node::{Node, tenant, token};
use process::Cpu;
use socket::Client;
use times::Times;
use tokio::task::LocalSet;

/// Calls of the bad neighbour in flight, all the time.
const LOOPING: usize = 50;
/// What they do, in turn.
const HARM: [&str; 4] = ["loop", "memory", "flood", "stack"];
/// How long each of them may compute, in milliseconds.
const LOOP_CPU_MS: u32 = 200;
/// How long one measurement takes.
const MEASURED: Duration = Duration::from_secs(5);
/// Between two questions: a client thinks.
const THINKS: Duration = Duration::from_millis(2);
/// How often quiet and loud are measured, in turn.
const REPEATED: usize = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Nothing stops the loops but their own time: else there would be none after a while.
    let unlimited = "call_limits.cpu_ms_per_second = 0\ncall_limits.breaker.failure_percent = 0";
    let harm = format!("limits.connections_per_user = 1000\ncall_limits.cpu_ms = {LOOP_CPU_MS}\n{unlimited}");
    let node = Node::start(&[tenant("good", "bench", ""), tenant("harm", "test-harm", &harm)], "", None);
    LocalSet::new().run_until(compare(&node)).await;
}

async fn compare(node: &Node) {
    let mut good = Client::connect(node.address, "good", &token("good", "eve")).await;
    round_trips(&mut good, MEASURED / 5).await;
    let mut innocent = 0;
    let mut ratios = Vec::new();
    for _ in 0..REPEATED {
        let (quiet, _) = round_trips(&mut good, MEASURED).await;
        let (looping, ended) = neighbours(node).await;
        let before = Cpu::of(node.process());
        let (loud, failed) = round_trips(&mut good, MEASURED).await;
        innocent += failed;
        let cpu = Cpu::of(node.process()).since(before).total().as_secs_f64() / MEASURED.as_secs_f64();
        println!(
            "quiet: {quiet}\nbeside {LOOPING} hostile calls: {loud} ({cpu:.2} cores busy, {} of them ended)",
            ended.get()
        );
        let (quiet, loud) = (quiet.percentile_ms(99), loud.percentile_ms(99));
        ratios.push(loud / (2.0 * quiet).max(quiet + 5.0));
        looping.into_iter().for_each(|looping| looping.abort());
        // The calls in flight end when their callers have gone.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    ratios.sort_by(f64::total_cmp);
    let kept = ratios[REPEATED / 2] <= 1.0;
    let verdict = if kept { "kept" } else { "NOT kept" };
    println!("{innocent} calls of the good neighbour failed");
    println!("p99 at most max(2 × quiet, quiet + 5 ms): {verdict}; of that {:.2} (median)", ratios[REPEATED / 2]);
    assert!(kept && innocent == 0, "the bound is not kept, or calls of the good neighbour failed");
}

/// How long they took, and how many failed.
async fn round_trips(client: &mut Client, during: Duration) -> (Times, usize) {
    let ends = Instant::now() + during;
    let (mut times, mut failed) = (Vec::new(), 0);
    while Instant::now() < ends {
        let begun = Instant::now();
        let answer = client.ask("echo", r#"{"flat_id":"a1","visitor_name":"Asha","purpose":"delivery"}"#).await;
        times.push(begun.elapsed());
        if !answer.contains("\"data\":{\"flat_id\"") {
            println!("failed: {answer}");
            failed += 1;
        }
        tokio::time::sleep(THINKS).await;
    }
    (Times::new(times), failed)
}

/// Clients that order one such call after the other; how many have ended so far.
async fn neighbours(node: &Node) -> (Vec<tokio::task::JoinHandle<()>>, Rc<Cell<usize>>) {
    let ended = Rc::new(Cell::new(0));
    let mut looping = Vec::new();
    for n in 0..LOOPING {
        let mut client = Client::connect(node.address, "harm", &token("harm", &format!("bad{n}"))).await;
        let ended = ended.clone();
        looping.push(tokio::task::spawn_local(async move {
            loop {
                let answer = client.ask(HARM[n % HARM.len()], "{}").await;
                assert!(answer.contains("\"plugin_failed\""), "{answer}");
                ended.set(ended.get() + 1);
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    (looping, ended)
}
