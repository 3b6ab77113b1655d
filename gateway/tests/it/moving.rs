//! `docs/moving-from-socketio.md`, followed as it stands: its files, its commands, its programs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postern::decision::token::sign;
use postern::tenant::{Algorithm, Secret};
use serde_json::{Value, json};

use crate::support::clients::{Clients, contains};
use crate::support::{components, now_s, root};

/// What the old server verifies its tokens with.
const JWT_SECRET: &str = "the-old-servers-secret-0123456789abcdef";
const GATEWAY_KEY: &str = "a-new-key-of-the-controllers-0123456789";
/// Where the guide has the gateway listen.
const WRITTEN_ADDRESS: &str = "127.0.0.1:3000";
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a block of the guide may run, in seconds; what the first one builds has been built before.
const BLOCK_SECONDS_MAX: &str = "120";

/// A fenced block, with the file that it is, where the text before it ends in one's name.
struct Block {
    file: Option<String>,
    language: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let guide = std::fs::read_to_string(root().join("docs/moving-from-socketio.md")).unwrap();
    let parts: Vec<&str> = guide.split("```").collect();
    assert_eq!(parts.len() % 2, 1, "a block has no end");
    let block = |(before, block): (&str, &str)| {
        let (language, text) = block.split_once('\n').unwrap();
        let named = before.trim_end().strip_suffix("`:").and_then(|before| Some(before.rsplit_once('`')?.1));
        Block { file: named.map(Into::into), language: language.into(), text: text.into() }
    };
    parts.iter().zip(&parts[1..]).step_by(2).map(|(before, text)| block((before, text))).collect()
}

/// A token as the old login gives them out: nothing in it speaks of the gateway.
fn old_token(claims: Value) -> String {
    let mut all = json!({ "exp": now_s() + 3_600, "email": "somebody@example.com" });
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    sign(None, Algorithm::HS256, &Secret(JWT_SECRET.into()), all.as_object().unwrap()).unwrap()
}

/// The guide's gateway; killed when dropped.
struct Serving {
    child: Child,
    address: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell in the reader's directory, who has exported what the guide speaks of.
fn shell(program: &[&str], dir: &Path, line: &str, address: &str) -> Command {
    let own = Path::new(env!("CARGO_BIN_EXE_postern")).parent().unwrap();
    let path = format!("{}:{}", own.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).args(["-euo", "pipefail", "-c", line]).current_dir(dir).env("PATH", path);
    command.env("JWT_SECRET", JWT_SECRET).env("GATEWAY_KEY", GATEWAY_KEY);
    command.env("TOKEN", old_token(json!({ "userId": 42 })));
    let api = format!("http://{address}/api/v1");
    command.env("API", &api).env("GATEWAY_API", &api);
    command
}

/// Runs a block to its end; what it left running ends with it, however that came.
fn run(dir: &Path, line: &str, address: &str) -> String {
    let line = format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{line}");
    let output = shell(&["timeout", BLOCK_SECONDS_MAX, "bash"], dir, &line, address).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}\n{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Starts `postern serve …` on a free port and waits until it accepts.
fn serve(dir: &Path, line: &str) -> Serving {
    let mut command = shell(&["bash"], dir, &format!("exec {line}"), WRITTEN_ADDRESS);
    let mut child = command.env("PORT", "0").stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (found, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            eprintln!("{line}");
            let address = line.split("address=").nth(1).and_then(|rest| rest.split(' ').next());
            if let (true, Some(address)) = (line.contains("accepting connections"), address) {
                let _ = found.send(address.to_owned());
            }
        }
    });
    let mut serving = Serving { child, address: String::new() };
    serving.address = address.recv_timeout(START_TIMEOUT).expect("the gateway accepts connections");
    serving
}

/// Connects as an app that knows nothing of tenants.
fn app(io: &mut Clients, address: &str, name: &str, namespace: &str, claims: Value) {
    let auth = json!({ "token": old_token(claims) });
    io.tell(json!({ "do": "connect", "name": name, "url": format!("http://{address}"), "path": "/socket.io/",
        "namespace": namespace, "auth": auth }));
    io.expect(json!({ "what": "connect", "name": name }));
}

/// The apps that hear what the guide's controllers say.
fn apps(address: &str) -> Clients {
    let mut io = Clients::socketio();
    let resident = json!({ "userId": "asha", "role": "resident", "society_id": "gv", "flats": ["A-101"] });
    app(&mut io, address, "asha", "/", resident);
    let member = json!({ "userId": 7, "teams": ["t1"], "projects": ["p1"], "channels": ["c1", "btc"] });
    app(&mut io, address, "ben", "/", member);
    app(&mut io, address, "eve", "/events", json!({ "userId": "eve" }));
    assert_eq!(io.event("ben", "authenticated")["user_id"], "7");
    io.ask("ben", "join_room", json!({ "room_type": "project", "room_id": "p1", "user_id": 7 }));
    io.ask("ben", "join_channel", json!({ "channelId": "c1" }));
    io.ask("ben", "subscribe", json!(["channel:btc"]));
    io
}

fn heard(io: &mut Clients, name: &str, event: &str, data: Value) {
    io.expect(json!({ "what": "event", "name": name, "event": event, "args": [data] }));
}

