//! Who gets in, and how those who do not are told.

use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::{guard, harm, now_s, open, resident, society, token, token_until, token_without_tenant};

#[test]
fn a_token_that_does_not_hold_is_refused_with_the_reason_in_both_protocols() {
    let node = Node::start(vec![open("one", ""), open("two", "")]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    let forged = format!("{}x", token("one", "bob", json!({})));
    let expired = token_until("one", "bob", json!({}), now_s() - 3_600);
    let foreign = token("two", "bob", json!({}));
    for (name, token, message) in [
        ("forged", &forged, "signed"),
        ("expired", &expired, "expired"),
        ("foreign", &foreign, "tenant"),
        ("none", &String::new(), "token"),
    ] {
        ws.try_ws(name, &node.ws("one"), token);
        let error = ws.message(name, json!({ "event": "error" }));
        assert_eq!(error["data"]["code"], "unauthorized", "{name}");
        let (code, reason) = ws.closed(name);
        assert_eq!((code, reason.as_str()), (4500, "unauthorized"), "{name}");
        io.try_socketio(&node, name, "one", "/", json!({ "token": token }));
        let error = io.expect(json!({ "what": "connect_error", "name": name }));
        assert_eq!(error["data"]["code"], "unauthorized", "{name}");
        let text = error["message"].as_str().unwrap().to_lowercase();
        assert!(text.contains(message) || text.contains("token"), "{name}: {text}");
    }
    assert!(!node.log().contains(&expired), "a token is in the log");
}

#[test]
fn the_tenant_comes_from_the_path_the_token_or_the_host_name() {
    let node = Node::start(vec![open("one", "hosts = [\"rt.one.example\"]")]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    ws.try_ws("bob", &format!("ws://{}/ws", node.address), &token("one", "bob", json!({})));
    assert_eq!(ws.message("bob", json!({ "event": "connected" }))["data"]["subject"], "bob");
    let auth = json!({ "token": token("one", "eve", json!({})) });
    io.tell(json!({"do": "connect", "name": "eve", "url": node.url(), "path": "/socket.io/", "auth": auth}));
    io.expect(json!({ "what": "connect", "name": "eve" }));
    let headers = json!({ "host": "rt.one.example:3000" });
    let query = json!({ "token": token_without_tenant("host") });
    ws.tell(json!({"do": "connect", "name": "host", "url": format!("ws://{}/ws", node.address), "headers": headers, "query": query}));
    assert_eq!(ws.message("host", json!({ "event": "connected" }))["data"]["subject"], "host");
    ws.try_ws("lost", &format!("ws://{}/t/nobody/ws", node.address), "x");
    assert_eq!(ws.expect(json!({ "what": "refused", "name": "lost" }))["status"], 404);
}

#[test]
fn the_sixth_connection_of_a_user_is_refused_and_there_is_room_again_when_one_leaves() {
    let node = Node::start(vec![society("gv", 60_000)]);
    let mut ws = Clients::ws();
    let bob = token("gv", "bob", guard("gv"));
    for name in ["1", "2", "3", "4", "5"] {
        ws.join_ws(&node, name, "gv", &bob);
    }
    ws.try_ws("6", &node.ws("gv"), &bob);
    let error = ws.message("6", json!({ "event": "error" }));
    assert_eq!(error["data"]["code"], "connection_limit");
    assert!(error["data"]["message"].as_str().unwrap().contains("limits.connections_per_user"));
    assert_eq!(ws.closed("6"), (4502, "connection_limit".into()));
    let mut io = Clients::socketio();
    io.try_socketio(&node, "7", "gv", "/", json!({ "token": bob }));
    assert_eq!(io.expect(json!({ "what": "connect_error" }))["data"]["code"], "connection_limit");
    ws.tell(json!({ "do": "close", "name": "1" }));
    ws.closed("1");
    std::thread::sleep(std::time::Duration::from_millis(200));
    ws.join_ws(&node, "8", "gv", &bob);
}

#[test]
fn the_component_decides_who_connects_and_fails_closed() {
    let node = Node::start(vec![harm("harm", "")]);
    let mut ws = Clients::ws();
    ws.try_ws("no", &node.ws("harm"), &token("harm", "refused-connect", json!({})));
    ws.message("no", json!({ "event": "error" }));
    assert_eq!(ws.closed("no"), (4501, "forbidden".into()));
    ws.try_ws("trap", &node.ws("harm"), &token("harm", "bad-connect", json!({})));
    assert_eq!(ws.message("trap", json!({ "event": "error" }))["data"]["code"], "plugin_unavailable");
    assert_eq!(ws.closed("trap"), (4004, "authorizer_unavailable".into()));
}

#[test]
fn whatever_an_authorizer_answers_nobody_gets_into_the_gateways_own_rooms() {
    let node = Node::start(vec![harm("harm", "")]);
    let mut ws = Clients::ws();
    let welcome = ws.join_ws(&node, "forger", "harm", &token("harm", "forger", json!({})));
    assert_eq!(welcome["rooms"], json!(["public"]), "forged rooms were given at connect");
    for room in ["user:somebody", "everyone", "connection:x", "/other#room", "user:forger"] {
        let answer = ws.request("forger", "join_room", json!({ "room": room }));
        assert_eq!(answer["error"]["code"], "forbidden", "{room}");
    }
}

#[test]
fn a_token_that_ends_ends_the_connection_unless_a_fresh_one_comes_in_time() {
    let node = Node::start(vec![open("one", "auth.leeway_s = 0")]);
    let mut ws = Clients::ws();
    let soon = now_s() + 3;
    ws.join_ws(&node, "stale", "one", &token_until("one", "bob", json!({}), soon));
    ws.join_ws(&node, "fresh", "one", &token_until("one", "bob", json!({}), soon));
    ws.message("fresh", json!({ "event": "token_expiring" }));
    let other = ws.request("fresh", "refresh_token", json!({ "token": token("one", "eve", json!({})) }));
    assert_eq!(other["error"]["code"], "forbidden");
    let answer = ws.request("fresh", "refresh_token", json!({ "token": token("one", "bob", json!({})) }));
    assert!(answer["expires_at_s"].as_u64().unwrap() > soon);
    assert_eq!(ws.message("stale", json!({ "event": "error" }))["data"]["code"], "token_expired");
    assert_eq!(ws.closed("stale"), (4005, "token_expired".into()));
    assert!(ws.request("fresh", "heartbeat", json!({}))["ts"].is_u64());
}

#[test]
fn clients_without_a_token_come_in_only_where_the_tenant_says_so() {
    let node = Node::start(vec![open("public", "auth.anonymous = true"), open("private", "")]);
    let mut ws = Clients::ws();
    ws.tell(json!({"do": "connect", "name": "anybody", "url": node.ws("public")}));
    let subject = ws.message("anybody", json!({ "event": "connected" }))["data"]["subject"].clone();
    assert!(subject.as_str().unwrap().starts_with("anonymous"), "{subject}");
    ws.tell(json!({"do": "connect", "name": "nobody", "url": node.ws("private")}));
    assert_eq!(ws.closed("nobody").0, 4500);
    assert!(node.log().contains("public"), "the log does not warn of anonymous clients");
}

#[test]
fn a_join_that_the_component_refuses_is_told_and_not_done() {
    let node = Node::start(vec![society("gv", 60_000)]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    let asha = token("gv", "asha", resident("gv", &["A-101"]));
    ws.join_ws(&node, "asha", "gv", &asha);
    io.join_socketio(&node, "asha", "gv", &asha);
    for room in ["flat:B-7", "society:gv", "nonsense:1"] {
        assert_eq!(ws.request("asha", "join_room", json!({ "room": room }))["error"]["code"], "forbidden", "{room}");
    }
    let (room_type, room_id) = ("flat", "B-7");
    let refused = io.ask("asha", "join_room", json!({ "room_type": room_type, "room_id": room_id, "user_id": "asha" }));
    assert_eq!(refused["error"]["code"], "forbidden");
    let foreign = io.ask("asha", "join_room", json!({ "room_type": "flat", "room_id": "A-101", "user_id": "ravi" }));
    assert_eq!(foreign["error"]["code"], "forbidden");
}
