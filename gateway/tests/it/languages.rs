//! Plugins in other languages than Rust: built and pushed as a tenant's developer does it, and met by real clients.

use std::path::Path;
use std::process::Command;

use postern::cli::plugin_build::{BuildError, BuildOptions, Component, build};
use serde_json::{Value, json};

use crate::admin::{done, node, operate};
use crate::plugin_test::{scenarios_of_the_page, tested};
use crate::support::clients::Clients;
use crate::support::node::Node;
use crate::support::{SECRET, components, root, token};

const WORD_FILTER: &str = "examples/plugins/word-filter-js";
pub(crate) const POLL: &str = "examples/plugins/poll-py";

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

/// Makes a tenant whose members' tokens name their `channels`, and pushes its plugins.
fn chat(node: &Node, tenant: &str, handler: &str, component: &Component, settings: &[&str]) {
    operate(node, "POST", "/tenants", json!({ "name": tenant }));
    operate(node, "PUT", &format!("/tenants/{tenant}/keys/k1"), json!({ "algorithm": "HS256", "secret": SECRET }));
    let path = |component: &Path| component.display().to_string();
    let push = |plugin: &str, component: &Path, role: &str| {
        let file = path(component);
        done(node, &["plugin", "push", plugin, &file, "--tenant", tenant, "--role", role, "--activate"]).0
    };
    push("access", &components().join("room-authorization.wasm"), "authorizer");
    let mut set = vec!["plugin", "set", handler, "--tenant", tenant, "--role", "handler"];
    set.extend(settings.iter().flat_map(|setting| ["--setting", setting]));
    done(node, &set);
    let pushed = push(handler, &component.path, "handler");
    assert!(pushed.contains("version 1 is stored") && pushed.contains(&component.sha256), "{pushed}");
}

/// Real clients that are in the room of the channel.
fn in_the_channel(node: &Node, tenant: &str, subjects: &[&str]) -> Clients {
    let mut io = Clients::socketio();
    for subject in subjects {
        io.join_socketio(node, subject, tenant, &member(tenant, subject));
        io.ask(subject, "join_room", json!({ "room": "channel:general" }));
    }
    io
}

fn member(tenant: &str, subject: &str) -> String {
    token(tenant, subject, json!({ "channels": ["general"] }))
}

#[test]
fn the_examples_come_to_what_their_scenarios_say() {
    for (dir, scenario, says) in [
        (WORD_FILTER, "muted", "ok     word-filter: muted: 10 steps, "),
        (POLL, "closes", "ok     poll: closes: 7 steps, "),
    ] {
        let component = example(dir).path.display().to_string();
        let told = tested(&[&component, "--scenario", &format!("{dir}/tests/{scenario}.scenario.toml")]);
        assert!(told.code == Some(0) && told.out.contains(says), "{told:?}");
    }
    let (_, page) = scenarios_of_the_page().into_iter().find(|(plugin, _)| plugin == "word-filter").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("page.scenario.toml");
    std::fs::write(&file, page).unwrap();
    let component = example(WORD_FILTER).path.display().to_string();
    let told = tested(&[&component, "--scenario", file.to_str().unwrap()]);
    assert_eq!(told.code, Some(0), "{told:?}");
}

