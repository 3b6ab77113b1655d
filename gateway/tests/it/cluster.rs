//! Two nodes on one Redis: one order, one truth.

use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::{guard, open, resident, society, token};

fn node(redis: &RedisServer, tenants: Vec<(String, String)>) -> Node {
    Node::with(Settings { tenants, config: String::new(), redis_url: Some(redis.url()) })
}

#[test]
fn an_approval_crosses_nodes() {
    let redis = RedisServer::start();
    let (one, two) = (node(&redis, vec![society("gv", 60_000)]), node(&redis, vec![society("gv", 60_000)]));
    assert!(one.log().contains("Redis mode"), "the log does not say which mode it is in");
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    ws.join_ws(&one, "ravi", "gv", &token("gv", "ravi", guard("gv")));
    io.join_socketio(&two, "asha", "gv", &token("gv", "asha", resident("gv", &["A-101"])));
    let created = ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    assert_eq!(io.event("asha", "visitor_request")["visitor_id"], created["visitor_id"]);
    io.ask("asha", "visitor_respond", json!({ "visitor_id": created["visitor_id"], "decision": "approve" }));
    assert_eq!(ws.message("ravi", json!({ "event": "request_approved" }))["data"]["decided_by"], "asha");
}

#[test]
fn a_time_out_fires_once_on_one_of_the_nodes() {
    let redis = RedisServer::start();
    let (one, two) = (node(&redis, vec![society("gv", 300)]), node(&redis, vec![society("gv", 300)]));
    let mut ws = Clients::ws();
    ws.join_ws(&one, "ravi", "gv", &token("gv", "ravi", guard("gv")));
    ws.join_ws(&two, "asha", "gv", &token("gv", "asha", resident("gv", &["A-101"])));
    for _ in 0..5 {
        ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    }
    for who in ["ravi", "asha"] {
        for _ in 0..5 {
            ws.message(who, json!({ "event": "visitor_timeout" }));
        }
    }
    ws.absent(json!({ "what": "message", "json": { "event": "visitor_timeout" } }));
}

#[test]
fn members_on_different_nodes_see_one_order_and_each_other() {
    let redis = RedisServer::start();
    let nodes = [node(&redis, vec![open("one", "")]), node(&redis, vec![open("one", "")])];
    let mut ws = Clients::ws();
    let names = ["a", "b"];
    for (name, node) in names.iter().zip(&nodes) {
        ws.join_ws(node, name, "one", &token("one", name, json!({})));
        ws.request(name, "join_room", json!({ "room": "r:1" }));
    }
    assert_eq!(ws.request("a", "presence", json!({ "room": "r:1" }))["users"], json!(["a", "b"]));
    ws.publish_at_once(&names, "r:1", 100);
    assert_eq!(ws.order("a").len(), 200);
    assert!(ws.order("a") == ws.order("b"), "the nodes disagree on the order");
}

#[test]
fn two_residents_on_different_nodes_have_one_outcome_a_hundred_times() {
    let redis = RedisServer::start();
    let unlimited = || {
        let mut tenant = society("gv", 60_000);
        tenant.1 = tenant.1.replacen("backend_token", "limits.messages_per_minute = \"unlimited\"\nbackend_token", 1);
        tenant
    };
    let (one, two) = (node(&redis, vec![unlimited()]), node(&redis, vec![unlimited()]));
    let mut ws = Clients::ws();
    ws.join_ws(&one, "ravi", "gv", &token("gv", "ravi", guard("gv")));
    ws.join_ws(&one, "asha", "gv", &token("gv", "asha", resident("gv", &["A-101"])));
    ws.join_ws(&two, "vikram", "gv", &token("gv", "vikram", resident("gv", &["A-101"])));
    for round in 0..100 {
        let created = ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "V" }));
        for (who, decision) in [("asha", "approve"), ("vikram", "deny")] {
            let data = json!({ "visitor_id": created["visitor_id"], "decision": decision });
            let event = json!({ "id": 1_000_000 + round, "event": "visitor_respond", "data": data });
            ws.tell(json!({ "do": "send", "name": who, "json": event }));
        }
        let answers = ["asha", "vikram"].map(|who| ws.message(who, json!({ "id": 1_000_000 + round })));
        let won = answers.iter().filter(|answer| answer.get("data").is_some()).count();
        assert_eq!(won, 1, "round {round}: {answers:?}");
    }
    let conflicts = one.metric("commit_conflicts_total", "gv") + two.metric("commit_conflicts_total", "gv");
    assert!(conflicts > 0.0, "no two answers ever met");
}
