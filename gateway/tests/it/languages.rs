//! Plugins in other languages than Rust, built as a tenant's developer builds them, on a node and with real clients.

use std::path::Path;
use std::process::Command;

use postern::cli::plugin_build::{BuildError, BuildOptions, Component, build};
use serde_json::json;

use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::{root, tenant_file, token};

const WORD_FILTER: &str = "examples/plugins/word-filter-js";
const POLL: &str = "examples/plugins/poll-py";

/// Builds a plugin as `postern plugin build` does.
fn built(dir: &Path) -> Result<Component, BuildError> {
    let out = dir.starts_with(root()).then(|| root().join("target/components"));
    let options = BuildOptions { dirs: vec![dir.to_owned()], out, ..BuildOptions::default() };
    let built = build(&options, &mut |line| eprintln!("{line}"))?;
    Ok(built.components.into_iter().next().expect("one directory, one component"))
}

/// The component of an example. While the sources are the same it is not built again, in any run of the tests.
fn example(dir: &str) -> Component {
    built(&root().join(dir)).unwrap_or_else(|error| panic!("{error}"))
}

/// A copy of an example to be broken; `tools`, what was installed for the example, is the copy's, too.
fn copy(dir: &str, tools: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = root().join(dir);
    for entry in std::fs::read_dir(&from).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        if name != "node_modules" && name != "target" {
            let status = Command::new("cp").arg("-r").arg(entry.path()).arg(copy.path()).status().unwrap();
            assert!(status.success());
        }
    }
    let place = copy.path().join(tools);
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(from.join(tools), place).unwrap();
    copy
}

/// Builds a copy of an example after a change to one of its files; what is wrong with it then.
fn broken(dir: &str, tools: &str, file: &str, change: impl Fn(String) -> String) -> String {
    let copy = copy(dir, tools);
    let path = copy.path().join(file);
    std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
    built(copy.path()).expect_err("it is broken").to_string()
}

/// A tenant whose members' tokens name their `channels`.
fn chat(name: &str, handler: &str, settings: &str) -> (String, String) {
    let plugins = [("room-authorization", "authorizer", "room-authorization"), (handler, "handler", handler)];
    tenant_file(name, &plugins, "", settings)
}

fn member(tenant: &str, subject: &str) -> String {
    token(tenant, subject, json!({ "channels": ["general"] }))
}

#[test]
fn a_plugin_in_javascript_filters_a_chat_and_mutes_who_insists() {
    let component = example(WORD_FILTER);
    assert!(component.imports.iter().all(|name| name.starts_with("postern:plugin/")), "{component:?}");
    let settings = "words = \"darn, heck\"\nstrikes = 2\nmute_ms = 700";
    let node = Node::start(vec![
        chat("words", "word-filter", settings),
        chat("mistaken", "word-filter", "strikes = \"three\""),
    ]);
    let mut ws = Clients::ws();
    for subject in ["asha", "ravi"] {
        ws.join_ws(&node, subject, "words", &member("words", subject));
        ws.request(subject, "join_room", json!({ "room": "channel:general" }));
    }
    let send = |ws: &mut Clients, who: &str, channel: &str, text: &str| {
        ws.request(who, "chat_send", json!({ "channel": channel, "text": text }))
    };

    // An event, its publication, its acknowledgement.
    let said = send(&mut ws, "asha", "general", "Darn, it is darned cold");
    assert_eq!(said, json!({ "text": "****, it is darned cold", "strikes_left": 1 }));
    let heard = ws.message("ravi", json!({ "event": "chat_message" }));
    assert_eq!(heard["room"], "channel:general");
    assert_eq!((&heard["data"]["from"], &heard["data"]["text"]), (&json!("asha"), &said["text"]));
    let at = heard["data"]["at"].as_u64().unwrap();
    assert!(at.abs_diff(postern::commit::now_ms()) < 60_000, "{at} is the time of no gateway");

    // Refusals.
    assert_eq!(send(&mut ws, "asha", "secret", "hello")["error"]["code"], "forbidden");
    assert_eq!(send(&mut ws, "asha", "general", " ")["error"]["code"], "invalid");

    // State from call to call, and a timer.
    assert_eq!(send(&mut ws, "asha", "general", "heck!")["strikes_left"], 0);
    assert!(ws.message("asha", json!({ "event": "chat_muted" }))["data"]["until"].as_u64().unwrap() > at);
    let muted = send(&mut ws, "asha", "general", "sorry");
    assert_eq!(muted["error"]["code"], "muted");
    assert!(muted["error"]["message"].as_str().unwrap().contains("T"), "{muted}");
    assert_eq!(send(&mut ws, "ravi", "general", "well")["text"], "well");
    ws.message("asha", json!({ "event": "chat_unmuted" }));
    assert_eq!(send(&mut ws, "asha", "general", "back again"), json!({ "text": "back again" }));

    // What nobody expected names itself, its file and its line.
    ws.join_ws(&node, "meera", "mistaken", &member("mistaken", "meera"));
    let failed = send(&mut ws, "meera", "general", "hello");
    assert_eq!(failed["error"]["code"], "plugin_failed");
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("`strikes`") && message.contains("src/rules.js:"), "{message}");
    let log = node.log();
    let line = log.lines().find(|line| line.contains("`strikes`") && line.contains("src/plugin.js:"));
    assert!(line.is_some_and(|line| line.contains("tenant=mistaken")), "no such line in:\n{log}");
}

