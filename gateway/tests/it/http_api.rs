//! The HTTP API of a tenant's own back end, as back ends use it.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use postern::commit::{Commit, CommitId, Write, now_ms};
use postern::engine::Engine;
use postern::tenant::TenantId;
use serde_json::{Value, json};

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::{BACKEND_TOKEN, open, root, society, token};

/// One call with a key, as JSON; status and answer.
fn call(node: &Node, key: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
    named(node, key, None, method, path, body)
}

/// The same under a name.
fn named(node: &Node, key: &str, name: Option<&str>, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let bearer = format!("Bearer {key}");
    let mut headers = vec![("authorization", bearer.as_str())];
    headers.extend(name.map(|name| ("idempotency-key", name)));
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, text) = node.http(method, &format!("/t/one/api/v1{path}"), &headers, &body);
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn good(node: &Node, method: &str, path: &str, body: &Value) -> Value {
    let (status, answer) = call(node, BACKEND_TOKEN, method, path, body);
    assert_eq!(status, 200, "{method} {path}: {answer}");
    answer
}

fn post(node: &Node, path: &str, body: Value) -> Value {
    good(node, "POST", path, &body)
}

fn get(node: &Node, path: &str) -> Value {
    good(node, "GET", path, &Value::Null)
}

fn of_redis(redis: &RedisServer, tenant: fn() -> (String, String)) -> [Node; 2] {
    [(); 2]
        .map(|()| Node::with(Settings { tenants: vec![tenant()], config: String::new(), redis_url: Some(redis.url()) }))
}

/// Forgets the names of requests as time does.
#[tokio::main(flavor = "current_thread")]
async fn forget_names(redis: &RedisServer) {
    let engine = postern::engine::redis::connect(&redis.url(), Default::default()).await.unwrap();
    let tenant = TenantId::parse("one").unwrap();
    let names = engine.list_keys(&tenant, "_once/", None, 1_000).await.unwrap();
    assert!(!names.keys.is_empty());
    let writes = names.keys.into_iter().map(|key| (key, Write::Delete)).collect();
    let commit = Commit { writes, ..Commit::new(CommitId::random()) };
    engine.commit(&tenant, Arc::new(commit)).await.unwrap();
}

fn one() -> (String, String) {
    open("one", "")
}

/// Connects asha to the one node and ben to the other, both in a room.
fn in_a_room(ws: &mut Clients, nodes: [&Node; 2]) -> [String; 2] {
    let mut ids = ["asha", "ben"].map(String::from);
    for (id, node) in ids.iter_mut().zip(nodes) {
        let name = id.clone();
        let welcome = ws.join_ws(node, &name, "one", &token("one", &name, json!({})));
        ws.request(&name, "join_room", json!({ "room": "r:1" }));
        *id = welcome["connection"].as_str().unwrap().to_owned();
    }
    ids
}

#[test]
fn what_is_published_reaches_rooms_users_connections_and_everyone_on_all_nodes() {
    let redis = RedisServer::start();
    let nodes = of_redis(&redis, one);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    let [asha, ben] = in_a_room(&mut ws, [&nodes[0], &nodes[1]]);
    io.join_socketio(&nodes[1], "cleo", "one", &token("one", "cleo", json!({})));
    let publish = |to: Value, n: u64| {
        let mut body = json!({ "event": "n", "data": n });
        body.as_object_mut().unwrap().extend(to.as_object().unwrap().clone());
        post(&nodes[0], "/publish", body)
    };
    publish(json!({ "room": "r:1" }), 1);
    publish(json!({ "user": "ben" }), 2);
    publish(json!({ "connection": asha }), 3);
    publish(json!({ "everyone": true }), 4);
    let last = publish(json!({ "room": "r:1", "except": ben }), 5);
    for (name, wanted) in [("asha", vec![1, 3, 4, 5]), ("ben", vec![1, 2, 4])] {
        for n in wanted {
            let message = ws.message(name, json!({ "event": "n" }));
            assert_eq!(message["data"], n, "{name}");
            assert!(n != 5 || message["pos"] == last["pos"], "{message} {last}");
        }
    }
    assert_eq!(io.event("cleo", "n"), 4);
    ws.absent(json!({ "what": "message", "json": { "event": "n" } }));
    // Line breaks in what was sent are none on the wire.
    let (status, _) = nodes[0].http(
        "POST",
        "/t/one/api/v1/publish",
        &[("authorization", &format!("Bearer {BACKEND_TOKEN}"))],
        "{\"room\": \"r:1\", \"event\": \"n\", \"data\": {\n  \"a\":\n 1}}",
    );
    assert_eq!(status, 200);
    assert_eq!(ws.message("asha", json!({ "event": "n" }))["data"], json!({ "a": 1 }));
}

