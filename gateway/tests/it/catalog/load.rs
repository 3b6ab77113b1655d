//! Versions are swapped while clients work: every event is answered once, by exactly one version, and none is lost.
//!
//! A small run by itself; `POSTERN_SWAP_CLIENTS`, `POSTERN_SWAP_RATE` (events a second) and `POSTERN_SWAPS` make it as
//! large as one likes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::site::{DEADLINE, Site, component, token};
use crate::support::node::{Node, Settings};
use crate::support::root;

/// A program with many clients that send events at a rate and note who answered.
struct Load {
    child: Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Load {
    fn start(urls: &[String], clients: usize, per_second: usize) -> Load {
        let tokens: Vec<_> = (0..clients).map(|n| token("acme", &format!("user{n}"))).collect();
        let settings = json!({ "urls": urls, "tokens": tokens, "per_second": per_second });
        let mut child = Command::new("node")
            .arg(root().join("gateway/tests/clients/swap.mjs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client program starts (run scripts/setup test)");
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut load = Load { child, answers };
        let ready = load.ask(&settings);
        assert_eq!(ready["connected"], clients, "{ready}");
        load
    }

    fn ask(&mut self, command: &Value) -> Value {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{command}").unwrap();
        let line = self.answers.next().expect("the client program runs").unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Stops sending, waits for the answers, and tells what came of it.
    fn result(&mut self) -> Value {
        self.ask(&json!({ "do": "end" }))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn node(site: &Site) -> Node {
    let redis_url = site.redis.as_ref().map(|redis| redis.url());
    Node::with(Settings { tenants: Vec::new(), config: "node_lease_ms = 3000\n".into(), redis_url })
}

#[test]
fn every_event_is_answered_once_by_exactly_one_version_however_often_they_are_swapped() {
    let clients = number("POSTERN_SWAP_CLIENTS", 60);
    let (rate, swaps) = (number("POSTERN_SWAP_RATE", 200), number("POSTERN_SWAPS", 8));
    let site = Site::without_nodes();
    let nodes = [node(&site), node(&site)];
    site.tenant_of_version_1("acme");
    site.upload("acme", "echo", component(2));
    let urls = nodes.each_ref().map(|node| node.ws("acme"));
    let mut load = Load::start(&urls, clients, rate);
    let begun = Instant::now();
    for n in 0..swaps {
        // Half of them by rolling back.
        if n % 2 == 1 {
            assert_eq!(site.roll_back("acme", "echo"), 1);
        } else {
            site.roll_out("acme", "echo", 2);
        }
        std::thread::sleep(Duration::from_millis(150));
    }
    let took = begun.elapsed();
    let result = load.result();
    println!("{swaps} swaps in {took:?}: {result}");
    let sent = result["sent"].as_u64().unwrap();
    assert!(sent > 0, "{result}");
    for (what, wanted) in [("unanswered", 0), ("twice", 0), ("errors", 0), ("closed", 0), ("answered", sent)] {
        assert_eq!(result[what], wanted, "{what}: {result}");
    }
    let by = |version: &str| result["by"][version].as_u64().unwrap_or(0);
    assert!(by("0001") > 0 && by("0002") > 0 && by("0001") + by("0002") == sent, "{result}");
    for version in ["0001", "0002"] {
        assert_eq!(site.handled("acme", version), by(version), "what was handled is not what was answered: {result}");
    }
}

#[test]
fn a_node_that_dies_during_a_roll_out_takes_only_its_own_clients_with_it() {
    let clients = number("POSTERN_SWAP_CLIENTS", 40);
    let rate = number("POSTERN_SWAP_RATE", 150);
    let site = Site::without_nodes();
    let nodes = [node(&site), node(&site)];
    let [one, two] = nodes;
    site.tenant_of_version_1("acme");
    site.upload("acme", "echo", component(2));
    let urls = [one.ws("acme"), two.ws("acme")];
    let mut load = Load::start(&urls, clients, rate);
    std::thread::sleep(Duration::from_millis(300));
    // It dies when the roll-out has begun and before it has loaded the version.
    two.signal("STOP");
    site.activate("acme", "echo", 2, DEADLINE);
    two.signal("KILL");
    // Until its lease is over it is waited for.
    site.wait_for_rollout("acme", "echo", postern::catalog::RolloutState::Active);
    std::thread::sleep(Duration::from_millis(300));
    site.roll_back("acme", "echo");
    site.roll_out("acme", "echo", 2);
    std::thread::sleep(Duration::from_millis(300));
    let result = load.result();
    assert_eq!(result["by_url"][0]["unanswered"], 0, "{result}");
    for what in ["twice", "errors"] {
        assert_eq!(result[what], 0, "{what}: {result}");
    }
    assert_eq!(result["by_url"][0]["closed"], 0, "{result}");
    assert!(result["by_url"][1]["closed"].as_u64() > Some(0), "nobody was on the node that died: {result}");
    let handled = site.handled("acme", "0001") + site.handled("acme", "0002");
    let (answered, open) = (result["answered"].as_u64().unwrap(), result["unanswered"].as_u64().unwrap());
    assert!((answered..=answered + open).contains(&handled), "{handled} were handled: {result}");
    assert_eq!(result["last"], "0002", "{result}");
}
