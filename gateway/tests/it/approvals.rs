//! A visitor's approval from request to outcome, through a Wasm handler.

use std::time::Duration;

use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::{guard, resident, society, token};

const SOCIETY: &str = "green-valley";

fn tokens() -> (String, String, String) {
    (
        token(SOCIETY, "ravi", guard("gv")),
        token(SOCIETY, "asha", resident("gv", &["A-101"])),
        token(SOCIETY, "vikram", resident("gv", &["A-101"])),
    )
}

#[test]
fn a_request_reaches_the_flat_and_its_approval_reaches_guard_and_flat() {
    let node = Node::start(vec![society(SOCIETY, 60_000)]);
    let (ravi, asha, _) = tokens();
    let mut ws = Clients::ws();
    ws.join_ws(&node, "ravi", SOCIETY, &ravi);
    ws.join_ws(&node, "asha", SOCIETY, &asha);

    let created = ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    assert_eq!(created["status"], "pending");
    assert!(created["expires_at"].as_u64().unwrap() > postern::commit::now_ms());
    let request = ws.message("asha", json!({ "event": "visitor_request" }));
    assert_eq!(request["room"], "flat:A-101");
    assert_eq!(request["data"]["visitor_name"], "Meera");
    assert!(request["pos"].as_str().unwrap().contains('-'));

    let id = created["visitor_id"].clone();
    let approved = ws.request("asha", "visitor_respond", json!({ "visitor_id": id, "decision": "approve" }));
    assert_eq!(approved["status"], "approved");
    for who in ["ravi", "asha"] {
        let outcome = ws.message(who, json!({ "event": "request_approved" }));
        assert_eq!(outcome["data"]["visitor_id"], id);
        assert_eq!(outcome["data"]["decided_by"], "asha");
    }
    let listed = ws.request("ravi", "visitor_list", json!({ "status": "approved" }));
    assert_eq!(listed["visitors"][0]["visitor_id"], id);
}

#[test]
fn both_kinds_of_client_meet_in_the_same_rooms() {
    let node = Node::start(vec![society(SOCIETY, 60_000)]);
    let (ravi, asha, vikram) = tokens();
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    ws.join_ws(&node, "ravi", SOCIETY, &ravi);
    io.join_socketio(&node, "asha", SOCIETY, &asha);
    io.join_socketio(&node, "vikram", SOCIETY, &vikram);
    let created = ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    assert_eq!(io.event("asha", "visitor_request")["visitor_name"], "Meera");
    let denied =
        io.ask("vikram", "visitor_respond", json!({ "visitor_id": created["visitor_id"], "decision": "deny" }));
    assert_eq!(denied["status"], "denied");
    assert_eq!(ws.message("ravi", json!({ "event": "request_denied" }))["data"]["decided_by"], "vikram");
    assert_eq!(io.event("asha", "request_denied")["visitor_id"], created["visitor_id"]);
    let late = io.ask("asha", "visitor_respond", json!({ "visitor_id": created["visitor_id"], "decision": "approve" }));
    assert_eq!(late["error"]["code"], "already_resolved");
}

#[test]
fn refusals_name_their_reason_and_change_nothing() {
    let node = Node::start(vec![society(SOCIETY, 60_000)]);
    let (ravi, asha, _) = tokens();
    let mut ws = Clients::ws();
    ws.join_ws(&node, "ravi", SOCIETY, &ravi);
    ws.join_ws(&node, "asha", SOCIETY, &asha);
    ws.join_ws(&node, "stranger", SOCIETY, &token(SOCIETY, "stranger", resident("gv", &["B-7"])));
    let by_resident = ws.request("asha", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "X" }));
    assert_eq!(by_resident["error"]["code"], "forbidden");
    let malformed = ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101" }));
    assert_eq!(malformed["error"]["code"], "invalid");
    let unknown = ws.request("asha", "visitor_respond", json!({ "visitor_id": "v_none", "decision": "approve" }));
    assert_eq!(unknown["error"]["code"], "not_found");
    let created = ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    let foreign = ws.request(
        "stranger",
        "visitor_respond",
        json!({ "visitor_id": created["visitor_id"], "decision": "approve" }),
    );
    assert_eq!(foreign["error"]["code"], "forbidden");
    let pending = ws.request("asha", "visitor_list", json!({ "status": "pending" }));
    assert_eq!(pending["visitors"].as_array().unwrap().len(), 1);
}

#[test]
fn nobody_answers_in_time_and_both_sides_are_told_once() {
    let node = Node::start(vec![society(SOCIETY, 300)]);
    let (ravi, asha, _) = tokens();
    let mut ws = Clients::ws();
    ws.join_ws(&node, "ravi", SOCIETY, &ravi);
    ws.join_ws(&node, "asha", SOCIETY, &asha);
    let created = ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    for who in ["ravi", "asha"] {
        let timed_out = ws.message(who, json!({ "event": "visitor_timeout" }));
        assert_eq!(timed_out["data"]["visitor_id"], created["visitor_id"]);
    }
    let late =
        ws.request("asha", "visitor_respond", json!({ "visitor_id": created["visitor_id"], "decision": "approve" }));
    assert_eq!(late["error"]["code"], "already_resolved");
    ws.absent(json!({ "what": "message", "json": { "event": "visitor_timeout" } }));
}

