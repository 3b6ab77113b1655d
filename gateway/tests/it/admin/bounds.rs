//! What a tenant may do how often with tokens of its own, and how much there may be of what it makes.

use serde_json::{Value, json};

use super::{OPERATOR, ask, command, component, done, node, operate, postern, settings, text};
use crate::support::node::{Node, Settings};

/// A node whose operators allow tenants this, with the tenants `acme` and `globex` and a token of each.
fn allowing(limits: &str) -> (Node, [String; 2]) {
    let config = format!("admin_token = \"{OPERATOR}\"\n[admin]\n{limits}\n");
    let node = Node::with(Settings { config, ..settings(Vec::new(), None) });
    let tokens = ["acme", "globex"].map(|tenant| {
        operate(&node, "POST", "/tenants", json!({ "name": tenant }));
        let token = json!({ "name": format!("ci-of-{tenant}"), "scope": "tenant-admin", "tenant": tenant });
        operate(&node, "POST", "/tokens", token)["secret"].as_str().unwrap().to_owned()
    });
    (node, tokens)
}

/// That a call is one too many: what is said and the header both tell when it is not any more, within `period_s`.
fn too_often(node: &Node, token: &str, method: &str, path: &str, body: &str, setting: &str, period_s: u64) {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/merge-patch+json")];
    let (status, head, answer) = node.http_full(method, &format!("/admin/v1{path}"), &headers, body);
    let refused: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &refused["error"]["code"]), (429, &json!("rate_limit")), "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    let retry = head.lines().find_map(|line| line.strip_prefix("retry-after: ")).expect("a retry-after");
    let retry: u64 = retry.trim().parse().unwrap();
    assert!((period_s / 2..=period_s + 1).contains(&retry), "{retry} s: {message}");
    assert!(message.contains(setting) && message.contains(&format!("try again in {retry} s")), "{message}");
}

fn push(node: &Node, token: &str, tenant: &str) -> (Option<i32>, String) {
    let args = ["plugin", "push", "echo", &component("bench"), "--tenant", tenant, "--role", "handler"];
    let output = command(node, token, &args).output().unwrap();
    (output.status.code(), text(&output.stderr))
}

#[test]
fn a_tenant_that_uploads_too_often_is_told_the_setting_and_when_to_come_back() {
    let (node, [acme, globex]) = allowing("uploads_per_hour = 1");
    let (code, told) = push(&node, &acme, "acme");
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = push(&node, &acme, "acme");
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("admin.uploads_per_hour = 1") && told.contains("try again in"), "{told}");
    let path = "/tenants/acme/plugins/echo/versions";
    too_often(&node, &acme, "POST", path, "x", "admin.uploads_per_hour = 1", 3_600);
    // Whatever else it does is counted apart, and so is whoever else uploads.
    let changed = ask(&node, &acme, "PATCH", "/tenants/acme/settings", Some(&json!({ "history_on_join": 5 })));
    assert_eq!(changed.0, 200, "{}", changed.1);
    for (token, tenant) in [(globex.as_str(), "globex"), (OPERATOR, "acme")] {
        let (code, told) = push(&node, token, tenant);
        assert_eq!(code, Some(0), "{tenant}: {told}");
    }
    let versions = ask(&node, &acme, "GET", path, None).1;
    assert_eq!(versions["versions"].as_array().map(Vec::len), Some(1), "{versions}");
}

#[test]
fn a_tenant_that_changes_too_much_is_told_the_setting_and_when_to_come_back() {
    let (node, [acme, globex]) = allowing("changes_per_minute = 1");
    let change = |token: &str, tenant: &str, value: u64| {
        let body = json!({ "history_on_join": value });
        ask(&node, token, "PATCH", &format!("/tenants/{tenant}/settings"), Some(&body)).0
    };
    assert_eq!(change(&acme, "acme", 5), 200);
    let path = "/tenants/acme/settings";
    let body = json!({ "history_on_join": 6 }).to_string();
    too_often(&node, &acme, "PATCH", path, &body, "admin.changes_per_minute = 1", 60);
    let (status, shown) = ask(&node, &acme, "GET", "/tenants/acme", None);
    assert_eq!((status, &shown["settings"]["history_on_join"]), (200, &json!(5)), "it was done, or cannot be read");
    assert_eq!(change(&globex, "globex", 7), 200);
    for value in 8..11 {
        assert_eq!(change(OPERATOR, "acme", value), 200, "operators are not counted");
    }
    let (code, told) = push(&node, &acme, "acme");
    assert_eq!(code, Some(0), "uploads are counted apart: {told}");
}

#[test]
fn a_tenant_has_so_many_plugins_and_one_that_is_deleted_makes_room() {
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "acme" }));
    let path = |n: usize| format!("/tenants/acme/plugins/p{n}");
    for n in 0..postern::catalog::PLUGINS_MAX {
        operate(&node, "PUT", &path(n), json!({ "role": "handler" }));
    }
    let (status, refused) = ask(&node, OPERATOR, "PUT", &path(32), Some(&json!({ "role": "handler" })));
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("limit")), "{refused}");
    assert_eq!(refused["error"]["message"], "plugins of the tenant: 33, at most 32");
    let output = postern(&node, &["plugin", "set", "p32", "--tenant", "acme", "--role", "handler"]);
    let told = text(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("at most 32") && told.contains("delete"), "{told}");
    operate(&node, "PUT", &path(31), json!({ "position": 3 }));
    done(&node, &["plugin", "delete", "p0", "--tenant", "acme", "--yes"]);
    operate(&node, "PUT", &path(32), json!({ "role": "handler" }));
    let plugins = ask(&node, OPERATOR, "GET", "/tenants/acme/plugins", None).1;
    assert_eq!(plugins["plugins"].as_array().map(Vec::len), Some(32));
}
