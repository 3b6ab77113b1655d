//! `postern plugin build`: from a plugin's directory to a component that the gateway takes.
//!
//! What a directory holds says in which language the plugin is written: a `Cargo.toml`, a
//! `package.json`, or a `pyproject.toml`. Whatever makes a component of it, what comes out is held
//! against the contract.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use crate::decision::plugin::contract;
pub use toolchain::Toolchain;

pub mod headroom;
mod javascript;
mod output;
mod python;
mod run;
mod rust;
mod toolchain;
mod workshop;
mod worlds;

/// What to build, and where to.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Directories of plugins. Crates of one workspace are built by one run of cargo.
    pub dirs: Vec<PathBuf>,
    /// Where the components go; `None`: to `target/postern` in the directory of each.
    pub out: Option<PathBuf>,
    /// Where cargo works; `None`: in `wasm` under the target directory of the workspace.
    pub target_dir: Option<PathBuf>,
}

/// What was built.
#[derive(Debug, Clone, Serialize)]
pub struct Built {
    /// What compiled the crates among them, for people; empty without any.
    pub toolchain: String,
    /// In the order of [`BuildOptions::dirs`].
    pub components: Vec<Component>,
}

/// One component that keeps the contract.
#[derive(Debug, Clone, Serialize)]
pub struct Component {
    /// The name of its package.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// The size of the file, in bytes.
    pub bytes: u64,
    /// The SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: String,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// The interfaces that it exports.
    pub exports: Vec<String>,
}

impl Component {
    /// What a plugin that is made of it may be called: the package's name, as names of plugins are written.
    pub fn plugin_name(&self) -> String {
        self.name.to_ascii_lowercase().replace(['_', '.'], "-")
    }

    /// What it can do for a tenant: `authorizer`, `router` or `handler`.
    pub fn role(&self) -> &'static str {
        role_of(&self.exports)
    }
}

/// What a component that exports these interfaces can do for a tenant: `authorizer`, `router` or `handler`.
pub fn role_of(exports: &[String]) -> &'static str {
    let exports = |interface: &str| exports.iter().any(|export| export.contains(interface));
    if exports("/authorization@") {
        "authorizer"
    } else if exports("/routing@") {
        "router"
    } else {
        "handler"
    }
}

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What builds plugins in this language is not installed.
    #[error("{0}")]
    NoToolchain(String),
    /// The directory holds no plugin.
    #[error("{} is no plugin: {why}", dir.display())]
    NoPlugin {
        /// The directory as given.
        dir: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A program failed that builds or installs, or it took longer than 30 minutes.
    #[error("{program} {why}\n{output}")]
    Program {
        /// What was run.
        program: String,
        /// How it ended.
        why: String,
        /// The end of what it said.
        output: String,
    },
    /// The plugin's sources are not right.
    #[error("{name} does not build:\n  {}", what.trim_end().replace('\n', "\n  "))]
    Source {
        /// The package.
        name: String,
        /// What is wrong, with file and line.
        what: String,
    },
    /// The core module cannot be made a component.
    #[error("{name} cannot be made a component: {why}")]
    NotAComponent {
        /// The package.
        name: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The component wants or offers what the contract does not have.
    #[error("{name} does not keep the contract ({}):\n  {}", contract::PACKAGE, differences.join("\n  "))]
    Contract {
        /// The package.
        name: String,
        /// Each difference, with the interface and function it is in.
        differences: Vec<String>,
    },
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BuildError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> BuildError {
        let path = path.to_owned();
        move |source| BuildError::Io { path, source }
    }
}

/// What a plugin is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Rust,
    JavaScript,
    Python,
}

impl Language {
    /// The first of these files that is there says it.
    const SIGNS: [(&'static str, Language); 4] = [
        ("Cargo.toml", Language::Rust),
        ("package.json", Language::JavaScript),
        (python::MANIFEST, Language::Python),
        (python::REQUIREMENTS, Language::Python),
    ];

    fn of(dir: &Path) -> Result<Language, BuildError> {
        let sign = Language::SIGNS.into_iter().find(|(file, _)| dir.join(file).is_file());
        sign.map(|(_, language)| language).ok_or_else(|| BuildError::NoPlugin {
            dir: dir.to_owned(),
            why: "there is no Cargo.toml (Rust), package.json (JavaScript) or pyproject.toml (Python) in it".into(),
        })
    }
}

/// Builds every plugin of `options`. `progress` gets a line whenever there is one to show.
///
/// # Errors
/// At the first plugin that cannot be built; components written before it stay.
pub fn build(options: &BuildOptions, progress: &mut dyn FnMut(&str)) -> Result<Built, BuildError> {
    let mut plugins = Vec::new();
    for dir in &options.dirs {
        plugins.push((Language::of(dir)?, dir.as_path()));
    }
    let out = options.out.as_deref();
    let crates: Vec<&Path> =
        plugins.iter().filter(|(language, _)| *language == Language::Rust).map(|(_, dir)| *dir).collect();
    let mut toolchain = String::new();
    let mut of_crates = VecDeque::new();
    if let Some(first) = crates.first() {
        let found = Toolchain::find(first)?;
        toolchain = found.to_string();
        of_crates = rust::build(&found, &crates, out, options.target_dir.as_deref(), progress)?.into();
    }
    let mut components = Vec::new();
    for (language, dir) in plugins {
        let component = match language {
            Language::Rust => of_crates.pop_front(),
            Language::JavaScript => Some(javascript::build(dir, out, progress)?),
            Language::Python => Some(python::build(dir, out, progress)?),
        };
        components.extend(component);
    }
    Ok(Built { toolchain, components })
}

/// Builds the plugins that come with the gateway, and the one its tests use, into `out`.
/// `root` is the directory of the repository.
///
/// # Errors
/// As [`build`].
pub fn build_reference(root: &Path, out: &Path, progress: &mut dyn FnMut(&str)) -> Result<Built, BuildError> {
    let mut dirs = Vec::new();
    for parent in [root.join("plugins"), root.join("gateway/tests/plugins")] {
        for entry in std::fs::read_dir(&parent).map_err(BuildError::io(&parent))? {
            let dir = entry.map_err(BuildError::io(&parent))?.path();
            if dir.join("Cargo.toml").is_file() {
                dirs.push(dir);
            }
        }
    }
    dirs.sort();
    build(&BuildOptions { dirs, out: Some(out.to_owned()), target_dir: Some(root.join("target/wasm")) }, progress)
}

#[cfg(test)]
mod tests;
