//! A developer's first plugin: docs/first-plugin.md, followed to the letter in each language by somebody who types
//! what it says.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::languages::POLL;
use crate::support::{components, root};

/// How long a whole session may take, in seconds: tools are installed, and three components compiled.
const SESSION_S: &str = "500";

/// The page about scenarios.
pub(crate) const SCENARIOS: &str = "docs/testing-plugins.md";

/// What the languages do differently behind the guide's back, and by hand.
struct Developer {
    language: &'static str,
    /// Done beside the project's sources before the first build: what this machine has need not be fetched again.
    has_tools: String,
    /// The file to change in step 7.
    greeting: &'static str,
}

/// A fenced block of the guide: what stands behind its fence, and its text.
pub(crate) fn blocks(guide: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((info.to_owned(), text.join("\n") + "\n"));
        }
    }
    blocks
}

/// Everything that the guide says to somebody who writes this language, and what happens between its lines.
fn session(blocks: &[(String, String)], scenarios: &[(String, String)], developer: &Developer, port: u16) -> String {
    let postern = Path::new(env!("CARGO_BIN_EXE_postern")).parent().unwrap();
    let clients = root().join("gateway/tests/clients/node_modules");
    let access = components().join("room-authorization.wasm");
    let mut script = format!(
        "set -euo pipefail\ntrap 'kill $(jobs -p)' EXIT\nexport PATH={postern:?}:$PATH PORT={port} POSTERN_URL=http://127.0.0.1:{port}\n\
         npm() {{ if [ \"$*\" = 'install socket.io-client' ]; then ln -s {clients:?} node_modules; else command npm \"$@\"; fi; }}\n"
    );
    for (info, text) in blocks {
        match info.split_once(' ').unwrap_or((info, "")) {
            ("sh", language) if language.is_empty() || language == developer.language => {
                if text.contains("plugin rollback") {
                    script += &format!("sed -i s/Hello/Welcome/ {}\n", developer.greeting);
                }
                script += text;
                if text.contains("plugin test") {
                    // What the page about scenarios begins with is one of this plugin.
                    let (_, greets) = scenarios.iter().find(|(info, _)| info == "toml door-bell").unwrap();
                    script += &format!("cat > greets.scenario.toml <<'END'\n{greets}END\n");
                    script += "postern plugin test . --scenario greets.scenario.toml\n";
                }
                if text.contains("postern serve") {
                    script += "until (exec 3<>/dev/tcp/127.0.0.1/$PORT) 2>/dev/null; do sleep 0.1; done\n";
                }
                if text.contains("plugin new") {
                    script += &format!("(cd door-bell; cp {access:?} .; {})\n", developer.has_tools);
                }
            }
            ("js", _) if text.starts_with("// hello.mjs") => {
                let text = text.replace("127.0.0.1:3000", &format!("127.0.0.1:{port}"));
                script += &format!("cat > hello.mjs <<'END'\n{text}END\n");
            }
            _ => {}
        }
    }
    // Version 2 is the active one in the end.
    script + "sed -i s/Asha/Ravi/ ../client/hello.mjs; node ../client/hello.mjs\n"
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Follows the guide from its first line to its last.
fn follow(developer: &Developer) {
    let guide = std::fs::read_to_string(root().join("docs/first-plugin.md")).unwrap();
    let blocks = blocks(&guide);
    // Always the same, so that cargo does not compile for another place each time.
    let dir = root().join("target/first-plugin").join(developer.language);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let scenarios = std::fs::read_to_string(root().join(SCENARIOS)).unwrap();
    let script = session(&blocks, &self::blocks(&scenarios), developer, free_port());
    // With its own process group, which ends as a whole.
    let mut bash = Command::new("timeout");
    bash.args(["--kill-after=5", SESSION_S, "bash", "-c", &script]).current_dir(&dir).env_clear();
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME"] {
        bash.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    // What is compiled already; a developer's first build takes half a minute longer.
    bash.env("CARGO_TARGET_DIR", root().join("target")).env("npm_config_prefer_offline", "true");
    let output = bash.output().expect("bash and timeout are there");
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let gateway = std::fs::read_to_string(dir.join("gateway.log")).unwrap_or_default();
    let whole = format!("--- stdout\n{said}\n--- stderr\n{told}\n--- gateway\n{gateway}");
    assert!(output.status.success(), "{}\n{whole}", output.status);

    let (_, promised) = blocks.iter().find(|(info, _)| info == "text").expect("the guide shows what comes out");
    for line in promised.lines() {
        assert!(said.lines().any(|said| said == line), "the guide promises {line:?}\n{whole}");
    }
    assert!(said.contains("door-bell: version 1 is stored"), "{whole}");
    if developer.language != "rust" {
        assert!(told.contains("nothing has changed"), "what was built a moment ago is built again\n{whole}");
    }
    // What it costs differs from machine to machine.
    for ok in ["ok     door-bell: hello: 4 steps, ", "ok     door-bell: greets: 2 steps, "] {
        assert!(said.contains(ok), "{ok:?} is not said\n{whole}");
    }
    assert!(
        guide.contains("ok     door-bell: hello: 4 steps, ") && told.contains("1 scenario, all as expected"),
        "{whole}"
    );
    for next in ["next: cd door-bell && ", "next: postern plugin push door-bell "] {
        assert!(told.contains(next), "{next:?} is not said\n{whole}");
    }
    assert!(said.contains("Asha was greeted, times: 1"), "`plugin logs` does not show it\n{whole}");
    assert!(said.contains("the answer: { text: 'Welcome, Ravi!' }"), "the change of step 7 is not seen\n{whole}");
    // What npm has installed is large.
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_guide_holds_for_rust() {
    let lock: PathBuf = root().join("Cargo.lock");
    follow(&Developer { language: "rust", has_tools: format!("cp {lock:?} ."), greeting: "src/lib.rs" });
}

#[test]
fn the_guide_holds_for_javascript() {
    let lock = root().join("examples/plugins/word-filter-js/package-lock.json");
    let has_tools = format!("sed '1,9s/word-filter/door-bell/' {lock:?} > package-lock.json");
    follow(&Developer { language: "javascript", has_tools, greeting: "src/rules.js" });
}

#[test]
fn the_guide_holds_for_python() {
    let venv = root().join(POLL).join("target/postern/venv");
    // Where the example was never built the guide's own build installs the tool.
    let has_tools = format!("if [ -d {venv:?} ]; then mkdir -p target/postern; ln -s {venv:?} target/postern/venv; fi");
    follow(&Developer { language: "python", has_tools, greeting: "rules.py" });
}
