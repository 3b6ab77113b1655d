//! `postern plugin new`: a project that builds, with the contract beside it and tests of its own.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::Failure;
use crate::tenant::is_name;

/// The longest name of a plugin, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// What stands in a template for the plugin's name.
const NAME: &str = "{{name}}";

/// The contract: each project has its own copy, so that it builds wherever it lies.
const CONTRACT: [(&str, &str); 4] = [
    ("wit/exports.wit", include_str!("../../../wit/exports.wit")),
    ("wit/imports.wit", include_str!("../../../wit/imports.wit")),
    ("wit/types.wit", include_str!("../../../wit/types.wit")),
    ("wit/world.wit", include_str!("../../../wit/world.wit")),
];

/// What it is to do, step by step: the same in every language.
const SCENARIO: (&str, &str) = ("tests/hello.scenario.toml", include_str!("plugin_new/tests/hello.scenario.toml.in"));

const RUST: [(&str, &str); 4] = [
    ("Cargo.toml", include_str!("plugin_new/rust/Cargo.toml.in")),
    ("src/lib.rs", include_str!("plugin_new/rust/lib.rs.in")),
    SCENARIO,
    (".gitignore", "/target\n"),
];

const JAVASCRIPT: [(&str, &str); 6] = [
    ("package.json", include_str!("plugin_new/javascript/package.json.in")),
    ("src/plugin.js", include_str!("plugin_new/javascript/plugin.js.in")),
    ("src/rules.js", include_str!("plugin_new/javascript/rules.js.in")),
    ("test/rules.test.js", include_str!("plugin_new/javascript/rules.test.js.in")),
    SCENARIO,
    (".gitignore", "/node_modules\n/target\n"),
];

const PYTHON: [(&str, &str); 7] = [
    ("pyproject.toml", include_str!("plugin_new/python/pyproject.toml.in")),
    ("requirements.txt", include_str!("plugin_new/python/requirements.txt.in")),
    ("plugin.py", include_str!("plugin_new/python/plugin.py.in")),
    ("rules.py", include_str!("plugin_new/python/rules.py.in")),
    ("test_rules.py", include_str!("plugin_new/python/test_rules.py.in")),
    SCENARIO,
    (".gitignore", "/target\n__pycache__\n"),
];

/// What a plugin is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// Small and fast: some 100 KB, tens of microseconds a call.
    Rust,
    /// With its engine in the component: 12 MB, some 0.5 ms a call.
    #[value(name = "javascript", alias = "js")]
    JavaScript,
    /// With its interpreter in the component: 18 MB, some 3 ms a call.
    #[value(alias = "py")]
    Python,
}

impl Language {
    fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Language::Rust => &RUST,
            Language::JavaScript => &JAVASCRIPT,
            Language::Python => &PYTHON,
        }
    }
}

impl Language {
    /// What runs the tests of a project that was just made.
    pub fn test_command(self) -> &'static str {
        match self {
            Language::Rust => "cargo test",
            Language::JavaScript => "npm test",
            Language::Python => "python3 -m unittest",
        }
    }
}

/// Makes a project in `dir`, named after it; answers its files. Nothing that is there is overwritten.
///
/// # Errors
/// The directory's name is no plugin's name, one of the files is there already, or they cannot be written.
pub fn new(dir: &Path, language: Language) -> Result<Vec<PathBuf>, Failure> {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !is_name(name, NAME_BYTES_MAX) || !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Err(Failure::Usage(format!(
            "a plugin is named after its directory: 1 to {NAME_BYTES_MAX} of `a-z`, `0-9` and `-`, a letter first and no `-` \
             last, not {name:?}"
        )));
    }
    let files: Vec<_> = language.files().iter().chain(&CONTRACT).map(|(path, text)| (dir.join(path), *text)).collect();
    if let Some((there, _)) = files.iter().find(|(path, _)| path.exists()) {
        return Err(Failure::Failed(format!("{} is there already: nothing was written", there.display())));
    }
    for (path, text) in &files {
        write(path, &text.replace(NAME, name))
            .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Whatever came in between is not overwritten either.
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_named_after_its_directory_and_has_the_contract_beside_it() {
        let manifests = [
            (Language::Rust, "Cargo.toml", "name = \"door-bell\"", "src/lib.rs"),
            (Language::JavaScript, "package.json", "\"name\": \"door-bell\"", "src/plugin.js"),
            (Language::Python, "pyproject.toml", "name = \"door-bell\"", "plugin.py"),
        ];
        for (language, manifest, named, source) in manifests {
            let dir = tempfile::tempdir().unwrap();
            let project = dir.path().join("door-bell");
            let files = new(&project, language).unwrap();
            let texts: Vec<_> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
            assert!(texts.iter().all(|text| !text.contains(NAME)), "{language:?}");
            assert!(project.join("wit/world.wit").is_file());
            let scenario = project.join("tests/hello.scenario.toml");
            crate::config::scenario(&scenario, "door-bell", crate::tenant::Role::Handler).unwrap();
            let text = |file: &str| std::fs::read_to_string(project.join(file)).unwrap();
            assert!(text(manifest).contains(named), "{language:?}");
            // What to do next stands where one begins to read.
            let push = "plugin push door-bell target/postern/door-bell.wasm --role handler";
            for next in ["postern plugin build .", "postern plugin test .", push] {
                assert!(text(source).contains(next), "{source} does not say {next:?}");
            }
        }
    }

    #[test]
    fn the_tools_are_those_that_the_examples_are_built_with() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/plugins");
        let text = |file: &str| std::fs::read_to_string(examples.join(file)).unwrap();
        assert_eq!(include_str!("plugin_new/python/requirements.txt.in"), text("poll-py/requirements.txt"));
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let (new, tried) =
            (json(include_str!("plugin_new/javascript/package.json.in")), json(&text("word-filter-js/package.json")));
        for key in ["devDependencies", "overrides"] {
            assert_eq!(new[key], tried[key]);
        }
    }

    #[test]
    fn what_is_there_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let project = dir.path().join("door-bell");
        std::fs::create_dir(&project).unwrap();
        std::fs::write(project.join("Cargo.toml"), "mine").unwrap();
        let error = new(&project, Language::Rust).unwrap_err().to_string();
        assert!(error.contains("Cargo.toml is there already"), "{error}");
        assert!(!project.join("src").exists());
        assert_eq!(std::fs::read_to_string(project.join("Cargo.toml")).unwrap(), "mine");
    }

    #[test]
    fn a_name_that_no_plugin_can_have_is_refused() {
        for name in ["Door Bell", "1st", "", "a/.."] {
            assert!(matches!(new(Path::new(name), Language::Rust), Err(Failure::Usage(_))), "{name:?}");
        }
    }
}
