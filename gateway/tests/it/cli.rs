//! The command line, as people type it.

use std::process::{Command, Output};

use crate::support::{open, root, society};

fn postern(args: &[&str], dir: &std::path::Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.args(args).current_dir(dir).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.output().expect("postern runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in [
        &["--help"][..],
        &["serve", "--help"],
        &["check", "--help"],
        &["token", "--help"],
        &["plugin", "build", "--help"],
        &["plugin", "test", "--help"],
        &["plugin", "push", "--help"],
        &["plugin", "logs", "--help"],
        &["tenant", "create", "--help"],
        &["tenant", "key", "put", "--help"],
        &["admin", "token", "create", "--help"],
    ] {
        let output = postern(command, &root());
        assert!(output.status.success(), "{command:?}");
        assert!(text(&output.stdout).contains("postern "), "{command:?} has no example:\n{}", text(&output.stdout));
    }
}

#[test]
fn a_token_stands_alone_on_stdout_and_lets_its_bearer_in() {
    let dir = tempfile::tempdir().unwrap();
    let (name, file) = society("gv", 60_000);
    std::fs::write(dir.path().join(format!("{name}.toml")), file).unwrap();
    let args = [
        "token",
        "--tenants",
        ".",
        "--tenant",
        "gv",
        "--sub",
        "asha",
        "--claim",
        "role=resident",
        "--claim",
        r#"flats=["A-101"]"#,
    ];
    let output = postern(&args, dir.path());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let token = text(&output.stdout);
    assert_eq!(token.trim_end().split('.').count(), 3, "{token}");
    assert_eq!(token.lines().count(), 1);
    let node = crate::support::node::Node::start(vec![society("gv", 60_000)]);
    let mut ws = crate::support::clients::Clients::ws();
    let welcome = ws.join_ws(&node, "asha", "gv", token.trim());
    assert_eq!(welcome["rooms"], serde_json::json!(["flat:A-101"]), "a claim that is JSON was not taken as JSON");
}

#[test]
fn check_reports_all_mistakes_at_once_with_file_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let (_, good) = open("good", "");
    let bad = "name = \"bad\"\nrelai = []\n[limits]\nconnections_per_user = 0\n[[auth.keys]]\nalgorithm = \"HS999\"\n";
    std::fs::write(dir.path().join("good.toml"), good).unwrap();
    std::fs::write(dir.path().join("bad.toml"), bad).unwrap();
    let output = postern(&["check", "--tenants", "."], dir.path());
    assert!(!output.status.success());
    let told = text(&output.stdout) + &text(&output.stderr);
    for part in ["bad.toml", "relai", "connections_per_user", "HS999"] {
        assert!(told.contains(part), "{part} is not mentioned:\n{told}");
    }
    std::fs::remove_file(dir.path().join("bad.toml")).unwrap();
    let output = postern(&["check", "--tenants", "."], dir.path());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn check_holds_components_against_the_contract_and_their_roles() {
    let dir = tempfile::tempdir().unwrap();
    let (_, good) = open("good", "");
    let authorizer = crate::support::components().join("room-authorization.wasm");
    let bench = crate::support::components().join("bench.wasm");
    let wrong_role = good.replace(bench.to_str().unwrap(), authorizer.to_str().unwrap());
    std::fs::write(dir.path().join("good.toml"), wrong_role).unwrap();
    std::fs::write(dir.path().join("broken.wasm"), b"\0asm\x01\0\0\0").unwrap();
    let core = open("core", "").1.replace(bench.to_str().unwrap(), "broken.wasm");
    std::fs::write(dir.path().join("core.toml"), core).unwrap();
    let output = postern(&["check", "--tenants", "."], dir.path());
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(!output.status.success(), "{told}");
    for part in [
        "good.toml",
        "plugins.echo.component",
        "as handler it must export",
        "core.toml",
        "this is a core module, not a component",
    ] {
        assert!(told.contains(part), "{part} is not mentioned:\n{told}");
    }
}

#[test]
fn the_demo_tenants_are_sound() {
    crate::support::components();
    let output = postern(&["check", "--tenants", "examples/tenants"], &root());
    let output = if output.status.success() {
        output
    } else {
        postern(&["check", "--demo", "--tenants", "examples/tenants"], &root())
    };
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn a_port_that_is_taken_is_named_with_its_setting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tenants")).unwrap();
    let output = postern(&["serve", "--host", "127.0.0.1", "--port", &port], dir.path());
    assert!(!output.status.success());
    let told = text(&output.stderr);
    assert!(told.contains(&port) && told.contains("port"), "{told}");
}
