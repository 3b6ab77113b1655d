//! Coming back, in both protocols, to any node: exactly what was missed, or the word that it cannot be had.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postern::engine::embedded::{EmbeddedEngine, Options};
use serde_json::{Value, json};

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::staged_engine::StagedEngine;
use crate::support::{harm, open, resident, society, tenant_file, token};

const RECOVERY: &str = "socketio_recovery = true";

fn on(redis: &RedisServer, tenant: (String, String)) -> Node {
    Node::with(Settings { tenants: vec![tenant], config: String::new(), redis_url: Some(redis.url()) })
}

fn two_nodes(redis: &RedisServer) -> [Node; 2] {
    [on(redis, open("one", RECOVERY)), on(redis, open("one", RECOVERY))]
}

/// The data of the events `n` that a Socket.IO client received, in its order.
fn heard(io: &Clients, name: &str) -> Vec<Value> {
    let seen = io.all(&json!({ "what": "event", "name": name, "event": "n" }));
    seen.iter().map(|event| event["args"][0].clone()).collect()
}

/// Bob comes to a room by Socket.IO, Eve plainly, and Bob has heard of her.
fn bob_and_eve(io: &mut Clients, ws: &mut Clients, bobs: &Node, eves: &Node) {
    io.join_socketio(bobs, "bob", "one", &token("one", "bob", json!({})));
    io.ask("bob", "join_room", json!({ "room": "r:1" }));
    ws.join_ws(eves, "eve", "one", &token("one", "eve", json!({})));
    ws.request("eve", "join_room", json!({ "room": "r:1" }));
    say(ws, 0);
    io.event("bob", "n");
}

fn say(ws: &mut Clients, n: u64) {
    ws.request("eve", "publish", json!({ "room": "r:1", "event": "n", "data": n }));
}

fn cut(io: &mut Clients, name: &str) {
    io.tell(json!({ "do": "cut", "name": name }));
    io.expect(json!({ "what": "disconnect", "name": name }));
}

/// Reconnects the same client; was it told that it got everything?
fn back(io: &mut Clients, name: &str, node: &Node, auth: Value) -> bool {
    io.tell(json!({ "do": "reconnect", "name": name, "url": node.url(), "auth": auth }));
    io.expect(json!({ "what": "connect", "name": name }))["recovered"] == true
}

fn auth(subject: &str) -> Value {
    json!({ "token": token("one", subject, json!({})) })
}

fn is_offset(value: &Value) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    value.as_str().and_then(|text| text.split_once('-')).is_some_and(|(epoch, rest)| {
        digits(epoch) && rest.split_once('.').map_or(digits(rest), |(seq, part)| digits(seq) && digits(part))
    })
}

fn cut_and_back(bobs: &Node, other: &Node) {
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    bob_and_eve(&mut io, &mut ws, bobs, other);
    for round in 0..3 {
        cut(&mut io, "bob");
        for n in 1..=3 {
            say(&mut ws, round * 10 + n);
        }
        let target = if round % 2 == 0 { other } else { bobs };
        assert!(back(&mut io, "bob", target, auth("bob")), "round {round}");
        say(&mut ws, round * 10 + 4);
        io.expect(json!({ "what": "event", "name": "bob", "event": "n", "args": [round * 10 + 4] }));
    }
    assert_eq!(heard(&io, "bob"), [0, 1, 2, 3, 4, 11, 12, 13, 14, 21, 22, 23, 24]);
    let said = io.ask("bob", "publish", json!({ "room": "r:1", "event": "n", "data": "kept" }));
    assert!(said["pos"].is_string(), "the room was not kept: {said}");
    ws.message("eve", json!({ "event": "n", "data": "kept" }));
    assert_eq!(ws.request("eve", "presence", json!({ "room": "r:1" }))["users"], json!(["bob", "eve"]));
    let resumed = bobs.metric("resume_total", "recovered") + other.metric("resume_total", "recovered");
    assert!(resumed >= 3.0, "{resumed} resumes were counted");
}

