//! The invariants of ARCHITECTURE.md: what each part must not know.

use std::path::{Path, PathBuf};

use crate::support::root;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The gateway's sources: the path below `src/`, and the code without its unit tests and comments.
fn code() -> Vec<(String, String)> {
    let src = root().join("gateway/src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    found
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let lines: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            (path.strip_prefix(&src).unwrap().to_string_lossy().into_owned(), lines.join("\n"))
        })
        .collect()
}

fn nowhere_but(word: &str, allowed: &[&str]) {
    let offenders: Vec<_> = code()
        .into_iter()
        .filter(|(path, code)| code.contains(word) && !allowed.iter().any(|allowed| path.starts_with(allowed)))
        .map(|(path, _)| path)
        .collect();
    assert!(offenders.is_empty(), "{word:?} belongs to {allowed:?}, but is also in {offenders:?}");
}

#[test]
fn foreign_types_stay_in_their_rooms() {
    nowhere_but("wasmtime::", &["decision/plugin"]);
    nowhere_but("redis::", &["engine/redis", "engine.rs", "run.rs"]);
    nowhere_but("redb::", &["engine/embedded"]);
    nowhere_but("fastwebsockets::", &["connection"]);
    nowhere_but("jsonwebtoken::", &["decision/token"]);
}

#[test]
fn no_act_imports_another() {
    for (act, others) in [
        ("connection", ["crate::decision", "crate::delivery"]),
        ("decision", ["crate::connection", "crate::delivery"]),
        ("delivery", ["crate::connection", "crate::decision"]),
    ] {
        for (path, code) in code().iter().filter(|(path, _)| path.starts_with(act)) {
            for other in others {
                assert!(!code.contains(other), "{path} imports {other}");
            }
        }
    }
}

#[test]
fn what_the_gateway_is_made_of_does_not_know_the_gateway() {
    // Those that act on it may; whatever it holds is handed what it needs.
    let may =
        ["catalog/follower", "http", "key_sets/", "presence.rs", "run.rs", "session", "tail/", "timers.rs", "usage.rs"];
    nowhere_but("crate::gateway", &may);
    nowhere_but("crate::session", &["session/", "http.rs"]);
}

#[test]
fn tasks_are_spawned_in_tracked_places_and_no_queue_is_unbounded() {
    nowhere_but("tokio::spawn(", &["drain.rs"]);
    nowhere_but("unbounded", &["config"]);
}

#[test]
fn nothing_is_left_undone_and_no_file_is_a_chapter() {
    for (path, code) in code() {
        for word in ["todo!(", "unimplemented!(", "dbg!(", "FIXME"] {
            assert!(!code.contains(word), "{path} has {word}");
        }
        assert!(code.lines().count() <= 600, "{path} has {} lines of code: split it", code.lines().count());
    }
}

#[test]
fn the_table_of_endings_is_the_one_in_the_code() {
    let text = std::fs::read_to_string(root().join("gateway/ARCHITECTURE.md")).unwrap();
    for close in postern::close::Close::ALL {
        let row = format!("| {} | `{}` |", close.code(), close.word());
        assert!(text.contains(&row), "ARCHITECTURE.md has no row {row:?}");
    }
}
