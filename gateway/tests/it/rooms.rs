//! Joining, publishing, and who receives what.

use std::time::Duration;

use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::{open, token};

fn one() -> Node {
    Node::start(vec![open("one", "")])
}

#[test]
fn a_room_is_joined_by_type_and_id_and_answered_as_existing_clients_expect() {
    let node = one();
    let mut io = Clients::socketio();
    io.join_socketio(&node, "bob", "one", &token("one", "bob", json!({})));
    let expected = json!({ "room_type": "task", "room_id": "7", "room_name": "task:7" });
    assert_eq!(io.ask("bob", "join_room", json!({ "room_type": "task", "room_id": 7, "user_id": "bob" })), expected);
    assert_eq!(io.event("bob", "room_joined"), expected);
    assert_eq!(io.ask("bob", "leave_room", json!({ "room_type": "task", "room_id": "7" })), expected);
    assert_eq!(io.event("bob", "room_left"), expected);
    let channel = io.ask("bob", "join_channel", json!({ "channelId": "general" }));
    assert_eq!(channel["channelId"], "general");
    assert_eq!(io.event("bob", "joined_channel")["room_name"], "channel:general");
}

#[test]
fn several_rooms_are_joined_in_one_step_with_refusals_beside() {
    let node = one();
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "one", &token("one", "bob", json!({})));
    let joined = ws.request("bob", "subscribe", json!({ "channels": ["a:1", "user:eve", "b:2"] }));
    assert_eq!(joined["channels"], json!(["a:1", "b:2"]));
    assert_eq!(joined["refused"][0]["channel"], "user:eve");
    assert_eq!(joined["refused"][0]["code"], "forbidden");
    let left = ws.request("bob", "unsubscribe", json!(["a:1", "b:2"]));
    assert_eq!(left["channels"], json!(["a:1", "b:2"]));
    assert_eq!(
        ws.request("bob", "publish", json!({ "room": "a:1", "event": "x", "data": 1 }))["error"]["code"],
        "forbidden"
    );
}

#[test]
fn a_publication_reaches_every_member_and_the_sender_only_if_it_wants() {
    let node = one();
    let mut ws = Clients::ws();
    for name in ["bob", "eve", "out"] {
        ws.join_ws(&node, name, "one", &token("one", name, json!({})));
    }
    for name in ["bob", "eve"] {
        ws.request(name, "join_room", json!({ "room": "chat:1" }));
    }
    let pos =
        ws.request("bob", "publish", json!({ "room": "chat:1", "event": "said", "data": { "n": 1 } }))["pos"].clone();
    for name in ["bob", "eve"] {
        let said = ws.message(name, json!({ "event": "said", "room": "chat:1", "data": { "n": 1 } }));
        assert_eq!(said["pos"], pos);
    }
    ws.request("bob", "publish", json!({ "room": "chat:1", "event": "said", "data": { "n": 2 }, "echo": false }));
    ws.message("eve", json!({ "event": "said", "data": { "n": 2 } }));
    ws.absent(json!({ "what": "message", "name": "bob", "json": { "data": { "n": 2 } } }));
    ws.absent(json!({ "what": "message", "name": "out", "json": { "event": "said" } }));
}

#[test]
fn several_publications_of_one_frame_are_one_commit() {
    let node = one();
    let mut ws = Clients::ws();
    for name in ["bob", "eve"] {
        ws.join_ws(&node, name, "one", &token("one", name, json!({})));
        ws.request(name, "subscribe", json!(["a:1", "b:2"]));
    }
    let batch = json!([{ "room": "a:1", "event": "u", "data": 1 }, { "room": "b:2", "event": "u", "data": 2 }]);
    let pos = ws.request("bob", "batch_update", batch)["pos"].as_str().unwrap().to_owned();
    let first = ws.message("eve", json!({ "event": "u", "data": 1 }));
    assert_eq!(first["pos"], format!("{pos}.0"), "a part of an entry must not look like the whole");
    assert_eq!(ws.message("eve", json!({ "event": "u", "data": 2 }))["pos"], pos);
    let mixed = json!([{ "room": "a:1", "event": "u", "data": 3 }, { "room": "not:joined", "event": "u", "data": 4 }]);
    assert_eq!(ws.request("bob", "batch_update", mixed)["error"]["code"], "forbidden");
    ws.absent(json!({ "what": "message", "json": { "event": "u", "data": 3 } }));
}