#[test]
fn a_socket_io_client_that_is_cut_finds_on_another_node_all_that_it_missed_once_and_in_order() {
    let redis = RedisServer::start();
    let [one, two] = two_nodes(&redis);
    cut_and_back(&one, &two);
}

#[test]
fn a_socket_io_client_that_is_cut_comes_back_to_a_single_node() {
    let node = Node::start(vec![open("one", RECOVERY)]);
    cut_and_back(&node, &node);
}

#[test]
fn the_clients_of_a_node_that_is_killed_go_on_elsewhere() {
    let redis = RedisServer::start();
    let [mut one, two] = two_nodes(&redis);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    bob_and_eve(&mut io, &mut ws, &one, &two);
    one.signal("KILL");
    one.wait();
    io.expect(json!({ "what": "disconnect", "name": "bob" }));
    say(&mut ws, 1);
    assert!(back(&mut io, "bob", &two, auth("bob")));
    say(&mut ws, 2);
    io.expect(json!({ "what": "event", "name": "bob", "event": "n", "args": [2] }));
    assert_eq!(heard(&io, "bob"), [0, 1, 2]);
    let present = ws.request("eve", "presence", json!({ "room": "r:1" }));
    assert_eq!((&present["count"], &present["users"]), (&json!(2), &json!(["bob", "eve"])), "a ghost is left");
}

#[test]
fn what_went_to_the_client_itself_and_to_everyone_is_missed_as_well() {
    let node = Node::start(vec![harm("harm", RECOVERY)]);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    let bob = token("harm", "bob", json!({}));
    io.join_socketio(&node, "bob", "harm", &bob);
    ws.join_ws(&node, "eve", "harm", &token("harm", "eve", json!({})));
    ws.request("eve", "many_publications", json!({ "n": 1 }));
    io.event("bob", "one_of_many");
    cut(&mut io, "bob");
    ws.request("eve", "many_publications", json!({ "n": 3 }));
    assert!(back(&mut io, "bob", &node, json!({ "token": bob })));
    for _ in 0..3 {
        io.event("bob", "one_of_many");
    }
    io.absent(json!({ "what": "event", "name": "bob", "event": "one_of_many" }));
}

#[test]
fn a_room_that_a_handler_gave_is_kept() {
    let node = Node::start(vec![harm("harm", RECOVERY)]);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    let bob = token("harm", "bob", json!({}));
    io.join_socketio(&node, "bob", "harm", &bob);
    ws.join_ws(&node, "eve", "harm", &token("harm", "eve", json!({})));
    ws.request("eve", "join_room", json!({ "room": "given:1" }));
    io.tell(json!({ "do": "emit", "name": "bob", "event": "count", "args": [{}], "ack": true, "tag": "first" }));
    io.expect(json!({ "what": "ack", "tag": "first" }));
    io.ask("bob", "join_me", json!({ "room": "given:1" }));
    ws.request("eve", "publish", json!({ "room": "given:1", "event": "n", "data": 0 }));
    io.event("bob", "n");
    cut(&mut io, "bob");
    ws.request("eve", "publish", json!({ "room": "given:1", "event": "n", "data": 1 }));
    assert!(back(&mut io, "bob", &node, json!({ "token": bob })));
    assert_eq!(io.event("bob", "n"), 1);
}

