//! Uploads that do not go well, and what the HTTP side bounds of them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{OPERATOR, ask, component, done, eventually, node, operate, postern, settings, text};
use crate::support::node::{Node, Settings};
use crate::support::root;

/// A request as its bytes; the answer's status and document.
fn raw(node: &Node, head: &str, body: &[u8]) -> (u16, Value) {
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(format!("{head}host: {}\r\nconnection: close\r\n\r\n", node.address).as_bytes()).unwrap();
    // Whoever answers without reading may close before all is sent.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

fn upload(node: &Node, path: &str, headers: &str, body: &[u8]) -> (u16, Value) {
    let head = format!(
        "POST /admin/v1{path} HTTP/1.1\r\nauthorization: Bearer {OPERATOR}\r\ncontent-length: {}\r\n{headers}",
        body.len()
    );
    raw(node, &head, body)
}

#[test]
fn an_upload_that_is_not_taken_says_why_and_leaves_nothing_behind() {
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "acme" }));
    let path = "/tenants/acme/plugins/echo/versions";
    let good = std::fs::read(component("bench")).unwrap();
    for (path, headers, body, status, says) in [
        (path.to_owned(), "", &good[..], 422, "give its role"),
        (format!("{path}?role=chef"), "", &good, 422, "chef"),
        (format!("{path}?role=handler"), "postern-digest: 00\r\n", &good, 422, "Postern-Digest"),
        (format!("{path}?role=handler"), "", &good[..good.len() / 2], 422, ""),
        (format!("{path}?role=router"), "", &good, 422, "routing"),
        (format!("{path}?role=handler"), "", b"\0asm\x01\0\0\0", 422, "postern plugin build"),
        ("/tenants/ghost/plugins/echo/versions?role=handler".into(), "", &good, 404, "ghost"),
    ] {
        let (was, refusal) = upload(&node, &path, headers, body);
        assert_eq!(was, status, "{path}: {refusal}");
        assert!(refusal["error"]["message"].as_str().unwrap().contains(says), "{path}: {refusal}");
    }
    let plugins = ask(&node, OPERATOR, "GET", "/tenants/acme/plugins", None).1;
    assert_eq!(plugins["plugins"], json!([]), "a refused upload left a plugin");
    let (status, pushed) = upload(&node, &format!("{path}?role=handler"), "", &good);
    assert_eq!((status, &pushed["version"], &pushed["existed"]), (201, &json!(1), &json!(false)));
    let (status, again) = upload(&node, path, "", &good);
    assert_eq!((status, &again["version"], &again["existed"]), (201, &json!(1), &json!(true)));
}

/// Sends a component slowly: what `meanwhile` does lies between its first bytes and the rest.
fn slow_upload(node: &Node, bearer: &str, component: &[u8], meanwhile: impl FnOnce()) -> (u16, Value) {
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let path = "/admin/v1/tenants/acme/plugins/echo/versions?role=handler&activate=true";
    let head = format!(
        "POST {path} HTTP/1.1\r\nauthorization: Bearer {bearer}\r\ncontent-length: {}\r\nhost: {}\r\nconnection: \
         close\r\n\r\n",
        component.len(),
        node.address
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&component[..1_000]).unwrap();
    // So that the token has been looked at.
    std::thread::sleep(Duration::from_millis(500));
    meanwhile();
    stream.write_all(&component[1_000..]).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = text(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn what_changes_while_a_component_is_sent_holds_for_it() {
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "acme" }));
    let good = std::fs::read(component("bench")).unwrap();
    let made = operate(&node, "POST", "/tokens", json!({ "name": "eve", "scope": "tenant-admin", "tenant": "acme" }));
    let revoke = || {
        operate(&node, "DELETE", &format!("/tokens/{}", made["id"].as_str().unwrap()), Value::Null);
    };
    let (status, refusal) = slow_upload(&node, made["secret"].as_str().unwrap(), &good, revoke);
    assert_eq!((status, &refusal["error"]["code"]), (401, &json!("unauthorized")), "{refusal}");
    let sign = || {
        operate(&node, "PATCH", "/tenants/acme/settings", json!({ "require_signature": true }));
    };
    let (status, refusal) = slow_upload(&node, OPERATOR, &good, sign);
    assert_eq!(status, 422, "{refusal}");
    assert!(refusal["error"]["message"].as_str().unwrap().contains("require_signature"), "{refusal}");
    let plugins = ask(&node, OPERATOR, "GET", "/tenants/acme/plugins", None).1;
    assert_eq!(plugins["plugins"], json!([]));
}

#[test]
fn what_says_that_it_is_too_large_is_refused_before_it_is_sent() {
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "acme" }));
    let head = |length: u64, path: &str| {
        format!("POST /admin/v1{path} HTTP/1.1\r\nauthorization: Bearer {OPERATOR}\r\ncontent-length: {length}\r\n")
    };
    let began = Instant::now();
    let path = "/tenants/acme/plugins/echo/versions?role=handler";
    let (status, refusal) = raw(&node, &head(1 << 30, path), b"");
    assert_eq!((status, &refusal["error"]["code"]), (413, &json!("too_large")));
    let message = refusal["error"]["message"].as_str().unwrap();
    assert!(message.contains("plugins.component_bytes_max") && message.contains("1073741824"), "{message}");
    let (status, _) = raw(&node, &head(1 << 20, "/tenants"), b"");
    assert_eq!(status, 413);
    assert!(began.elapsed() < Duration::from_secs(5), "it waited for bytes that nobody wants");
}

