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

const RUST: [(&str, &str); 3] = [
    ("Cargo.toml", include_str!("plugin_new/rust/Cargo.toml.in")),
    ("src/lib.rs", include_str!("plugin_new/rust/lib.rs.in")),
    (".gitignore", "/target\n"),
];

/// What a plugin is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// Small and fast: some 100 KB, tens of microseconds a call.
    Rust,
}

impl Language {
    fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Language::Rust => &RUST,
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
            "a plugin is named after its directory: 1 to {NAME_BYTES_MAX} of `a-z`, `0-9` and `-`, a letter first, not {name:?}"
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
        let dir = tempfile::tempdir().unwrap();
        let project = dir.path().join("door-bell");
        let files = new(&project, Language::Rust).unwrap();
        assert!(files.iter().all(|file| file.is_file()));
        let manifest = std::fs::read_to_string(project.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"door-bell\"") && !manifest.contains(NAME));
        assert!(std::fs::read_to_string(project.join("src/lib.rs")).unwrap().contains("\"door-bell\""));
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