#[test]
fn every_event_carries_an_offset_also_those_of_the_gateway_and_those_that_no_log_has() {
    let node = Node::start(vec![harm("harm", RECOVERY)]);
    let mut io = Clients::socketio();
    let bob = token("harm", "bob", json!({}));
    io.join_socketio(&node, "bob", "harm", &bob);
    io.ask("bob", "join_room", json!({ "room": "r:1" }));
    io.tell(json!({ "do": "emit", "name": "bob", "event": "no_such_order", "args": [1] }));
    io.event("bob", "error");
    io.ask("bob", "whisper", json!({ "room": "r:1" }));
    io.event("bob", "whispered");
    let file = json!({ "name": "a", "bytes": { "$bin": "AQI=" } });
    io.ask("bob", "publish", json!({ "room": "r:1", "event": "file", "data": file }));
    assert_eq!(io.event("bob", "file"), file);
    io.ask("bob", "publish", json!({ "room": "r:1", "event": "text", "args": ["last"] }));
    io.event("bob", "text");
    node.signal("TERM");
    io.event("bob", "server:shutdown");
    let events = io.all(&json!({ "what": "event", "name": "bob" }));
    assert_eq!(events.len(), 6);
    for event in &events {
        let args = event["args"].as_array().unwrap();
        assert!(args.len() == 2 && is_offset(&args[1]), "{event}");
    }
    for ack in io.all(&json!({ "what": "ack" })) {
        assert!(!ack["args"].as_array().unwrap().last().is_some_and(is_offset), "{ack}");
    }
}

#[test]
fn offsets_of_the_gateways_own_words_lose_nothing_and_double_nothing() {
    let node = Node::start(vec![open("one", RECOVERY)]);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    bob_and_eve(&mut io, &mut ws, &node, &node);
    for n in 1..=50 {
        // Words of the gateway's own, between what others say.
        io.tell(json!({ "do": "emit", "name": "bob", "event": "no_such_event", "args": [1] }));
        say(&mut ws, n);
    }
    io.expect(json!({ "what": "event", "name": "bob", "event": "n", "args": [50] }));
    io.tell(json!({ "do": "emit", "name": "bob", "event": "no_such_event", "args": ["last"] }));
    std::thread::sleep(Duration::from_millis(100));
    cut(&mut io, "bob");
    say(&mut ws, 51);
    assert!(back(&mut io, "bob", &node, auth("bob")));
    io.expect(json!({ "what": "event", "name": "bob", "event": "n", "args": [51] }));
    assert_eq!(heard(&io, "bob"), (0..=51).collect::<Vec<_>>());
    let offsets: Vec<_> = io
        .all(&json!({ "what": "event", "name": "bob" }))
        .iter()
        .map(|event| postern::commit::Position::parse(event["args"][1].as_str().unwrap()).unwrap())
        .collect();
    assert!(offsets.is_sorted(), "an offset went back: {offsets:?}");
}

#[test]
fn without_the_setting_events_have_the_arguments_that_were_published_and_nothing_is_recovered() {
    let node = Node::start(vec![open("one", "")]);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    bob_and_eve(&mut io, &mut ws, &node, &node);
    for event in io.all(&json!({ "what": "event", "name": "bob" })) {
        assert_eq!(event["args"].as_array().map(Vec::len), Some(1), "{event}");
    }
    cut(&mut io, "bob");
    say(&mut ws, 1);
    assert!(!back(&mut io, "bob", &node, auth("bob")));
    io.absent(json!({ "what": "event", "name": "bob", "event": "n" }));
}

#[test]
fn a_session_is_recovered_by_nobody_else_and_not_after_its_time() {
    let node = Node::start(vec![open("one", "socketio_recovery = true\nlimits.recovery_window_ms = 400")]);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    bob_and_eve(&mut io, &mut ws, &node, &node);
    cut(&mut io, "bob");
    say(&mut ws, 1);
    assert!(!back(&mut io, "bob", &node, auth("mallory")), "somebody else has the session");
    io.absent(json!({ "what": "event", "name": "bob", "event": "n", "args": [1] }));
    cut(&mut io, "bob");
    std::thread::sleep(Duration::from_millis(600));
    assert!(!back(&mut io, "bob", &node, auth("mallory")), "a session was kept too long");
    assert!(node.metric("resume_total", "refused") == 1.0 && node.metric("resume_total", "expired") == 1.0);
}