#[test]
fn a_plugin_in_python_holds_a_poll_until_its_time_is_over() {
    let component = example(POLL);
    assert!(component.imports.iter().all(|name| name.starts_with("postern:plugin/")), "{component:?}");
    let node = Node::start(vec![chat("polls", "poll", ""), chat("mistaken", "poll", "seconds = \"soon\"")]);
    let mut ws = Clients::ws();
    for subject in ["asha", "ravi"] {
        ws.join_ws(&node, subject, "polls", &member("polls", subject));
        ws.request(subject, "join_room", json!({ "room": "channel:general" }));
    }
    let question = json!({ "channel": "general", "question": "Tea?", "options": ["yes", "no"], "seconds": 3 });

    // An event, its publication, its acknowledgement.
    let opened = ws.request("asha", "poll_open", question.clone());
    let left = opened["closes_at"].as_u64().unwrap().saturating_sub(postern::commit::now_ms());
    assert!(left <= 3_000, "{opened}");
    let heard = ws.message("ravi", json!({ "event": "poll_opened" }));
    assert_eq!((&heard["room"], &heard["data"]["poll"]), (&json!("channel:general"), &opened["poll"]));
    assert_eq!(heard["data"]["opened_by"], "asha");

    // State from call to call.
    let vote = |ws: &mut Clients, who: &str, option: &str| {
        ws.request(who, "poll_vote", json!({ "poll": opened["poll"], "option": option }))
    };
    assert_eq!(vote(&mut ws, "asha", "yes")["tally"], json!({ "yes": 1, "no": 0 }));
    assert_eq!(vote(&mut ws, "ravi", "yes")["tally"], json!({ "yes": 2, "no": 0 }));
    assert_eq!(vote(&mut ws, "ravi", "no")["tally"], json!({ "yes": 1, "no": 1 }));
    ws.message("asha", json!({ "event": "poll_tally", "data": { "tally": { "no": 1 } } }));

    // Refusals.
    assert_eq!(vote(&mut ws, "asha", "maybe")["error"]["code"], "invalid");
    let elsewhere = ws.request("asha", "poll_open", json!({ "channel": "x", "question": "?", "options": ["a", "b"] }));
    assert_eq!(elsewhere["error"]["code"], "forbidden");

    // A timer.
    let closed = ws.message("ravi", json!({ "event": "poll_closed" }));
    assert_eq!(closed["data"]["tally"], json!({ "yes": 1, "no": 1 }));
    assert_eq!(vote(&mut ws, "asha", "no")["error"]["code"], "not_found");

    // What nobody expected names itself, its file and its line.
    ws.join_ws(&node, "meera", "mistaken", &member("mistaken", "meera"));
    let failed = ws.request("meera", "poll_open", question);
    assert_eq!(failed["error"]["code"], "plugin_failed");
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("ValueError") && message.contains("plugin.py:"), "{message}");
    let log = node.log();
    let line = log.lines().find(|line| line.contains("ValueError") && line.contains("handle plugin.py:"));
    assert!(line.is_some_and(|line| line.contains("tenant=mistaken")), "no such line in:\n{log}");
}

