//! What plugins and tenants use: in the metrics at once, in the daily accounts for good.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::{harm, token};

const OPERATOR: &str = "operator-of-the-accounts-0123456789abcdef";

/// The accounts of the tenant `harm`, all days together.
fn account(node: &Node, plugin: &str, what: &str) -> u64 {
    let bearer = format!("Bearer {OPERATOR}");
    let (status, body) = node.http("GET", "/admin/v1/tenants/harm/usage", &[("authorization", &bearer)], "");
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let days = answer["days"].as_array().unwrap();
    days.iter().map(|day| day["plugins"][plugin][what].as_u64().unwrap_or(0)).sum()
}

fn settings(more: &str) -> Settings {
    let config = format!("admin_token = \"{OPERATOR}\"\n{more}");
    Settings { tenants: vec![harm("harm", "")], config, redis_url: None }
}

#[test]
fn the_accounts_survive_the_node_and_nothing_is_counted_twice() {
    let node = Node::with(settings(""));
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    for n in 1..=3 {
        assert_eq!(ws.request("bob", "count", json!({})), n);
    }
    ws.request("bob", "trap", json!({}));
    ws.request("bob", "many_publications", json!(5));
    ws.request("bob", "set_timer", json!({ "name": "t", "after_ms": 3_600_000 }));
    ws.request("bob", "log_flood", json!(4));
    let node = node.stop_and_restart();
    // One call is that of `describe`, one that of `connected`.
    for (plugin, what, number) in [
        ("harm", "calls", 9),
        ("harm", "failures", 1),
        ("harm", "publications", 6),
        ("harm", "timers-set", 1),
        ("harm", "log-lines", 4),
        ("harm", "state-keys-read", 3),
        ("harm", "state-keys-written", 3),
        ("harm", "state-bytes-written", 3),
        ("harm", "state-bytes-read", 2),
        ("gateway", "events", 7),
        ("gateway", "published", 6),
        ("gateway", "deliveries", 5),
        ("gateway", "connections-peak", 1),
    ] {
        assert_eq!(account(&node, plugin, what), number, "{plugin} {what}");
    }
    assert!(account(&node, "harm", "cpu-us") > 0 && account(&node, "harm", "output-bytes") > 0);
    assert!(account(&node, "authorizer", "calls") >= 2);
}

#[test]
fn the_most_connections_at_once_are_those_of_all_nodes_and_a_restart_adds_nothing() {
    let redis = RedisServer::start();
    let node = || Node::with(Settings { redis_url: Some(redis.url()), ..settings("") });
    let (one, two) = (node(), node());
    let mut ws = Clients::ws();
    for (name, node) in [("ann", &one), ("bob", &two), ("eve", &one)] {
        ws.join_ws(node, name, "harm", &token("harm", name, json!({})));
    }
    drop(ws);
    let (one, two) = (one.stop_and_restart(), two.stop_and_restart());
    assert_eq!(account(&one, "gateway", "connections-peak"), 3);
    let mut ws = Clients::ws();
    for (name, node) in [("ann", &one), ("bob", &two)] {
        ws.join_ws(node, name, "harm", &token("harm", name, json!({})));
    }
    let (one, _two) = (one.stop_and_restart(), two.stop_and_restart());
    assert_eq!(account(&one, "gateway", "connections-peak"), 3);
}

#[test]
fn computing_time_is_counted_for_whoever_computed_from_the_start() {
    let node = Node::with(settings(""));
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    let cpu = |plugin: &str| {
        let labels = format!("tenant=\"harm\",plugin=\"{plugin}\"");
        node.metric("plugin_cpu_microseconds_total", &labels)
    };
    assert_eq!(ws.request("bob", "count", json!({})), 1);
    let before = ["harm", "authorizer"].map(cpu);
    assert!(before[0] > 0.0 && before[1] > 0.0, "connecting and counting took no time: {before:?}");
    // Until `call_limits.cpu_ms`, of 50 ms, is spent.
    let begun = Instant::now();
    assert_eq!(ws.request("bob", "loop", json!({}))["error"]["code"], "plugin_failed");
    let (took, spent) = (begun.elapsed().as_micros() as f64, cpu("harm") - before[0]);
    assert!((45_000.0..=took).contains(&spent), "{spent} us of {took}");
    assert_eq!(cpu("authorizer"), before[1], "another plugin was charged");
    assert_eq!(cpu("gateway"), 0.0);
    let labels = "tenant=\"harm\",plugin=\"harm\"";
    assert!(node.metric("plugin_memory_peak_bytes", labels) >= 65_536.0);
}

#[test]
fn metrics_name_as_many_tenants_as_they_may_and_the_others_together() {
    let node = Node::with(settings("metrics_tenants_max = 0\n"));
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    assert_eq!(ws.request("bob", "count", json!({})), 1);
    assert!(node.metric("plugin_calls_total", "tenant=\"other\",plugin=\"other\",hook=\"events.handle\"") >= 1.0);
    let begun = Instant::now();
    while node.metric("plugin_usage_total", "what=\"state-keys-written\"") < 1.0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the metric does not come");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(node.metric("tenant_usage_total", "what=\"events\"") >= 1.0);
    let (_, text) = node.http("GET", "/metrics", &[], "");
    assert!(!text.contains("\"harm\""), "{text}");
}
