//! What apps on `socket.io-client` count on beside events and rooms: one connection for several namespaces, tokens by
//! every way, emits that wait or are tried again, and endings that say whether to come back.

use serde_json::{Value, json};

use crate::support::balancer::Balancer;
use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::{BACKEND_TOKEN, open, token, token_until};

const TENANT: &str = "one";

/// Everybody may do everything, and hears who it is taken for.
fn node() -> Node {
    Node::start(vec![open(TENANT, "authenticated_event = true\nauth.leeway_s = 0")])
}

fn bearer(name: &str) -> String {
    token(TENANT, name, json!({}))
}

/// A `connect` command with what the test is about.
fn connect(node: &Node, name: &str, about: Value) -> Value {
    let mut command =
        json!({ "do": "connect", "name": name, "url": node.url(), "path": format!("/t/{TENANT}/socket.io/") });
    command.as_object_mut().unwrap().extend(about.as_object().unwrap().clone());
    command
}

/// As apps are that come back by themselves, only sooner.
fn persistent() -> Value {
    json!({ "reconnectionDelay": 300, "reconnectionDelayMax": 300, "randomizationFactor": 0 })
}

fn connected(io: &mut Clients, name: &str) -> String {
    let seen = io.expect(json!({ "what": "connect", "name": name }));
    seen["id"].as_str().unwrap().to_owned()
}

/// Connects again and again with these, by itself; the client `bob`.
fn coming_back(node: &Node, auths: Value) -> (Clients, String) {
    let mut io = Clients::socketio();
    io.tell(connect(node, "bob", json!({ "auths": auths, "reconnection": true, "options": persistent() })));
    let id = connected(&mut io, "bob");
    (io, id)
}

#[test]
fn a_token_is_taken_from_auth_header_and_query_with_or_without_bearer() {
    let node = node();
    let mut io = Clients::socketio();
    for (name, about) in [
        ("auth", json!({ "auth": { "token": bearer("auth") } })),
        ("auth-bearer", json!({ "auth": { "token": format!("Bearer {}", bearer("auth-bearer")) } })),
        ("header", json!({ "headers": { "Authorization": format!("Bearer {}", bearer("header")) } })),
        ("query", json!({ "query": { "token": bearer("query"), "platform": "web" } })),
        // What a socket says counts before what its request said.
        ("both", json!({ "auth": { "token": bearer("both") }, "query": { "token": bearer("query") } })),
        ("no-slash", json!({ "auth": { "token": bearer("no-slash") }, "options": { "addTrailingSlash": false } })),
    ] {
        io.tell(connect(&node, name, about));
        connected(&mut io, name);
        assert_eq!(io.event(name, "authenticated")["user_id"], name);
    }
}

#[test]
fn a_function_for_auth_is_asked_anew_for_each_connection() {
    let node = node();
    let (mut io, _) = coming_back(&node, json!([{ "token": bearer("first") }, { "token": bearer("second") }]));
    assert_eq!(io.event("bob", "authenticated")["user_id"], "first");
    io.tell(json!({ "do": "kill", "name": "bob" }));
    connected(&mut io, "bob");
    assert_eq!(io.event("bob", "authenticated")["user_id"], "second");
}

#[test]
fn a_token_that_ends_brings_its_app_back_with_a_fresh_one_and_stops_one_that_has_none() {
    let node = node();
    let old = || json!({ "token": token_until(TENANT, "bob", json!({}), crate::support::now_s() + 2) });
    let (mut fresh, _) = coming_back(&node, json!([old(), { "token": bearer("bob") }]));
    let (mut stale, _) = coming_back(&node, json!([old()]));
    for io in [&mut fresh, &mut stale] {
        assert_eq!(io.event("bob", "error")["code"], "token_expired");
        let ended = io.expect(json!({ "what": "disconnect" }));
        assert_eq!((&ended["reason"], &ended["active"]), (&json!("transport close"), &json!(true)));
    }
    connected(&mut fresh, "bob");
    let refused = stale.expect(json!({ "what": "connect_error" }));
    assert_eq!((&refused["data"]["code"], &refused["active"]), (&json!("unauthorized"), &json!(false)));
}

#[test]
fn what_was_said_while_away_is_sent_once_on_coming_back() {
    let node = node();
    let (mut io, before) = coming_back(&node, json!([{ "token": bearer("bob") }]));
    io.tell(json!({ "do": "kill", "name": "bob" }));
    let lost = io.expect(json!({ "what": "disconnect", "name": "bob" }));
    assert_eq!((&lost["reason"], &lost["active"]), (&json!("transport close"), &json!(true)));
    let emit = |event: &str, args: Value| json!({ "do": "emit", "name": "bob", "event": event, "args": args });
    io.tell(emit("join_room", json!([{ "room": "r:1" }])));
    io.tell(emit("publish", json!([{ "room": "r:1", "event": "said", "data": "kept" }])));
    let after = connected(&mut io, "bob");
    assert_ne!(before, after, "the id is of the connection");
    assert_eq!(io.event("bob", "said"), "kept");
    io.absent(json!({ "what": "event", "event": "said" }));
}

