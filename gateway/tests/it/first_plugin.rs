//! A developer's first plugin: begun, built and met by a client, with nothing written by hand.

use postern::cli::plugin_build::{BuildOptions, build};
use postern::cli::plugin_new::{Language, new};
use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::{root, tenant_file, token};

#[test]
fn a_project_that_was_just_begun_builds_and_greets() {
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("door-bell");
    new(&project, Language::Rust).unwrap();
    // The versions that are compiled already; a developer's first build takes half a minute longer.
    std::fs::copy(root().join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    let target_dir = Some(root().join("target/wasm"));
    let options = BuildOptions { dirs: vec![project], out: None, target_dir };
    let built = build(&options, &mut |line| eprintln!("{line}")).unwrap_or_else(|error| panic!("{error}"));
    let component = &built.components[0];

    let (name, file) = tenant_file("acme", &[("authorizer", "authorizer", "bench")], "", "");
    let path = &component.path;
    let plugin = format!(
        "[[plugins]]\nname = \"door-bell\"\nrole = \"handler\"\ncomponent = {path:?}\nsettings = {{ greeting = \"Namaste\" }}\n"
    );
    let node = Node::start(vec![(name, file + &plugin)]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "asha", "acme", &token("acme", "asha", json!({})));
    assert_eq!(ws.request("asha", "hello", json!({ "name": "Asha" })), json!({ "text": "Namaste, Asha!" }));
    let greeted = ws.message("asha", json!({ "event": "greeted" }));
    assert_eq!(greeted["data"], json!({ "name": "Asha", "times": 1 }));
    let again = ws.request("asha", "hello", json!({ "name": "Asha" }));
    assert_eq!(again, json!({ "text": "Namaste again, Asha! (2 times)" }));
}