/// The id of the input in what a client is told of a failure: that, and nothing of the plugin's own.
fn input_of(answer: &Value) -> String {
    assert_eq!(answer["error"]["code"], "plugin_failed", "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    let (told, input) = message.trim_end_matches(')').split_once(" (input ").unwrap();
    assert!(told.ends_with("failed in events.handle: its log says why"), "{message}");
    input.to_owned()
}

#[test]
fn a_plugin_in_javascript_filters_a_chat_and_mutes_who_insists() {
    let component = example(WORD_FILTER);
    assert!(component.imports.iter().all(|name| name.starts_with("postern:plugin/")), "{component:?}");
    let node = node(Vec::new());
    chat(&node, "words", "word-filter", &component, &["words=darn, heck", "strikes=2", "mute_ms=700"]);
    chat(&node, "mistaken", "word-filter", &component, &["strikes=three"]);
    let mut io = in_the_channel(&node, "words", &["asha", "ravi"]);
    let send = |io: &mut Clients, who: &str, channel: &str, text: &str| {
        io.ask(who, "chat_send", json!({ "channel": channel, "text": text }))
    };

    // An event, its publication, its acknowledgement.
    let said = send(&mut io, "asha", "general", "Darn, it is darned cold");
    assert_eq!(said, json!({ "text": "****, it is darned cold", "strikes_left": 1 }));
    let heard = io.event("ravi", "chat_message");
    assert_eq!((&heard["from"], &heard["text"]), (&json!("asha"), &said["text"]));
    let at = heard["at"].as_u64().unwrap();
    assert!(at.abs_diff(postern::commit::now_ms()) < 60_000, "{at} is the time of no gateway");

    // Refusals.
    assert_eq!(send(&mut io, "asha", "secret", "hello")["error"]["code"], "forbidden");
    assert_eq!(send(&mut io, "asha", "general", " ")["error"]["code"], "invalid");

    // State from call to call, and a timer.
    assert_eq!(send(&mut io, "asha", "general", "heck!")["strikes_left"], 0);
    assert!(io.event("asha", "chat_muted")["until"].as_u64().unwrap() > at);
    let muted = send(&mut io, "asha", "general", "sorry");
    assert_eq!(muted["error"]["code"], "muted");
    assert!(muted["error"]["message"].as_str().unwrap().contains("T"), "{muted}");
    assert_eq!(send(&mut io, "ravi", "general", "well")["text"], "well");
    io.event("asha", "chat_unmuted");
    assert_eq!(send(&mut io, "asha", "general", "back again"), json!({ "text": "back again" }));

    // What nobody expected names itself, its file and its line in the log, where the client's id finds it.
    io.join_socketio(&node, "meera", "mistaken", &member("mistaken", "meera"));
    let failed = send(&mut io, "meera", "general", "hello");
    let input = input_of(&failed);
    let (log, _) = done(&node, &["plugin", "logs", "word-filter", "--tenant", "mistaken"]);
    let line = log.lines().find(|line| line.contains(&input)).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("`strikes`") && line.contains("src/rules.js:"), "{line}");
    assert!(log.contains("src/plugin.js:"), "{log}");
}

#[test]
fn a_plugin_in_python_holds_a_poll_until_its_time_is_over() {
    let component = example(POLL);
    assert!(component.imports.iter().all(|name| name.starts_with("postern:plugin/")), "{component:?}");
    let node = node(Vec::new());
    chat(&node, "polls", "poll", &component, &[]);
    chat(&node, "mistaken", "poll", &component, &["seconds=soon"]);
    let mut io = in_the_channel(&node, "polls", &["asha", "ravi"]);
    let question = json!({ "channel": "general", "question": "Tea?", "options": ["yes", "no"], "seconds": 3 });

    // An event, its publication, its acknowledgement.
    let opened = io.ask("asha", "poll_open", question.clone());
    let left = opened["closes_at"].as_u64().unwrap().saturating_sub(postern::commit::now_ms());
    assert!(left <= 3_000, "{opened}");
    let heard = io.event("ravi", "poll_opened");
    assert_eq!((&heard["poll"], &heard["opened_by"]), (&opened["poll"], &json!("asha")));

    // State from call to call.
    let vote = |io: &mut Clients, who: &str, option: &str| {
        io.ask(who, "poll_vote", json!({ "poll": opened["poll"], "option": option }))
    };
    assert_eq!(vote(&mut io, "asha", "yes")["tally"], json!({ "yes": 1, "no": 0 }));
    assert_eq!(vote(&mut io, "ravi", "yes")["tally"], json!({ "yes": 2, "no": 0 }));
    assert_eq!(vote(&mut io, "ravi", "no")["tally"], json!({ "yes": 1, "no": 1 }));
    io.expect(json!({ "what": "event", "name": "asha", "event": "poll_tally", "args": [{ "tally": { "no": 1 } }] }));

    // Refusals.
    assert_eq!(vote(&mut io, "asha", "maybe")["error"]["code"], "invalid");
    let elsewhere = io.ask("asha", "poll_open", json!({ "channel": "x", "question": "?", "options": ["a", "b"] }));
    assert_eq!(elsewhere["error"]["code"], "forbidden");

    // A timer.
    let closed = io.event("ravi", "poll_closed");
    assert_eq!(closed["tally"], json!({ "yes": 1, "no": 1 }));
    assert_eq!(vote(&mut io, "asha", "no")["error"]["code"], "not_found");

    // What nobody expected names itself, its file and its line in the log, where the client's id finds it.
    io.join_socketio(&node, "meera", "mistaken", &member("mistaken", "meera"));
    let failed = io.ask("meera", "poll_open", question);
    let input = input_of(&failed);
    let (log, _) = done(&node, &["plugin", "logs", "poll", "--tenant", "mistaken"]);
    let line = log.lines().find(|line| line.contains(&input)).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("ValueError") && line.contains("plugin.py:"), "{line}");
    assert!(log.contains("handle plugin.py:"), "{log}");
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
    assert!(error.contains("node:fs") && error.contains("what may be imported"), "{error}");
    let error = broken("src/plugin.js", &|text| text.replace("plugin/rooms@", "plugin/room@"));
    assert!(error.contains("plugin/room@0.1.0") && error.contains("presence, rooms, state"), "{error}");
    let error = broken("package.json", &|text| text.replace("timed-handler", "handler"));
    assert!(error.contains("`timerEvents`") && error.contains("timed-handler or full-handler"), "{error}");
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
