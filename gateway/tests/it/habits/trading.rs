//! The trading and chat back end: rooms in bulk, presence, several updates in one frame.

use serde_json::{Value, json};

use super::{Stage, across_two_nodes, on_one_node, times};
use crate::support::clients::Clients;
use crate::support::{tenant_file, token};

const TRADING: &str = "trading";
const CHANNELS: [&str; 3] = ["channel:btc", "channel:eth", "channel:news"];

fn trading() -> (String, String) {
    let plugins = [("room-authorization", "authorizer", "room-authorization")];
    let more = "presence_events = [\"channel\"]\npresence_grace_ms = 0\nlimits.messages_per_minute = \"unlimited\"";
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

#[test]
fn traders_see_their_rooms_each_other_and_one_order_of_quotes() {
    on_one_node(trading(), desk);
}

#[test]
fn traders_on_different_nodes_see_each_other_and_one_order_of_quotes() {
    across_two_nodes(trading(), desk);
}