#[test]
fn a_client_that_leaves_of_its_own_accord_begins_anew() {
    let node = Node::start(vec![open("one", RECOVERY)]);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    bob_and_eve(&mut io, &mut ws, &node, &node);
    io.tell(json!({ "do": "disconnect", "name": "bob" }));
    io.expect(json!({ "what": "disconnect", "name": "bob" }));
    say(&mut ws, 1);
    assert!(!back(&mut io, "bob", &node, auth("bob")));
    io.absent(json!({ "what": "event", "name": "bob", "event": "n" }));
}

/// Takes all but the latest entries from every log.
fn forget_history(redis: &RedisServer) {
    let keys: Vec<String> = redis::from_redis_value(redis.command(&["KEYS", "*"])).unwrap();
    for key in keys {
        let kind: String = redis::from_redis_value(redis.command(&["TYPE", &key])).unwrap();
        if kind == "stream" {
            redis.command(&["XTRIM", &key, "MAXLEN", "1"]);
        }
    }
}

#[test]
fn a_client_whose_history_is_gone_is_told_so_and_given_no_part_of_it() {
    let redis = RedisServer::start();
    let [one, two] = two_nodes(&redis);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    bob_and_eve(&mut io, &mut ws, &one, &two);
    let welcome = ws.join_ws(&one, "plain", "one", &token("one", "plain", json!({})));
    ws.request("plain", "join_room", json!({ "room": "r:1" }));
    cut(&mut io, "bob");
    cut_ws(&mut ws, "plain");
    (1..=3).for_each(|n| say(&mut ws, n));
    forget_history(&redis);
    // The nodes that followed the log have what was said in memory; one that starts now has not.
    let three = on(&redis, open("one", RECOVERY));
    assert!(!back(&mut io, "bob", &three, auth("bob")));
    let query = json!({ "session": welcome["session"], "pos": welcome["pos"] });
    let told = back_ws(&mut ws, "plain", &three, "plain", query);
    assert_eq!(told["recovered"], false, "{told}");
    assert_eq!(ws.message("plain", json!({ "event": "reset" }))["data"]["recovered"], false);
    say(&mut ws, 4);
    io.absent(json!({ "what": "event", "name": "bob", "event": "n" }));
    ws.absent(json!({ "what": "message", "name": "plain", "json": { "event": "n" } }));
}

#[test]
fn a_room_that_is_joined_right_after_a_loss_is_a_room_of_the_session() {
    let redis = RedisServer::start();
    let [one, two] = two_nodes(&redis);
    let mut ws = Clients::ws();
    let names: Vec<_> = (0..8).map(|n| format!("plain-{n}")).collect();
    let sessions: Vec<_> = names
        .iter()
        .map(|name| ws.join_ws(&one, name, "one", &token("one", name, json!({})))["session"].clone())
        .collect();
    ws.join_ws(&two, "eve", "one", &token("one", "eve", json!({})));
    // Nobody says anything: that the log is lost is found with the joins.
    redis.command(&["FLUSHALL"]);
    for name in &names {
        ws.tell(
            json!({ "do": "send", "name": name, "json": { "id": 7, "event": "join_room", "data": { "room": "r:1" } } }),
        );
    }
    let mut positions = Vec::new();
    for name in &names {
        let joined = ws.message(name, json!({ "id": 7 }));
        assert_eq!(joined["data"]["room_name"], "r:1", "{joined}");
        positions.push(ws.message(name, json!({ "event": "reset" }))["data"]["pos"].clone());
        cut_ws(&mut ws, name);
    }
    let said = ws.request("eve", "join_room", json!({ "room": "r:1" }));
    assert_eq!(said["room_name"], "r:1", "{said}");
    say(&mut ws, 1);
    for ((name, session), pos) in names.iter().zip(&sessions).zip(&positions) {
        let told = back_ws(&mut ws, name, &two, name, json!({ "session": session, "pos": pos }));
        assert_eq!((&told["recovered"], &told["rooms"]), (&json!(true), &json!(["r:1"])), "{told}");
        assert_eq!(ws.message(name, json!({ "event": "n" }))["data"], 1);
    }
}

