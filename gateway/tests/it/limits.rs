//! What is too much is refused by name, and harms nobody else.

mod nodes;

use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::{guard, open, society, token};

#[test]
fn more_messages_a_minute_than_allowed_are_refused_as_an_error_event() {
    let node = Node::start(vec![society("gv", 60_000)]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    let bob = token("gv", "bob", guard("gv"));
    ws.join_ws(&node, "bob", "gv", &bob);
    io.join_socketio(&node, "bob", "gv", &bob);
    for n in 0..105 {
        ws.tell(json!({ "do": "send", "name": "bob", "json": { "id": n, "event": "heartbeat" } }));
        io.tell(json!({ "do": "emit", "name": "bob", "event": "heartbeat", "args": [] }));
    }
    let refused = ws.message("bob", json!({ "error": { "code": "rate_limit" } }));
    assert!(refused["id"].as_u64().unwrap() >= 100);
    assert!(refused["error"]["message"].as_str().unwrap().contains("limits.messages_per_minute"));
    assert!(refused["error"]["retry_after_ms"].as_u64().unwrap() > 0);
    assert_eq!(ws.message("bob", json!({ "event": "error" }))["data"]["code"], "rate_limit");
    assert_eq!(io.event("bob", "error")["code"], "rate_limit");
}

#[test]
fn an_event_may_have_a_rate_of_its_own_per_user_over_all_connections() {
    let node = Node::start(vec![open("one", "limits.user_events_per_minute = { echo = 3 }")]);
    let mut ws = Clients::ws();
    for name in ["1", "2"] {
        ws.join_ws(&node, name, "one", &token("one", "bob", json!({})));
    }
    ws.join_ws(&node, "eve", "one", &token("one", "eve", json!({})));
    for name in ["1", "2", "1"] {
        assert_eq!(ws.request(name, "echo", json!(1)), 1);
    }
    let refused = ws.request("2", "echo", json!(1));
    assert_eq!(refused["error"]["code"], "rate_limit");
    assert!(refused["error"]["message"].as_str().unwrap().contains("limits.user_events_per_minute.echo"));
    assert_eq!(ws.request("eve", "echo", json!(1)), 1, "one user's rate is another's");
}

#[test]
fn a_message_is_bounded_as_a_whole() {
    let node = Node::start(vec![open("one", "limits.message_bytes = 10000")]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    let bob = token("one", "bob", json!({}));
    ws.join_ws(&node, "fits", "one", &bob);
    assert_eq!(ws.request("fits", "echo", json!("x".repeat(9_900))), "x".repeat(9_900));
    ws.join_ws(&node, "large", "one", &bob);
    ws.tell(json!({ "do": "send", "name": "large", "text": "x".repeat(10_001) }));
    let error = ws.message("large", json!({ "event": "error" }));
    assert!(error["data"]["message"].as_str().unwrap().contains("limits.message_bytes"), "{error}");
    assert_eq!(ws.closed("large"), (4503, "message_too_large".into()));
    // Many small attachments make one large message, too.
    io.join_socketio(&node, "parts", "one", &bob);
    let attachments: Vec<_> = (0..8).map(|_| json!({ "$bin": "A".repeat(2_000) })).collect();
    io.tell(json!({ "do": "emit", "name": "parts", "event": "echo", "args": attachments }));
    io.expect(json!({ "what": "disconnect", "name": "parts" }));
}

#[test]
fn a_connection_is_in_so_many_rooms_and_no_more() {
    let node = Node::start(vec![open("one", "limits.rooms_per_connection = 3")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "one", &token("one", "bob", json!({})));
    ws.request("bob", "subscribe", json!(["a:1", "a:2"]));
    let refused = ws.request("bob", "subscribe", json!(["a:3", "a:4"]));
    assert_eq!(refused["error"]["code"], "room_limit");
    assert!(refused["error"]["message"].as_str().unwrap().contains("limits.rooms_per_connection"));
    assert_eq!(ws.request("bob", "subscribe", json!(["a:2", "a:3"]))["channels"], json!(["a:2", "a:3"]));
}

#[test]
fn a_client_that_takes_too_little_is_ended_and_the_others_get_everything() {
    let node = Node::start(vec![open("one", "limits.message_bytes = 200000\nlimits.outbox_bytes = 300000")]);
    let mut ws = Clients::ws();
    for name in ["slow", "quick", "sender"] {
        ws.join_ws(&node, name, "one", &token("one", name, json!({})));
        ws.request(name, "join_room", json!({ "room": "r:1" }));
    }
    ws.tell(json!({ "do": "pause", "name": "slow" }));
    let filler = "x".repeat(100_000);
    // What the kernel takes for a client that does not read is some megabytes.
    for n in 0..200 {
        let data = json!({ "n": n, "filler": filler });
        ws.request("sender", "publish", json!({ "room": "r:1", "event": "n", "data": data, "echo": false }));
        ws.message("quick", json!({ "event": "n", "data": { "n": n } }));
    }
    // Its last words have two seconds to be taken.
    for _ in 0..50 {
        if node.metric("ws_disconnections_total", "slow") >= 1.0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the slow client was kept");
}

#[test]
fn broken_messages_are_told_apart_from_broken_protocols() {
    let node = Node::start(vec![open("one", "")]);
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    ws.join_ws(&node, "bob", "one", &bob);
    for text in ["nonsense", "[1,2]", r#"{"id":1}"#, r#"{"event":7}"#, r#"{"event":"e","data":1,"args":[]}"#] {
        ws.tell(json!({ "do": "send", "name": "bob", "text": text }));
        ws.message("bob", json!({}));
    }
    assert_eq!(ws.request("bob", "echo", json!("alive")), "alive");
    ws.tell(json!({ "do": "send", "name": "bob", "bin": "AAEC" }));
    assert_eq!(ws.closed("bob"), (4504, "protocol_error".into()));
}
