//! Limits of users, tenants and keys hold over all nodes on one Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postern::engine::embedded::{EmbeddedEngine, Options};
use postern::rates::{Shared, UserRates};
use postern::tenant::TenantId;
use serde_json::{Value, json};

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::staged_engine::StagedEngine;
use crate::support::{BACKEND_TOKEN, tenant_file, token};

/// A tenant whose users may do everything, so often.
fn tenant(limits: &str) -> (String, String) {
    let plugins = [("authorizer", "authorizer", "bench"), ("echo", "handler", "bench")];
    tenant_file("one", &plugins, &format!("limits.messages_per_minute = \"unlimited\"\n{limits}\n"), "")
}

fn node(redis: &RedisServer, limits: &str) -> Node {
    let config = "node_lease_ms = 1000\n".into();
    Node::with(Settings { tenants: vec![tenant(limits)], config, redis_url: Some(redis.url()) })
}

/// Comes in, or is refused with the code of its user's limit.
fn comes_in(ws: &mut Clients, node: &Node, name: &str, user: &str) -> bool {
    ws.try_ws(name, &node.ws("one"), &token("one", user, json!({})));
    let message = ws.message(name, json!({}));
    if message["event"] == "connected" {
        return true;
    }
    assert_eq!(message["data"]["code"], "connection_limit", "{message}");
    assert!(message["data"]["message"].as_str().unwrap().contains("limits.connections_per_user"), "{message}");
    assert_eq!(ws.closed(name), (4502, "connection_limit".into()));
    false
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !check() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_user_has_so_many_connections_on_all_nodes_together() {
    let redis = RedisServer::start();
    let nodes = [(); 2].map(|()| node(&redis, "limits.connections_per_user = 2"));
    let mut ws = Clients::ws();
    assert!(comes_in(&mut ws, &nodes[0], "1", "bob"));
    assert!(comes_in(&mut ws, &nodes[1], "2", "bob"));
    assert!(!comes_in(&mut ws, &nodes[0], "3", "bob"));
    assert!(!comes_in(&mut ws, &nodes[1], "4", "bob"));
    assert!(comes_in(&mut ws, &nodes[1], "5", "ann"), "others have their own");
    let mut io = Clients::socketio();
    io.try_socketio(&nodes[0], "6", "one", "/", json!({ "token": token("one", "bob", json!({})) }));
    assert_eq!(io.expect(json!({ "what": "connect_error" }))["data"]["code"], "connection_limit");
    // There is room again when one leaves, on whatever node, at once.
    ws.tell(json!({ "do": "close", "name": "2" }));
    ws.closed("2");
    assert!(comes_in(&mut ws, &nodes[0], "7", "bob"));
    assert!(!comes_in(&mut ws, &nodes[1], "8", "bob"));
}

#[test]
fn of_twenty_that_connect_at_once_on_two_nodes_five_get_in() {
    let redis = RedisServer::start();
    let nodes = [(); 2].map(|()| node(&redis, "limits.connections_per_user = 5"));
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    let names: Vec<String> = (0..20).map(|n| format!("c{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        ws.try_ws(name, &nodes[n % 2].ws("one"), &bob);
    }
    let first: Vec<Value> = names.iter().map(|name| ws.message(name, json!({}))).collect();
    let count = |wanted: &dyn Fn(&Value) -> bool| first.iter().filter(|message| wanted(message)).count();
    assert_eq!(count(&|message| message["event"] == "connected"), 5, "{first:?}");
    assert_eq!(count(&|message| message["data"]["code"] == "connection_limit"), 15, "{first:?}");
}

#[test]
fn a_tenant_has_so_many_connections_on_all_nodes_together() {
    let redis = RedisServer::start();
    let nodes = [(); 2].map(|()| node(&redis, "limits.connections = 2"));
    let mut ws = Clients::ws();
    assert!(comes_in(&mut ws, &nodes[0], "1", "ann"));
    assert!(comes_in(&mut ws, &nodes[1], "2", "bob"));
    ws.try_ws("3", &nodes[0].ws("one"), &token("one", "eve", json!({})));
    let error = ws.message("3", json!({ "event": "error" }));
    assert!(error["data"]["message"].as_str().unwrap().contains("limits.connections"), "{error}");
    assert_eq!(ws.closed("3"), (4007, "server_full".into()));
    ws.tell(json!({ "do": "close", "name": "2" }));
    ws.closed("2");
    eventually("there is room again", || {
        ws.try_ws("again", &nodes[0].ws("one"), &token("one", "eve", json!({})));
        ws.message("again", json!({}))["event"] == "connected"
    });
}

#[test]
fn a_node_that_is_killed_frees_its_users_places_and_who_comes_back_has_its_own_at_once() {
    let redis = RedisServer::start();
    let (one, two) = (node(&redis, "limits.connections_per_user = 2"), node(&redis, "limits.connections_per_user = 2"));
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    let welcome = ws.join_ws(&two, "1", "one", &bob);
    ws.join_ws(&two, "2", "one", &bob);
    eventually("they know each other", || one.metric("nodes", "") == 2.0);
    two.signal("KILL");
    ws.closed("1");
    let query = json!({ "token": bob, "session": welcome["session"], "pos": welcome["pos"] });
    ws.tell(json!({ "do": "connect", "name": "back", "url": one.ws("one"), "query": query }));
    assert_eq!(ws.message("back", json!({ "event": "connected" }))["data"]["recovered"], true);
    assert!(!comes_in(&mut ws, &one, "too early", "bob"), "the other counts until its node is counted as gone");
    let mut tries = 0;
    eventually("the other does not count any more", || {
        tries += 1;
        comes_in(&mut ws, &one, &format!("try-{tries}"), "bob")
    });
    assert!(!comes_in(&mut ws, &one, "beyond", "bob"));
}

#[test]
fn a_node_that_stops_gives_its_users_places_back() {
    let redis = RedisServer::start();
    let limits = "limits.connections_per_user = 1\npresence_grace_ms = 20000";
    let (one, mut two) = (node(&redis, limits), node(&redis, limits));
    let mut ws = Clients::ws();
    assert!(comes_in(&mut ws, &two, "1", "bob"));
    two.signal("TERM");
    assert_eq!(ws.closed("1"), (4000, "shutdown".into()));
    assert!(comes_in(&mut ws, &one, "2", "bob"));
    assert_eq!(two.wait(), Some(0));
    assert!(!comes_in(&mut ws, &one, "3", "bob"));
}

#[test]
fn a_redis_that_has_forgotten_everything_is_told_who_is_there() {
    let mut redis = RedisServer::start();
    let nodes = [(); 2].map(|()| node(&redis, "limits.connections_per_user = 2\npresence_grace_ms = 0"));
    let mut ws = Clients::ws();
    assert!(comes_in(&mut ws, &nodes[0], "1", "bob"));
    assert!(comes_in(&mut ws, &nodes[1], "2", "bob"));
    // Its data goes with it.
    redis.kill();
    redis.start_again();
    eventually("both seats are known again", || {
        let found: Vec<String> = redis::from_redis_value(redis.command(&["KEYS", "*:one:u:bob"])).unwrap();
        let count = found.first().map(|seats| redis.command(&["ZCARD", seats]));
        count == Some(redis::Value::Int(2))
    });
    assert!(!comes_in(&mut ws, &nodes[0], "3", "bob"));
    assert!(!comes_in(&mut ws, &nodes[1], "4", "bob"));
}

#[test]
fn a_user_says_no_more_on_two_nodes_than_on_one_and_going_to_another_gives_nothing_back() {
    const RATE: usize = 40;
    let redis = RedisServer::start();
    let limits = format!("limits.user_events_per_minute = {{ echo = {RATE} }}");
    let nodes = [(); 3].map(|()| node(&redis, &limits));
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    let started = Instant::now();
    ws.join_ws(&nodes[0], "0", "one", &bob);
    ws.join_ws(&nodes[1], "1", "one", &bob);
    for n in 0..2 * RATE {
        for name in ["0", "1"] {
            ws.tell(json!({ "do": "send", "name": name, "json": { "id": n, "event": "echo", "data": 1 } }));
        }
    }
    for name in ["0", "1"] {
        ws.message(name, json!({ "id": 2 * RATE - 1 }));
    }
    // One who hops: each time a connection of its own, on a node that has not heard of the user, then on the others.
    let mut refused = Value::Null;
    for (hop, to) in [2, 0, 1, 2].into_iter().enumerate() {
        let name = format!("hop-{hop}");
        ws.join_ws(&nodes[to], &name, "one", &bob);
        for _ in 0..3 {
            refused = ws.request(&name, "echo", json!(1));
        }
        ws.tell(json!({ "do": "close", "name": name }));
    }
    let through = ws.all(&json!({ "what": "message", "json": { "data": 1 } })).len();
    let flowed = started.elapsed().as_secs_f64() * RATE as f64 / 60.0;
    assert!(through as f64 <= RATE as f64 + flowed, "{through} got through, {RATE} and {flowed} may");
    assert!(through >= RATE - 2 * (RATE / 8), "only {through} got through");
    assert_eq!(refused["error"]["code"], "rate_limit", "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("limits.user_events_per_minute.echo"));
    // Without a round trip for each message.
    let asked: f64 =
        nodes.iter().map(|node| node.metric("engine_command_seconds_count", "script=\"take_tokens\"")).sum();
    assert!(asked < through as f64, "Redis was asked {asked} times for {through} messages");
    assert_eq!(ws.join_ws(&nodes[2], "ann", "one", &token("one", "ann", json!({})))["subject"], "ann");
    assert_eq!(ws.request("ann", "echo", json!(2)), 2, "one user's rate is another's");
}

#[test]
fn a_key_has_so_many_requests_on_all_nodes_together() {
    let redis = RedisServer::start();
    let nodes = [(); 2].map(|()| node(&redis, "limits.api_requests_per_minute = 20"));
    let bearer = format!("Bearer {BACKEND_TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = json!({ "event": "echo", "data": 1 }).to_string();
    let mut through = 0;
    let started = Instant::now();
    for n in 0..60 {
        let (status, answer) = nodes[n % 2].http("POST", "/t/one/api/v1/events", &headers, &body);
        match status {
            200 => through += 1,
            429 => assert!(answer.contains("limits.api_requests_per_minute"), "{answer}"),
            other => panic!("{other} {answer}"),
        }
    }
    let flowed = started.elapsed().as_secs() + 1;
    assert!((16..=20 + flowed / 3 + 1).contains(&through), "{through} got through");
}

#[tokio::test]
async fn while_the_engine_is_away_each_node_lets_through_what_one_may() {
    let is_away = Arc::new(AtomicBool::new(true));
    let engine = StagedEngine::leaving(EmbeddedEngine::in_memory(Options::default()).unwrap(), is_away.clone());
    let acme = TenantId::parse("acme").unwrap();
    let (shared, rate) = (Shared { engine: &*engine, tenant: &acme }, 5.try_into().unwrap());
    let nodes = [UserRates::default(), UserRates::default()];
    let through = async |user: &str| {
        let mut through = 0;
        for node in nodes.iter().cycle().take(30) {
            through += i32::from(node.take(shared, &user.into(), &"echo".into(), rate).await.is_ok());
        }
        through
    };
    assert_eq!(through("bob").await, 10);
    is_away.store(false, Ordering::Release);
    assert_eq!(through("ann").await, 5);
}
