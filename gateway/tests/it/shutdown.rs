//! Stopping a node.

use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::{open, token};

#[test]
fn clients_are_told_before_the_node_goes_and_it_ends_by_itself() {
    let mut node = Node::start(vec![open("one", "")]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    ws.join_ws(&node, "bob", "one", &token("one", "bob", json!({})));
    io.join_socketio(&node, "eve", "one", &token("one", "eve", json!({})));
    node.signal("TERM");
    let told = ws.message("bob", json!({ "event": "server:shutdown" }));
    assert!(told["data"]["reconnect_after_ms"].is_u64(), "{told}");
    assert_eq!(io.event("eve", "server:shutdown")["reason"], "shutdown");
    assert_eq!(ws.closed("bob"), (4000, "shutdown".into()));
    io.expect(json!({ "what": "disconnect", "name": "eve" }));
    assert_eq!(node.wait(), Some(0), "{}", node.log());
}