#[test]
fn an_answered_request_never_times_out() {
    let node = Node::start(vec![society(SOCIETY, 400)]);
    let (ravi, asha, _) = tokens();
    let mut ws = Clients::ws();
    ws.join_ws(&node, "ravi", SOCIETY, &ravi);
    ws.join_ws(&node, "asha", SOCIETY, &asha);
    let created = ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    ws.request("asha", "visitor_respond", json!({ "visitor_id": created["visitor_id"], "decision": "deny" }));
    std::thread::sleep(Duration::from_millis(600));
    ws.absent(json!({ "what": "message", "json": { "event": "visitor_timeout" } }));
    assert_eq!(
        ws.request("ravi", "visitor_list", json!({ "status": "denied" }))["visitors"].as_array().unwrap().len(),
        1
    );
}

/// 200 times two residents answer the same request at the same instant.
#[test]
fn however_many_answer_at_once_there_is_exactly_one_outcome() {
    let mut relaxed = society(SOCIETY, 60_000);
    relaxed.1 = relaxed.1.replacen("backend_token", "limits.messages_per_minute = \"unlimited\"\nbackend_token", 1);
    let node = Node::with(crate::support::node::Settings {
        tenants: vec![relaxed],
        config: "durability = \"relaxed\"\n".into(),
        redis_url: None,
    });
    let (ravi, asha, vikram) = tokens();
    let mut ws = Clients::ws();
    for (name, token) in [("ravi", &ravi), ("asha", &asha), ("vikram", &vikram)] {
        ws.join_ws(&node, name, SOCIETY, token);
    }
    for round in 0..200 {
        let created =
            ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": format!("V{round}") }));
        let id = &created["visitor_id"];
        for (who, decision, tag) in [("asha", "approve", 1_000_000 + round), ("vikram", "deny", 2_000_000 + round)] {
            let event =
                json!({ "id": tag, "event": "visitor_respond", "data": { "visitor_id": id, "decision": decision } });
            ws.tell(json!({ "do": "send", "name": who, "json": event }));
        }
        let answers = [
            ws.message("asha", json!({ "id": 1_000_000 + round })),
            ws.message("vikram", json!({ "id": 2_000_000 + round })),
        ];
        let won = answers.iter().filter(|answer| answer.get("data").is_some()).count();
        let lost = answers.iter().filter(|answer| answer["error"]["code"] == "already_resolved").count();
        assert_eq!((won, lost), (1, 1), "round {round}: {answers:?}");
        // The outcome comes by the log, maybe after the answers.
        ws.message("ravi", json!({ "data": { "visitor_id": id, "decided_by": if answers[0].get("data").is_some() { "asha" } else { "vikram" } } }));
    }
    let outcomes = ["request_approved", "request_denied"]
        .map(|event| ws.all(&json!({ "what": "message", "name": "ravi", "json": { "event": event } })).len());
    assert_eq!(outcomes.iter().sum::<usize>(), 200, "approved and denied: {outcomes:?}");
    assert!(node.metric("commit_conflicts_total", SOCIETY) > 0.0, "no two answers ever met");
}

#[test]
fn a_node_killed_between_request_and_time_out_fires_it_once_after_its_restart() {
    let node = Node::start(vec![society(SOCIETY, 4_000)]);
    let (ravi, asha, _) = tokens();
    let mut before = Clients::ws();
    before.join_ws(&node, "ravi", SOCIETY, &ravi);
    let created = before.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    drop(before);
    let node = node.kill_and_restart();
    let mut ws = Clients::ws();
    ws.join_ws(&node, "ravi", SOCIETY, &ravi);
    ws.join_ws(&node, "asha", SOCIETY, &asha);
    let pending = ws.request("asha", "visitor_list", json!({ "status": "pending" }));
    assert_eq!(pending["visitors"][0]["visitor_id"], created["visitor_id"], "an acknowledged request is lost");
    for who in ["ravi", "asha"] {
        assert_eq!(ws.message(who, json!({ "event": "visitor_timeout" }))["data"]["visitor_id"], created["visitor_id"]);
    }
    ws.absent(json!({ "what": "message", "json": { "event": "visitor_timeout" } }));
}

#[test]
fn the_tenants_back_end_raises_the_same_events_over_http() {
    let node = Node::start(vec![society(SOCIETY, 60_000)]);
    let (ravi, asha, _) = tokens();
    let mut ws = Clients::ws();
    ws.join_ws(&node, "ravi", SOCIETY, &ravi);
    ws.join_ws(&node, "asha", SOCIETY, &asha);
    let visitor = json!({ "flat_id": "A-101", "visitor_name": "Meera", "society_id": "gv" });
    let (status, created) = node.raise(SOCIETY, "visitor_create", &visitor);
    assert_eq!((status, &created["data"]["status"]), (200, &json!("pending")));
    let request = ws.message("asha", json!({ "event": "visitor_request" }));
    assert_eq!(request["data"]["requested_by"], "backend");
    let (status, refused) =
        node.raise(SOCIETY, "visitor_respond", &json!({ "visitor_id": "v_none", "decision": "approve" }));
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("not_found")));
}