#[test]
fn a_client_that_heard_nothing_for_long_is_recovered_by_what_it_answered_for() {
    let redis = RedisServer::start();
    let tenant = open("one", "socketio_recovery = true\nlimits.recovery_window_ms = 900");
    let config = "ping_interval_ms = 100\nping_timeout_ms = 2000\n".to_owned();
    let node = Node::with(Settings { tenants: vec![tenant], config, redis_url: Some(redis.url()) });
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    bob_and_eve(&mut io, &mut ws, &node, &node);
    for n in 0..5 {
        ws.request("eve", "join_room", json!({ "room": format!("other:{n}") }));
    }
    // A ping, its answer, and the record's next writing.
    std::thread::sleep(Duration::from_millis(700));
    forget_history(&redis);
    cut(&mut io, "bob");
    say(&mut ws, 1);
    assert!(back(&mut io, "bob", &node, auth("bob")), "all that it missed was there");
    assert_eq!(io.event("bob", "n"), 1);
    assert_eq!(heard(&io, "bob"), [0, 1]);
}

#[test]
fn a_room_that_is_not_allowed_any_more_is_not_rejoined() {
    let (id, file) = society("gv", 60_000);
    let node = Node::start(vec![(id, format!("{RECOVERY}\n{file}"))]);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    io.join_socketio(&node, "asha", "gv", &token("gv", "asha", resident("gv", &["A-101"])));
    io.ask("asha", "join_room", json!({ "room": "flat:A-101" }));
    ws.join_ws(&node, "ravi", "gv", &token("gv", "ravi", crate::support::guard("gv")));
    ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Meera" }));
    io.event("asha", "visitor_request");
    cut(&mut io, "asha");
    ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Vikram" }));
    let moved_out = token("gv", "asha", resident("gv", &["B-7"]));
    assert!(back(&mut io, "asha", &node, json!({ "token": moved_out })));
    ws.request("ravi", "visitor_create", json!({ "flat_id": "A-101", "visitor_name": "Tara" }));
    io.absent(json!({ "what": "event", "name": "asha", "event": "visitor_request" }));
}

fn cut_ws(ws: &mut Clients, name: &str) {
    ws.tell(json!({ "do": "cut", "name": name }));
    ws.closed(name);
}

/// Connects a plain client that names its session: the welcome.
fn back_ws(ws: &mut Clients, name: &str, node: &Node, subject: &str, mut query: Value) -> Value {
    query["token"] = token("one", subject, json!({})).into();
    ws.tell(json!({ "do": "connect", "name": name, "url": node.ws("one"), "query": query }));
    ws.message(name, json!({ "event": "connected" }))["data"].clone()
}

#[test]
fn a_plain_client_that_names_its_session_gets_what_it_missed_before_anything_else() {
    let redis = RedisServer::start();
    let [one, two] = two_nodes(&redis);
    let mut ws = Clients::ws();
    let welcome = ws.join_ws(&one, "bob", "one", &token("one", "bob", json!({})));
    assert!(welcome.get("recovered").is_none(), "{welcome}");
    ws.join_ws(&two, "eve", "one", &token("one", "eve", json!({})));
    for name in ["bob", "eve"] {
        ws.request(name, "join_room", json!({ "room": "r:1" }));
    }
    say(&mut ws, 0);
    let pos = ws.message("bob", json!({ "event": "n" }))["pos"].clone();
    cut_ws(&mut ws, "bob");
    (1..=3).for_each(|n| say(&mut ws, n));
    let query = json!({ "session": welcome["session"], "pos": pos });
    let told = back_ws(&mut ws, "back", &two, "bob", query);
    assert_eq!(
        (&told["recovered"], &told["missed"], &told["session"], &told["rooms"], &told["pos"]),
        (&json!(true), &json!(3), &welcome["session"], &json!(["r:1"]), &pos),
        "until the rest has come, the client's position is its own"
    );
    say(&mut ws, 4);
    ws.message("back", json!({ "event": "n", "data": 4 }));
    let order: Vec<_> = ws.order("back").into_iter().map(|(_, data)| data).collect();
    assert_eq!(order, [1, 2, 3, 4]);
    let again = ws.request("back", "resume", json!({ "session": "another", "pos": pos }));
    assert_eq!(again["error"]["code"], "invalid", "a connection came back twice");
    let stranger = back_ws(&mut ws, "stranger", &one, "mallory", json!({ "session": welcome["session"], "pos": pos }));
    assert_eq!(stranger["recovered"], false);
}

