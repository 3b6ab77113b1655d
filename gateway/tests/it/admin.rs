//! The admin API and the command line that calls it, from end to end: real nodes, the real binary, real clients.

mod bounds;
mod commands;
mod https;
mod logs;
mod rights;
mod tour;
mod uploads;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use postern::decision::token::sign;
use postern::tenant::{Algorithm, Secret};
use serde_json::{Value, json};

use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::{components, now_s};

/// The token of the gateways' settings.
const OPERATOR: &str = "operator-of-the-tests-0123456789abcdef";

/// How long a change may take to be everywhere.
const PATIENCE: Duration = Duration::from_secs(20);

fn settings(tenants: Vec<(String, String)>, redis: Option<&RedisServer>) -> Settings {
    let config = format!("admin_token = \"{OPERATOR}\"\n");
    Settings { tenants, config, redis_url: redis.map(RedisServer::url) }
}

/// An embedded node.
pub(crate) fn node(tenants: Vec<(String, String)>) -> Node {
    Node::with(settings(tenants, None))
}

/// Two nodes on one Redis that know of each other.
fn two_nodes(redis: &RedisServer) -> [Node; 2] {
    let nodes = [(); 2].map(|()| Node::with(settings(Vec::new(), Some(redis))));
    for node in &nodes {
        eventually("the nodes see each other", || {
            ask(node, OPERATOR, "GET", "/nodes", None).1["nodes"].as_array().map_or(0, Vec::len) == 2
        });
    }
    nodes
}

/// One call of the API: status and answer.
fn ask(node: &Node, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    let mut headers = vec![("content-type", "application/json")];
    if !token.is_empty() {
        headers.push(("authorization", bearer.as_str()));
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let (status, answer) = node.http(method, &format!("/admin/v1{path}"), &headers, &body);
    (status, serde_json::from_str(&answer).unwrap_or(Value::Null))
}

/// The same by an operator, which must succeed.
pub(crate) fn operate(node: &Node, method: &str, path: &str, body: Value) -> Value {
    let (status, answer) = ask(node, OPERATOR, method, path, Some(&body));
    assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
    answer
}

/// `postern …`, as somebody types it.
fn command(node: &Node, token: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.args(args).env_clear().env("POSTERN_URL", node.url());
    if !token.is_empty() {
        command.env("POSTERN_ADMIN_TOKEN", token);
    }
    command
}

fn postern(node: &Node, args: &[&str]) -> Output {
    command(node, OPERATOR, args).output().expect("postern runs")
}

/// The same, which must succeed: what it printed, and what it told meanwhile.
pub(crate) fn done(node: &Node, args: &[&str]) -> (String, String) {
    let output = postern(node, args);
    let told = text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {told}");
    (text(&output.stdout), told)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until something is so.
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// A secret for a key of this name.
fn secret(key: &str) -> String {
    format!("secret-of-the-key-{key}-0123456789abcdef")
}

/// A token of a tenant's client, signed with one of its keys.
fn token(tenant: &str, subject: &str, key: &str) -> String {
    let claims = json!({ "tenant": tenant, "sub": subject, "exp": now_s() + 3_600 });
    let secret = Secret(secret(key).into_bytes());
    sign(Some(key), Algorithm::HS256, &secret, claims.as_object().expect("an object")).expect("it can be signed")
}

fn component(name: &str) -> String {
    components().join(format!("{name}.wasm")).to_string_lossy().into_owned()
}

/// Makes a tenant with a key and a plugin for each role, and waits until a client can come.
fn serve(node: &Node, tenant: &str, handler: &str) {
    operate(
        node,
        "POST",
        "/tenants",
        json!({ "name": tenant, "settings": { "limits": { "connections_per_user": 50 } } }),
    );
    let key = json!({ "algorithm": "HS256", "secret": secret("k1") });
    operate(node, "PUT", &format!("/tenants/{tenant}/keys/k1"), key);
    done(
        node,
        &["plugin", "push", "door", &component("bench"), "--tenant", tenant, "--role", "authorizer", "--activate"],
    );
    done(node, &["plugin", "push", "echo", handler, "--tenant", tenant, "--role", "handler", "--activate"]);
}
