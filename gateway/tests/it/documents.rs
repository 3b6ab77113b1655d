//! The documents name every setting and every metric of the code, and nothing that is not there.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::root;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The code of a file: without comments, attributes and unit tests.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    lines.join("\n")
}

/// What stands between two marks in one line, of every line.
fn between(text: &str, mark: char) -> BTreeSet<&str> {
    text.lines().flat_map(|line| line.split(mark).skip(1).step_by(2)).collect()
}

/// What stands in backticks in the first cells of the tables.
fn rows(text: &str) -> BTreeSet<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| ")?.split('|').next())
        .flat_map(|cell| between(cell, '`'))
        .collect()
}

/// Could it be the key of a setting, or the name of a variable?
fn is_word(text: &str) -> bool {
    let all = |letter: fn(&u8) -> bool| text.bytes().all(|byte| letter(&byte) || byte.is_ascii_digit() || byte == b'_');
    text.len() > 1 && (all(u8::is_ascii_lowercase) || all(u8::is_ascii_uppercase))
}

/// Words in the sources of settings that are no keys, because they are something else there: say here what.
const NO_KEYS: [(&str, &[&str]); 3] = [
    (
        "values of settings and their algorithms",
        &["sub", "true", "false", "warm", "fresh", "immediate", "relaxed", "localhost"],
    ),
    ("roles, and parts of URLs", &["authorizer", "router", "handler", "https", "http"]),
    (
        "flags, names of places in mistakes, types of rooms that are the gateway's own",
        &["user", "connection", "config", "data", "tenants", "environment", "info", "toml", "unlimited"],
    ),
];

/// The sources that read settings, or a function of one, with what the keys read there begin with. Where that is not
/// said, the last part of a row is enough.
const READERS: [(&str, &str, Option<&str>); 13] = [
    ("config.rs", "", None),
    ("config/context.rs", "", None),
    ("config/tenant.rs", "", None),
    ("config/auth.rs", "", Some("auth.")),
    ("config/api_keys.rs", "", Some("api_keys[].")),
    ("config/signature.rs", "fn signature_key(", Some("signature_keys[].")),
    ("config/signature.rs", "fn require_signature(", Some("")),
    ("config/admin.rs", "", Some("admin.")),
    ("config/plugins.rs", "", Some("plugins.")),
    ("config/limits.rs", "fn limits(", Some("limits.")),
    ("config/limits.rs", "fn call_limits(", Some("call_limits.")),
    ("config/limits.rs", "fn plugin_limits(", Some("call_limits.")),
    ("config/limits.rs", "fn breaker(", Some("call_limits.breaker.")),
];

/// A function's code, up to the end of its body; the whole where none is named.
fn function<'a>(code: &'a str, start: &str) -> &'a str {
    let from = code.find(start).unwrap_or_else(|| panic!("there is no {start:?} any more"));
    let code = &code[from..];
    if start.is_empty() { code } else { &code[..code.find("\n}").unwrap_or(code.len())] }
}

fn is_named(word: &str, prefix: Option<&str>, rows: &BTreeSet<&str>, named: &BTreeSet<&str>) -> bool {
    let last_of = |row: &&str| row.rsplit('.').next() == Some(word);
    if rows.iter().any(|row| row.strip_prefix(word).is_some_and(|rest| rest.starts_with(['.', '[']))) {
        return true; // A table's name; its keys are looked for one by one.
    }
    match prefix {
        // Keys of a list inside of the table, such as `auth.keys[].pem`, are the table's, too.
        Some("auth.") => rows.iter().filter(|row| row.starts_with("auth.")).any(last_of),
        Some(prefix) => rows.contains(format!("{prefix}{word}").as_str()),
        None if word.bytes().any(|byte| byte.is_ascii_uppercase()) => named.contains(word),
        None => rows.iter().any(last_of),
    }
}

/// Whatever word stands in the code that reads settings is taken for a key, however it is read.
#[test]
fn the_settings_page_names_every_key_and_variable_that_is_read() {
    let page = read("docs/settings.md");
    let (rows, named) = (rows(&page), between(&page, '`'));
    let mut missing = Vec::new();
    let mut words = BTreeSet::new();
    for (file, start, prefix) in READERS {
        let code = code(&read(&format!("gateway/src/{file}")));
        for word in between(function(&code, start), '"').into_iter().filter(|word| is_word(word)) {
            words.insert(word.to_owned());
            let is_no_key = NO_KEYS.iter().any(|(_, words)| words.contains(&word));
            if !is_no_key && !is_named(word, prefix, &rows, &named) {
                missing.push(format!("{file} {start}: {}{word}", prefix.unwrap_or_default()));
            }
        }
    }
    assert!(missing.is_empty(), "docs/settings.md has no row for these: {missing:#?}");
    assert!(words.len() > 120, "only {} words were found: is the code written otherwise now?", words.len());

    let more: Vec<_> = rows.iter().filter(|row| !words.contains(row.rsplit('.').next().unwrap_or_default())).collect();
    assert!(more.is_empty(), "docs/settings.md has rows for keys that nothing reads: {more:?}");
}

#[test]
fn every_source_of_settings_is_looked_at() {
    // Those that read no settings: JSON documents and scenarios of `plugin test`, what hides secrets, the reader itself.
    let others = ["document.rs", "scenario", "scenario.rs", "secrets.rs", "source.rs", "tests.rs"];
    for entry in std::fs::read_dir(root().join("gateway/src/config")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_read = READERS.iter().any(|(file, ..)| *file == format!("config/{name}"));
        assert!(is_read || others.contains(&name.as_str()), "is gateway/src/config/{name} read for keys?");
    }
}

fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(code(&std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The names that are given to `counter!`, `gauge!` and `histogram!`, with the kind; `before`: what stands before that.
fn metrics(code: &str, before: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for kind in ["counter", "gauge", "histogram"] {
        let call = format!("{before}{kind}!(");
        for (at, _) in code.match_indices(&call) {
            if before.is_empty() && code[..at].ends_with("describe_") {
                continue;
            }
            let name = code[at + call.len()..].trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
            let name = name.unwrap_or_else(|| panic!("the name of a metric is written out: {}", &code[at..at + 60]));
            found.insert((kind.into(), name.into()));
        }
    }
    found
}

#[test]
fn every_metric_is_described_emitted_and_on_the_metrics_page_with_its_kind() {
    let mut all = Vec::new();
    sources(&root().join("gateway/src"), &mut all);
    let all = all.join("\n");
    let (emitted, described) = (metrics(&all, ""), metrics(&all, "describe_"));
    assert!(emitted.len() > 60, "only {} metrics were found", emitted.len());
    let only = |one: &BTreeSet<(String, String)>, other| one.difference(other).cloned().collect::<Vec<_>>();
    assert_eq!(only(&emitted, &described), [], "emitted, but not described");
    assert_eq!(only(&described, &emitted), [], "described, but not emitted");

    let page = read("docs/metrics.md");
    let on_page: BTreeSet<_> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            let name = cells.next()?.strip_suffix('`')?;
            Some((cells.next()?.to_owned(), name.to_owned()))
        })
        .collect();
    assert_eq!(only(&emitted, &on_page), [], "not in docs/metrics.md");
    assert_eq!(only(&on_page, &emitted), [], "in docs/metrics.md, but not emitted");
}