#[test]
fn a_connection_whose_session_went_on_elsewhere_is_ended() {
    let redis = RedisServer::start();
    let [one, two] = two_nodes(&redis);
    let mut ws = Clients::ws();
    let welcome = ws.join_ws(&one, "half-open", "one", &token("one", "bob", json!({})));
    ws.request("half-open", "join_room", json!({ "room": "r:1" }));
    let told = back_ws(&mut ws, "back", &two, "bob", json!({ "session": welcome["session"], "pos": welcome["pos"] }));
    assert_eq!((&told["recovered"], &told["rooms"]), (&json!(true), &json!(["r:1"])));
    assert_eq!(ws.closed("half-open"), (4006, "fenced".into()));
    std::thread::sleep(Duration::from_millis(200));
    let present = ws.request("back", "presence", json!({ "room": "r:1" }));
    assert_eq!(
        (&present["count"], &present["users"]),
        (&json!(1), &json!(["bob"])),
        "the old one took the new one along"
    );
}

#[test]
fn a_client_comes_back_although_the_connection_that_it_lost_still_counts() {
    let tenant = tenant_file("one", &[("authorizer", "authorizer", "bench")], "limits.connections_per_user = 1", "");
    let node = Node::start(vec![tenant]);
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    let welcome = ws.join_ws(&node, "half-open", "one", &bob);
    ws.try_ws("another", &node.ws("one"), &bob);
    assert_eq!(ws.closed("another"), (4502, "connection_limit".into()));
    let session = json!({ "session": welcome["session"], "pos": welcome["pos"] });
    assert_eq!(back_ws(&mut ws, "back", &node, "bob", session)["recovered"], true);
    assert_eq!(ws.closed("half-open"), (4006, "fenced".into()));
    ws.try_ws("one more", &node.ws("one"), &bob);
    assert_eq!(ws.closed("one more"), (4502, "connection_limit".into()));
}

#[test]
fn clients_of_a_node_that_stops_come_back_elsewhere_and_miss_nothing() {
    let redis = RedisServer::start();
    let [mut one, two] = two_nodes(&redis);
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    bob_and_eve(&mut io, &mut ws, &one, &two);
    one.signal("TERM");
    io.event("bob", "server:shutdown");
    io.expect(json!({ "what": "disconnect", "name": "bob" }));
    say(&mut ws, 1);
    assert!(back(&mut io, "bob", &two, auth("bob")));
    assert_eq!(io.event("bob", "n"), 1);
    assert_eq!(one.wait(), Some(0));
    let present = ws.request("eve", "presence", json!({ "room": "r:1" }));
    assert_eq!((&present["count"], &present["users"]), (&json!(2), &json!(["bob", "eve"])));
}