#[test]
fn a_batch_arrives_together_and_in_order_or_not_at_all() {
    let node = Node::start(vec![one()]);
    let mut ws = Clients::ws();
    in_a_room(&mut ws, [&node, &node]);
    let publication = |event: &str, n: u64| json!({ "room": "r:1", "event": event, "data": n });
    let answer = post(
        &node,
        "/publish/batch",
        json!({ "publications": [publication("n", 1), publication("n", 2), publication("n", 3)] }),
    );
    for n in 1..=3 {
        let message = ws.message("ben", json!({ "event": "n" }));
        assert_eq!(message["data"], n);
        assert!(message["pos"].as_str().unwrap().starts_with(answer["pos"].as_str().unwrap()), "{message} {answer}");
    }
    let bad = json!({ "publications": [publication("n", 4), publication("connect", 5)] });
    assert_eq!(call(&node, BACKEND_TOKEN, "POST", "/publish/batch", &bad).0, 400);
    for count in [0, 65] {
        let many = json!({ "publications": vec![publication("n", 6); count] });
        let (status, answer) = call(&node, BACKEND_TOKEN, "POST", "/publish/batch", &many);
        assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("invalid")), "{count}: {answer}");
    }
    ws.absent(json!({ "what": "message", "name": "ben", "json": { "event": "n" } }));
}

