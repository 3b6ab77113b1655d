//! The commands and flags that an operator needs less often, one after the other.

use serde_json::{Value, json};

use super::tour::{answered, version};
use super::{OPERATOR, ask, command, done, eventually, node, operate, postern, secret, serve, text, token};
use crate::support::clients::Clients;

/// Lines of a table below its head, as words.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn keys_tokens_and_plugins_are_listed_and_deleted_and_the_audit_log_is_read_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(Vec::new());
    serve(&node, "acme", &version(dir.path(), 1));
    operate(&node, "PUT", "/tenants/acme/keys/k2", json!({ "algorithm": "HS384", "secret": secret("k2") }));
    let mut ws = Clients::ws();
    ws.join_ws(&node, "ana", "acme", &token("acme", "ana", "k1"));

    // Who one is, and who else there is.
    let (made, _) = done(&node, &["admin", "token", "create", "ci", "--scope", "tenant-admin", "--tenant", "acme"]);
    let ci = made.trim();
    let (told, _) = done(&node, &["admin", "whoami"]);
    assert!(told.trim_end().ends_with(": operator"), "{told}");
    let output = command(&node, ci, &["admin", "whoami"]).output().unwrap();
    assert_eq!(text(&output.stdout), "ci: tenant-admin of acme\n");
    let (listed, _) = done(&node, &["admin", "token", "list"]);
    let [row] = &rows(&listed)[..] else { panic!("{listed}") };
    assert_eq!(&row[1..4], ["ci", "tenant-admin", "acme"], "{listed}");
    assert!(listed.starts_with("ID ") && !listed.contains(ci), "{listed}");
    let (json_list, _) = done(&node, &["admin", "token", "list", "--json"]);
    let json_list: Value = serde_json::from_str(&json_list).unwrap();
    assert_eq!(json_list["tokens"][0]["id"], row[0]);

    // The token from a file, and to an address that is not this machine's loopback.
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{ci}\n")).unwrap();
    let file = file.to_str().unwrap();
    let with_file = |more: &[&str]| {
        let output = command(&node, "", &[&["admin", "whoami", "--token-file", file], more].concat()).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(with_file(&[]).1, "ci: tenant-admin of acme\n");
    let elsewhere = format!("http://0.0.0.0:{}", node.address.port());
    let (code, _, told) = with_file(&["--url", &elsewhere]);
    assert!(code == Some(64) && told.contains("--insecure-http"), "{told}");
    let (code, told, error) = with_file(&["--url", &elsewhere, "--insecure-http"]);
    assert_eq!((code, told.as_str()), (Some(0), "ci: tenant-admin of acme\n"), "{error}");
    let output = command(&node, ci, &["admin", "whoami", "--token-file", "/nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "the token of the variable was taken instead");

    // A key that is deleted puts those out whom it let in, and nobody else.
    let (listed, _) = done(&node, &["tenant", "key", "list", "acme"]);
    let keys: Vec<_> = rows(&listed).iter().map(|row| (row[0].to_owned(), row[1].to_owned())).collect();
    assert_eq!(keys, [("k1".into(), "HS256".into()), ("k2".into(), "HS384".into())], "{listed}");
    assert!(!listed.contains(&secret("k1")), "{listed}");
    let of_k2 = json!({ "tenant": "acme", "sub": "eve", "exp": crate::support::now_s() + 3_600 });
    let eve = postern::decision::token::sign(
        Some("k2"),
        postern::tenant::Algorithm::HS384,
        &postern::tenant::Secret(secret("k2").into_bytes()),
        of_k2.as_object().unwrap(),
    );
    ws.join_ws(&node, "eve", "acme", &eve.unwrap());
    let (told, _) = done(&node, &["tenant", "key", "delete", "acme", "k1"]);
    assert!(told.contains("the key k1 of acme is revoked"), "{told}");
    assert_eq!(ws.closed("ana"), (4500, "unauthorized".into()));
    assert_eq!(answered(&mut ws, "eve"), "1");
    let (listed, _) = done(&node, &["tenant", "key", "list", "acme"]);
    assert_eq!(rows(&listed).len(), 1, "{listed}");
    let again = postern(&node, &["tenant", "key", "delete", "acme", "k1"]);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stdout));

    // The audit log: what was last is first, and no more than asked for.
    let (told, _) = done(&node, &["admin", "audit", "--tenant", "acme", "-n", "1"]);
    let first = told.lines().next().unwrap();
    assert!(first.ends_with("key.delete acme k1"), "{told}");
    assert_eq!(told.lines().filter(|line| !line.starts_with("  ")).count(), 1, "{told}");
    let (told, _) = done(&node, &["admin", "audit"]);
    for what in ["key.delete acme k1", "key.put acme k2", "token.create", "tenant.create acme"] {
        assert!(told.contains(what), "{what}: {told}");
    }
    assert!(![ci, &secret("k1"), &secret("k2"), OPERATOR].iter().any(|hidden| told.contains(*hidden)), "{told}");

    // A roll-out that is begun and not waited for.
    done(&node, &["plugin", "push", "echo", &version(dir.path(), 2), "--tenant", "acme"]);
    let before = postern::commit::now_ms();
    let begin =
        ["plugin", "activate", "echo", "2", "--tenant", "acme", "--deadline-ms", "47000", "--no-wait", "--json"];
    let (told, watched) = done(&node, &begin);
    let after = postern::commit::now_ms();
    let begun: Value = serde_json::from_str(&told).unwrap();
    let deadline = begun["deadline_ms"].as_u64().unwrap();
    assert!((before + 47_000..=after + 47_000).contains(&deadline), "{begun}");
    assert!(!watched.contains("ready"), "it was waited for: {watched}");
    eventually("version 2 answers", || answered(&mut ws, "eve") == "2");
    let (told, _) = done(&node, &["plugin", "activate", "echo", "1", "--tenant", "acme", "--no-wait"]);
    assert!(told.contains("version 1 of echo is being rolled out"), "{told}");
    eventually("version 1 answers", || answered(&mut ws, "eve") == "1");

    // A plugin that is deleted is gone, with its versions.
    let refused = postern(&node, &["plugin", "delete", "echo", "--tenant", "acme"]);
    assert!(refused.status.code() == Some(64) && text(&refused.stderr).contains("--yes"), "{}", text(&refused.stderr));
    assert_eq!(answered(&mut ws, "eve"), "1");
    let (told, _) = done(&node, &["plugin", "delete", "echo", "--tenant", "acme", "--yes"]);
    assert_eq!(told, "echo of acme is deleted\n");
    eventually("nobody answers", || answered(&mut ws, "eve") != "1");
    let (listed, _) = done(&node, &["plugin", "list", "--tenant", "acme"]);
    let left: Vec<_> = rows(&listed).iter().map(|row| row[0].to_owned()).collect();
    assert_eq!(left, ["door"], "{listed}");
    assert_eq!(ask(&node, OPERATOR, "GET", "/tenants/acme/plugins/echo", None).0, 404);
    assert!(ws.request("eve", "heartbeat", json!({}))["ts"].is_u64(), "its client is out");
}