#[test]
fn a_mistake_in_javascript_is_named_with_its_file_and_line() {
    example(WORD_FILTER);
    let broken = |file: &str, change: &dyn Fn(String) -> String| broken(WORD_FILTER, "node_modules", file, change);

    let error = broken("src/rules.js", &|text| text.replace("text.replace(unwanted,", "text.replace(unwanted;"));
    assert!(error.contains("src/rules.js:") && error.contains("SyntaxError"), "{error}");
    let error = broken("src/plugin.js", &|text| text.replace("timerEvents", "timer_events"));
    assert!(error.contains("`timerEvents.fire`"), "{error}");
    let error = broken("src/plugin.js", &|text| format!("import fs from 'node:fs';\n{text}"));
    assert!(error.contains("node:fs"), "{error}");
    let error = broken("package.json", &|text| text.replace("timed-handler", "handlers"));
    assert!(error.contains("`postern.world`") && error.contains("timed-handler"), "{error}");
    let error = broken("package.json", &|text| text.replace("componentize-js", "nothing"));
    assert!(error.contains("npm install --save-dev"), "{error}");
    let error = broken("package.json", &|text| text.replace("src/plugin.js", "../plugin.js"));
    assert!(error.contains("`main`"), "{error}");
}

#[test]
fn a_mistake_in_python_is_named_with_its_file_and_line() {
    example(POLL);
    let broken = |file: &str, change: &dyn Fn(String) -> String| broken(POLL, "target/postern/venv", file, change);

    let error = broken("rules.py", &|text| text.replace("def tally(poll):", "def tally(poll)"));
    assert!(error.contains("rules.py\", line ") && error.contains("SyntaxError"), "{error}");
    let error = broken("plugin.py", &|text| text.replace("class TimerEvents", "class Timers"));
    assert!(error.contains("class TimerEvents") && error.contains("def fire"), "{error}");
    let error = broken("plugin.py", &|text| format!("import numpy\n{text}"));
    assert!(error.contains("plugin.py\", line 1") && error.contains("numpy"), "{error}");
    let error = broken("pyproject.toml", &|text| text.replace("world =", "worlds ="));
    assert!(error.contains("`tool.postern.world`") && error.contains("timed-handler"), "{error}");
    let error = broken("pyproject.toml", &|text| text.replace("module = \"plugin\"", ""));
    assert!(error.contains("no module \"poll\"") && error.contains("tool.postern.module"), "{error}");
    let error = broken("requirements.txt", &|text| text.replace("componentize-py==", "# "));
    assert!(error.contains("requirements.txt") && error.contains("componentize-py=="), "{error}");
}

#[test]
fn without_the_tools_of_a_language_the_error_says_what_to_install() {
    for (dir, what) in [(WORD_FILTER, "Node.js 20"), (POLL, "Python 3.9")] {
        let (copy, nothing) = (copy(dir, "tools"), tempfile::tempdir().unwrap());
        let mut postern = Command::new(env!("CARGO_BIN_EXE_postern"));
        postern.args(["plugin", "build"]).arg(copy.path()).env("PATH", nothing.path());
        let output = postern.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(what) && error.contains("apt-get install"), "{error}");
    }
}
