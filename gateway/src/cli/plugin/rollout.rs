//! A roll-out as people watch it: one line for each node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::Failure;
use crate::cli::output::{cell, note, time};
use crate::cli::remote::{Remote, plain, plain_json};

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// When it is said which nodes are waited for.
const SAY_WHO_AFTER: Duration = Duration::from_secs(3);

/// Watches until the version is active or will not be; answers how it ended.
///
/// # Errors
/// It failed, or something else took its place.
pub(super) fn watch(remote: &Remote, path: &str, plugin: &str, version: u64) -> Result<Value, Failure> {
    if !remote.json {
        note(&format!("{plugin}: version {version} is being rolled out"));
    }
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let (begun, mut said_who) = (Instant::now(), false);
    loop {
        let rollout = remote.get(&format!("{path}/rollout"))?;
        let is_ours = rollout["version"] == version;
        if !remote.json && is_ours {
            tell(&rollout, &mut seen);
        }
        match rollout["state"].as_str() {
            Some("waiting") if is_ours => {
                if !remote.json && !said_who && begun.elapsed() >= SAY_WHO_AFTER {
                    said_who = true;
                    waited_for(&rollout);
                }
                std::thread::sleep(INTERVAL);
            }
            Some("active") if is_ours => {
                if !remote.json {
                    let message = cell(&rollout["message"]);
                    let but = if message.is_empty() { String::new() } else { format!(", but {message}") };
                    note(&plain(&format!("{plugin}: version {version} is active{but}")));
                }
                return Ok(rollout);
            }
            Some("failed") if is_ours => return Err(failed(remote, plugin, version, rollout)),
            _ => {
                let text = format!(
                    "the roll-out of version {version} ended before it was done: {} now has version {} ({})\n\
                     `postern plugin list {plugin}` and `postern admin audit` show what happened",
                    plugin,
                    cell(&rollout["version"]),
                    cell(&rollout["state"])
                );
                return Err(Failure::Failed(plain_lines(&text)));
            }
        }
    }
}

/// A line for each node that is further than before.
fn tell(rollout: &Value, seen: &mut BTreeMap<String, String>) {
    for node in rollout["nodes"].as_array().into_iter().flatten() {
        let (server, state) = (cell(&node["server"]), cell(&node["state"]));
        if seen.get(&server) != Some(&state) {
            let message = cell(&node["message"]);
            let more = if message.is_empty() { String::new() } else { format!(": {message}") };
            note(&plain(&format!("  node {server} {state}{more}")));
            seen.insert(server, state);
        }
    }
}

/// Which nodes are not ready yet, and how long they are waited for.
fn waited_for(rollout: &Value) {
    let nodes = rollout["nodes"].as_array().into_iter().flatten();
    let waiting: Vec<_> = nodes.filter(|node| node["state"] == "loading").map(|node| cell(&node["server"])).collect();
    if !waiting.is_empty() {
        let until = time(&rollout["deadline_ms"]);
        note(&plain(&format!("  waiting for node {}, until {until} at the latest", waiting.join(", "))));
    }
}

fn failed(remote: &Remote, plugin: &str, version: u64, rollout: Value) -> Failure {
    if remote.json {
        return Failure::Failed(plain_json(&rollout.to_string()));
    }
    let message = cell(&rollout["message"]);
    let why = if message.is_empty() { String::new() } else { format!(": {message}") };
    Failure::Failed(plain_lines(&format!(
        "version {version} of {plugin} was not activated, the version before goes on{why}\n\
         `postern plugin logs {plugin}` shows what it said; push a version that loads, then activate that"
    )))
}

/// Harmless to a terminal, with its lines.
fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}
