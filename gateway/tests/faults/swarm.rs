//! The swarm: hundreds of clients in one Node.js process, driven over its standard input.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::settings::Settings;
use crate::world::process::root;
use crate::world::{SECRET, TENANTS};

/// How much longer than it was given the swarm may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Swarm {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<Value>,
}

impl Swarm {
    /// Starts the program; nobody is connected yet.
    pub(crate) fn new(settings: &Settings, urls: &[String], dir: &Path) -> Swarm {
        let config = json!({
            "seed": settings.seed, "secret": SECRET, "urls": urls, "tenants": TENANTS, "clients": settings.clients,
            "rooms": settings.rooms, "rooms_each": 2, "publishes_per_s": settings.publishes_per_s,
            "hop_mean_ms": settings.hop_mean_ms, "visitors_per_s": settings.visitors_per_s,
        });
        let file = dir.join("swarm.json");
        std::fs::write(&file, config.to_string()).expect("the swarm's settings");
        let mut child = Command::new("node")
            .arg(root().join("gateway/tests/clients/swarm.mjs"))
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts (run scripts/setup test)");
        let commands = child.stdin.take().expect("stdin is piped");
        let lines = child.stdout.take().expect("stdout is piped");
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "what": "said", "text": line }));
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        Swarm { child, commands, answers }
    }

    fn ask(&mut self, command: &Value, answer: &str, within: Duration) -> Value {
        writeln!(self.commands, "{command}").expect("the swarm runs");
        loop {
            let told = self
                .answers
                .recv_timeout(within + ANSWER_MAX)
                .unwrap_or_else(|error| panic!("the swarm does not answer {command} within {within:?}: {error}"));
            if told["what"] == answer {
                return told;
            }
            eprintln!("the swarm: {told}");
        }
    }

    /// Everybody connects.
    pub(crate) fn start(&mut self, within: Duration) -> Value {
        self.ask(&json!({ "do": "start", "within_ms": milliseconds(within) }), "started", within)
    }

    /// A new history begins, and the bustle.
    pub(crate) fn begin(&mut self, history: &Path) {
        self.ask(&json!({ "do": "begin", "history": history }), "begun", Duration::ZERO);
    }

    /// The bustle ends; what is on its way arrives.
    pub(crate) fn settle(&mut self, within: Duration) -> Value {
        self.ask(&json!({ "do": "settle", "within_ms": milliseconds(within) }), "settled", within)
    }

    pub(crate) fn status(&mut self) -> Value {
        self.ask(&json!({ "do": "status" }), "status", Duration::ZERO)
    }

    pub(crate) fn presence(&mut self) -> Value {
        self.ask(&json!({ "do": "presence" }), "presence", Duration::from_secs(40))["rooms"].take()
    }

    /// The history ends.
    pub(crate) fn conclude(&mut self) -> Value {
        self.ask(&json!({ "do": "conclude" }), "concluded", Duration::ZERO)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Drop for Swarm {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
