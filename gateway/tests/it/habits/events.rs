//! The small event service: one namespace, one event, everybody hears it. And the visitors of a housing society.

use serde_json::{Value, json};

use super::{Stage, across_two_nodes, on_one_node};
use crate::support::clients::Clients;
use crate::support::{guard, resident, society, tenant_file, token};

const EVENTS: &str = "events";
const SOCIETY: &str = "gv";

fn event_service() -> (String, String) {
    let plugins = [("room-authorization", "authorizer", "room-authorization")];
    tenant_file(EVENTS, &plugins, "broadcast = [\"test-event\"]", "")
}

fn test_event(stage: &Stage<'_>) {
    let (mut web, mut mobile) = (Clients::socketio(), Clients::python());
    let auth = |name: &str| json!({ "token": token(EVENTS, name, json!({})) });
    web.try_socketio(stage.one, "ana", EVENTS, "/events", auth("ana"));
    web.try_socketio(stage.two, "bob", EVENTS, "/events", auth("bob"));
    web.try_socketio(stage.two, "root", EVENTS, "/", auth("root"));
    mobile.try_socketio(stage.two, "cleo", EVENTS, "/events", auth("cleo"));
    for name in ["ana", "bob", "root"] {
        web.expect(json!({ "what": "connect", "name": name }));
    }
    mobile.expect(json!({ "what": "connect", "name": "cleo" }));
    for n in 0..10 {
        let (clients, name) = if n % 2 == 0 { (&mut web, "ana") } else { (&mut mobile, "cleo") };
        clients.ask_all(name, "test-event", json!([{ "n": n }, "second"]));
    }
    let order = |clients: &Clients, name: &str| -> Vec<Value> {
        let seen = clients.all(&json!({ "what": "event", "name": name, "event": "test-event" }));
        seen.into_iter().map(|seen| seen["args"].clone()).collect()
    };
    for (clients, name) in [(&mut mobile, "cleo"), (&mut web, "ana")] {
        clients.expect(json!({ "what": "event", "name": name, "event": "test-event", "args": [{ "n": 9 }] }));
    }
    web.expect(json!({ "what": "event", "name": "bob", "event": "test-event", "args": [{ "n": 9 }] }));
    let expected: Vec<Value> = (0..10).map(|n| json!([{ "n": n }, "second"])).collect();
    assert_eq!((order(&web, "ana"), order(&web, "bob")), (expected.clone(), expected.clone()));
    assert_eq!(order(&mobile, "cleo"), expected);
    assert_eq!(order(&web, "root"), [Value::Null; 0], "another namespace heard of it");
}

fn visitors(stage: &Stage<'_>) {
    let (mut web, mut mobile) = (Clients::socketio(), Clients::python());
    web.join_socketio(stage.one, "ravi", SOCIETY, &token(SOCIETY, "ravi", guard("gv")));
    for (name, node) in [("asha", stage.two), ("vikram", stage.one)] {
        mobile.join_socketio(node, name, SOCIETY, &token(SOCIETY, name, resident("gv", &["A-101"])));
    }
    let created = web.ask("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    let id = &created["visitor_id"];
    for name in ["asha", "vikram"] {
        assert_eq!(mobile.event(name, "visitor_request")["visitor_id"], *id, "{name}");
    }
    let answer = |decision: &str| json!({ "visitor_id": id, "decision": decision });
    assert_eq!(mobile.ask("asha", "visitor_respond", answer("approve"))["status"], "approved");
    let late = mobile.ask("vikram", "visitor_respond", answer("deny"));
    assert_eq!(late["error"]["code"], "already_resolved");
    assert_eq!(web.event("ravi", "request_approved")["decided_by"], "asha");
    assert_eq!(mobile.event("vikram", "request_approved")["visitor_id"], *id);
    // The guard's back end asks by REST, as it does today; nobody answers.
    let visitor = json!({ "flat_id": "A-101", "visitor_name": "Late", "society_id": "gv" });
    let (status, raised) = stage.two.raise(SOCIETY, "visitor_create", &visitor);
    assert_eq!(status, 200, "{raised}");
    for name in ["asha", "vikram"] {
        assert_eq!(mobile.event(name, "visitor_timeout")["visitor_id"], raised["data"]["visitor_id"], "{name}");
    }
    assert_eq!(web.event("ravi", "visitor_timeout")["status"], "timed_out");
    let listed = web.ask("ravi", "visitor_list", json!({}));
    assert_eq!(listed["visitors"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_test_event_reaches_every_client_of_the_namespace() {
    on_one_node(event_service(), test_event);
}

#[test]
fn a_test_event_reaches_every_client_of_the_namespace_on_other_nodes() {
    across_two_nodes(event_service(), test_event);
}

#[test]
fn a_visitor_is_announced_answered_once_and_timed_out() {
    on_one_node(society(SOCIETY, 2_500), visitors);
}

#[test]
fn a_visitor_is_announced_answered_once_and_timed_out_across_nodes() {
    across_two_nodes(society(SOCIETY, 2_500), visitors);
}