#[test]
fn a_document_that_does_not_come_is_not_waited_for_without_end() {
    let node = node(Vec::new());
    let head =
        format!("POST /admin/v1/tenants HTTP/1.1\r\nauthorization: Bearer {OPERATOR}\r\ncontent-length: 100\r\n");
    let began = Instant::now();
    let (status, refusal) = raw(&node, &head, b"{");
    assert_eq!((status, &refusal["error"]["code"]), (408, &json!("too_slow")));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_component_that_stands_still_is_given_up_and_its_place_is_free_again() {
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "acme" }));
    let path = "/tenants/acme/plugins/echo/versions?role=handler";
    let good = std::fs::read(component("bench")).unwrap();
    let length = good.len();
    let head =
        format!("POST /admin/v1{path} HTTP/1.1\r\nauthorization: Bearer {OPERATOR}\r\ncontent-length: {length}\r\n");
    let began = Instant::now();
    // As many as a tenant may have.
    std::thread::scope(|scope| {
        let stalled = || raw(&node, &head, &good[..length / 2]);
        for upload in [scope.spawn(stalled), scope.spawn(stalled)] {
            let (status, refusal) = upload.join().unwrap();
            assert_eq!((status, &refusal["error"]["code"]), (408, &json!("too_slow")), "{refusal}");
            assert!(refusal["error"]["message"].as_str().unwrap().contains("stand still for 15 s"), "{refusal}");
        }
    });
    let waited = began.elapsed();
    assert!((14..25).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(upload(&node, path, "", &good).0, 201);
}

#[test]
fn whoever_has_no_token_is_not_read_from() {
    let node = node(Vec::new());
    let head = "POST /admin/v1/tenants/acme/plugins/echo/versions HTTP/1.1\r\ncontent-length: 1000000\r\n";
    let began = Instant::now();
    let (status, _) = raw(&node, head, b"");
    assert_eq!(status, 401);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_push_that_is_too_large_is_refused_in_words_and_not_by_a_connection_that_breaks() {
    let small = Settings {
        config: format!("admin_token = \"{OPERATOR}\"\n[plugins]\ncomponent_bytes_max = 2000000\n"),
        ..settings(Vec::new(), None)
    };
    let node = Node::with(small);
    operate(&node, "POST", "/tenants", json!({ "name": "acme" }));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large.wasm");
    std::fs::write(&file, vec![7; 20_000_000]).unwrap();
    for _ in 0..5 {
        let output =
            postern(&node, &["plugin", "push", "p", file.to_str().unwrap(), "--tenant", "acme", "--role", "handler"]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(told.contains("plugins.component_bytes_max") && told.contains("20000000"), "{told}");
    }
}

#[test]
fn a_tenant_that_wants_signatures_takes_what_is_signed_for_this_plugin_and_nothing_else() {
    let node = node(Vec::new());
    let public = std::fs::read_to_string(root().join("gateway/tests/keys/ed25519.public.pem")).unwrap();
    let private = root().join("gateway/tests/keys/ed25519.private.pem");
    let private = private.to_str().unwrap();
    let settings = json!({ "require_signature": true, "signature_keys": [{ "id": "release", "public_key": public }] });
    operate(&node, "POST", "/tenants", json!({ "name": "acme", "settings": settings }));
    let file = component("bench");
    let push = |more: &[&str]| {
        let args = [&["plugin", "push", "echo", &file, "--tenant", "acme", "--role", "handler"], more].concat();
        let output = postern(&node, &args);
        (output.status.code(), text(&output.stderr))
    };
    let (code, told) = push(&[]);
    assert!(code == Some(1) && told.contains("--sign-with"), "{told}");
    let of_another =
        ["plugin", "sign", &file, "--tenant", "acme", "--plugin", "other", "--key", private, "--key-id", "release"];
    let (signature, _) = done(&node, &of_another);
    let (code, told) = push(&["--signature", signature.trim()]);
    assert!(code == Some(1) && told.contains("does not hold"), "{told}");
    let (code, told) = push(&["--sign-with", private, "--key-id", "release"]);
    assert_eq!(code, Some(0), "{told}");
    let versions = ask(&node, OPERATOR, "GET", "/tenants/acme/plugins/echo/versions", None).1;
    assert_eq!(versions["versions"][0]["signed_by"], "release");
    // Whoever takes the key away is told what that stops, and so is whoever looks.
    let (told, _) = done(&node, &["plugin", "activate", "echo", "1", "--tenant", "acme"]);
    assert_eq!(told, "");
    let (told, notes) = done(&node, &["tenant", "set", "acme", "require_signature=false", "--unset", "signature_keys"]);
    let stopped = "plugin echo, version 1: the tenant has no signature key";
    assert!(told.contains("is changed") && notes.contains(&format!("not called any more: {stopped}")), "{told}{notes}");
    eventually("the list says why it does not run", || {
        done(&node, &["plugin", "list", "--tenant", "acme"]).0.contains(stopped)
    });
    let (told, _) = done(&node, &["plugin", "inspect", "echo", "--tenant", "acme"]);
    assert!(told.lines().next().is_some_and(|line| line.starts_with("state") && line.contains(stopped)), "{told}");
}
