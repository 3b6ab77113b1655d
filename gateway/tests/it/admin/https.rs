//! The command line and a gateway behind TLS.

use serde_json::{Value, json};

use super::{OPERATOR, command, component, node, operate, text};
use crate::support::tls::{TlsFront, certificates};

#[test]
fn over_https_a_gateway_is_trusted_when_its_authority_is_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "acme" }));
    let front = TlsFront::of(node.address, dir.path());
    let url = format!("https://{}", front.address);
    let run = |args: &[&str], ca_variable: Option<&str>| {
        let mut command = command(&node, OPERATOR, args);
        command.env("POSTERN_URL", &url).envs(ca_variable.map(|file| ("POSTERN_CA_FILE", file)));
        let output = command.output().expect("postern runs");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };

    let ca = path("ca.pem");
    let (code, listed, told) = run(&["tenant", "list", "--json"], Some(&ca));
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap()["tenants"][0]["name"], "acme");
    // A body that is large enough to be asked for first.
    let bench = component("bench");
    let push = ["plugin", "push", "echo", &bench, "--tenant", "acme", "--role", "handler", "--activate"];
    let (code, pushed, told) = run(&[&push[..], &["--ca-file", &ca]].concat(), None);
    assert!(code == Some(0) && pushed.contains("version 1 is stored"), "{told}");

    // The argument wins over the variable; of another authority's certificate nothing is sent.
    let (code, _, told) = run(&["tenant", "list", "--ca-file", &path("server.pem")], Some(&ca));
    assert!(code == Some(1) && told.contains("TLS: ") && told.contains("--ca-file"), "{told}");
    let (code, _, told) = run(&["tenant", "list"], None);
    assert!(code == Some(1) && told.contains("TLS: ") && told.contains("POSTERN_CA_FILE"), "{told}");
    let (code, _, told) = run(&["tenant", "list"], Some("/nowhere/ca.pem"));
    assert!(code == Some(1) && told.contains("/nowhere/ca.pem"), "{told}");
    let (code, _, told) = run(&["tenant", "list"], Some(&path("names")));
    assert!(code == Some(1) && told.contains("names no certificate authority"), "{told}");
}
