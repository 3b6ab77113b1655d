//! The trading and chat back end: rooms in bulk, presence, several updates in one frame.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Stage, across_two_nodes, on_one_node, times};
use crate::support::clients::Clients;
use crate::support::{BACKEND_TOKEN, tenant_file, token};

const TRADING: &str = "trading";
const CHANNELS: [&str; 3] = ["channel:btc", "channel:eth", "channel:news"];

fn trading() -> (String, String) {
    let plugins = [("room-authorization", "authorizer", "room-authorization")];
    let more =
        "presence_events = [\"channel\", \"team\"]\npresence_grace_ms = 0\nlimits.messages_per_minute = \"unlimited\"";
    tenant_file(TRADING, &plugins, more, "")
}

fn trader(name: &str) -> String {
    token(TRADING, name, json!({ "channels": ["btc", "eth", "news"] }))
}

fn desk(stage: &Stage<'_>) {
    let (mut web, mut mobile) = (Clients::socketio(), Clients::python());
    web.join_socketio(stage.one, "ana", TRADING, &trader("ana"));
    web.join_socketio(stage.two, "bob", TRADING, &trader("bob"));
    mobile.join_socketio(stage.two, "cleo", TRADING, &trader("cleo"));
    let mut wanted = CHANNELS.to_vec();
    wanted.push("channel:secret");
    let joined = web.ask("ana", "subscribe", json!({ "channels": wanted }));
    assert_eq!(joined["channels"], json!(CHANNELS));
    assert_eq!(joined["refused"][0]["channel"], "channel:secret");
    assert_eq!(web.event("ana", "rooms_joined"), joined);
    web.ask("bob", "subscribe", json!(CHANNELS));
    mobile.ask("cleo", "subscribe", json!({ "channel": "channel:btc" }));
    for user in ["bob", "cleo"] {
        web.expect(json!({ "what": "event", "name": "ana", "event": "presence:join",
            "args": [{ "room": "channel:btc", "user": user }] }));
    }
    for clients in [&mut web, &mut mobile] {
        let name = if times(clients, "cleo", "rooms_joined") > 0 { "cleo" } else { "bob" };
        let present = clients.ask(name, "presence", json!({ "room": "channel:btc" }));
        assert_eq!((&present["count"], &present["users"]), (&json!(3), &json!(["ana", "bob", "cleo"])), "{name}");
    }

    // Quotes of two traders in frames of several: one order for everybody.
    for round in 0..20 {
        for name in ["ana", "bob"] {
            let quote =
                |n: u64| json!({ "room": "channel:btc", "event": "quote", "data": format!("{name}{round}.{n}") });
            web.tell(json!({ "do": "emit", "name": name, "event": "batch_update", "args": [[quote(0), quote(1), quote(2)]] }));
        }
    }
    for name in ["ana", "bob"] {
        let last = format!("{name}19.2");
        web.expect(json!({ "what": "event", "name": "ana", "event": "quote", "args": [last] }));
        web.expect(json!({ "what": "event", "name": "bob", "event": "quote", "args": [last] }));
        mobile.expect(json!({ "what": "event", "name": "cleo", "event": "quote", "args": [last] }));
    }
    let quotes = |clients: &Clients, name: &str| -> Vec<Value> {
        let seen = clients.all(&json!({ "what": "event", "name": name, "event": "quote" }));
        seen.into_iter().map(|seen| seen["args"][0].clone()).collect()
    };
    let order = quotes(&web, "ana");
    assert_eq!(order.len(), 120);
    assert!(
        order
            .chunks(3)
            .all(|frame| frame[0].as_str().map(|q| &q[..q.len() - 1]) == frame[2].as_str().map(|q| &q[..q.len() - 1])),
        "a frame was torn"
    );
    assert!(order == quotes(&web, "bob") && order == quotes(&mobile, "cleo"), "the members disagree on the order");

    assert_eq!(web.ask("bob", "unsubscribe", json!(["channel:btc"]))["channels"], json!(["channel:btc"]));
    mobile.tell(json!({ "do": "disconnect", "name": "cleo" }));
    for user in ["bob", "cleo"] {
        web.expect(json!({ "what": "event", "name": "ana", "event": "presence:leave",
            "args": [{ "room": "channel:btc", "user": user }] }));
    }
    assert_eq!(web.ask("ana", "presence", json!({ "room": "channel:btc" }))["users"], json!(["ana"]));
    assert_eq!(web.ask("ana", "presence", json!({ "room": "channel:eth" }))["users"], json!(["ana", "bob"]));
}

/// A trader of a desk: in the desk's room from the first moment to the last, which is what its colleagues see of it.
fn colleague(name: &str) -> String {
    token(TRADING, name, json!({ "channels": ["btc", "eth"], "teams": ["desk"] }))
}