#[test]
fn a_socket_that_was_closed_by_hand_connects_again_as_the_same_object() {
    let node = node();
    let mut io = Clients::socketio();
    io.tell(connect(&node, "bob", json!({ "auth": { "token": bearer("bob") }, "reconnection": true })));
    let before = connected(&mut io, "bob");
    io.ask("bob", "join_room", json!({ "room": "r:1" }));
    io.tell(json!({ "do": "disconnect", "name": "bob" }));
    let left = io.expect(json!({ "what": "disconnect", "name": "bob" }));
    assert_eq!((&left["reason"], &left["active"]), (&json!("io client disconnect"), &json!(false)));
    io.tell(json!({ "do": "reconnect", "name": "bob" }));
    assert_ne!(connected(&mut io, "bob"), before);
    // As with Socket.IO's own server, rooms end with the connection.
    let refused = io.ask("bob", "publish", json!({ "room": "r:1", "event": "n", "data": 1 }));
    assert_eq!(refused["error"]["code"], "forbidden");
}

#[test]
fn an_ending_says_whether_to_come_back() {
    let mut node = node();
    let (mut io, id) = coming_back(&node, json!([{ "token": bearer("bob") }]));
    let key = format!("Bearer {BACKEND_TOKEN}");
    let path = format!("/t/{TENANT}/api/v1/connections/{id}?code=signed_out&message=Signed%20out%20elsewhere");
    assert_eq!(node.http("DELETE", &path, &[("authorization", &key)], "").0, 200);
    assert_eq!(io.event("bob", "error"), json!({ "code": "signed_out", "message": "Signed out elsewhere" }));
    let ended = io.expect(json!({ "what": "disconnect", "name": "bob" }));
    assert_eq!((&ended["reason"], &ended["active"]), (&json!("io server disconnect"), &json!(false)));
    io.tell(json!({ "do": "reconnect", "name": "bob" }));
    connected(&mut io, "bob");

    node.signal("TERM");
    assert_eq!(io.event("bob", "server:shutdown")["reason"], "shutdown");
    let ended = io.expect(json!({ "what": "disconnect", "name": "bob" }));
    assert_eq!((&ended["reason"], &ended["active"]), (&json!("transport close"), &json!(true)));
    node.wait();
}

#[test]
fn namespaces_of_one_manager_share_its_connection_and_are_refused_alone() {
    let node = node();
    let mut io = Clients::socketio();
    let shared = json!({ "forceNew": false });
    let ana = json!({ "token": bearer("ana") });
    for namespace in ["/", "/events", "/chat"] {
        io.tell(connect(&node, namespace, json!({ "namespace": namespace, "auth": ana, "options": shared })));
        connected(&mut io, namespace);
    }
    io.tell(connect(&node, "/closed", json!({ "namespace": "/closed", "auth": { "token": "x" }, "options": shared })));
    let refused = io.expect(json!({ "what": "connect_error", "name": "/closed" }));
    assert_eq!(refused["data"]["code"], "unauthorized");
    let (_, health) = node.http("GET", "/health", &[], "");
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!(health["connections"], 1, "{health}");
    io.tell(json!({ "do": "disconnect", "name": "/events" }));
    io.expect(json!({ "what": "disconnect", "name": "/events" }));
    for namespace in ["/", "/chat"] {
        assert_eq!(io.ask(namespace, "echo", json!(namespace)), namespace);
    }
    io.tell(json!({ "do": "reconnect", "name": "/events" }));
    connected(&mut io, "/events");
}

#[test]
fn emits_with_retries_arrive_once_and_in_order_refused_ones_too() {
    let node = node();
    let mut io = Clients::socketio();
    io.join_socketio(&node, "eve", TENANT, &bearer("eve"));
    io.ask("eve", "join_room", json!({ "room": "r:1" }));
    let options = json!({ "retries": 3, "ackTimeout": 2_000 });
    io.tell(connect(&node, "bob", json!({ "auth": { "token": bearer("bob") }, "options": options })));
    connected(&mut io, "bob");
    let emit = |event: &str, data: Value| json!({ "do": "emit", "name": "bob", "event": event, "args": [data] });
    io.tell(emit("join_room", json!({ "room": "r:1" })));
    for n in 0..20 {
        io.tell(emit("publish", json!({ "room": "r:1", "event": "n", "data": n })));
        // A refusal is an answer: it is not tried again, and holds nothing up.
        io.tell(emit("unheard-of", json!(n)));
    }
    io.expect(json!({ "what": "event", "name": "eve", "event": "n", "args": [19] }));
    let seen = io.all(&json!({ "what": "event", "name": "eve", "event": "n" }));
    let order: Vec<Value> = seen.into_iter().map(|seen| seen["args"][0].clone()).collect();
    assert_eq!(order, (0..20).map(Value::from).collect::<Vec<_>>());
}

