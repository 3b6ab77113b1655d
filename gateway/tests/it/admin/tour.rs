//! What an operator and a tenant's developer do, one thing after the other.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    OPERATOR, ask, component, done, eventually, node, operate, postern, secret, serve, text, token, two_nodes,
};
use crate::support::clients::Clients;
use crate::support::components;
use crate::support::node::Node;
use crate::support::redis_server::RedisServer;

/// A component that answers this number, as a file.
pub(super) fn version(dir: &Path, number: u32) -> String {
    let mut bytes = std::fs::read(components().join("test-version.wasm")).unwrap();
    let mark = b"version:0000";
    let places: Vec<_> = bytes.windows(mark.len()).enumerate().filter(|(_, w)| w == mark).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the component does not hold its mark");
    for at in places {
        bytes[at..at + mark.len()].copy_from_slice(format!("version:{number:04}").as_bytes());
    }
    let path: PathBuf = dir.join(format!("version-{number}.wasm"));
    std::fs::write(&path, bytes).unwrap();
    path.to_string_lossy().into_owned()
}

/// What the client's handler answers; an error's code if it does.
pub(super) fn answered(ws: &mut Clients, name: &str) -> String {
    let answer = ws.request(name, "version", json!({}));
    let code = answer["error"]["code"].as_str().map(str::to_owned);
    code.unwrap_or_else(|| answer.as_str().unwrap_or_default().trim_start_matches('0').to_owned())
}

