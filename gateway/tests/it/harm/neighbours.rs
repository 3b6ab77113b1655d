//! Whatever a plugin does over a socket: that socket goes on, and a neighbour's is served meanwhile and afterwards.

use serde_json::{Value, json};

use crate::support::clients::Clients;
use crate::support::hand_made::HandMade;
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::{harm, open, tenant_file, token};

/// Enough time that on a busy machine, too, the other limits come first; and no breaker.
const PATIENT: &str = "call_limits.cpu_ms = 5000\ncall_limits.wall_ms = 20000\ncall_limits.cpu_ms_per_second = 0\n\
                       call_limits.log_lines = 10\ncall_limits.breaker.calls_min = 1000\n";

/// What harm of a hundred megabytes is ordered with.
const HUGE_BYTES: usize = 100 << 20;

/// Where the ids of orders begin.
const ORDER_IDS: u64 = 1_000_000;

/// A node with clients of tenants that do harm, and `eve`, the neighbour.
struct Street {
    node: Node,
    ws: Clients,
    echoes: u64,
    asked: u64,
}

impl Street {
    fn new(mut tenants: Vec<(String, String)>, redis: Option<&RedisServer>) -> Street {
        tenants.push(open("good", ""));
        let redis_url = redis.map(RedisServer::url);
        let node = Node::with(Settings { tenants, config: String::new(), redis_url });
        let mut street = Street { node, ws: Clients::ws(), echoes: 0, asked: 0 };
        street.join("eve", "good");
        street
    }

    fn join(&mut self, name: &str, tenant: &str) {
        self.ws.join_ws(&self.node, name, tenant, &token(tenant, name, json!({})));
    }

    /// The neighbour is answered.
    fn neighbour(&mut self) {
        self.echoes += 1;
        assert_eq!(self.ws.request("eve", "echo", json!(self.echoes)), self.echoes);
    }

    /// Sends an order; the whole answer. The neighbour asks while it is obeyed, and afterwards.
    fn order(&mut self, name: &str, event: &str, data: &Value) -> Value {
        self.asked += 1;
        // Beside those of `Clients::request`.
        let id = ORDER_IDS + self.asked;
        self.ws.tell(json!({ "do": "send", "name": name, "json": { "id": id, "event": event, "data": data } }));
        for _ in 0..3 {
            self.neighbour();
        }
        let answer = self.ws.message(name, json!({ "id": id }));
        self.neighbour();
        answer
    }
}

fn roomy() -> (String, String) {
    harm("roomy", &format!("{PATIENT}call_limits.memory_bytes = 268435456\n"))
}

/// A tenant whose handler of `grow` wants tables without end, beside one that answers.
fn tables(dir: &std::path::Path) -> (String, String) {
    let handle = "(drop (table.grow $table (ref.null func) (i32.const 40000))) \
                  (drop (table.grow $table (ref.null func) (i32.const 100000))) (unreachable)";
    let component = HandMade { start: "", info: "", fire: "", handle }.component();
    std::fs::write(dir.join("tables.wasm"), component).unwrap();
    let component = dir.join("tables").display().to_string();
    let plugins =
        [("door", "authorizer", "bench"), ("echo", "handler", "bench"), ("tables", "handler", component.as_str())];
    let (name, file) = tenant_file("tables", &plugins, PATIENT, "");
    // Of the last plugin, which is the one that grows.
    (name, format!("{file}events = [\"grow\"]\n"))
}

#[test]
fn what_gets_nowhere_is_answered_by_its_limit_and_all_sockets_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut street = Street::new(vec![harm("harm", PATIENT), roomy(), tables(dir.path())], None);
    for (name, tenant) in [("bob", "harm"), ("ann", "roomy"), ("tom", "tables")] {
        street.join(name, tenant);
    }
    let huge = json!(HUGE_BYTES);
    for (n, (name, event, data, code, says)) in [
        ("bob", "huge_reply", &huge, "plugin_failed", "call_limits.memory_bytes = 16777216"),
        ("bob", "huge_log", &huge, "plugin_failed", "call_limits.memory_bytes = 16777216"),
        ("ann", "huge_reply", &huge, "plugin_failed", "call_limits.memory_bytes = 268435456"),
        ("ann", "huge_log", &huge, "plugin_failed", "call_limits.output_bytes = 1048576"),
        ("bob", "deep_json", &json!(200_000), "invalid", "deeper than 127 levels"),
        ("bob", "nest", &json!(null), "plugin_failed", "its calls nest too deeply"),
        ("bob", "escapes", &json!(null), "plugin_failed", "its log says why"),
        ("tom", "grow", &json!(null), "plugin_failed", "table elements"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = street.order(name, event, data);
        assert_eq!(answer["error"]["code"], code, "{name} {event}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{name} {event}: {message}");
        // The socket that it came from, and those of the other tenants.
        assert_eq!(street.ws.request("bob", "count", json!({})), n + 1, "after {event}");
        assert_eq!(street.ws.request("ann", "count", json!({})), n + 1, "after {event}");
        assert_eq!(street.ws.request("tom", "echo", json!(n)), n, "after {event}");
    }
    // More lines than are kept: the call goes on, and the lines beyond are not there.
    assert_eq!(street.order("bob", "log_flood", &json!(900))["data"], 900);
    assert!(street.ws.request("bob", "heartbeat", json!({}))["ts"].is_u64());
    let log = street.node.log();
    let flood = (0..900).filter(|line| log.contains(&format!("postern::plugin: line {line} "))).count();
    assert_eq!(flood, 10, "call_limits.log_lines = 10");
    assert!(log.contains("forged") && !log.lines().any(|line| line.starts_with("level=ERROR")), "{log}");
    assert!(!log.contains(['\u{1b}', '\u{7}']), "what a terminal would obey is in the node's log");
}