#[test]
fn arguments_of_any_number_and_kind_come_back_as_they_were() {
    let node = node();
    let mut io = Clients::socketio();
    io.join_socketio(&node, "bob", TENANT, &bearer("bob"));
    let deep = json!({ "$bin": "AAECAwQ=" });
    for args in [
        json!([]),
        json!([null]),
        json!(["1-2"]),
        json!(["", "ü\u{1f600}\u{2028}\"\\\n", "\u{0}"]),
        json!([0, -1.5e-7, 9_007_199_254_740_991_u64, true]),
        json!([[], {}, [[]], { "": { "__proto__x": [null] } }]),
        json!([deep, { "a": [deep, { "b": deep }] }, "text"]),
        json!(["x".repeat(500_000)]),
    ] {
        assert_eq!(io.ask_all("bob", "echo", args.clone()), args);
    }
}

/// `socket.io-client` begins with HTTP long-polling where it is not told otherwise.
#[test]
fn an_app_that_begins_with_polling_gets_in_where_it_may_try_its_other_transports() {
    let node = node();
    let mut io = Clients::socketio();
    let auth = json!({ "token": bearer("bob") });
    let transports = json!(["polling", "websocket"]);
    io.tell(connect(&node, "as-it-is", json!({ "auth": auth, "transports": transports })));
    let error = io.expect(json!({ "what": "connect_error", "name": "as-it-is" }));
    assert_eq!(error["message"], "xhr poll error");
    assert!(error["body"].as_str().unwrap().contains("Transport unknown"), "{error}");
    let options = json!({ "tryAllTransports": true });
    io.tell(connect(&node, "all", json!({ "auth": auth, "transports": transports, "options": options })));
    let seen = io.expect(json!({ "what": "connect", "name": "all" }));
    assert_eq!(seen["transport"], "websocket");
}

/// Connects through a balancer as an app that comes back by itself; on which node it is.
fn through(balancer: &Balancer, node: &Node, clients: &mut Clients, name: &str) -> Value {
    let about = json!({ "auth": { "token": bearer(name) }, "reconnection": true, "url": balancer.url() });
    clients.tell(connect(node, name, about));
    connected(clients, name);
    clients.ask(name, "heartbeat", json!({}))["server"].clone()
}

/// How many apps connect at most until one is on the node that is wanted.
const TRIES_MAX: usize = 8;

#[test]
fn apps_of_both_libraries_come_back_by_themselves_when_their_node_is_killed() {
    let redis = RedisServer::start();
    let node = || {
        let tenants = vec![open(TENANT, "")];
        Node::with(Settings { tenants, config: String::new(), redis_url: Some(redis.url()) })
    };
    let (one, two) = (node(), node());
    let balancer = Balancer::start([&one, &two]);
    let (mut web, mut mobile) = (Clients::socketio(), Clients::python());
    let of_web = through(&balancer, &one, &mut web, "web");
    let mut names = (0..TRIES_MAX).map(|n| format!("mobile{n}"));
    let beside = names.find(|name| through(&balancer, &one, &mut mobile, name) == of_web);
    let beside = beside.expect("the balancer uses both nodes");
    let (_, status) = one.http("GET", "/api/v1/ws/metrics", &[], "");
    let is_one = status.contains(of_web.as_str().unwrap());
    if is_one { &one } else { &two }.signal("KILL");
    for (clients, name) in [(&mut web, "web"), (&mut mobile, &*beside)] {
        clients.expect(json!({ "what": "disconnect", "name": name }));
        let back = clients.expect(json!({ "what": "connect", "name": name }));
        assert_eq!(back["transport"], "websocket");
        let answer = clients.ask(name, "heartbeat", json!({}));
        assert!(answer["server"].is_string() && answer["server"] != of_web, "{name} is on {answer}");
        clients.ask(name, "join_room", json!({ "room": "r:1" }));
    }
    web.ask("web", "publish", json!({ "room": "r:1", "event": "said", "data": "both here" }));
    assert_eq!((web.event("web", "said"), mobile.event(&beside, "said")), (json!("both here"), json!("both here")));
}
