//! Real clients, driven as child processes: see `tests/clients/kit.mjs`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use super::node::Node;
use super::root;

/// How long something expected may take.
const EXPECT_TIMEOUT: Duration = Duration::from_secs(8);

/// A client program with any number of clients in it; killed when dropped.
pub(crate) struct Clients {
    child: Child,
    commands: ChildStdin,
    seen: Arc<(Mutex<Seen>, Condvar)>,
    acks: u64,
}

#[derive(Default)]
struct Seen {
    untaken: Vec<Value>,
    all: Vec<Value>,
}

impl Clients {
    /// npm's `socket.io-client`.
    pub(crate) fn socketio() -> Clients {
        Clients::spawn(Command::new("node").arg(root().join("gateway/tests/clients/socketio.mjs")))
    }

    /// npm's `ws`.
    pub(crate) fn ws() -> Clients {
        Clients::spawn(Command::new("node").arg(root().join("gateway/tests/clients/ws.mjs")))
    }

    /// PyPI's `python-socketio`.
    pub(crate) fn python() -> Clients {
        let python = root().join("target/python/bin/python");
        Clients::spawn(Command::new(python).arg(root().join("gateway/tests/clients/socketio_client.py")))
    }

    fn spawn(command: &mut Command) -> Clients {
        let mut child = command
            .arg(r#"{"limit_ms":20000}"#)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client program starts (run scripts/setup test)");
        let commands = child.stdin.take().expect("stdin is piped");
        let lines = child.stdout.take().expect("stdout is piped");
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let shared = seen.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let value: Value = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "what": line }));
                let mut seen = shared.0.lock();
                seen.untaken.push(value.clone());
                seen.all.push(value);
                shared.1.notify_all();
            }
        });
        Clients { child, commands, seen, acks: 0 }
    }

    /// Sends a command.
    pub(crate) fn tell(&mut self, command: Value) {
        writeln!(self.commands, "{command}").expect("the client program runs");
    }

    /// Waits for the next observation that contains `wanted`, and takes it.
    pub(crate) fn expect(&mut self, wanted: Value) -> Value {
        let deadline = Instant::now() + EXPECT_TIMEOUT;
        let mut seen = self.seen.0.lock();
        loop {
            if let Some(index) = seen.untaken.iter().position(|value| contains(value, &wanted)) {
                return seen.untaken.remove(index);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let all: Vec<_> = seen.all.iter().map(Value::to_string).collect();
                drop(seen);
                panic!("not seen: {wanted}\nseen were:\n{}", all.join("\n"));
            }
            self.seen.1.wait_for(&mut seen, left);
        }
    }

    /// Makes sure that nothing that contains `unwanted` was seen, or is within a moment.
    pub(crate) fn absent(&mut self, unwanted: Value) {
        std::thread::sleep(Duration::from_millis(150));
        let seen = self.seen.0.lock();
        if let Some(found) = seen.untaken.iter().find(|value| contains(value, &unwanted)) {
            panic!("seen, but should not be: {found}");
        }
    }

    /// All observations that contain `wanted`, taken or not.
    pub(crate) fn all(&self, wanted: &Value) -> Vec<Value> {
        let seen = self.seen.0.lock();
        seen.all.iter().filter(|value| contains(value, wanted)).cloned().collect()
    }

    /// Connects a Socket.IO client to a tenant and waits until it is in.
    pub(crate) fn join_socketio(&mut self, node: &Node, name: &str, tenant: &str, token: &str) -> Value {
        self.try_socketio(node, name, tenant, "/", json!({ "token": token }));
        self.expect(json!({ "what": "connect", "name": name }))
    }

    /// Connects a Socket.IO client to a tenant's namespace, come what may.
    pub(crate) fn try_socketio(&mut self, node: &Node, name: &str, tenant: &str, namespace: &str, auth: Value) {
        let path = format!("/t/{tenant}/socket.io/");
        self.tell(json!({"do": "connect", "name": name, "url": node.url(), "path": path, "namespace": namespace, "auth": auth}));
    }

    /// Emits with an acknowledgement and waits for it: its first argument.
    pub(crate) fn ask(&mut self, name: &str, event: &str, data: Value) -> Value {
        self.ask_all(name, event, json!([data]))[0].clone()
    }

    /// Emits several arguments and waits for the acknowledgement's.
    pub(crate) fn ask_all(&mut self, name: &str, event: &str, args: Value) -> Value {
        self.acks += 1;
        let tag = format!("ask-{}", self.acks);
        self.tell(json!({"do": "emit", "name": name, "event": event, "args": args, "ack": true, "tag": tag}));
        let ack = self.expect(json!({ "what": "ack", "tag": tag }));
        assert_eq!(ack["ok"], true, "{name} got no answer to {event}: {ack}");
        ack["args"].clone()
    }

    /// The next event of this name at a client: its first argument.
    pub(crate) fn event(&mut self, name: &str, event: &str) -> Value {
        self.expect(json!({ "what": "event", "name": name, "event": event }))["args"][0].clone()
    }

    /// Connects a plain WebSocket client to a tenant and waits for its welcome.
    pub(crate) fn join_ws(&mut self, node: &Node, name: &str, tenant: &str, token: &str) -> Value {
        self.try_ws(name, &node.ws(tenant), token);
        self.message(name, json!({ "event": "connected" }))["data"].clone()
    }

    /// Connects a plain WebSocket client, come what may.
    pub(crate) fn try_ws(&mut self, name: &str, url: &str, token: &str) {
        self.tell(json!({"do": "connect", "name": name, "url": url, "query": { "token": token }}));
    }

    /// Sends an object and waits for the answer: its `data`, or the whole when it is an error.
    pub(crate) fn request(&mut self, name: &str, event: &str, data: Value) -> Value {
        self.acks += 1;
        let id = self.acks;
        self.tell(json!({"do": "send", "name": name, "json": { "id": id, "event": event, "data": data }}));
        let answer = self.message(name, json!({ "id": id }));
        if answer.get("error").is_some() { answer } else { answer["data"].clone() }
    }

    /// The next message of a plain WebSocket client that contains `wanted`.
    pub(crate) fn message(&mut self, name: &str, wanted: Value) -> Value {
        self.expect(json!({ "what": "message", "name": name, "json": wanted }))["json"].clone()
    }

    /// Has plain WebSocket clients publish `count` events `n` each to a room that all are in, as fast as they
    /// can, and waits until every one has received all.
    pub(crate) fn publish_at_once(&mut self, names: &[&str], room: &str, count: usize) {
        for n in 0..count {
            for name in names {
                let data = json!({ "room": room, "event": "n", "data": format!("{name}{n}") });
                self.tell(json!({ "do": "send", "name": name, "json": { "event": "publish", "data": data } }));
            }
        }
        for name in names {
            for who in names {
                self.message(name, json!({ "event": "n", "data": format!("{who}{}", count - 1) }));
            }
        }
    }

    /// The positions and data of the events `n` that a client received, in its order.
    pub(crate) fn order(&self, name: &str) -> Vec<(Value, Value)> {
        let seen = self.all(&json!({ "what": "message", "name": name, "json": { "event": "n" } }));
        seen.into_iter().map(|message| (message["json"]["pos"].clone(), message["json"]["data"].clone())).collect()
    }

    /// Waits for the end of a plain WebSocket client's connection: code and reason.
    pub(crate) fn closed(&mut self, name: &str) -> (u64, String) {
        let closed = self.expect(json!({ "what": "closed", "name": name }));
        (closed["code"].as_u64().unwrap_or_default(), closed["reason"].as_str().unwrap_or_default().into())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does `value` have everything that `wanted` has?
pub(crate) fn contains(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Object(value), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| value.get(key).is_some_and(|value| contains(value, wanted)))
        }
        (Value::Array(value), Value::Array(wanted)) => {
            wanted.len() <= value.len() && wanted.iter().zip(value).all(|(wanted, value)| contains(value, wanted))
        }
        (value, wanted) => value == wanted,
    }
}
