//! Who is there: events, the grace, and nodes that go without a word.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::{harm, open, token};

const GRACE_MS: u64 = 1_200;

/// Everybody may do everything in it, and is told who comes to and goes from `r:…`.
fn tenant() -> (String, String) {
    open("one", &format!("presence_events = [\"r\"]\npresence_grace_ms = {GRACE_MS}"))
}

fn node(redis: &RedisServer, tenant: (String, String)) -> Node {
    let config = "node_lease_ms = 1000\n".into();
    Node::with(Settings { tenants: vec![tenant], config, redis_url: Some(redis.url()) })
}

fn join(clients: &mut Clients, node: &Node, name: &str, user: &str) {
    clients.join_ws(node, name, "one", &token("one", user, json!({})));
    clients.request(name, "join_room", json!({ "room": "r:1" }));
}

fn told(clients: &mut Clients, name: &str, event: &str, user: &str) {
    let message = clients.message(name, json!({ "event": event, "data": { "user": user } }));
    assert_eq!(message["data"]["room"], "r:1");
    assert!(message.get("pos").is_none(), "not a place to come back to: {message}");
}

fn users(clients: &mut Clients, name: &str) -> Value {
    clients.request(name, "presence", json!({ "room": "r:1" }))["users"].clone()
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !check() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn never_told(clients: &mut Clients, name: &str, event: &str, user: &str) {
    clients.absent(json!({ "what": "message", "name": name, "json": { "event": event, "data": { "user": user } } }));
}

#[test]
fn members_are_told_of_users_not_of_connections() {
    let node = Node::start(vec![tenant()]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    join(&mut ws, &node, "ann", "ann");
    io.join_socketio(&node, "bob", "one", &token("one", "bob", json!({})));
    io.ask("bob", "join_room", json!({ "room": "r:1" }));
    told(&mut ws, "ann", "presence:join", "bob");
    never_told(&mut ws, "ann", "presence:join", "ann");
    join(&mut ws, &node, "bobs-phone", "bob");
    ws.tell(json!({ "do": "close", "name": "bobs-phone" }));
    ws.request("ann", "leave_room", json!({ "room": "r:1" }));
    assert_eq!(io.event("bob", "presence:leave"), json!({ "room": "r:1", "user": "ann" }));
    ws.request("ann", "join_room", json!({ "room": "r:1" }));
    assert_eq!(io.event("bob", "presence:join"), json!({ "room": "r:1", "user": "ann" }));
    never_told(&mut ws, "ann", "presence:leave", "bob");
    io.tell(json!({ "do": "disconnect", "name": "bob" }));
    told(&mut ws, "ann", "presence:leave", "bob");
}

#[test]
fn only_rooms_of_the_types_that_the_tenant_names_have_such_events() {
    let node = Node::start(vec![tenant()]);
    let mut ws = Clients::ws();
    for name in ["ann", "bob"] {
        join(&mut ws, &node, name, name);
        ws.request(name, "join_room", json!({ "room": "other:1" }));
    }
    told(&mut ws, "ann", "presence:join", "bob");
    ws.absent(json!({ "what": "message", "json": { "data": { "room": "other:1", "user": "bob" } } }));
    let refused = ws.request("bob", "publish", json!({ "room": "r:1", "event": "presence:leave", "data": {} }));
    assert!(refused.get("error").is_some(), "only the gateway says so: {refused}");
}

#[test]
fn a_burst_is_told_together() {
    let node = Node::start(vec![tenant()]);
    let mut ws = Clients::ws();
    join(&mut ws, &node, "ann", "ann");
    for n in 0..30 {
        ws.join_ws(&node, &format!("u{n}"), "one", &token("one", &format!("u{n}"), json!({})));
    }
    for n in 0..30 {
        let join = json!({ "event": "join_room", "data": { "room": "r:1" } });
        ws.tell(json!({ "do": "send", "name": format!("u{n}"), "json": join }));
    }
    let everybody = |seen: &Clients| {
        let one_by_one = seen.all(&json!({ "name": "ann", "json": { "event": "presence:join" } }));
        let together = seen.all(&json!({ "name": "ann", "json": { "event": "presence:update" } }));
        let named = together.iter().filter_map(|update| Some(update["json"]["data"]["joined"].as_array()?.len()));
        (one_by_one.len(), named.sum::<usize>())
    };
    eventually("all 30 are named", || everybody(&ws).0 + everybody(&ws).1 == 30);
    assert!(everybody(&ws).1 >= 10, "{:?}", everybody(&ws));
}

#[test]
fn whoever_is_back_within_the_grace_was_never_gone_and_whoever_is_not_is_gone_after_it() {
    let redis = RedisServer::start();
    let (one, two) = (node(&redis, tenant()), node(&redis, tenant()));
    let mut ws = Clients::ws();
    join(&mut ws, &one, "ann", "ann");
    join(&mut ws, &one, "bob", "bob");
    told(&mut ws, "ann", "presence:join", "bob");
    for node in [&two, &one, &two] {
        ws.tell(json!({ "do": "cut", "name": "bob" }));
        ws.closed("bob");
        assert_eq!(users(&mut ws, "ann"), json!(["ann", "bob"]));
        join(&mut ws, node, "bob", "bob");
    }
    std::thread::sleep(Duration::from_millis(GRACE_MS + 500));
    never_told(&mut ws, "ann", "presence:leave", "bob");
    never_told(&mut ws, "ann", "presence:join", "bob");
    assert_eq!(ws.request("ann", "presence", json!({ "room": "r:1" }))["count"], 2);

    ws.tell(json!({ "do": "cut", "name": "bob" }));
    let cut = Instant::now();
    told(&mut ws, "ann", "presence:leave", "bob");
    assert!(cut.elapsed() >= Duration::from_millis(GRACE_MS / 2), "at once: {:?}", cut.elapsed());
    assert_eq!(users(&mut ws, "ann"), json!(["ann"]));

    join(&mut ws, &two, "eve", "eve");
    told(&mut ws, "ann", "presence:join", "eve");
    ws.tell(json!({ "do": "close", "name": "eve" }));
    let closed = Instant::now();
    told(&mut ws, "ann", "presence:leave", "eve");
    assert!(closed.elapsed() < Duration::from_millis(GRACE_MS), "who says goodbye is gone at once");
}

#[test]
fn nobody_stays_present_after_a_node_was_killed() {
    let redis = RedisServer::start();
    let (one, two) = (node(&redis, tenant()), node(&redis, tenant()));
    let mut ws = Clients::ws();
    join(&mut ws, &one, "ann", "ann");
    join(&mut ws, &two, "bob", "bob");
    join(&mut ws, &two, "anns-phone", "ann");
    told(&mut ws, "ann", "presence:join", "bob");
    let totals = || {
        let (_, body) = one.http("GET", "/api/v1/ws/metrics", &[], "");
        let body: Value = serde_json::from_str(&body).unwrap();
        (body["totalConnections"].as_u64().unwrap(), body["serverCount"].as_u64().unwrap())
    };
    eventually("the nodes are counted together", || totals() == (3, 2));
    two.signal("KILL");
    told(&mut ws, "ann", "presence:leave", "bob");
    eventually("only the living are counted", || totals() == (1, 1));
    eventually("the phone is gone too", || ws.request("ann", "presence", json!({ "room": "r:1" }))["count"] == 1);
    never_told(&mut ws, "ann", "presence:leave", "ann");
    assert_eq!(one.metric("presence_reaped_total", ""), 2.0);
    let online: Vec<String> = redis::from_redis_value(redis.command(&["SMEMBERS", "one:presence:online"])).unwrap();
    assert_eq!(online, ["ann"]);
}

#[test]
fn a_node_that_was_stopped_comes_back_without_those_that_the_others_took_out() {
    let redis = RedisServer::start();
    let (one, two) = (node(&redis, tenant()), node(&redis, tenant()));
    let mut ws = Clients::ws();
    join(&mut ws, &one, "ann", "ann");
    join(&mut ws, &two, "bob", "bob");
    told(&mut ws, "ann", "presence:join", "bob");
    two.signal("STOP");
    told(&mut ws, "ann", "presence:leave", "bob");
    two.signal("CONT");
    assert_eq!(ws.closed("bob"), (4006, "fenced".into()));
    assert_eq!(users(&mut ws, "ann"), json!(["ann"]));
    eventually("it has noticed", || two.metric("lease_lost_total", "") == 1.0);
    join(&mut ws, &two, "bob", "bob");
    told(&mut ws, "ann", "presence:join", "bob");
    assert_eq!(users(&mut ws, "ann"), json!(["ann", "bob"]));
}

#[test]
fn whoever_is_moved_away_by_a_stopping_node_keeps_its_place_for_the_grace() {
    let redis = RedisServer::start();
    let (one, mut two) = (node(&redis, tenant()), node(&redis, tenant()));
    let mut ws = Clients::ws();
    join(&mut ws, &one, "ann", "ann");
    join(&mut ws, &two, "bob", "bob");
    join(&mut ws, &two, "eve", "eve");
    two.signal("TERM");
    assert_eq!(ws.closed("bob"), (4000, "shutdown".into()));
    join(&mut ws, &one, "bob", "bob");
    assert_eq!(two.wait(), Some(0));
    assert_eq!(users(&mut ws, "ann"), json!(["ann", "bob", "eve"]));
    told(&mut ws, "ann", "presence:leave", "eve");
    eventually("the old connection is out", || ws.request("ann", "presence", json!({ "room": "r:1" }))["count"] == 2);
    never_told(&mut ws, "ann", "presence:leave", "bob");
}

#[test]
fn presence_is_whole_again_after_redis_forgot_everything() {
    let mut redis = RedisServer::start();
    let (one, two) = (node(&redis, tenant()), node(&redis, tenant()));
    let mut ws = Clients::ws();
    join(&mut ws, &one, "ann", "ann");
    join(&mut ws, &two, "bob", "bob");
    assert_eq!(users(&mut ws, "ann"), json!(["ann", "bob"]));
    redis.kill();
    redis.start_again();
    for name in ["ann", "bob"] {
        ws.message(name, json!({ "event": "reset" }));
    }
    eventually("both nodes have registered theirs", || users(&mut ws, "ann") == json!(["ann", "bob"]));
    let mut online: Vec<String> = redis::from_redis_value(redis.command(&["SMEMBERS", "one:room:r:1:users"])).unwrap();
    online.sort();
    assert_eq!(online, ["ann", "bob"]);
    ws.tell(json!({ "do": "close", "name": "bob" }));
    told(&mut ws, "ann", "presence:leave", "bob");
}

#[test]
fn handlers_are_told_of_those_that_went_with_their_node() {
    let redis = RedisServer::start();
    let tenant = || harm("harm", "limits.recovery_window_ms = 2000");
    let (one, two) = (node(&redis, tenant()), node(&redis, tenant()));
    let mut ws = Clients::ws();
    ws.join_ws(&one, "watch", "harm", &token("harm", "watch", json!({})));
    ws.request("watch", "join_room", json!({ "room": "watch:1" }));
    ws.join_ws(&two, "bob", "harm", &token("harm", "bob", json!({})));
    ws.message("watch", json!({ "event": "came", "data": { "subject": "bob" } }));
    two.signal("KILL");
    let went = ws.message("watch", json!({ "event": "went", "data": { "subject": "bob" } }));
    assert_eq!(went["data"]["reason"], "fenced");
}

#[test]
fn whoever_resumes_elsewhere_takes_its_old_connection_out_without_having_moved() {
    let redis = RedisServer::start();
    let (one, two) = (node(&redis, tenant()), node(&redis, tenant()));
    let mut ws = Clients::ws();
    join(&mut ws, &one, "ann", "ann");
    let welcome = ws.join_ws(&one, "bob", "one", &token("one", "bob", json!({})));
    ws.request("bob", "join_room", json!({ "room": "r:1" }));
    told(&mut ws, "ann", "presence:join", "bob");
    ws.tell(json!({ "do": "cut", "name": "bob" }));
    ws.closed("bob");
    let query =
        json!({ "session": welcome["session"], "pos": welcome["pos"], "token": token("one", "bob", json!({})) });
    ws.tell(json!({ "do": "connect", "name": "back", "url": two.ws("one"), "query": query }));
    let back = ws.message("back", json!({ "event": "connected" }));
    assert_eq!(back["data"]["recovered"], true);
    let present = ws.request("ann", "presence", json!({ "room": "r:1" }));
    assert_eq!((&present["count"], &present["users"]), (&json!(2), &json!(["ann", "bob"])), "the old one is out");
    std::thread::sleep(Duration::from_millis(GRACE_MS + 300));
    never_told(&mut ws, "ann", "presence:leave", "bob");
    never_told(&mut ws, "ann", "presence:join", "bob");
    assert_eq!(users(&mut ws, "ann"), json!(["ann", "bob"]));
}

#[test]
fn a_timer_whose_every_firing_was_cut_off_is_kept_among_the_dead() {
    let redis = RedisServer::start();
    let node = node(&redis, harm("harm", ""));
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    ws.request("bob", "set_timer", json!({ "name": "t", "after_ms": 60_000 }));
    let key = |end: &str| redis::from_redis_value::<Vec<String>>(redis.command(&["KEYS", end])).unwrap().remove(0);
    let (due, held) = (key("ps:*:_tz"), key("ps:*:_th"));
    let timers: Vec<String> = redis::from_redis_value(redis.command(&["HGETALL", &held])).unwrap();
    // As if the nodes that fired it had died of it, one after the other.
    let mut parts: Vec<&str> = timers[1].split('\n').collect();
    parts[1] = "5";
    redis.command(&["HSET", &held, &timers[0], &parts.join("\n")]);
    redis.command(&["ZADD", &due, "1", &timers[0]]);
    eventually("it is given up", || node.metric("timers_dead_total", "harm") == 1.0);
    ws.absent(json!({ "what": "message", "json": { "event": "fired" } }));
    assert_eq!(redis.command(&["XLEN", &key("ps:*:_td")]), redis::Value::Int(1));
    assert_eq!(redis.command(&["EXISTS", &held, &due]), redis::Value::Int(0));
}

/// The keys of the registry whose names end like this.
fn registry(redis: &RedisServer, end: &str) -> Vec<String> {
    redis::from_redis_value(redis.command(&["KEYS", &format!("ps:*:{end}")])).unwrap()
}

#[test]
fn whoever_only_the_registry_has_lost_is_registered_again() {
    let redis = RedisServer::start();
    let nodes = [node(&redis, tenant()), node(&redis, tenant())];
    let mut ws = Clients::ws();
    join(&mut ws, &nodes[0], "ann", "ann");
    join(&mut ws, &nodes[1], "bob", "bob");
    for key in ["one:c", "one:n:*", "one:r:*", "_i:*"].into_iter().flat_map(|end| registry(&redis, end)) {
        redis.command(&["DEL", &key]);
    }
    // The log is whole: a join is what meets it, and is answered when it is mended.
    assert_eq!(ws.request("ann", "join_room", json!({ "room": "r:2" }))["room_name"], "r:2");
    eventually("ann is there again", || users(&mut ws, "ann") == json!(["ann"]));
    ws.request("bob", "join_room", json!({ "room": "r:2" }));
    eventually("so is bob", || users(&mut ws, "ann") == json!(["ann", "bob"]));
    for name in ["ann", "bob"] {
        never_told(&mut ws, name, "presence:leave", "ann");
        never_told(&mut ws, name, "presence:leave", "bob");
    }
}

#[test]
fn the_registry_is_compared_with_who_is_here_soon_after_an_outage() {
    let redis = RedisServer::start();
    let node = node(&redis, tenant());
    let mut ws = Clients::ws();
    join(&mut ws, &node, "ann", "ann");
    join(&mut ws, &node, "bob", "bob");
    assert_eq!(users(&mut ws, "ann"), json!(["ann", "bob"]));
    // As a server has it that took over and lacks that a third one left.
    let connections = registry(&redis, "one:c").remove(0);
    let known: Vec<String> = redis::from_redis_value(redis.command(&["HVALS", &connections])).unwrap();
    let bob = known.into_iter().find(|who| who.contains("bob")).unwrap();
    let incarnation = bob.rsplit('\0').next().unwrap();
    let partition = connections.strip_suffix("one:c").unwrap();
    redis.command(&["HSET", &connections, "ghost", &bob.replace("bob", "gus")]);
    redis.command(&["SADD", &format!("{partition}_i:{incarnation}"), "one/ghost"]);
    redis.command(&["SADD", &format!("{partition}one:n:ghost"), "r:1"]);
    redis.command(&["ZADD", &format!("{partition}one:r:r:1"), "0", "gus\0ghost"]);
    assert_eq!(users(&mut ws, "ann"), json!(["ann", "bob", "gus"]));
    // A tenant's registry is kept from half a second after its first connection on.
    std::thread::sleep(Duration::from_secs(1));
    redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    told(&mut ws, "ann", "presence:leave", "gus");
    assert_eq!(users(&mut ws, "ann"), json!(["ann", "bob"]));
}
