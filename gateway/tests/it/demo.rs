//! The demo page in a real browser.

use std::process::Command;

use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::{root, society};

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
    let shots = root().join("target/demo-screenshots");
    let config = json!({ "url": node.url(), "screenshots": shots, "chromium": "/usr/bin/chromium" });
    let script = root().join("gateway/tests/clients/demo_page.mjs");
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