#[test]
fn handlers_are_not_told_of_the_end_of_a_session_that_went_on_elsewhere() {
    let redis = RedisServer::start();
    let tenant = || harm("harm", "socketio_recovery = true\nlimits.recovery_window_ms = 1000");
    let (one, two) = (on(&redis, tenant()), on(&redis, tenant()));
    let (mut io, mut ws) = (Clients::socketio(), Clients::ws());
    ws.join_ws(&two, "eve", "harm", &token("harm", "eve", json!({})));
    ws.request("eve", "join_room", json!({ "room": "watch:1" }));
    let bob = token("harm", "bob", json!({}));
    io.join_socketio(&one, "bob", "harm", &bob);
    io.ask("bob", "join_room", json!({ "room": "r:1" }));
    io.event("bob", "room_joined");
    // The node that had it learns only afterwards that it is lost.
    one.signal("STOP");
    cut_at_once(&mut io, "bob");
    assert!(back(&mut io, "bob", &two, json!({ "token": bob })));
    one.signal("CONT");
    std::thread::sleep(Duration::from_millis(1_600));
    ws.absent(json!({ "what": "message", "json": { "event": "went" } }));
    cut(&mut io, "bob");
    assert_eq!(ws.message("eve", json!({ "event": "went" }))["data"]["subject"], "bob");
}

/// As `cut`, where the other side does not say goodbye either.
fn cut_at_once(io: &mut Clients, name: &str) {
    io.tell(json!({ "do": "kill", "name": name }));
    io.expect(json!({ "what": "disconnect", "name": name }));
}

#[test]
fn a_socket_io_client_gets_in_by_itself_once_the_engine_is_back() {
    let mut redis = RedisServer::start();
    let node = on(&redis, open("one", RECOVERY));
    let mut io = Clients::socketio();
    redis.kill();
    io.tell(json!({"do": "connect", "name": "bob", "url": node.url(), "path": "/t/one/socket.io/", "namespace": "/",
        "auth": auth("bob"), "reconnection": true, "timeout_ms": 15_000}));
    std::thread::sleep(Duration::from_millis(1_500));
    io.absent(json!({ "what": "connect_error", "name": "bob" }));
    redis.start_again();
    io.expect(json!({ "what": "connect", "name": "bob" }));
    assert_eq!(io.ask("bob", "echo", json!(1)), 1);
}

/// The texts that a client without a library received, in order.
fn texts(ws: &Clients, name: &str) -> Vec<String> {
    let seen = ws.all(&json!({ "what": "message", "name": name }));
    seen.iter().filter_map(|message| message["text"].as_str().map(str::to_owned)).collect()
}

