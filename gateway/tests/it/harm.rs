//! Components that misbehave: stopped by name, and nobody else notices.

mod neighbours;

use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::{harm, open, token};

#[test]
fn each_kind_of_harm_is_stopped_by_its_own_limit_and_the_socket_stays_up() {
    // Enough time that on a busy machine, too, the other limits come first.
    let node = Node::start(vec![harm("harm", "call_limits.cpu_ms = 1000\n")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    for (event, data, names) in [
        ("loop", json!({}), "call_limits.cpu_ms"),
        ("memory", json!({}), "call_limits.memory_bytes"),
        ("flood", json!({}), "call_limits.host_calls"),
        ("trap", json!({}), "its log says why"),
        // Its own memory ends before its calls are too deep.
        ("stack", json!({}), "its log says why"),
        ("nest", json!({}), "its calls nest too deeply"),
    ] {
        let answer = ws.request("bob", event, data);
        assert_eq!(answer["error"]["code"], "plugin_failed", "{event}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(names) && message.contains("harm"), "{event}: {message}");
    }
    assert_eq!(ws.request("bob", "count", json!({})), 1, "the plugin does not run any more");
}

#[test]
fn what_a_failed_handler_published_or_wrote_never_happened() {
    let node = Node::start(vec![harm("harm", "")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    for event in ["publish_then_trap", "publish_then_refuse"] {
        let answer = ws.request("bob", event, json!({}));
        assert!(answer.get("error").is_some(), "{event}: {answer}");
    }
    ws.absent(json!({ "what": "message", "json": { "room": "everyone" } }));
}

#[test]
fn an_authorizer_that_fails_refuses_the_join() {
    let node = Node::start(vec![harm("harm", "")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    for (room, code) in [("loop:1", "plugin_unavailable"), ("trap:1", "plugin_unavailable"), ("write:1", "denied")] {
        assert_eq!(ws.request("bob", "join_room", json!({ "room": room }))["error"]["code"], code, "{room}");
        let answer = ws.request("bob", "publish", json!({ "room": room, "event": "x" }));
        assert_eq!(answer["error"]["code"], "forbidden", "{room} was joined after all");
    }
    assert_eq!(ws.request("bob", "join_room", json!({ "room": "good:1" }))["room_name"], "good:1");
}

#[test]
fn while_one_tenants_calls_loop_another_tenants_are_answered() {
    let node = Node::start(vec![
        harm("harm", "call_limits.cpu_ms = 400\ncall_limits.cpu_ms_per_second = 0\n"),
        open("good", ""),
    ]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "good", "good", &token("good", "eve", json!({})));
    for n in 0..20 {
        let name = format!("bad{n}");
        ws.join_ws(&node, &name, "harm", &token("harm", &name, json!({})));
    }
    for n in 0..20 {
        ws.tell(json!({"do": "send", "name": format!("bad{n}"), "json": { "id": 900_000 + n, "event": "loop" }}));
    }
    for n in 0..50 {
        assert_eq!(ws.request("good", "echo", json!(n)), n);
    }
    // 20 loops of 400 ms need 4 s on two cores: they were still running all the while.
    assert_eq!(ws.all(&json!({ "json": { "error": { "code": "plugin_failed" } } })).len(), 0, "the loops ended first");
    ws.message("bad0", json!({ "error": { "code": "plugin_failed" } }));
}

#[test]
fn a_timer_fires_at_the_plugin_that_set_it() {
    let node = Node::start(vec![harm("harm", "")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    ws.request("bob", "set_timer", json!({ "name": "t", "after_ms": 50 }));
    assert_eq!(ws.message("bob", json!({ "event": "fired" }))["data"]["name"], "t");
    ws.absent(json!({ "what": "message", "json": { "event": "fired" } }));
}

#[test]
fn a_handler_joins_and_disconnects_connections() {
    let node = Node::start(vec![harm("harm", "")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    ws.join_ws(&node, "eve", "harm", &token("harm", "eve", json!({})));
    ws.request("bob", "join_me", json!({ "room": "given:1" }));
    ws.request("bob", "publish", json!({ "room": "given:1", "event": "x", "data": 1 }));
    ws.message("bob", json!({ "event": "x", "room": "given:1" }));
    ws.request("bob", "kick", json!({ "room": "user:eve" }));
    assert_eq!(ws.closed("eve"), (4505, "disconnected".into()));
    assert!(ws.request("bob", "heartbeat", json!({}))["ts"].is_u64());
}

#[test]
fn handlers_are_told_when_a_client_came_and_when_it_has_not_come_back() {
    let node = Node::start(vec![harm("harm", "limits.recovery_window_ms = 1200\n")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "eve", "harm", &token("harm", "eve", json!({})));
    ws.request("eve", "join_room", json!({ "room": "watch:1" }));
    let bob = token("harm", "bob", json!({}));
    let welcome = ws.join_ws(&node, "bob", "harm", &bob);
    assert_eq!(ws.message("eve", json!({ "event": "came" }))["data"]["subject"], "bob");
    ws.tell(json!({ "do": "cut", "name": "bob" }));
    ws.closed("bob");
    ws.join_ws(&node, "back", "harm", &bob);
    let resumed = ws.request("back", "resume", json!({ "session": welcome["session"], "pos": welcome["pos"] }));
    assert_eq!(resumed["recovered"], true, "{resumed}");
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    ws.absent(json!({ "what": "message", "json": { "event": "went" } }));
    ws.tell(json!({ "do": "close", "name": "back" }));
    let went = ws.message("eve", json!({ "event": "went" }));
    assert_eq!((&went["data"]["subject"], &went["data"]["reason"]), (&json!("bob"), &json!("client_left")));
    ws.absent(json!({ "what": "message", "json": { "event": "went" } }));
}

#[test]
fn a_socket_io_client_that_is_ended_for_good_does_not_come_back_by_itself() {
    let node = Node::start(vec![harm("harm", "")]);
    let mut io = Clients::socketio();
    io.join_socketio(&node, "bob", "harm", &token("harm", "bob", json!({})));
    io.join_socketio(&node, "eve", "harm", &token("harm", "eve", json!({})));
    io.ask("bob", "kick", json!({ "room": "user:eve" }));
    let ended = io.expect(json!({ "what": "disconnect", "name": "eve" }));
    assert_eq!(ended["reason"], "io server disconnect", "a client of any other reason reconnects");
}
