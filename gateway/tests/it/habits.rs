//! What the apps of five Socket.IO back ends are used to, on one node and across two: npm's
//! `socket.io-client` stands for their web apps, `python-socketio` for the mobile ones.

use serde_json::{Value, json};

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;

mod chat;
mod events;
mod hub;
mod trading;
mod visitors;

/// The nodes that a story is played on: people of the first half are on `one`, the others on `two`.
struct Stage<'a> {
    one: &'a Node,
    two: &'a Node,
    /// What the two share.
    redis: Option<&'a RedisServer>,
}

/// Plays a story on one embedded node.
fn on_one_node(tenant: (String, String), story: impl FnOnce(&Stage<'_>)) {
    let node = Node::start(vec![tenant]);
    story(&Stage { one: &node, two: &node, redis: None });
}

/// Plays a story across two nodes on one Redis.
fn across_two_nodes(tenant: (String, String), story: impl FnOnce(&Stage<'_>)) {
    let redis = RedisServer::start();
    let node = || {
        let tenants = vec![tenant.clone()];
        Node::with(Settings { tenants, config: String::new(), redis_url: Some(redis.url()) })
    };
    let (one, two) = (node(), node());
    story(&Stage { one: &one, two: &two, redis: Some(&redis) });
}

/// The next event of this name that has everything that `wanted` has: its first argument.
fn event_with(clients: &mut Clients, name: &str, event: &str, wanted: Value) -> Value {
    let seen = clients.expect(json!({ "what": "event", "name": name, "event": event, "args": [wanted] }));
    seen["args"][0].clone()
}

/// How often a client has seen this event.
fn times(clients: &Clients, name: &str, event: &str) -> usize {
    clients.all(&json!({ "what": "event", "name": name, "event": event })).len()
}