/// Waits for a text that begins so.
fn text(ws: &Clients, name: &str, beginning: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(8);
    loop {
        if let Some(found) = texts(ws, name).into_iter().find(|text| text.starts_with(beginning)) {
            return found;
        }
        assert!(Instant::now() < deadline, "{beginning} did not come: {:?}", texts(ws, name));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn open_raw(ws: &mut Clients, name: &str, node: &Node) {
    let url = format!("ws://{}/t/one/socket.io/?EIO=4&transport=websocket", node.address);
    ws.tell(json!({ "do": "connect", "name": name, "url": url }));
    text(ws, name, "0{");
}

fn send_raw(ws: &mut Clients, name: &str, text: String) {
    ws.tell(json!({ "do": "send", "name": name, "text": text }));
}

/// The JSON behind a packet's head.
fn body(text: &str, head: &str) -> Value {
    serde_json::from_str(text.strip_prefix(head).unwrap()).unwrap()
}

#[test]
fn namespaces_of_one_transport_come_back_each_with_its_own_session() {
    let redis = RedisServer::start();
    let [one, two] = two_nodes(&redis);
    let mut ws = Clients::ws();
    open_raw(&mut ws, "first", &one);
    let mut auths = Vec::new();
    for (namespace, room) in [("", "r:1"), ("/events,", "lobby")] {
        send_raw(&mut ws, "first", format!("40{namespace}{}", auth("bob")));
        let welcome = text(&ws, "first", &format!("40{namespace}{{"));
        let pid = body(&welcome, &format!("40{namespace}"))["pid"].clone();
        send_raw(&mut ws, "first", format!("42{namespace}{}", json!(["join_room", { "room": room }])));
        let joined = text(&ws, "first", &format!("42{namespace}["));
        let offset = body(&joined, &format!("42{namespace}"))[2].clone();
        assert!(is_offset(&offset) && pid.is_string(), "{welcome} {joined}");
        auths.push(json!({ "token": auth("bob")["token"], "pid": pid, "offset": offset }));
    }
    assert_ne!(auths[0]["pid"], auths[1]["pid"]);
    cut_ws(&mut ws, "first");
    let eve = token("one", "eve", json!({}));
    ws.join_ws(&two, "eve", "one", &eve);
    ws.request("eve", "join_room", json!({ "room": "r:1" }));
    ws.try_ws("events", &format!("{}?namespace=/events", two.ws("one")), &eve);
    ws.request("events", "join_room", json!({ "room": "lobby" }));
    say(&mut ws, 1);
    ws.request("events", "publish", json!({ "room": "lobby", "event": "n", "data": 2 }));
    open_raw(&mut ws, "back", &two);
    send_raw(&mut ws, "back", format!("40{}", auths[0]));
    send_raw(&mut ws, "back", format!("40/events,{}", auths[1]));
    text(&ws, "back", "42[");
    text(&ws, "back", "42/events,[");
    let all = texts(&ws, "back");
    let order: Vec<_> = all.iter().map(|text| text.split(['{', '[']).next().unwrap()).collect();
    assert_eq!(order, ["0", "40", "42", "40/events,", "42/events,"], "{all:?}");
    for (index, (head, n)) in [("40", 1), ("40/events,", 2)].into_iter().enumerate() {
        assert_eq!(body(&all[1 + 2 * index], head)["pid"], auths[index]["pid"]);
        assert_eq!(body(&all[2 + 2 * index], &head.replace("40", "42"))[1], n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_lost_after_it_was_committed_is_not_acknowledged_as_joined() {
    let dir = tempfile::tempdir().unwrap();
    let (name, file) = open("one", "");
    std::fs::write(dir.path().join(format!("{name}.toml")), file).unwrap();
    let flags = BTreeMap::from([
        ("tenants", dir.path().display().to_string()),
        ("data", dir.path().join("data").display().to_string()),
        ("host", "127.0.0.1".to_owned()),
        ("port", "0".to_owned()),
    ]);
    let config = postern::config::load(&flags, &BTreeMap::new()).unwrap();
    let listener = postern::run::bind(&config).await.unwrap();
    let url = format!("ws://{}/t/one/ws", listener.local_addr().unwrap());
    let loses = Arc::new(AtomicBool::new(false));
    let engine = StagedEngine::losing(EmbeddedEngine::in_memory(Options::default()).unwrap(), loses.clone());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let node = postern::run::run(config, listener, engine, async move { drop(stopped.await) });
    let clients = tokio::task::spawn_blocking(move || {
        let mut ws = Clients::ws();
        ws.try_ws("bob", &url, &token("one", "bob", json!({})));
        ws.message("bob", json!({ "event": "connected" }));
        loses.store(true, Ordering::Release);
        let lost = ws.request("bob", "join_room", json!({ "room": "r:1" }));
        assert_eq!(lost["error"]["code"], "engine_unavailable", "{lost}");
        assert!(lost["error"]["retry_after_ms"].is_u64(), "{lost}");
        ws.message("bob", json!({ "event": "reset" }));
        ws.try_ws("eve", &url, &token("one", "eve", json!({})));
        assert_eq!(ws.message("eve", json!({ "event": "error" }))["data"]["code"], "engine_unavailable");
        assert_eq!(ws.closed("eve"), (4003, "engine_unavailable".into()));
        loses.store(false, Ordering::Release);
        assert_eq!(ws.request("bob", "join_room", json!({ "room": "r:1" }))["room_name"], "r:1");
        ws.request("bob", "publish", json!({ "room": "r:1", "event": "n", "data": 1 }));
        ws.message("bob", json!({ "event": "n" }));
    });
    let until_all_is_said = async {
        let said = clients.await;
        drop(stop);
        said
    };
    let (ran, said) = tokio::join!(node, until_all_is_said);
    said.unwrap();
    ran.unwrap();
}