#[test]
fn endless_timers_and_endless_connects_hold_up_nobody_who_is_in() {
    let limits = "call_limits.cpu_ms = 300\ncall_limits.cpu_ms_per_second = 0\ncall_limits.breaker.calls_min = 1000\n";
    let mut street = Street::new(vec![harm("harm", limits)], None);
    street.join("bob", "harm");
    let fired = "tenant=\"harm\",plugin=\"harm\",hook=\"timer-events.fire\"";
    for name in ["loop-1", "loop-2"] {
        street.order("bob", "set_timer", &json!({ "name": name, "after_ms": 1 }));
    }
    // Those run while these ask.
    for n in 1..=20 {
        street.neighbour();
        assert_eq!(street.ws.request("bob", "count", json!({})), n);
    }
    let begun = std::time::Instant::now();
    while street.node.metric("plugin_calls_total", fired) < 2.0 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "the timers are not ended");
        street.neighbour();
    }
    // As many as the machine has cores, and more.
    let mut io = Clients::socketio();
    for n in 0..4 {
        let name = format!("late{n}");
        street.ws.try_ws(&name, &street.node.ws("harm"), &token("harm", "loop-connect", json!({})));
    }
    let auth = json!({ "token": token("harm", "loop-connect", json!({})) });
    io.try_socketio(&street.node, "late", "harm", "/", auth);
    for n in 21..=40 {
        street.neighbour();
        assert_eq!(street.ws.request("bob", "count", json!({})), n, "whoever is in goes on");
    }
    for n in 0..4 {
        assert_eq!(street.ws.closed(&format!("late{n}")), (4004, "authorizer_unavailable".into()));
    }
    // A Socket.IO client whose connection breaks comes again by itself, after a while.
    let ended = io.expect(json!({ "what": "disconnect", "name": "late" }));
    assert_eq!((&ended["reason"], &ended["active"]), (&json!("transport close"), &json!(true)), "{ended}");
    assert_eq!(io.all(&json!({ "what": "connect", "name": "late" })), Vec::<Value>::new());
    street.neighbour();
    street.join("ann", "harm");
    assert_eq!(street.ws.request("ann", "count", json!({})), 41, "another client gets in");
}

/// Keys under which a neighbour might be read or written, if keys were put together carelessly.
const TRICKS: [&str; 12] = [
    "..",
    "../n",
    "../rival/n",
    "rival/harm/n",
    "harm/n",
    "n\u{0}",
    "{rival}",
    "{rival}:s:harm/n",
    "*",
    "/../rival/n",
    "/rival/n",
    "\u{202e}n",
];

fn keys_stay_the_tenants_own(redis: Option<&RedisServer>) {
    let mut street = Street::new(vec![harm("harm", PATIENT), harm("rival", PATIENT)], redis);
    street.join("bob", "harm");
    street.join("ria", "rival");
    assert_eq!(street.ws.request("ria", "count", json!({})), 1);
    for key in TRICKS {
        let answer = street.order("bob", "write_other", &json!({ "key": key, "value": "bobs" }));
        let read = street.ws.request("bob", "read", json!(key));
        match answer["error"]["code"].as_str() {
            None => assert_eq!(read, "bobs", "{key:?}"),
            Some(code) => {
                assert_eq!((code, key.contains('\0')), ("invalid", true), "{key:?}: {answer}");
                assert_eq!(read["error"]["code"], "invalid", "{key:?}: {read}");
            }
        }
    }
    for key in TRICKS.into_iter().filter(|key| !key.contains('\0')) {
        assert_eq!(street.ws.request("ria", "read", json!(key)), Value::Null, "{key:?} is another tenant's");
    }
    assert_eq!(street.ws.request("ria", "count", json!({})), 2, "what the neighbour counts was written to");
    assert_eq!(street.ws.request("bob", "count", json!({})), 1);
    street.neighbour();
}

#[test]
fn keys_that_look_like_a_neighbours_are_the_tenants_own() {
    keys_stay_the_tenants_own(None);
}

#[test]
fn keys_that_look_like_a_neighbours_are_the_tenants_own_on_redis() {
    keys_stay_the_tenants_own(Some(&RedisServer::start()));
}