#[test]
fn one_connection_is_looked_at_sent_to_and_ended_from_another_node() {
    let redis = RedisServer::start();
    let nodes = of_redis(&redis, one);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    let [asha, _] = in_a_room(&mut ws, [&nodes[0], &nodes[1]]);
    io.try_socketio(&nodes[0], "cleo", "one", "/events", json!({ "token": token("one", "cleo", json!({})) }));
    let cleo = io.expect(json!({ "what": "connect", "name": "cleo" }))["id"].as_str().unwrap().to_owned();
    let seen = get(&nodes[1], &format!("/connections/{asha}"));
    assert_eq!(seen, json!({ "connection": asha, "user": "asha", "namespace": "/", "rooms": ["r:1"] }));
    assert_eq!(get(&nodes[1], &format!("/connections/{cleo}"))["namespace"], "/events");
    post(&nodes[1], &format!("/connections/{asha}"), json!({ "event": "hello", "args": [1, "two"] }));
    assert_eq!(ws.message("asha", json!({ "event": "hello" }))["args"], json!([1, "two"]));
    post(&nodes[1], &format!("/connections/{cleo}"), json!({ "event": "hello", "data": 7 }));
    assert_eq!(io.event("cleo", "hello"), 7);
    good(&nodes[1], "DELETE", &format!("/connections/{asha}?code=signed_out&message=Good%20bye"), &Value::Null);
    let told = ws.message("asha", json!({ "event": "error" }))["data"].clone();
    assert_eq!(told, json!({ "code": "signed_out", "message": "Good bye" }));
    assert_eq!(ws.closed("asha"), (4505, "disconnected".into()));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(15);
    while call(&nodes[1], BACKEND_TOKEN, "GET", &format!("/connections/{asha}"), &Value::Null).0 != 404 {
        assert!(std::time::Instant::now() < deadline, "an ended connection is still there");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let nobody = json!({ "event": "hello" });
    for (method, body) in [("GET", &Value::Null), ("POST", &nobody), ("DELETE", &Value::Null)] {
        let (status, answer) = call(&nodes[0], BACKEND_TOKEN, method, "/connections/nobody", body);
        assert_eq!((status, answer["error"]["code"].as_str()), (404, Some("not_found")), "{method}");
    }
}

#[test]
fn a_back_end_sees_who_is_where_and_moves_them() {
    let redis = RedisServer::start();
    let nodes = of_redis(&redis, one);
    let mut ws = Clients::ws();
    let [asha, ben] = in_a_room(&mut ws, [&nodes[0], &nodes[1]]);
    assert_eq!(get(&nodes[0], "/rooms/r:1"), json!({ "room": "r:1", "count": 2, "users": ["asha", "ben"] }));
    assert_eq!(get(&nodes[0], "/rooms/everyone")["count"], 2);
    let of_ben = get(&nodes[0], "/users/ben/connections");
    assert_eq!(of_ben, json!({ "user": "ben", "namespace": "/", "count": 1, "connections": [ben] }));
    assert_eq!(get(&nodes[0], "/users/ben/connections?namespace=/events")["count"], 0);
    // Out of one room, into another, with a grant that holds.
    good(&nodes[0], "DELETE", "/rooms/r:1/members?user=ben", &Value::Null);
    assert_eq!(get(&nodes[1], "/rooms/r:1")["users"], json!(["asha"]));
    post(&nodes[0], "/rooms/r:2/members", json!({ "connection": ben, "publish": true, "history": true }));
    assert_eq!(get(&nodes[1], "/rooms/r:2")["users"], json!(["ben"]));
    post(&nodes[0], "/publish", json!({ "room": "r:1", "event": "n", "data": "not for ben" }));
    post(&nodes[0], "/publish", json!({ "room": "r:2", "event": "n", "data": "for ben" }));
    assert_eq!(ws.message("ben", json!({ "event": "n" }))["data"], "for ben");
    let published = ws.request("ben", "publish", json!({ "room": "r:2", "event": "n", "data": "own" }));
    assert!(published["pos"].is_string(), "{published}");
    assert_eq!(ws.request("ben", "presence", json!({ "room": "r:2" }))["error"]["code"], "forbidden");
    // Page by page, nothing missing and nothing doubled.
    for n in 0..7 {
        post(&nodes[n % 2], "/publish", json!({ "room": "r:3", "event": "n", "data": n }));
    }
    let (mut seen, mut before) = (Vec::new(), String::new());
    loop {
        let page = get(&nodes[0], &format!("/rooms/r:3/history?limit=3&before={before}"));
        seen.splice(0..0, page["events"].as_array().unwrap().iter().map(|event| event["data"].as_u64().unwrap()));
        if page["more"] == false {
            break;
        }
        before = page["before"].as_str().unwrap().to_owned();
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
    good(&nodes[1], "DELETE", "/users/asha/connections?code=bye", &Value::Null);
    assert_eq!(ws.message("asha", json!({ "event": "error" }))["data"]["code"], "bye");
    assert_eq!(ws.closed("asha").0, 4505);
    let _ = asha;
}

#[test]
fn a_request_under_a_name_is_done_once_on_whatever_node_it_is_sent_again() {
    let redis = RedisServer::start();
    let tenant = || {
        let (name, text) = society("one", 60_000);
        (name, text.replacen("name =", "relay = [\"x\"]\nname =", 1))
    };
    let nodes = of_redis(&redis, tenant);
    let mut ws = Clients::ws();
    let guard = token("one", "ravi", json!({ "role": "guard", "society_id": "one" }));
    let resident = token("one", "asha", json!({ "role": "resident", "society_id": "one", "flats": ["A-101"] }));
    ws.join_ws(&nodes[0], "ravi", "one", &guard);
    ws.join_ws(&nodes[0], "asha", "one", &resident);
    let event =
        json!({ "event": "visitor_create", "data": { "society_id": "one", "flat_id": "A-101", "visitor_name": "M" } });
    let raise = |node: &Node, name, event: &Value| named(node, BACKEND_TOKEN, Some(name), "POST", "/events", event);
    let first = raise(&nodes[0], "v-1", &event);
    assert_eq!(first.0, 200, "{first:?}");
    assert!(first.1["data"]["visitor_id"].is_string() && first.1["pos"].is_string(), "{first:?}");
    for n in 0..4 {
        assert_eq!(raise(&nodes[n % 2], "v-1", &event), first, "it was done again");
    }
    assert_eq!(
        ws.message("asha", json!({ "event": "visitor_request" }))["data"]["visitor_id"],
        first.1["data"]["visitor_id"]
    );
    ws.absent(json!({ "what": "message", "name": "asha", "json": { "event": "visitor_request" } }));
    let other =
        json!({ "event": "visitor_create", "data": { "society_id": "one", "flat_id": "A-101", "visitor_name": "N" } });
    let (status, answer) = raise(&nodes[1], "v-1", &other);
    assert_eq!((status, answer["error"]["code"].as_str()), (422, Some("idempotency_key_reused")), "{answer}");
    assert_ne!(raise(&nodes[1], "v-2", &event).1["data"]["visitor_id"], first.1["data"]["visitor_id"]);
    // Publications without a handler likewise, also when all come at once.
    let publication = json!({ "room": "flat:A-101", "event": "parcel", "data": 1 });
    let answers: BTreeSet<String> = std::thread::scope(|scope| {
        let sent: Vec<_> = (0..8)
            .map(|n| {
                let (node, publication) = (&nodes[n % 2], &publication);
                scope.spawn(move || named(node, BACKEND_TOKEN, Some("p-1"), "POST", "/publish", publication))
            })
            .collect();
        sent.into_iter().map(|sent| format!("{:?}", sent.join().unwrap())).collect()
    });
    assert_eq!(answers.len(), 1, "{answers:?}");
    ws.message("asha", json!({ "event": "parcel" }));
    ws.absent(json!({ "what": "message", "name": "asha", "json": { "event": "parcel" } }));
    // Another query is another request.
    let removed = |user: &str| {
        let path = format!("/rooms/flat:A-101/members?user={user}");
        named(&nodes[0], BACKEND_TOKEN, Some("r-1"), "DELETE", &path, &Value::Null)
    };
    assert_eq!(removed("nobody").0, 200);
    assert_eq!(removed("nobody").0, 200);
    assert_eq!(removed("asha").1["error"]["code"], "idempotency_key_reused");
    // A name that is not remembered any more is as good as new, also where the engine still knows the commit.
    forget_names(&redis);
    let again = named(&nodes[1], BACKEND_TOKEN, Some("p-1"), "POST", "/publish", &publication);
    assert_eq!(again.0, 200, "{again:?}");
    assert!(!answers.contains(&format!("{again:?}")), "it was answered as before");
    ws.message("asha", json!({ "event": "parcel" }));
    // Handlers whose answers are made up anew each time: one of them counts, for everybody who asked.
    let answers: BTreeSet<String> = std::thread::scope(|scope| {
        let sent: Vec<_> = (0..8)
            .map(|n| {
                let (node, event, raise) = (&nodes[n % 2], &event, &raise);
                scope.spawn(move || raise(node, "v-3", event))
            })
            .collect();
        sent.into_iter().map(|sent| format!("{:?}", sent.join().unwrap())).collect()
    });
    assert_eq!(answers.len(), 1, "{answers:?}");
    // What was refused left nothing behind.
    let unknown = json!({ "event": "unheard_of" });
    for _ in 0..2 {
        assert_eq!(raise(&nodes[0], "u-1", &unknown).1["error"]["code"], "unknown_event");
    }
    let long = "x".repeat(256);
    assert_eq!(raise(&nodes[0], &long, &event).1["error"]["code"], "invalid");
}

#[test]
fn a_key_is_good_for_its_rights_and_its_tenant_only_and_for_so_many_requests() {
    let secret = |n: u32| format!("key-{n}-0123456789abcdef0123456789abcdef");
    let digest = {
        use sha2::Digest as _;
        sha2::Sha256::digest(secret(3)).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let keys = format!(
        "limits.api_requests_per_minute = 20\n\
         [[api_keys]]\nid = \"events\"\nsecret = \"{}\"\nmay = [\"events\"]\n\
         [[api_keys]]\nid = \"reader\"\nsecret_env = \"READER\"\nmay = [\"read\"]\n\
         [[api_keys]]\nid = \"hashed\"\nsecret_sha256 = \"{digest}\"\nmay = [\"connections\", \"publish\"]\n",
        secret(1)
    );
    let (name, text) = one();
    let tables = text.find("[[auth.keys]]").unwrap();
    let text = format!("{}{keys}{}", &text[..tables], &text[tables..]);
    let settings = Settings { tenants: vec![(name, text), open("two", "")], config: String::new(), redis_url: None };
    let node = Node::with_variables(settings, &[("READER", &secret(2))]);
    let event = json!({ "event": "echo", "data": 1 });
    let publication = json!({ "everyone": true, "event": "n" });
    for (key, allowed) in [(1, [200, 403, 403, 403]), (2, [403, 403, 200, 403]), (3, [403, 200, 403, 200])] {
        let calls = [
            ("POST", "/events", &event),
            ("POST", "/publish", &publication),
            ("GET", "/rooms/everyone", &Value::Null),
            ("DELETE", "/users/bob/connections", &Value::Null),
        ];
        for ((method, path, body), status) in calls.into_iter().zip(allowed) {
            let (answered, answer) = call(&node, &secret(key), method, path, body);
            assert_eq!(answered, status, "key {key}, {method} {path}: {answer}");
            assert!(
                status == 200 || answer["error"]["message"].as_str().unwrap().contains("needs a key with the right")
            );
        }
    }
    for wrong in ["", "x", &secret(4)] {
        assert_eq!(call(&node, wrong, "POST", "/events", &event).0, 401, "{wrong:?}");
    }
    let bearer = format!("Bearer {}", secret(1));
    let foreign = node.http("POST", "/t/two/api/v1/events", &[("authorization", &bearer)], &event.to_string());
    assert_eq!(foreign.0, 401, "{}", foreign.1);
    // One call was done with the key; 19 more are possible at once.
    let mut refused = None;
    for _ in 0..20 {
        let (status, head, body) =
            node.http_full("POST", "/t/one/api/v1/events", &[("authorization", &bearer)], &event.to_string());
        if status != 200 {
            refused = Some((status, head, body));
        }
    }
    let (status, head, body) = refused.expect("the rate was never used up");
    assert_eq!(status, 429, "{body}");
    assert!(head.contains("retry-after: ") && body.contains("limits.api_requests_per_minute"), "{head} {body}");
    assert_eq!(call(&node, BACKEND_TOKEN, "POST", "/events", &event).0, 200, "each key has its own");
    assert!(!node.log().contains(&secret(1)), "a key is in the log");
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let node = Node::start(vec![one()]);
    for (method, path, body, status, part) in [
        ("GET", "/nothing", Value::Null, 404, "openapi.json"),
        ("PUT", "/publish", json!({}), 405, "POST"),
        ("POST", "/publish", json!({ "event": "n" }), 400, "exactly one of"),
        ("POST", "/publish", json!({ "event": "n", "room": "a", "user": "b" }), 400, "exactly one of"),
        ("POST", "/publish", json!({ "event": "n", "room": "a", "rom": "b" }), 400, "unknown field"),
        ("POST", "/publish", json!({ "event": "n", "room": "x".repeat(300) }), 400, "at most 200"),
        ("POST", "/publish", json!({ "event": "presence:join", "room": "a" }), 403, "only the gateway"),
        ("POST", "/connections/c", json!({ "event": "authenticated" }), 403, "only the gateway"),
        ("POST", "/publish", json!({ "event": "n", "room": "a", "namespace": "events" }), 400, "start with"),
        (
            "POST",
            "/publish",
            json!({ "event": "n", "room": "a", "data": { "_placeholder": true, "num": 0 } }),
            400,
            "attachment",
        ),
        ("POST", "/rooms/everyone/members", json!({ "user": "bob" }), 403, "given by the gateway"),
        ("POST", "/rooms/a/members", json!({}), 400, "say who"),
        ("DELETE", "/rooms/a/members", Value::Null, 400, "say who"),
        ("GET", "/rooms/a/history?limit=201", Value::Null, 400, "limit is 1 to 200"),
        ("GET", "/rooms/a/history?before=x", Value::Null, 400, "position"),
        ("GET", "/rooms/a?namespace=x", Value::Null, 400, "start with"),
        ("POST", "/revocations", json!({ "subject": "bob", "until_ms": 5 }), 400, "until_ms"),
        ("POST", "/revocations", json!({ "until_ms": now_ms() + 5_000 }), 400, "subject"),
        ("DELETE", "/revocations", Value::Null, 400, "say which"),
        ("DELETE", "/users/bob/connections?code=a%0Ab", Value::Null, 400, "control characters"),
    ] {
        let (answered, answer) = call(&node, BACKEND_TOKEN, method, path, &body);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(answered == status && message.contains(part), "{method} {path} {body}: {answered} {answer}");
    }
    let off = Node::start(vec![{
        let (name, text) = one();
        (name, text.replace(&format!("backend_token = \"{BACKEND_TOKEN}\"\n"), ""))
    }]);
    let (status, answer) = call(&off, BACKEND_TOKEN, "POST", "/events", &json!({ "event": "echo" }));
    assert_eq!((status, answer["error"]["code"].as_str()), (403, Some("forbidden")), "{answer}");
}

#[test]
fn tokens_are_revoked_and_taken_back_over_the_api() {
    let node = Node::start(vec![one()]);
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({ "jti": "b-1" }));
    ws.join_ws(&node, "bob", "one", &bob);
    post(&node, "/revocations", json!({ "token_id": "b-1", "until_ms": now_ms() + 60_000 }));
    assert_eq!(ws.closed("bob"), (4500, "unauthorized".into()));
    ws.try_ws("again", &node.ws("one"), &bob);
    assert_eq!(ws.closed("again").0, 4500);
    post(&node, "/revocations", json!({ "subject": "eve", "until_ms": now_ms() + 60_000 }));
    let listed = get(&node, "/revocations");
    assert_eq!(listed["revocations"].as_array().unwrap().len(), 2, "{listed}");
    let page = get(&node, "/revocations?limit=1");
    let rest = get(&node, &format!("/revocations?limit=1&after={}", page["next"].as_str().unwrap()));
    assert_eq!((rest["revocations"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    good(&node, "DELETE", "/revocations?token_id=b-1", &Value::Null);
    ws.join_ws(&node, "back", "one", &bob);
}

#[test]
fn a_weaker_revocation_lifts_no_ban() {
    let node = Node::start(vec![one()]);
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({ "iat": now_ms() / 1_000 + 60 }));
    let until_ms = now_ms() + 60_000;
    let revoke = |what: Value| post(&node, "/revocations", what);
    revoke(json!({ "subject": "bob", "until_ms": until_ms }));
    revoke(json!({ "subject": "bob", "issued_before_s": now_ms() / 1_000, "until_ms": now_ms() + 30_000 }));
    revoke(json!({ "subject": "bob", "until_ms": now_ms() + 1_000 }));
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    ws.try_ws("banned", &node.ws("one"), &bob);
    assert_eq!(ws.closed("banned").0, 4500);
    let listed = get(&node, "/revocations");
    let all = listed["revocations"].as_array().unwrap();
    let ban = all.iter().find(|one| one["issued_before_s"].is_null()).unwrap();
    assert_eq!((all.len(), ban["until_ms"].as_u64()), (2, Some(until_ms)), "{listed}");
    good(&node, "DELETE", "/revocations?subject=bob", &Value::Null);
    ws.join_ws(&node, "back", "one", &bob);
    assert_eq!(get(&node, "/revocations")["revocations"], json!([]));
}

#[test]
fn operators_and_tenant_admins_revoke_tokens_over_the_admin_api() {
    const OPERATOR: &str = "operator-0123456789abcdef0123456789abcdef";
    let config = format!("admin_token = \"{OPERATOR}\"\n");
    let node = Node::with(Settings { tenants: vec![one()], config, redis_url: None });
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    ws.join_ws(&node, "bob", "one", &bob);
    let bearer = format!("Bearer {OPERATOR}");
    let admin = |method: &str, path: &str, body: &Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let path = format!("/admin/v1/tenants/{path}");
        node.http(method, &path, &[("authorization", &bearer)], &body)
    };
    let revocation = json!({ "subject": "bob", "until_ms": now_ms() + 60_000 });
    assert_eq!(admin("POST", "one/revocations", &revocation).0, 200);
    assert_eq!(ws.closed("bob"), (4500, "unauthorized".into()));
    assert!(admin("GET", "one/revocations", &Value::Null).1.contains("bob"));
    assert_eq!(admin("POST", "one/revocations", &json!({ "subject": "bob", "until_ms": 1 })).0, 422);
    assert_eq!(admin("POST", "nobody/revocations", &revocation).0, 404);
    assert_eq!(admin("DELETE", "one/revocations?subject=bob", &Value::Null).0, 204);
    ws.join_ws(&node, "back", "one", &bob);
    let key = json!({ "token_id": "b-1", "until_ms": now_ms() + 60_000 });
    post(&node, "/revocations", key);
    good(&node, "DELETE", "/revocations?token_id=b-1", &Value::Null);
    let audit = node.http("GET", "/admin/v1/audit?tenant=one", &[("authorization", &bearer)], "").1;
    let audit: Value = serde_json::from_str(&audit).unwrap();
    let told = |entry: &Value| ["what", "by"].map(|name| entry[name].as_str().unwrap_or_default().to_owned());
    let entries = audit["entries"].as_array().unwrap();
    let expected = [
        ["revocation.delete", "api-key:backend_token"],
        ["revocation.put", "api-key:backend_token"],
        ["revocation.delete", "admin_token"],
        ["revocation.put", "admin_token"],
    ];
    assert_eq!(entries.iter().map(told).collect::<Vec<_>>(), expected, "what was refused is not told");
    assert!(entries[3]["subject"].as_str().unwrap().starts_with("subject:"), "{audit}");
    assert!(entries[3]["after"]["until_ms"].is_u64() && !audit.to_string().contains("bob"), "{audit}");
    let path = "/admin/v1/tenants/one/revocations";
    assert_eq!(node.http("POST", path, &[], &revocation.to_string()).0, 401);
}

#[test]
fn the_default_tenants_back_end_needs_no_tenant_in_the_address() {
    let config = "default_tenant = \"one\"\n".into();
    let node = Node::with(Settings { tenants: vec![one()], config, redis_url: None });
    let bearer = format!("Bearer {BACKEND_TOKEN}");
    let headers = [("authorization", bearer.as_str())];
    let (status, body) = node.http("POST", "/api/v1/events", &headers, r#"{"event":"echo","data":7}"#);
    assert_eq!((status, body.contains("\"data\":7")), (200, true), "{body}");
    let none = Node::start(vec![one()]);
    assert_eq!(none.http("POST", "/api/v1/events", &headers, r#"{"event":"echo"}"#).0, 404);
    assert_eq!(none.http("GET", "/api/v1/openapi.json", &[], "").0, 200);
}

/// The examples of the documentation: each block of shell, with the block of JSON behind it, if there is one.
fn examples() -> Vec<(String, Option<Value>)> {
    let text = std::fs::read_to_string(root().join("docs/http-api.md")).unwrap();
    let text = text.split("## Examples").nth(1).unwrap();
    let mut examples = Vec::new();
    for block in text.split("```").skip(1).step_by(2) {
        match block.split_once('\n').unwrap() {
            ("sh", command) => examples.push((command.to_owned(), None)),
            ("json", answer) => {
                let last = examples.last_mut().expect("an answer has a question");
                last.1 = Some(serde_json::from_str(answer).unwrap());
            }
            (other, _) => panic!("a block of {other:?}"),
        }
    }
    examples
}

#[test]
fn every_example_of_the_documentation_does_what_it_says_and_every_route_has_one() {
    let node = Node::start(vec![one()]);
    let mut ws = Clients::ws();
    let mut called = BTreeSet::new();
    for (n, (command, wanted)) in examples().into_iter().enumerate() {
        let name = format!("asha-{n}");
        let welcome = ws.join_ws(&node, &name, "one", &token("one", "asha", json!({})));
        ws.request(&name, "join_room", json!({ "room": "flat:A-101" }));
        let output = Command::new("bash")
            .args(["-euc", &command.replace("curl -s", "curl -s --fail-with-body --max-time 10")])
            .env("API", format!("http://{}/t/one/api/v1", node.address))
            .env("KEY", BACKEND_TOKEN)
            .env("CONNECTION", welcome["connection"].as_str().unwrap())
            .output()
            .unwrap();
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}\n{answer}{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        if let Some(wanted) = wanted {
            assert!(contains(&answer, &wanted), "{command}\nanswered {answer}\nand not {wanted}");
        }
        let path = command.split("$API").nth(1).unwrap();
        let path = &path[..path.find(['"', '?']).unwrap()];
        let path = ["/connections/", "/users/", "/rooms/"].iter().fold(path.to_owned(), |path, start| {
            match path.strip_prefix(start) {
                Some(rest) => format!("{start}*{}", rest.find('/').map_or("", |at| &rest[at..])),
                None => path,
            }
        });
        let method = match (command.contains("-X DELETE"), command.contains(" -d ")) {
            (true, _) => "delete",
            (false, true) => "post",
            (false, false) => "get",
        };
        called.insert((path, method.to_owned()));
    }
    let document: Value = serde_json::from_str(&node.http("GET", "/t/one/api/v1/openapi.json", &[], "").1).unwrap();
    let mut routes = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let parts = path.split('/').map(|part| if part.starts_with('{') { "*" } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        routes.extend(item.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())));
    }
    assert_eq!(called, routes);
}

/// Does an answer have what the documentation shows of it?
fn contains(answer: &Value, shown: &Value) -> bool {
    match (answer, shown) {
        (Value::Object(answer), Value::Object(shown)) => {
            shown.iter().all(|(key, shown)| answer.get(key).is_some_and(|answer| contains(answer, shown)))
        }
        (Value::Array(answer), Value::Array(shown)) => {
            answer.len() == shown.len() && answer.iter().zip(shown).all(|(answer, shown)| contains(answer, shown))
        }
        (answer, shown) => answer == shown,
    }
}
