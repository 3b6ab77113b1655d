//! Socket.IO v5 as its own clients speak it.

use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::{open, token};

fn one() -> Node {
    Node::start(vec![open("one", "")])
}

#[test]
fn acknowledgements_carry_several_arguments_and_attachments_both_ways() {
    let node = one();
    let mut io = Clients::socketio();
    io.join_socketio(&node, "bob", "one", &token("one", "bob", json!({})));
    let args = json!(["text", 7, null, { "file": { "$bin": "AAECAwQ=" }, "deep": [{ "$bin": "/w==" }] }]);
    assert_eq!(io.ask_all("bob", "echo", args.clone()), args, "through a handler");
    assert_eq!(io.ask_all("bob", "echo_relay", args.clone()), args, "without one");
}

#[test]
fn attachments_reach_the_other_members_and_plain_clients_too() {
    let node = one();
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    for name in ["bob", "eve"] {
        io.join_socketio(&node, name, "one", &token("one", name, json!({})));
        io.ask(name, "join_room", json!({ "room": "r:1" }));
    }
    ws.join_ws(&node, "plain", "one", &token("one", "plain", json!({})));
    ws.request("plain", "join_room", json!({ "room": "r:1" }));
    let file = json!({ "name": "a.png", "bytes": { "$bin": "iVBORw==" } });
    io.ask("bob", "publish", json!({ "room": "r:1", "event": "file", "data": file }));
    assert_eq!(io.event("eve", "file"), file);
    let plain = ws.message("plain", json!({ "event": "file" }));
    assert_eq!(plain["data"]["bytes"], json!({ "_placeholder": true, "num": 0 }));
    assert_eq!(plain["attachments"], json!(["iVBORw=="]));
}

#[test]
fn namespaces_share_a_connection_and_keep_their_rooms_apart() {
    let node = one();
    let mut io = Clients::socketio();
    let bob = token("one", "bob", json!({}));
    io.join_socketio(&node, "root", "one", &bob);
    io.try_socketio(&node, "events", "one", "/events", json!({ "token": bob }));
    io.expect(json!({ "what": "connect", "name": "events" }));
    io.ask("root", "join_room", json!({ "room": "lobby" }));
    io.ask("events", "join_room", json!({ "room": "lobby" }));
    io.ask("events", "publish", json!({ "room": "lobby", "event": "test-event", "data": "hi" }));
    assert_eq!(io.event("events", "test-event"), "hi");
    io.absent(json!({ "what": "event", "name": "root", "event": "test-event" }));
    io.tell(json!({ "do": "disconnect", "name": "events" }));
    io.expect(json!({ "what": "disconnect", "name": "events" }));
    assert_eq!(io.ask("root", "echo", json!("still here")), "still here");
}

#[test]
fn a_refused_namespace_says_why_and_hinders_no_other() {
    let node = one();
    let mut io = Clients::socketio();
    io.try_socketio(&node, "bob", "one", "/private", json!({}));
    let error = io.expect(json!({ "what": "connect_error", "name": "bob" }));
    assert_eq!(error["data"]["code"], "unauthorized");
    assert!(error["message"].as_str().unwrap().contains("auth.token"), "{error}");
}

#[test]
fn an_event_that_nothing_handles_is_refused_by_name() {
    let node = one();
    let mut io = Clients::socketio();
    io.join_socketio(&node, "bob", "one", &token("one", "bob", json!({})));
    let error = io.ask("bob", "no_such_event", json!({}));
    assert_eq!(error["error"]["code"], "unknown_event");
    io.tell(json!({ "do": "emit", "name": "bob", "event": "no_such_event", "args": [1] }));
    assert_eq!(io.event("bob", "error")["code"], "unknown_event");
}

#[test]
fn polling_and_other_versions_get_the_protocols_own_errors() {
    let node = one();
    for (path, status, code) in [
        ("/socket.io/?EIO=4&transport=polling", 400, 0),
        ("/socket.io/?EIO=3&transport=websocket", 400, 5),
        ("/socket.io/?EIO=4&transport=websocket&sid=x", 400, 1),
        ("/socket.io/?EIO=4&transport=websocket", 400, 3),
    ] {
        let (answered, body) = node.http("GET", path, &[], "");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((answered, body["code"].as_i64()), (status, Some(code)), "{path}");
    }
}

#[test]
fn a_python_client_connects_unchanged() {
    let node = one();
    let mut python = Clients::python();
    let auth = json!({ "token": token("one", "py", json!({})) });
    python
        .tell(json!({"do": "connect", "name": "py", "url": node.url(), "path": "/t/one/socket.io/", "namespace": "/",
        "auth": auth, "transports": ["websocket"]}));
    python.expect(json!({ "what": "connect", "name": "py" }));
    assert_eq!(python.ask("py", "echo", json!({ "a": [1, 2] })), json!({ "a": [1, 2] }));
    python.ask("py", "join_room", json!({ "room": "r:1" }));
    python.ask("py", "publish", json!({ "room": "r:1", "event": "hello", "data": { "bytes": { "$bin": "AQI=" } } }));
    assert_eq!(python.event("py", "hello"), json!({ "bytes": { "$bin": "AQI=" } }));
}

#[test]
fn clients_are_pinged_and_those_that_do_not_answer_are_ended() {
    let node = Node::with(Settings {
        tenants: vec![open("one", "")],
        config: "ping_interval_ms = 200\nping_timeout_ms = 1500\n".into(),
        redis_url: None,
    });
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    io.join_socketio(&node, "bob", "one", &token("one", "bob", json!({})));
    ws.join_ws(&node, "alive", "one", &token("one", "alive", json!({})));
    ws.join_ws(&node, "dead", "one", &token("one", "dead", json!({})));
    ws.tell(json!({ "do": "pause", "name": "dead" }));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(8);
    while node.metric("ws_disconnections_total", "ping_timeout") < 1.0 {
        assert!(std::time::Instant::now() < deadline, "a dead client was kept");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(io.ask("bob", "echo", json!(1)), 1, "a client that answers pings was ended");
    assert!(ws.request("alive", "heartbeat", json!({}))["ts"].is_u64());
}
