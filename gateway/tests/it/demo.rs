//! The demo pages in a real browser.

use std::process::Command;

use serde_json::json;

use crate::support::balancer::Balancer;
use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::{open, root, society};

fn demo(timeout_ms: u64) -> Node {
    Node::with(Settings {
        tenants: vec![society("green-valley", timeout_ms)],
        config: "demo = true\n".into(),
        redis_url: None,
    })
}

#[test]
fn an_approval_crosses_two_browsers() {
    let node = demo(5_000);
    play("demo_page.mjs", json!({ "url": node.url() }));
}

/// A node of a cluster, with the tenant of the page that shows it.
fn node_of_cluster(redis: &RedisServer) -> Node {
    Node::with(Settings {
        tenants: vec![open("team-hub", "broadcast = [\"test-event\"]")],
        config: "demo = true\n".into(),
        redis_url: Some(redis.url()),
    })
}

#[test]
fn one_event_reaches_three_browser_clients_on_two_nodes_behind_a_balancer_without_stickiness() {
    let redis = RedisServer::start();
    let nodes = [node_of_cluster(&redis), node_of_cluster(&redis)];
    let balancer = Balancer::start(&nodes);
    play("cluster_page.mjs", json!({ "url": balancer.url(), "nodes": 2 }));
}

#[test]
fn the_balancer_passes_over_a_node_that_was_killed() {
    let redis = RedisServer::start();
    let [mut gone, stays] = [node_of_cluster(&redis), node_of_cluster(&redis)];
    let balancer = Balancer::start([&gone, &stays]);
    gone.signal("KILL");
    gone.wait();
    let token = crate::support::token("team-hub", "ana", json!({}));
    let mut ws = Clients::ws();
    for n in 0..4 {
        let name = format!("ana{n}");
        let url = format!("ws://{}/t/team-hub/ws", balancer.address());
        ws.tell(json!({ "do": "connect", "name": name, "url": url, "query": { "token": token } }));
        ws.message(&name, json!({ "event": "connected" }));
    }
}

/// Runs one of the browser's scripts to its end.
fn play(script: &str, mut config: serde_json::Value) {
    config["screenshots"] = root().join("target/demo-screenshots").display().to_string().into();
    config["chromium"] = "/usr/bin/chromium".into();
    let script = root().join("gateway/tests/clients").join(script);
    let output = Command::new("node").arg(script).arg(config.to_string()).output().expect("node runs");
    let steps = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{steps}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_pages_tokens_open_its_sockets_and_are_given_out_in_demo_mode_only() {
    let node = demo(60_000);
    let (status, body) = node.http("GET", "/demo/tokens.json", &[], "");
    let given: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, given["timeout_ms"].as_u64()), (200, Some(60_000)));
    let mut io = Clients::socketio();
    for person in ["guard", "resident1", "resident2"] {
        io.join_socketio(&node, person, "green-valley", given["tokens"][person].as_str().unwrap());
    }
    let plain = Node::start(vec![society("green-valley", 60_000)]);
    assert_eq!(plain.http("GET", "/demo/tokens.json", &[], "").0, 404);
    assert_eq!(plain.http("GET", "/demo", &[], "").0, 404);
}