/// Who is in a room, as members on both nodes, the tenant's back end on both nodes and, where there is one, readers of
/// the documented keys in Redis see it.
fn assert_present(stage: &Stage<'_>, people: &mut [(&mut Clients, &str)], room: &str, wanted: &[&str]) {
    for (clients, name) in people {
        let seen = clients.ask(name, "presence", json!({ "room": room }));
        assert_eq!((&seen["users"], &seen["count"]), (&json!(wanted), &json!(wanted.len())), "{room}, says {name}");
    }
    assert_seen(stage, room, &format!("room:{room}:users"), wanted);
}

fn assert_online(stage: &Stage<'_>, wanted: &[&str]) {
    assert_seen(stage, "everyone", "presence:online", wanted);
}

fn assert_seen(stage: &Stage<'_>, room: &str, key: &str, wanted: &[&str]) {
    for node in [stage.one, stage.two] {
        let bearer = format!("Bearer {BACKEND_TOKEN}");
        let path = format!("/t/{TRADING}/api/v1/rooms/{room}");
        let (status, body) = node.http("GET", &path, &[("authorization", &bearer)], "");
        let seen: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &seen["users"]), (200, &json!(wanted)), "{room}");
    }
    if let Some(redis) = stage.redis {
        let members = redis.command(&["SMEMBERS", &format!("{TRADING}:{key}")]);
        let members: BTreeSet<String> = redis::from_redis_value(members).unwrap();
        assert!(members.iter().eq(wanted), "{key}: {members:?}");
    }
}

fn online(stage: &Stage<'_>) {
    let (mut web, mut mobile) = (Clients::socketio(), Clients::python());
    let hears = |web: &mut Clients, event: &str, room: &str, user: &str| {
        web.expect(json!({ "what": "event", "name": "ana", "event": event, "args": [{ "room": room, "user": user }] }));
    };
    web.join_socketio(stage.one, "ana", TRADING, &colleague("ana"));
    web.join_socketio(stage.two, "bob", TRADING, &colleague("bob"));
    hears(&mut web, "presence:join", "team:desk", "bob");
    mobile.join_socketio(stage.two, "cleo", TRADING, &colleague("cleo"));
    hears(&mut web, "presence:join", "team:desk", "cleo");
    assert_online(stage, &["ana", "bob", "cleo"]);
    assert_present(stage, &mut [(&mut web, "ana"), (&mut mobile, "cleo")], "team:desk", &["ana", "bob", "cleo"]);

    for (name, list) in [("ana", json!(["channel:btc", "channel:eth"])), ("bob", json!({ "rooms": ["channel:btc"] }))] {
        let joined = web.ask(name, "subscribe", list);
        assert_eq!(joined["refused"], json!([]), "{name}");
        assert_eq!(web.event(name, "rooms_joined"), joined, "the event and the answer are one");
    }
    mobile.ask("cleo", "subscribe", json!("channel:btc"));
    let mut both = [(&mut web, "ana"), (&mut mobile, "cleo")];
    assert_present(stage, &mut both, "channel:btc", &["ana", "bob", "cleo"]);
    assert_present(stage, &mut both[..1], "channel:eth", &["ana"]);
    mobile.ask("cleo", "unsubscribe", json!(["channel:btc", "channel:eth"]));
    hears(&mut web, "presence:leave", "channel:btc", "cleo");
    assert_present(stage, &mut [(&mut web, "ana")], "channel:btc", &["ana", "bob"]);
    assert_present(stage, &mut [(&mut web, "bob")], "channel:btc", &["ana", "bob"]);

    // Bob's phone keeps him there when his browser goes; he is gone with his last connection.
    mobile.join_socketio(stage.one, "bobs-phone", TRADING, &colleague("bob"));
    mobile.ask("bobs-phone", "subscribe", json!("channel:btc"));
    web.tell(json!({ "do": "kill", "name": "bob" }));
    web.expect(json!({ "what": "disconnect", "name": "bob" }));
    web.absent(json!({ "what": "event", "name": "ana", "event": "presence:leave", "args": [{ "user": "bob" }] }));
    mobile.tell(json!({ "do": "disconnect", "name": "bobs-phone" }));
    for room in ["channel:btc", "team:desk"] {
        hears(&mut web, "presence:leave", room, "bob");
    }
    assert_eq!(times(&web, "ana", "presence:join"), 4, "of the desk and of the channel, bob and cleo once each");
    assert_online(stage, &["ana", "cleo"]);
    assert_present(stage, &mut [(&mut web, "ana"), (&mut mobile, "cleo")], "team:desk", &["ana", "cleo"]);
}

#[test]
fn colleagues_see_who_is_online_and_who_is_in_which_room() {
    on_one_node(trading(), online);
}

#[test]
fn colleagues_on_different_nodes_see_who_is_online_and_who_is_in_which_room() {
    across_two_nodes(trading(), online);
}

#[test]
fn traders_see_their_rooms_each_other_and_one_order_of_quotes() {
    on_one_node(trading(), desk);
}

#[test]
fn traders_on_different_nodes_see_each_other_and_one_order_of_quotes() {
    across_two_nodes(trading(), desk);
}
