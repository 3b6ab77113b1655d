//! The pages about settings and metrics say what the code does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::support::root;

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// The sources below `path`, each up to its tests.
fn sources(path: &Path) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            all.push((path.clone(), code.collect::<Vec<_>>().join("\n")));
        }
    }
    all
}

/// The texts that stand right after one of these beginnings, if all of their characters are of this kind.
fn literals<'a>(code: &'a str, beginnings: &[&str], is_of_it: fn(char) -> bool) -> BTreeSet<&'a str> {
    let stands_right = |before: &str| beginnings.iter().any(|beginning| before.ends_with(beginning));
    let mut found = Vec::new();
    for (at, _) in code.match_indices('"').filter(|(at, _)| stands_right(&code[..*at])) {
        found.extend(code[at + 1..].split_once('"').map(|(text, _)| text));
    }
    found.into_iter().filter(|text| text.len() > 1 && text.chars().all(is_of_it)).collect()
}

fn of_keys(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

#[test]
fn the_page_about_settings_names_every_key_and_variable_that_is_read() {
    let page = page("settings.md");
    // Values, and words of mistakes.
    let no_keys = [
        "sub",
        "warm",
        "fresh",
        "authorizer",
        "router",
        "handler",
        "unlimited",
        "code",
        "plugin",
        "component",
        "environment",
        "config",
    ];
    let src = root().join("gateway/src");
    let mut sources = sources(&src.join("config"));
    sources.retain(|(path, _)| {
        let path = path.to_string_lossy();
        !["scenario", "source.rs", "secrets.rs"].iter().any(|without| path.contains(without))
    });
    let main = std::fs::read_to_string(src.join("config.rs")).unwrap();
    sources.push(("config.rs".into(), main));
    let (mut count, mut missing) = (0, Vec::new());
    for (path, code) in &sources {
        let keys = literals(code, &["(", "[", "layers, "], of_keys);
        let variables = literals(code, &[", ", "("], |c| c.is_ascii_uppercase() || c == '_');
        count += keys.len() + variables.len();
        for name in keys.iter().chain(&variables).filter(|name| !no_keys.contains(name)) {
            if !page.contains(&format!("`{name}`")) && !page.contains(&format!("[{name}]")) {
                missing.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new(), "not on the page");
    assert!(count > 100, "only {count} were found: is this test blind?");
}

#[test]
fn the_files_on_the_page_about_settings_are_right() {
    let page = page("settings.md");
    let example = |kind: &str| {
        let (_, rest) = page.split_once(&format!("```toml {kind}\n")).unwrap();
        rest.split_once("```").unwrap().0.to_owned()
    };
    let dir = tempfile::tempdir().unwrap();
    let tenants = dir.path().join("tenants");
    std::fs::create_dir(&tenants).unwrap();
    std::fs::write(dir.path().join("postern.toml"), example("gateway")).unwrap();
    std::fs::write(tenants.join("acme.toml"), example("tenant")).unwrap();
    for component in ["rules.wasm", "bell.wasm"] {
        std::fs::write(tenants.join(component), "").unwrap();
    }
    let flags = BTreeMap::from([("config", dir.path().join("postern.toml").display().to_string())]);
    let secret = |name: &str| (name.to_owned(), format!("{name}-0123456789abcdef0123456789abcdef"));
    let environment = BTreeMap::from(["ACME_SECRET", "ACME_BILLING_KEY"].map(secret));
    let config = postern::config::load(&flags, &environment).unwrap();
    assert_eq!((config.plugins.compilations, config.admin.uploads_per_hour.get()), (2, 60));
    assert_eq!((config.tenants.len(), config.warnings), (1, Vec::<String>::new()));
}

/// Metrics with their kinds, as they are described.
fn described(telemetry: &str) -> BTreeMap<String, (String, String)> {
    let mut all = BTreeMap::new();
    for part in telemetry.split("describe_").skip(1) {
        let Some((kind, rest)) = part.split_once("!(") else { continue };
        let mut texts = rest.split('"').skip(1).step_by(2);
        let (Some(name), Some(text)) = (texts.next(), texts.next()) else { continue };
        let text: Vec<_> = text.split("\\\n").map(str::trim_start).collect();
        all.insert(name.to_owned(), (kind.to_owned(), text.concat()));
    }
    all
}

#[test]
fn every_metric_is_described_emitted_and_on_its_page() {
    let src = root().join("gateway/src");
    let described = described(&std::fs::read_to_string(src.join("telemetry.rs")).unwrap());
    assert!(described.len() > 60, "only {} were found: is this test blind?", described.len());
    let page = page("metrics.md");
    for (name, (kind, text)) in &described {
        let row = format!("| `{name}` | {kind} | {text} |");
        assert!(page.contains(&row), "the page lacks this row:\n{row}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 2);
    let rows: BTreeSet<_> =
        rows.filter_map(|row| row.split('`').nth(1)).filter(|name| name.chars().all(of_keys)).collect();
    assert_eq!(rows.len(), described.len(), "a row is of no metric: {rows:?}");
    let mut emitted = BTreeSet::new();
    for (path, code) in sources(&src).iter().filter(|(path, _)| !path.ends_with("telemetry.rs")) {
        let code = code.split_whitespace().collect::<Vec<_>>().join(" ").replace("( \"", "(\"");
        for name in literals(&code, &["counter!(", "gauge!(", "histogram!("], of_keys) {
            assert!(described.contains_key(name), "{}: {name} is not described", path.display());
            emitted.insert(name.to_owned());
        }
    }
    let never: Vec<_> = described.keys().filter(|name| !emitted.contains(*name)).collect();
    assert_eq!(never, Vec::<&String>::new(), "described, and never emitted");
}
