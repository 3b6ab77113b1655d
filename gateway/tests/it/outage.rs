//! Redis goes away while clients are connected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postern::engine::embedded::{EmbeddedEngine, Options};
use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::staged_engine::StagedEngine;
use crate::support::{guard, open, resident, society, token};

fn node(redis: &RedisServer, tenants: Vec<(String, String)>) -> Node {
    Node::with(Settings { tenants, config: String::new(), redis_url: Some(redis.url()) })
}

#[test]
fn a_short_outage_is_a_late_answer_and_ends_no_connection() {
    let mut redis = RedisServer::start();
    let node = node(&redis, vec![open("one", ""), society("gv", 60_000)]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    ws.join_ws(&node, "bob", "one", &token("one", "bob", json!({})));
    io.join_socketio(&node, "eve", "one", &token("one", "eve", json!({})));
    ws.join_ws(&node, "ravi", "gv", &token("gv", "ravi", guard("gv")));
    ws.join_ws(&node, "asha", "gv", &token("gv", "asha", resident("gv", &["A-101"])));
    ws.request("bob", "join_room", json!({ "room": "r:1" }));
    io.ask("eve", "join_room", json!({ "room": "r:1" }));
    assert_eq!(ws.request("bob", "presence", json!({ "room": "r:1" }))["count"], 2);

    redis.kill();
    assert_eq!(ws.message("bob", json!({ "event": "degraded" }))["data"]["code"], "engine_unavailable");
    io.event("eve", "degraded");
    let (status, ready) = node.http("GET", "/api/v1/health/ready", &[], "");
    assert!(status == 200 && ready.contains("degraded"), "{status} {ready}");
    let presence = ws.request("bob", "presence", json!({ "room": "r:1" }));
    assert_eq!((&presence["count"], &presence["stale"]), (&json!(2), &json!(true)), "{presence}");
    // A direct publication and one that a handler decides: both wait.
    let publication = json!({ "room": "r:1", "event": "n", "data": 1 });
    ws.tell(json!({ "do": "send", "name": "bob", "json": { "id": 900, "event": "publish", "data": publication } }));
    let visitor = json!({ "flat_id": "A-101", "visitor_name": "Meera" });
    ws.tell(json!({ "do": "send", "name": "ravi", "json": { "id": 901, "event": "visitor_create", "data": visitor } }));
    ws.absent(json!({ "what": "message", "json": { "id": 900 } }));
    assert!(node.metric("backlog_inputs", "") >= 2.0, "nothing waits");

    redis.start_again();
    assert!(ws.message("bob", json!({ "id": 900 }))["data"]["pos"].is_string());
    assert_eq!(io.event("eve", "n"), 1);
    assert_eq!(ws.message("ravi", json!({ "id": 901 }))["data"]["status"], "pending");
    ws.message("asha", json!({ "event": "visitor_request" }));
    ws.message("bob", json!({ "event": "restored" }));
    io.event("eve", "restored");
    // It came back empty: what was there before is lost, and that is said.
    ws.message("bob", json!({ "event": "reset" }));
    ws.absent(json!({ "what": "closed" }));
    assert!(node.metric("backlog_inputs", "").abs() < 0.5, "something still waits");
}

#[test]
fn a_long_outage_is_told_with_advice_and_the_connection_stays() {
    let mut redis = RedisServer::start();
    let node = node(&redis, vec![open("one", "")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "one", &token("one", "bob", json!({})));
    ws.request("bob", "join_room", json!({ "room": "r:1" }));
    redis.kill();
    ws.message("bob", json!({ "event": "degraded" }));
    std::thread::sleep(std::time::Duration::from_secs(9));
    let refused = ws.request("bob", "publish", json!({ "room": "r:1", "event": "n", "data": 1 }));
    assert_eq!(refused["error"]["code"], "engine_unavailable", "{refused}");
    assert!(refused["error"]["retry_after_ms"].is_u64(), "{refused}");
    redis.start_again();
    ws.message("bob", json!({ "event": "restored" }));
    let published = ws.request("bob", "publish", json!({ "room": "r:1", "event": "n", "data": 2 }));
    assert!(published["pos"].is_string(), "{published}");
    assert_eq!(ws.message("bob", json!({ "event": "n" }))["data"], 2);
}

#[test]
fn a_node_that_stops_answers_what_it_has_begun() {
    let redis = RedisServer::start();
    let mut node = node(&redis, vec![society("gv", 60_000)]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "ravi", "gv", &token("gv", "ravi", guard("gv")));
    redis.signal("STOP");
    let visitor = json!({ "flat_id": "A-101", "visitor_name": "Meera" });
    ws.tell(json!({ "do": "send", "name": "ravi", "json": { "id": 7, "event": "visitor_create", "data": visitor } }));
    std::thread::sleep(std::time::Duration::from_millis(200));
    node.signal("TERM");
    std::thread::sleep(std::time::Duration::from_millis(500));
    redis.signal("CONT");
    assert_eq!(ws.message("ravi", json!({ "id": 7 }))["data"]["status"], "pending");
    ws.message("ravi", json!({ "event": "server:shutdown" }));
    assert_eq!(ws.closed("ravi"), (4000, "shutdown".into()));
    assert_eq!(node.wait(), Some(0), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_attempt_at_a_timer_that_the_engines_absence_cut_short_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let (name, file) = society("gv", 300);
    std::fs::write(dir.path().join(format!("{name}.toml")), file).unwrap();
    let flags = BTreeMap::from([
        ("tenants", dir.path().display().to_string()),
        ("data", dir.path().join("data").display().to_string()),
        ("host", "127.0.0.1".to_owned()),
        ("port", "0".to_owned()),
    ]);
    let config = postern::config::load(&flags, &BTreeMap::new()).unwrap();
    let listener = postern::run::bind(&config).await.unwrap();
    let url = format!("ws://{}/t/gv/ws", listener.local_addr().unwrap());
    let is_away = Arc::new(AtomicBool::new(false));
    let engine = StagedEngine::leaving(EmbeddedEngine::in_memory(Options::default()).unwrap(), is_away.clone());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let node = postern::run::run(config, listener, engine.clone(), async move { drop(stopped.await) });
    let clients = tokio::task::spawn_blocking(move || {
        let mut ws = Clients::ws();
        ws.try_ws("ravi", &url, &token("gv", "ravi", guard("gv")));
        ws.message("ravi", json!({ "event": "connected" }));
        ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
        is_away.store(true, Ordering::Release);
        // The timer is due meanwhile, and cannot be given back either.
        std::thread::sleep(Duration::from_secs(1));
        is_away.store(false, Ordering::Release);
        // Long before its lease ends.
        ws.message("ravi", json!({ "event": "visitor_timeout" }));
    });
    let until_all_is_said = async {
        let said = clients.await;
        drop(stop);
        said
    };
    let (ran, said) = tokio::join!(node, until_all_is_said);
    said.unwrap();
    ran.unwrap();
    assert_eq!(engine.attempts(), [1, 1]);
}
