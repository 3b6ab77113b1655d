//! The visitors of a housing society: a guard at the gate in the browser, residents in mobile apps.

use serde_json::{Value, json};

use super::{Stage, across_two_nodes, event_with, on_one_node, times};
use crate::support::clients::Clients;
use crate::support::{guard, resident, society, token};

const SOCIETY: &str = "gv";
const FLAT: &str = "A-101";

/// How often two residents answer at the same moment.
const ROUNDS: usize = 25;

fn gate(timeout_ms: u64) -> (String, String) {
    let (name, file) = society(SOCIETY, timeout_ms);
    (name, file.replacen("backend_token", "limits.messages_per_minute = \"unlimited\"\nbackend_token", 1))
}

fn at_the_gate(stage: &Stage<'_>) -> Clients {
    let mut web = Clients::socketio();
    web.join_socketio(stage.one, "ravi", SOCIETY, &token(SOCIETY, "ravi", guard("gv")));
    web
}

fn of_the_flat(name: &str) -> String {
    token(SOCIETY, name, resident("gv", &[FLAT]))
}

fn announce(web: &mut Clients, visitor: &str) -> Value {
    let created = web.ask("ravi", "visitor_create", json!({ "flat_id": FLAT, "visitor_name": visitor }));
    assert_eq!(created["status"], "pending", "{created}");
    created["visitor_id"].clone()
}

fn answer(clients: &mut Clients, name: &str, visitor: &Value, decision: &str) -> Value {
    clients.ask(name, "visitor_respond", json!({ "visitor_id": visitor, "decision": decision }))
}

fn pending(clients: &mut Clients, name: &str) -> Vec<Value> {
    let listed = clients.ask(name, "visitor_list", json!({ "status": "pending" }));
    let visitors = listed["visitors"].as_array().unwrap_or_else(|| panic!("no list: {listed}"));
    visitors.iter().map(|visitor| visitor["visitor_name"].clone()).collect()
}

fn answered(stage: &Stage<'_>) {
    let (mut web, mut mobile) = (at_the_gate(stage), Clients::python());
    for (name, node) in [("asha", stage.two), ("vikram", stage.one)] {
        mobile.join_socketio(node, name, SOCIETY, &of_the_flat(name));
    }
    mobile.join_socketio(stage.two, "stranger", SOCIETY, &token(SOCIETY, "stranger", resident("gv", &["B-7"])));
    for (visitor, decision, outcome) in [("Meera", "approve", "request_approved"), ("Imran", "deny", "request_denied")]
    {
        let id = announce(&mut web, visitor);
        for name in ["asha", "vikram"] {
            let asked = mobile.event(name, "visitor_request");
            assert_eq!((&asked["visitor_id"], &asked["visitor_name"]), (&id, &json!(visitor)), "{name}");
        }
        assert!(answer(&mut mobile, "asha", &id, decision)["status"].is_string());
        let late = answer(&mut mobile, "vikram", &id, "approve");
        assert_eq!(late["error"]["code"], "already_resolved");
        assert_eq!(web.event("ravi", outcome)["decided_by"], "asha");
        assert_eq!(mobile.event("vikram", outcome)["visitor_id"], id);
        assert_eq!(answer(&mut mobile, "stranger", &id, "deny")["error"]["code"], "forbidden");
    }
    // The guard's back end asks by REST, as it does today; nobody answers.
    let visitor = json!({ "flat_id": FLAT, "visitor_name": "Late", "society_id": "gv" });
    let (status, raised) = stage.two.raise(SOCIETY, "visitor_create", &visitor);
    assert_eq!(status, 200, "{raised}");
    for name in ["asha", "vikram"] {
        assert_eq!(mobile.event(name, "visitor_timeout")["visitor_id"], raised["data"]["visitor_id"], "{name}");
    }
    assert_eq!(web.event("ravi", "visitor_timeout")["status"], "timed_out");
    let listed = web.ask("ravi", "visitor_list", json!({}));
    assert_eq!(listed["visitors"].as_array().map(Vec::len), Some(3));
    for (name, event) in [("ravi", "request_approved"), ("ravi", "request_denied"), ("ravi", "visitor_timeout")] {
        assert_eq!(times(&web, name, event), 1, "{name} hears {event} once");
    }
    let foreign = mobile.all(&json!({ "what": "event", "name": "stranger" }));
    assert!(foreign.is_empty(), "another flat heard of it: {foreign:?}");
}