fn audit(node: &Node, tenant: &str) -> Vec<Value> {
    let answer = ask(node, OPERATOR, "GET", &format!("/audit?tenant={tenant}&limit=100"), None).1;
    answer["entries"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_tenant_is_made_and_its_plugins_are_pushed_swapped_and_taken_back_while_a_client_stays() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, broken] =
        [version(dir.path(), 1), version(dir.path(), 2), dir.path().join("x.wasm").display().to_string()];
    let secret_file = dir.path().join("secret");
    std::fs::write(&secret_file, format!("{}\n", secret("k1"))).unwrap();
    let node = node(Vec::new());

    done(&node, &["tenant", "create", "acme", "limits.connections=50"]);
    done(
        &node,
        &["tenant", "key", "put", "acme", "k1", "--algorithm", "HS256", "--secret-file", secret_file.to_str().unwrap()],
    );
    // Clients would only find the door shut.
    let troubles = || ask(&node, OPERATOR, "GET", "/tenants/acme", None).1["troubles"].to_string();
    eventually("nobody decides who may connect, which is told", || troubles().contains("no authorizer"));
    done(
        &node,
        &["plugin", "push", "door", &component("bench"), "--tenant", "acme", "--role", "authorizer", "--activate"],
    );
    eventually("somebody does", || troubles() == "[]");
    let (printed, told) =
        done(&node, &["plugin", "push", "echo", &one, "--tenant", "acme", "--role", "handler", "--activate"]);
    assert!(printed.contains("echo: version 1 is stored") && printed.contains("sha256"), "{printed}");
    assert!(told.contains("ready") && told.contains("version 1 is active"), "{told}");

    let mut ws = Clients::ws();
    ws.join_ws(&node, "ana", "acme", &token("acme", "ana", "k1"));
    assert_eq!(answered(&mut ws, "ana"), "1");

    let (_, told) = done(&node, &["plugin", "push", "echo", &two, "--tenant", "acme"]);
    assert!(told.contains("postern plugin activate echo 2"), "{told}");
    assert_eq!(answered(&mut ws, "ana"), "1", "it became active by itself");
    let (_, told) = done(&node, &["plugin", "activate", "echo", "2", "--tenant", "acme"]);
    assert!(told.lines().any(|line| line.starts_with("  node ") && line.ends_with(" ready")), "{told}");
    eventually("version 2 answers", || answered(&mut ws, "ana") == "2");

    done(&node, &["plugin", "rollback", "echo", "--tenant", "acme"]);
    eventually("version 1 answers again", || answered(&mut ws, "ana") == "1");

    done(&node, &["plugin", "canary", "echo", "2", "100", "--tenant", "acme"]);
    eventually("the canary answers", || answered(&mut ws, "ana") == "2");
    done(&node, &["plugin", "canary", "echo", "--off", "--tenant", "acme"]);
    eventually("the canary answers no longer", || answered(&mut ws, "ana") == "1");

    std::fs::write(&broken, b"\0asm\x01\0\0\0").unwrap();
    let output = postern(&node, &["plugin", "push", "echo", &broken, "--tenant", "acme"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("postern plugin build"), "{}", text(&output.stderr));
    assert_eq!(answered(&mut ws, "ana"), "1");

    let (listed, _) = done(&node, &["plugin", "list", "--tenant", "acme", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let echo = listed["plugins"].as_array().unwrap().iter().find(|plugin| plugin["name"] == "echo").unwrap();
    assert_eq!((&echo["active"], echo["versions"].as_array().unwrap().len()), (&json!(1), 2));

    // What the command line has no flag for is set by its key, and shown by it.
    let set =
        ["plugin", "set", "echo", "--tenant", "acme", "--instances", "warm", "warm_max=8", "call_limits.cpu_ms=20"];
    done(&node, &set);
    done(&node, &["plugin", "set", "echo", "--tenant", "acme", "call_limits.host_calls=99", "warm_calls_max=1000"]);
    let (told, _) = done(&node, &["plugin", "inspect", "echo", "--tenant", "acme", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["instances"], &told["warm_max"], &told["warm_calls_max"]),
        (&json!("warm"), &json!(8), &json!(1000))
    );
    assert_eq!(told["call_limits"], json!({ "cpu_ms": 20, "host_calls": 99 }), "what is not named stays");
    let set = ["plugin", "set", "echo", "--tenant", "acme", "--instances", "fresh", "call_limits=null"];
    done(&node, &set);
    let (told, _) = done(&node, &["tenant", "show", "acme"]);
    assert!(told.contains("limits.connections  50\n") && told.contains("in service"), "{told}");
    assert!(told.contains(r#""secret":"(secret)""#) && !told.contains(&secret("k1")), "{told}");

    done(&node, &["plugin", "disable", "echo", "--tenant", "acme"]);
    eventually("nobody handles it", || answered(&mut ws, "ana") != "1");
    done(&node, &["plugin", "enable", "echo", "--tenant", "acme"]);
    eventually("version 1 is back", || answered(&mut ws, "ana") == "1");

    let refused = postern(&node, &["tenant", "delete", "acme"]);
    assert_eq!(refused.status.code(), Some(64), "it was deleted without --yes");
    done(&node, &["tenant", "delete", "acme", "--yes"]);
    ws.closed("ana");
    assert_eq!(ask(&node, OPERATOR, "GET", "/tenants/acme", None).0, 404);

    let what: Vec<_> =
        audit(&node, "acme").iter().map(|entry| entry["what"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!((what.first().unwrap().as_str(), what.last().unwrap().as_str()), ("tenant.delete", "tenant.create"));
    for expected in ["key.put", "plugin.version", "rollout.start", "rollout.active", "plugin.rollback", "plugin.canary"]
    {
        assert!(what.iter().any(|what| what == expected), "{expected} is not in {what:?}");
    }
}

#[test]
fn the_audit_log_says_who_changed_what_before_and_after_and_holds_no_secret() {
    let node = node(Vec::new());
    operate(
        &node,
        "POST",
        "/tenants",
        json!({ "name": "acme", "settings": { "history_on_join": 5, "backend_token": secret("backend") } }),
    );
    let made = operate(&node, "POST", "/tokens", json!({ "name": "ci", "scope": "tenant-admin", "tenant": "acme" }));
    let ci = made["secret"].as_str().unwrap();
    let key = json!({ "algorithm": "HS256", "secret": secret("k1") });
    assert_eq!(ask(&node, ci, "PUT", "/tenants/acme/keys/k1", Some(&key)).0, 200);
    let of_the_key = &audit(&node, "acme")[0];
    assert_eq!((&of_the_key["what"], &of_the_key["subject"]), (&json!("key.put"), &json!("k1")));
    let (status, refusal) = ask(&node, ci, "PUT", "/tenants/acme/keys/k2", Some(&key));
    assert_eq!(status, 409, "{refusal}");
    assert!(refusal["error"]["message"].as_str().unwrap().contains("stands under \"k1\""), "{refusal}");
    let other = json!({ "algorithm": "HS256", "secret": secret("another") });
    assert_eq!(ask(&node, ci, "PUT", "/tenants/acme/keys/k1", Some(&other)).0, 200);
    let told = &audit(&node, "acme")[0]["after"]["settings"]["auth"]["keys"][0];
    assert_eq!(told["secret"], "(secret) (changed)");
    let short = json!({ "algorithm": "HS256", "secret": "short" });
    let (status, refusal) = ask(&node, ci, "PUT", "/tenants/acme/keys/k3", Some(&short));
    assert_eq!(status, 422, "{refusal}");
    assert!(refusal.to_string().contains("of the key \\\"k3\\\""), "{refusal}");
    let patch = json!({ "history_on_join": 7, "relay": ["chat:*"] });
    let (status, changed) = ask(&node, ci, "PATCH", "/tenants/acme/settings", Some(&patch));
    assert_eq!((status, &changed["settings"]["history_on_join"]), (200, &json!(7)));

    let entries = audit(&node, "acme");
    let entry = &entries[0];
    assert_eq!((&entry["by"], &entry["what"]), (&json!("ci"), &json!("tenant.settings")));
    assert_eq!(entry["before"], json!({ "settings": { "history_on_join": 5 } }));
    assert_eq!(entry["after"], json!({ "settings": { "history_on_join": 7, "relay": ["chat:*"] } }));
    for path in ["/audit", "/tenants/acme", "/tenants/acme/keys", "/tenants/acme/keys/k1", "/tokens", "/tenants"] {
        let shown = ask(&node, OPERATOR, "GET", path, None).1.to_string();
        for hidden in [&secret("k1"), &secret("backend"), ci, OPERATOR] {
            assert!(!shown.contains(hidden), "{path} shows a secret: {shown}");
        }
    }
    for hidden in [&secret("k1"), &secret("backend"), ci, OPERATOR] {
        assert!(!node.log().contains(hidden), "the log shows a secret");
    }
    let back = json!({ "backend_token": "(secret)" });
    let (status, refusal) = ask(&node, OPERATOR, "PATCH", "/tenants/acme/settings", Some(&back));
    assert_eq!(
        (status, &refusal["error"]["code"]),
        (422, &json!("invalid")),
        "what is shown for a secret was taken for one"
    );
}

#[test]
fn a_revoked_key_ends_the_connections_that_it_admitted_on_all_nodes_and_no_others() {
    let redis = RedisServer::start();
    let nodes = two_nodes(&redis);
    serve(&nodes[0], "acme", &component("bench"));
    let key = json!({ "algorithm": "HS256", "secret": secret("k2") });
    operate(&nodes[0], "PUT", "/tenants/acme/keys/k2", key);
    for node in &nodes {
        eventually("the new key is known", || {
            let keys = ask(node, OPERATOR, "GET", "/tenants/acme/keys", None).1;
            keys["keys"].as_array().map_or(0, Vec::len) == 2
        });
    }
    let mut ws = Clients::ws();
    for (index, node) in nodes.iter().enumerate() {
        for key in ["k1", "k2"] {
            let name = format!("{key}-{index}");
            // The key is in the catalog; each node takes it up a moment later.
            eventually("the node lets it in", || {
                let mut tried = Clients::ws();
                tried.try_ws("try", &node.ws("acme"), &token("acme", "try", key));
                let seen = tried.expect(json!({ "name": "try" }));
                let seen = if seen["what"] == "open" { tried.expect(json!({ "name": "try" })) } else { seen };
                seen["what"] == "message" && seen["json"]["event"] == "connected"
            });
            ws.join_ws(node, &name, "acme", &token("acme", &name, key));
        }
    }
    operate(&nodes[1], "DELETE", "/tenants/acme/keys/k1", json!({}));
    for index in 0..2 {
        let (code, _) = ws.closed(&format!("k1-{index}"));
        assert_eq!(code, 4500, "the client may come back with the key that was revoked");
        assert_eq!(ws.request(&format!("k2-{index}"), "echo", json!("still here")), "still here");
    }
    ws.try_ws("late", &nodes[0].ws("acme"), &token("acme", "late", "k1"));
    assert_eq!(ws.closed("late").0, 4500);
}

#[test]
fn a_revoked_token_is_worthless_at_once_on_both_nodes() {
    let redis = RedisServer::start();
    let nodes = two_nodes(&redis);
    let made = operate(&nodes[0], "POST", "/tokens", json!({ "name": "ci", "scope": "operator" }));
    let (token, id) = (made["secret"].as_str().unwrap(), made["id"].as_str().unwrap());
    for node in &nodes {
        let (status, who) = ask(node, token, "GET", "/whoami", None);
        assert_eq!((status, &who["name"], &who["scope"]), (200, &json!("ci"), &json!("operator")));
    }
    done(&nodes[1], &["admin", "token", "revoke", id]);
    for node in &nodes {
        let (status, refusal) = ask(node, token, "GET", "/whoami", None);
        assert_eq!((status, &refusal["error"]["code"]), (401, &json!("unauthorized")));
    }
    let made = operate(
        &nodes[0],
        "POST",
        "/tokens",
        json!({
            "name": "short", "scope": "operator", "expires_ms": postern::commit::now_ms() + 1_000,
        }),
    );
    let token = made["secret"].as_str().unwrap();
    assert_eq!(ask(&nodes[1], token, "GET", "/whoami", None).0, 200);
    eventually("it is over", || ask(&nodes[1], token, "GET", "/whoami", None).0 == 401);
}

#[test]
fn a_version_is_rolled_out_to_both_nodes_with_a_line_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let redis = RedisServer::start();
    let nodes = two_nodes(&redis);
    serve(&nodes[0], "acme", &version(dir.path(), 1));
    let (_, told) =
        done(&nodes[1], &["plugin", "push", "echo", &version(dir.path(), 2), "--tenant", "acme", "--activate"]);
    let ready = told.lines().filter(|line| line.starts_with("  node ") && line.ends_with(" ready"));
    assert_eq!(ready.count(), 2, "{told}");
    let mut ws = Clients::ws();
    for (index, node) in nodes.iter().enumerate() {
        let name = format!("ana-{index}");
        ws.join_ws(node, &name, "acme", &token("acme", &name, "k1"));
        eventually("the new version answers", || answered(&mut ws, &name) == "2");
    }
    done(&nodes[0], &["tenant", "disable", "acme"]);
    for index in 0..2 {
        ws.closed(&format!("ana-{index}"));
    }
    done(&nodes[1], &["tenant", "enable", "acme"]);
    eventually("clients come again", || {
        let mut tried = Clients::ws();
        tried.try_ws("ana", &nodes[0].ws("acme"), &token("acme", "ana", "k1"));
        tried.expect(json!({ "name": "ana" }))["what"] != "closed"
    });
}

#[test]
fn a_users_tokens_are_revoked_and_taken_back_on_the_command_line_and_the_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let secret_file = dir.path().join("secret");
    std::fs::write(&secret_file, secret("k1")).unwrap();
    let node = node(Vec::new());
    done(&node, &["tenant", "create", "acme"]);
    let put =
        ["tenant", "key", "put", "acme", "k1", "--algorithm", "HS256", "--secret-file", secret_file.to_str().unwrap()];
    done(&node, &put);
    let bench = component("bench");
    done(&node, &["plugin", "push", "door", &bench, "--tenant", "acme", "--role", "authorizer", "--activate"]);
    let mut ws = Clients::ws();
    for name in ["ana", "bob"] {
        ws.join_ws(&node, name, "acme", &token("acme", name, "k1"));
    }
    let (told, _) = done(&node, &["tenant", "revocation", "add", "acme", "--subject", "ana", "--hours", "2"]);
    assert!(told.starts_with("the tokens of ana: good no more on all nodes, until 20"), "{told}");
    assert_eq!(ws.closed("ana").0, 4500);
    ws.try_ws("again", &node.ws("acme"), &token("acme", "ana", "k1"));
    assert_eq!(ws.closed("again").0, 4500);
    let (told, _) = done(&node, &["tenant", "revocation", "list", "acme"]);
    assert!(told.contains("ana") && told.lines().count() == 2, "{told}");
    done(&node, &["tenant", "revocation", "delete", "acme", "--subject", "ana"]);
    let mut tries = 0;
    eventually("ana gets in again", || {
        tries += 1;
        let name = format!("try {tries}");
        ws.try_ws(&name, &node.ws("acme"), &token("acme", "ana", "k1"));
        ws.message(&name, json!({}))["event"] == "connected"
    });
    let refused = postern(&node, &["tenant", "revocation", "add", "acme"]);
    assert_eq!(refused.status.code(), Some(64), "whose?");
    // More than the API answers at once.
    let (told, _) = done(&node, &["admin", "audit", "--tenant", "acme", "-n", "600", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    let what: Vec<_> =
        told["entries"].as_array().unwrap().iter().map(|entry| entry["what"].as_str().unwrap()).collect();
    assert_eq!(what[..2], ["revocation.delete", "revocation.put"], "{what:?}");
    assert_eq!(what.last(), Some(&"tenant.create"));
}