#[test]
fn what_clients_publish_themselves_counts_towards_what_their_tenant_may_publish() {
    let node = Node::start(vec![open("one", "call_limits.publications_per_second = 100\n"), open("two", "")]);
    let mut ws = Clients::ws();
    for (name, tenant) in [("bob", "one"), ("eve", "two")] {
        ws.join_ws(&node, name, tenant, &token(tenant, name, json!({})));
        ws.request(name, "join_room", json!({ "room": "a:1" }));
    }
    let batch = json!(vec![json!({ "room": "a:1", "event": "u", "data": 1 }); 60]);
    assert!(ws.request("bob", "batch_update", batch.clone())["pos"].is_string());
    let refused = ws.request("bob", "batch_update", batch.clone());
    assert_eq!(refused["error"]["code"], "rate_limit", "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("call_limits.publications_per_second = 100"));
    assert!(ws.request("eve", "batch_update", batch.clone())["pos"].is_string());
    std::thread::sleep(Duration::from_millis(refused["error"]["retry_after_ms"].as_u64().unwrap() + 50));
    assert!(ws.request("bob", "batch_update", batch)["pos"].is_string());
}

#[test]
fn every_member_sees_the_events_of_a_room_in_one_order() {
    let node = one();
    let mut ws = Clients::ws();
    let names = ["a", "b", "c"];
    for name in names {
        ws.join_ws(&node, name, "one", &token("one", name, json!({})));
        ws.request(name, "join_room", json!({ "room": "r:1" }));
    }
    ws.publish_at_once(&names, "r:1", 100);
    let first = ws.order("a");
    assert_eq!(first.len(), 300);
    assert!(ws.order("b") == first && ws.order("c") == first, "members saw different orders");
    for name in names {
        let said = first.iter().map(|(_, data)| data.as_str().unwrap());
        let own: Vec<_> = said.filter(|said| said.starts_with(name)).collect();
        assert_eq!(
            own,
            (0..100).map(|n| format!("{name}{n}")).collect::<Vec<_>>(),
            "the order of one sender is broken"
        );
    }
}

#[test]
fn members_read_who_is_there_and_what_was_said() {
    let node = one();
    let mut ws = Clients::ws();
    for name in ["bob", "eve"] {
        ws.join_ws(&node, name, "one", &token("one", name, json!({})));
        ws.request(name, "join_room", json!({ "room": "r:1" }));
    }
    let present = ws.request("bob", "presence", json!({ "room": "r:1" }));
    assert_eq!((present["count"].as_u64(), &present["users"]), (Some(2), &json!(["bob", "eve"])));
    for n in 0..5 {
        ws.request("bob", "publish", json!({ "room": "r:1", "event": "n", "data": n }));
    }
    let page = ws.request("eve", "history", json!({ "room": "r:1", "limit": 2 }));
    let data = |page: &serde_json::Value| {
        page["events"].as_array().unwrap().iter().map(|e| e["data"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((data(&page), &page["more"]), (vec![json!(3), json!(4)], &json!(true)));
    let older = ws.request("eve", "history", json!({ "room": "r:1", "limit": 10, "before": page["before"] }));
    assert_eq!((data(&older), &older["more"]), (vec![json!(0), json!(1), json!(2)], &json!(false)));
    assert_eq!(ws.request("eve", "history", json!({ "room": "not:joined" }))["error"]["code"], "forbidden");
    assert_eq!(ws.request("eve", "presence", json!({ "room": "not:joined" }))["error"]["code"], "forbidden");
    ws.tell(json!({ "do": "close", "name": "bob" }));
    ws.closed("bob");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(ws.request("eve", "presence", json!({ "room": "r:1" }))["users"], json!(["eve"]));
}

#[test]
fn tenants_never_hear_of_each_other() {
    let node = Node::start(vec![open("one", ""), open("two", "")]);
    let mut ws = Clients::ws();
    for tenant in ["one", "two"] {
        ws.join_ws(&node, tenant, tenant, &token(tenant, "bob", json!({})));
        ws.request(tenant, "join_room", json!({ "room": "same:room" }));
    }
    ws.request("one", "publish", json!({ "room": "same:room", "event": "secret", "data": 1 }));
    ws.message("one", json!({ "event": "secret" }));
    ws.absent(json!({ "what": "message", "name": "two", "json": { "event": "secret" } }));
    assert_eq!(ws.request("two", "presence", json!({ "room": "same:room" }))["count"], 1);
    assert_eq!(ws.request("two", "history", json!({ "room": "same:room" }))["events"], json!([]));
}

#[test]
fn a_plain_client_that_comes_back_gets_what_it_missed_in_order() {
    let node = one();
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    let welcome = ws.join_ws(&node, "bob", "one", &bob);
    ws.join_ws(&node, "eve", "one", &token("one", "eve", json!({})));
    for name in ["bob", "eve"] {
        ws.request(name, "join_room", json!({ "room": "r:1" }));
    }
    ws.request("eve", "publish", json!({ "room": "r:1", "event": "n", "data": 0 }));
    let pos = ws.message("bob", json!({ "event": "n", "data": 0 }))["pos"].clone();
    ws.tell(json!({ "do": "cut", "name": "bob" }));
    ws.closed("bob");
    for n in 1..=3 {
        ws.request("eve", "publish", json!({ "room": "r:1", "event": "n", "data": n }));
    }
    ws.join_ws(&node, "back", "one", &bob);
    let resumed = ws.request("back", "resume", json!({ "session": welcome["session"], "pos": pos }));
    assert_eq!((&resumed["recovered"], &resumed["missed"]), (&json!(true), &json!(3)));
    ws.request("eve", "publish", json!({ "room": "r:1", "event": "n", "data": 4 }));
    ws.message("back", json!({ "event": "n", "data": 4 }));
    let got: Vec<_> = ws
        .all(&json!({ "name": "back", "json": { "event": "n" } }))
        .iter()
        .map(|m| m["json"]["data"].clone())
        .collect();
    assert_eq!(got, [1, 2, 3, 4]);
    let again = ws.request("back", "resume", json!({ "session": welcome["session"], "pos": pos }));
    assert_eq!(again["error"]["code"], "invalid", "a connection resumed twice");
    ws.join_ws(&node, "stranger", "one", &token("one", "mallory", json!({})));
    let stolen = ws.request("stranger", "resume", json!({ "session": welcome["session"], "pos": pos }));
    assert_eq!(stolen["recovered"], false, "somebody else resumed the session");
}

#[test]
fn resuming_gives_nothing_from_before_the_session_was_in_a_room() {
    let node = one();
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    ws.join_ws(&node, "eve", "one", &token("one", "eve", json!({})));
    ws.request("eve", "join_room", json!({ "room": "r:1" }));
    let welcome = ws.join_ws(&node, "bob", "one", &bob);
    ws.request("eve", "publish", json!({ "room": "r:1", "event": "n", "data": "before" }));
    ws.request("bob", "join_room", json!({ "room": "r:1" }));
    ws.request("eve", "publish", json!({ "room": "r:1", "event": "n", "data": "after" }));
    ws.message("bob", json!({ "event": "n", "data": "after" }));
    let own = ws.request("bob", "resume", json!({ "session": welcome["session"], "pos": welcome["pos"] }));
    assert_eq!(own["error"]["code"], "invalid", "a connection resumed itself");
    ws.tell(json!({ "do": "cut", "name": "bob" }));
    ws.join_ws(&node, "back", "one", &bob);
    let resumed = ws.request("back", "resume", json!({ "session": welcome["session"], "pos": welcome["pos"] }));
    assert_eq!((&resumed["recovered"], &resumed["missed"]), (&json!(true), &json!(1)), "{resumed}");
    ws.message("back", json!({ "event": "n", "data": "after" }));
    ws.absent(json!({ "what": "message", "name": "back", "json": { "data": "before" } }));
}

#[test]
fn a_session_can_be_resumed_long_after_its_last_join() {
    let node = Node::start(vec![open("one", "limits.recovery_window_ms = 900")]);
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    let welcome = ws.join_ws(&node, "bob", "one", &bob);
    ws.request("bob", "join_room", json!({ "room": "r:1" }));
    std::thread::sleep(Duration::from_millis(1_500));
    ws.tell(json!({ "do": "cut", "name": "bob" }));
    ws.closed("bob");
    ws.join_ws(&node, "back", "one", &bob);
    let resumed = ws.request("back", "resume", json!({ "session": welcome["session"], "pos": welcome["pos"] }));
    assert_eq!((&resumed["recovered"], &resumed["rooms"]), (&json!(true), &json!(["r:1"])), "{resumed}");
}

#[test]
fn members_cannot_speak_in_the_gateways_name() {
    let node = one();
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "one", &token("one", "bob", json!({})));
    ws.request("bob", "join_room", json!({ "room": "r:1" }));
    for event in ["server:shutdown", "error", "reset", "connected"] {
        let answer = ws.request("bob", "publish", json!({ "room": "r:1", "event": event, "data": 1 }));
        assert_eq!(answer["error"]["code"], "forbidden", "{event}");
    }
}

#[test]
fn the_latest_events_come_with_the_join_and_none_of_them_twice() {
    let node = Node::start(vec![open("one", "history_on_join = 2")]);
    let mut io = Clients::socketio();
    for name in ["bob", "eve"] {
        io.join_socketio(&node, name, "one", &token("one", name, json!({})));
    }
    io.ask("bob", "join_room", json!({ "room": "r:1" }));
    for n in 0..3 {
        io.ask("bob", "publish", json!({ "room": "r:1", "event": "n", "data": n }));
    }
    io.ask("eve", "join_room", json!({ "room": "r:1" }));
    io.ask("bob", "publish", json!({ "room": "r:1", "event": "n", "data": 3 }));
    let page = loop {
        let page = io.event("eve", "history");
        if page["events"].as_array().is_some_and(|events| !events.is_empty()) {
            break page;
        }
    };
    let data: Vec<_> = page["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect();
    assert_eq!(data, [1, 2]);
    assert_eq!(io.event("eve", "n"), 3);
}