/// Two residents, on their own nodes, press at the same moment, again and again.
fn answered_at_once(stage: &Stage<'_>) {
    let mut web = at_the_gate(stage);
    for (name, node) in [("asha", stage.one), ("vikram", stage.two)] {
        web.join_socketio(node, name, SOCIETY, &of_the_flat(name));
    }
    let outcome_of = |clients: &Clients, name: &str, id: &Value| -> Vec<Value> {
        let events = ["request_approved", "request_denied", "visitor_timeout"];
        let of = |event: &str| json!({ "what": "event", "name": name, "event": event, "args": [{ "visitor_id": id }] });
        events.iter().flat_map(|event| clients.all(&of(event))).map(|seen| seen["event"].clone()).collect()
    };
    let mut visitors = Vec::new();
    for round in 0..ROUNDS {
        let id = announce(&mut web, &format!("V{round}"));
        for (name, decision) in [("asha", "approve"), ("vikram", "deny")] {
            let args = json!([{ "visitor_id": id, "decision": decision }]);
            web.tell(json!({ "do": "emit", "name": name, "event": "visitor_respond", "args": args, "ack": true,
                "tag": format!("{name}{round}") }));
        }
        let mut won = Vec::new();
        for (name, event) in [("asha", "request_approved"), ("vikram", "request_denied")] {
            let ack = web.expect(json!({ "what": "ack", "tag": format!("{name}{round}") }));
            match ack["args"][0]["error"]["code"].as_str() {
                None => won.push(event),
                Some(code) => assert_eq!(code, "already_resolved", "round {round}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}: one of the two has decided: {won:?}");
        visitors.push((id, won[0]));
    }
    let (last, event) = visitors.last().unwrap();
    for name in ["ravi", "asha", "vikram"] {
        event_with(&mut web, name, event, json!({ "visitor_id": last }));
        for (id, event) in &visitors {
            assert_eq!(outcome_of(&web, name, id), [*event], "{name}");
        }
    }
}

/// A resident's phone loses its network, visitors come meanwhile, and the phone is back on another node.
fn back_elsewhere(stage: &Stage<'_>) {
    let mut web = at_the_gate(stage);
    web.join_socketio(stage.two, "asha", SOCIETY, &of_the_flat("asha"));
    let known = announce(&mut web, "Known");
    assert_eq!(web.event("asha", "visitor_request")["visitor_id"], known);
    web.tell(json!({ "do": "kill", "name": "asha" }));
    web.expect(json!({ "what": "disconnect", "name": "asha" }));
    let missed = announce(&mut web, "Missed");
    // The same socket, as an app keeps it; its node is another now.
    web.tell(json!({ "do": "reconnect", "name": "asha", "url": stage.one.url() }));
    let back = web.expect(json!({ "what": "connect", "name": "asha" }));
    assert_eq!(back["ok"], true);
    assert_eq!(pending(&mut web, "asha"), ["Missed", "Known"], "the newest first");
    assert_eq!(answer(&mut web, "asha", &missed, "deny")["status"], "denied");
    event_with(&mut web, "ravi", "request_denied", json!({ "visitor_id": missed, "decided_by": "asha" }));
    assert_eq!(pending(&mut web, "asha"), ["Known"]);
    assert_eq!(pending(&mut web, "ravi"), ["Known"]);
    let next = announce(&mut web, "Next");
    event_with(&mut web, "asha", "visitor_request", json!({ "visitor_id": next }));
    let times = web.all(&json!({ "what": "event", "name": "asha", "args": [{ "visitor_id": next }] })).len();
    assert_eq!(times, 1, "she is in her flat's room once");
}

#[test]
fn a_visitor_is_announced_answered_once_and_timed_out() {
    on_one_node(gate(2_500), answered);
}

#[test]
fn a_visitor_is_announced_answered_once_and_timed_out_across_nodes() {
    across_two_nodes(gate(2_500), answered);
}

#[test]
fn of_two_residents_who_answer_at_once_one_decides() {
    on_one_node(gate(60_000), answered_at_once);
}

#[test]
fn of_two_residents_who_answer_at_once_on_different_nodes_one_decides() {
    across_two_nodes(gate(60_000), answered_at_once);
}

#[test]
fn whoever_comes_back_sees_who_waits() {
    on_one_node(gate(60_000), back_elsewhere);
}

#[test]
fn whoever_comes_back_to_another_node_sees_who_waits() {
    across_two_nodes(gate(60_000), back_elsewhere);
}
