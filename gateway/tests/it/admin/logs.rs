//! What a tenant's plugins say, wherever they run.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{OPERATOR, PATIENCE, command, component, done, eventually, node, operate, serve, token, two_nodes};
use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::redis_server::RedisServer;

/// `postern plugin logs -f` somewhere; killed when dropped.
struct Watching {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Watching {
    fn start(node: &Node, args: &[&str]) -> Watching {
        let mut child = command(node, OPERATOR, args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, shared) = (child.stdout.take().unwrap(), lines.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                shared.lock().push(line);
            }
        });
        Watching { child, lines }
    }

    fn count(&self, part: &str) -> usize {
        self.lines.lock().iter().filter(|line| line.contains(part)).count()
    }

    fn wait_for(&self, part: &str, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(part) < count {
            assert!(Instant::now() < deadline, "{part:?} is not {count} times in {:#?}", self.lines.lock());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn lines_and_failures_of_both_nodes_are_seen_on_one_as_they_come_each_once() {
    let redis = RedisServer::start();
    let nodes = two_nodes(&redis);
    serve(&nodes[0], "acme", &component("test-harm"));
    let mut ws = Clients::ws();
    for (index, node) in nodes.iter().enumerate() {
        let name = format!("c{index}");
        ws.join_ws(node, &name, "acme", &token("acme", &name, "k1"));
    }
    let answer = ws.request("c1", "log_flood", json!({ "n": 2 }));
    assert!(answer.get("error").is_none(), "{answer}");
    let args = ["plugin", "logs", "echo", "--tenant", "acme", "--json"];
    let (before, _) = done(&nodes[0], &args);
    let before: Vec<Value> = before.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(before.iter().filter(|line| line["kind"] == "log").count(), 2, "{before:#?}");
    assert!(before.iter().all(|line| line["version"] == 1 && line["plugin"] == "echo"), "{before:#?}");

    let watching = Watching::start(&nodes[0], &["plugin", "logs", "--tenant", "acme", "--follow", "--json"]);
    watching.wait_for("\"kind\":\"log\"", 2);
    ws.request("c0", "log_flood", json!({ "n": 3 }));
    watching.wait_for("\"kind\":\"log\"", 5);
    ws.request("c1", "log_flood", json!({ "n": 4 }));
    watching.wait_for("\"kind\":\"log\"", 9);
    ws.request("c1", "trap", json!({}));
    watching.wait_for("\"kind\":\"failure\"", 1);
    let seen: Vec<Value> = watching.lines.lock().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: std::collections::BTreeSet<_> =
        seen.iter().map(|line| (line["server"].to_string(), line["seq"].to_string())).collect();
    assert_eq!(ids.len(), seen.len(), "a line came twice: {seen:#?}");
    let servers: std::collections::BTreeSet<_> = seen.iter().map(|line| line["server"].to_string()).collect();
    assert_eq!(servers.len(), 2);
}

#[test]
fn whoever_follows_before_the_first_plugin_sees_what_it_says() {
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "early" }));
    let watching = Watching::start(&node, &["plugin", "logs", "--tenant", "early", "-f"]);
    operate(&node, "PUT", "/tenants/early/keys/k1", json!({ "algorithm": "HS256", "secret": super::secret("k1") }));
    for (plugin, role) in [("door", "authorizer"), ("echo", "handler")] {
        let file = component(if role == "handler" { "test-harm" } else { "bench" });
        done(&node, &["plugin", "push", plugin, &file, "--tenant", "early", "--role", role, "--activate"]);
    }
    let mut ws = Clients::ws();
    ws.join_ws(&node, "c", "early", &token("early", "c", "k1"));
    eventually("the line is shown", || {
        ws.request("c", "log_flood", json!({ "n": 1 }));
        watching.count("echo@1") > 0
    });
}

#[test]
fn a_plugin_that_keeps_failing_is_seen_with_its_breaker_and_what_it_used_is_accounted() {
    let node = node(Vec::new());
    serve(&node, "acme", &component("test-harm"));
    let mut ws = Clients::ws();
    ws.join_ws(&node, "c", "acme", &token("acme", "c", "k1"));
    let path = "/tenants/acme/plugins/echo";
    eventually("the breaker opens", || {
        ws.request("c", "trap", json!({}));
        let plugin = super::ask(&node, OPERATOR, "GET", path, None).1;
        let breakers = plugin["breakers"].as_array().cloned().unwrap_or_default();
        breakers.iter().any(|breaker| breaker["hook"] == "events.handle" && breaker["state"] == "open")
    });
    assert_eq!(ws.request("c", "count", json!({}))["error"]["code"], "plugin_unavailable");
    eventually("it is in the accounts", || {
        let (used, _) = done(&node, &["tenant", "usage", "acme", "--json"]);
        let used: Value = serde_json::from_str(&used).unwrap();
        let echo = &used["days"][0]["plugins"]["echo"];
        echo.as_object()
            .is_some_and(|echo| echo.iter().any(|(what, count)| what.contains("call") && count.as_i64() > Some(10)))
    });
}

#[test]
fn whoever_follows_with_a_token_that_is_revoked_is_sent_away() {
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "acme" }));
    let made = operate(&node, "POST", "/tokens", json!({ "name": "eve", "scope": "tenant-read", "tenant": "acme" }));
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "GET /admin/v1/tenants/acme/logs?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: \
         close\r\n\r\n",
        made["secret"].as_str().unwrap()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    operate(&node, "DELETE", &format!("/tokens/{}", made["id"].as_str().unwrap()), Value::Null);
    let began = Instant::now();
    stream.read_to_end(&mut Vec::new()).expect("the answer ends");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}
