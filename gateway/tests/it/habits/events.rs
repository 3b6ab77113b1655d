//! The small event service: one namespace, one event, everybody hears it.

use serde_json::{Value, json};

use super::{Stage, across_two_nodes, on_one_node};
use crate::support::clients::Clients;
use crate::support::{tenant_file, token};

const EVENTS: &str = "events";

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

#[test]
fn a_test_event_reaches_every_client_of_the_namespace() {
    on_one_node(event_service(), test_event);
}

#[test]
fn a_test_event_reaches_every_client_of_the_namespace_on_other_nodes() {
    across_two_nodes(event_service(), test_event);
}