#[test]
fn whoever_follows_the_guide_has_moved() {
    components();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::create_dir(dir.join("tenants")).unwrap();
    std::os::unix::fs::symlink(root().join("target"), dir.join("target")).unwrap();
    std::os::unix::fs::symlink(root().join("gateway/tests/clients/node_modules"), dir.join("node_modules")).unwrap();
    let blocks = blocks();
    let (mut serving, mut io, mut last) = (None::<Serving>, None, String::new());
    let mut commands = 0;
    for block in &blocks {
        match (block.language.as_str(), &block.file) {
            ("toml", Some(file)) => std::fs::write(dir.join(file), &block.text).unwrap(),
            ("sh", None) if block.text.starts_with("postern plugin build") => {
                run(&root(), &block.text, WRITTEN_ADDRESS);
            }
            ("sh", None) if block.text.starts_with("postern serve") => {
                let started = serve(dir, block.text.trim());
                for program in blocks.iter().filter(|block| block.language == "js") {
                    let file = dir.join(program.file.as_ref().expect("a program has a name"));
                    std::fs::write(file, program.text.replace(WRITTEN_ADDRESS, &started.address)).unwrap();
                }
                io = Some(apps(&started.address));
                serving = Some(started);
            }
            ("sh", None) => {
                let address = serving.as_ref().map_or(WRITTEN_ADDRESS, |serving| &serving.address);
                let line = block.text.replace("curl -s", "curl -s --fail-with-body --max-time 10");
                // Not for so long, but until it is there.
                let there = "for _ in {1..150}; do grep -q 'in as' heard.txt && break; sleep 0.1; done";
                last = run(dir, &line.replace("sleep 2;", &format!("{there};")), address);
                commands += 1;
            }
            ("json", None) => {
                let (shown, said): (Value, Value) =
                    (serde_json::from_str(&block.text).unwrap(), serde_json::from_str(&last).unwrap());
                assert!(contains(&said, &shown), "answered {said} and not {shown}");
            }
            ("text", None) => assert_eq!(last.trim(), block.text.trim()),
            ("js", Some(_)) => {}
            (language, file) => panic!("a block of {language:?} for {file:?}"),
        }
    }
    assert_eq!(commands, 9, "check, the client, and what controllers say");
    let mut io = io.expect("the guide has a gateway run");
    heard(&mut io, "asha", "parcel_arrived", json!({ "parcel": 7 }));
    heard(&mut io, "asha", "visitor_request", json!({ "visitor_name": "Meera" }));
    heard(&mut io, "ben", "task:update", json!({ "action": "update", "task": { "id": "77" } }));
    heard(&mut io, "eve", "test-event", json!({ "n": 1 }));
    heard(&mut io, "ben", "new_message", json!({ "text": "The build is green", "userId": "bot" }));
    heard(&mut io, "ben", "quote", json!(64_000));
    heard(&mut io, "ben", "volume", json!(12));
    io.absent(json!({ "what": "event", "name": "ben", "event": "test-event" }));
}

#[test]
fn the_guides_module_for_controllers_does_what_io_did() {
    let node = crate::support::node::Node::start(vec![crate::support::open("one", "")]);
    let mut io = Clients::socketio();
    let mut ids = Vec::new();
    for (name, namespace) in [("ana", "/"), ("ben", "/"), ("eve", "/events")] {
        let auth = json!({ "token": crate::support::token("one", name, json!({})) });
        io.try_socketio(&node, name, "one", namespace, auth);
        ids.push(io.expect(json!({ "what": "connect", "name": name }))["id"].as_str().unwrap().to_owned());
        io.ask(name, "join_room", json!({ "room": "r:1" }));
    }
    let dir = tempfile::tempdir().unwrap();
    let module = blocks().into_iter().find(|block| block.file.as_deref() == Some("gateway.mjs")).unwrap();
    std::fs::write(dir.path().join("gateway.mjs"), module.text).unwrap();
    let program = format!(
        "import {{ io, raise, disconnectUser }} from './gateway.mjs';
        await io.emit('all', 1, 'two');
        await io.of('/events').emit('all', 2);
        await io.to('r:1').emit('room', 3);
        await io.to('r:1').except('{}').emit('room', 4);
        await io.of('/events').to('r:1').emit('room', 5);
        await io.in('user:ben').emit('own', 6);
        console.log(JSON.stringify(await raise('echo', {{ seven: 7 }})));
        await io.to('r:1').emit('connect', 8).catch((error) => console.log(error.status, error.code));
        await disconnectUser('ana');",
        ids[0]
    );
    std::fs::write(dir.path().join("controller.mjs"), program).unwrap();
    let output = Command::new("node")
        .arg("controller.mjs")
        .current_dir(dir.path())
        .env("GATEWAY_API", format!("{}/t/one/api/v1", node.url()))
        .env("GATEWAY_KEY", crate::support::BACKEND_TOKEN)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    let (raised, refused) = said.trim().split_once('\n').unwrap();
    assert_eq!(serde_json::from_str::<Value>(raised).unwrap()["data"], json!({ "seven": 7 }));
    assert_eq!(refused, "400 invalid");
    io.expect(json!({ "what": "disconnect", "name": "ana" }));
    let own = ["all", "room", "own"];
    for (name, wanted) in
        [("ana", json!([[1, "two"], [3]])), ("ben", json!([[1, "two"], [3], [4], [6]])), ("eve", json!([[2], [5]]))]
    {
        let seen = io.all(&json!({ "what": "event", "name": name }));
        let seen: Vec<Value> = seen
            .into_iter()
            .filter(|seen| own.contains(&seen["event"].as_str().unwrap()))
            .map(|seen| seen["args"].clone())
            .collect();
        assert_eq!(json!(seen), wanted, "{name}");
    }
}
