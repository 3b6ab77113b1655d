//! `postern plugin build`: from a plugin's crate to a component that the gateway takes.
//!
//! The crate is compiled for `wasm32-unknown-unknown` by whatever can do that here, its
//! core module is made a component, and the component is held against the contract.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wit_component::ComponentEncoder;

pub use crate::decision::plugin::contract;
pub use toolchain::Toolchain;

pub mod headroom;
mod run;
mod toolchain;

/// What to build, and where to.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Directories of plugin crates. Those of one workspace are built by one run of cargo.
    pub dirs: Vec<PathBuf>,
    /// Where the components go; `None`: to `target/postern` in the directory of each.
    pub out: Option<PathBuf>,
    /// Where cargo works; `None`: in `wasm` under the target directory of the workspace.
    pub target_dir: Option<PathBuf>,
}

/// What was built.
#[derive(Debug, Clone, Serialize)]
pub struct Built {
    /// What compiled it, for people.
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

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Nothing here compiles for the target.
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
    /// Cargo failed, or took longer than 30 minutes.
    #[error("{program} {why}\n{output}")]
    Cargo {
        /// What was run.
        program: String,
        /// How it ended.
        why: String,
        /// The end of what it said.
        output: String,
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

/// Builds every plugin of `options`. `progress` gets a line whenever there is one to show.
///
/// # Errors
/// At the first plugin that cannot be built; components written before it stay.
pub fn build(options: &BuildOptions, progress: &mut dyn FnMut(&str)) -> Result<Built, BuildError> {
    let Some(first) = options.dirs.first() else {
        return Ok(Built { toolchain: String::new(), components: Vec::new() });
    };
    build_with(&Toolchain::find(first)?, options, progress)
}

/// As [`build`], with a toolchain that was found before.
///
/// # Errors
/// As [`build`].
pub fn build_with(
    toolchain: &Toolchain,
    options: &BuildOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Built, BuildError> {
    progress(&format!("building with {toolchain}"));
    let mut plugins = Vec::new();
    for dir in &options.dirs {
        plugins.push(Plugin::read(toolchain, dir)?);
    }
    let modules = compile(toolchain, &plugins, options.target_dir.as_deref(), progress)?;
    let mut components = Vec::new();
    for plugin in &plugins {
        let module = modules.get(&plugin.manifest).ok_or_else(|| plugin.no_plugin("cargo made no wasm file of it"))?;
        let out = options.out.clone().unwrap_or_else(|| plugin.dir.join("target/postern"));
        let component = componentize(&plugin.name, module, &out)?;
        progress(&format!("{}: {} bytes", component.path.display(), component.bytes));
        components.push(component);
    }
    Ok(Built { toolchain: toolchain.to_string(), components })
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

/// A plugin's crate, as cargo sees it.
struct Plugin {
    dir: PathBuf,
    name: String,
    package: String,
    manifest: PathBuf,
    workspace: PathBuf,
    target_dir: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    id: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

impl Plugin {
    fn read(toolchain: &Toolchain, dir: &Path) -> Result<Plugin, BuildError> {
        let no_plugin = |why: &str| BuildError::NoPlugin { dir: dir.to_owned(), why: why.to_owned() };
        let manifest =
            dir.join("Cargo.toml").canonicalize().map_err(|_missing| no_plugin("there is no Cargo.toml in it"))?;
        let mut cargo = toolchain.cargo("metadata", &manifest);
        cargo.args(["--no-deps", "--format-version", "1"]);
        let mut text = String::new();
        run::run(cargo, &mut |line| text = line.to_owned(), &mut |_| {})?;
        let metadata: Metadata = serde_json::from_str(&text)
            .map_err(|error| no_plugin(&format!("cargo metadata is unreadable: {error}")))?;
        let package = metadata.packages.into_iter().find(|package| package.manifest_path == manifest);
        let package = package.ok_or_else(|| no_plugin("its Cargo.toml has no [package]"))?;
        if !package.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "cdylib")) {
            return Err(no_plugin("its Cargo.toml lacks `crate-type = [\"cdylib\"]` under [lib]"));
        }
        Ok(Plugin {
            dir: dir.to_owned(),
            name: package.name,
            package: package.id,
            manifest,
            workspace: metadata.workspace_root,
            target_dir: metadata.target_directory.join("wasm"),
        })
    }

    fn no_plugin(&self, why: &str) -> BuildError {
        BuildError::NoPlugin { dir: self.dir.clone(), why: why.to_owned() }
    }
}

/// One message of `cargo build --message-format=json`.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// Compiles all plugins, those of one workspace in one run; gives the core module by manifest.
fn compile(
    toolchain: &Toolchain,
    plugins: &[Plugin],
    target_dir: Option<&Path>,
    progress: &mut dyn FnMut(&str),
) -> Result<BTreeMap<PathBuf, PathBuf>, BuildError> {
    let mut workspaces: BTreeMap<&Path, Vec<&Plugin>> = BTreeMap::new();
    for plugin in plugins {
        workspaces.entry(&plugin.workspace).or_default().push(plugin);
    }
    let mut modules = BTreeMap::new();
    for (workspace, members) in workspaces {
        let mut cargo = toolchain.cargo("build", &workspace.join("Cargo.toml"));
        cargo.args(["--release", "--lib", "--message-format=json-render-diagnostics"]);
        cargo.arg("--target").arg(toolchain::TARGET);
        for member in &members {
            cargo.arg("--package").arg(&member.package);
        }
        let own = members.first().map(|member| member.target_dir.as_path());
        cargo.envs(target_dir.or(own).map(|dir| ("CARGO_TARGET_DIR", dir)));
        let mut collect = |line: &str| {
            let Ok(message) = serde_json::from_str::<Message>(line) else { return };
            let module = message.filenames.into_iter().find(|file| file.extension().is_some_and(|ext| ext == "wasm"));
            if let (Some(module), "compiler-artifact") = (module, message.reason.as_str()) {
                modules.insert(message.manifest_path, module);
            }
        };
        run::run(cargo, &mut collect, progress)?;
    }
    Ok(modules)
}

/// Makes `{out}/{name}.wasm` of a core module, unless it was made of the same one before.
fn componentize(name: &str, module: &Path, out: &Path) -> Result<Component, BuildError> {
    let core = std::fs::read(module).map_err(BuildError::io(module))?;
    let path = out.join(format!("{name}.wasm"));
    let stamp_path = out.join(format!("{name}.wasm.made-of"));
    let made_of = made_of(&core);
    let bytes = match (std::fs::read_to_string(&stamp_path), std::fs::read(&path)) {
        (Ok(stamp), Ok(bytes)) if stamp == stamp_text(&made_of, &bytes) => bytes,
        _ => encode(name, &core)?,
    };
    let shape =
        contract::check(&bytes).map_err(|differences| BuildError::Contract { name: name.to_owned(), differences })?;
    std::fs::create_dir_all(out).map_err(BuildError::io(out))?;
    write_if_other(&path, &bytes)?;
    write_if_other(&stamp_path, stamp_text(&made_of, &bytes).as_bytes())?;
    Ok(Component {
        name: name.to_owned(),
        path,
        bytes: bytes.len() as u64,
        sha256: sha256(&bytes),
        imports: shape.imports,
        exports: shape.exports,
    })
}

fn encode(name: &str, core: &[u8]) -> Result<Vec<u8>, BuildError> {
    let not_a_component = |error: String| {
        let advice = if error.contains("wasi") || error.contains("`env`") || error.contains("wbindgen") {
            "; a plugin may import the contract's interfaces only: no files, sockets, clock, randomness or browser"
        } else if error.contains("component type information") || error.contains("no world") {
            "; does it call `wit_bindgen::generate!` and `export!`?"
        } else {
            ""
        };
        BuildError::NotAComponent { name: name.to_owned(), why: format!("{error}{advice}") }
    };
    let encoder = ComponentEncoder::default().validate(true);
    let core = headroom::with_headroom(core);
    let mut encoder = encoder.module(&core).map_err(|error| not_a_component(format!("{error:#}")))?;
    encoder.encode().map_err(|error| not_a_component(format!("{error:#}")))
}

/// Names what a component is made of: the core module, and what made it.
fn made_of(core: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(include_str!("plugin_build/headroom.rs"));
    for (_, text) in contract::FILES {
        digest.update(text);
    }
    digest.update(core);
    hex(&digest.finalize())
}

fn stamp_text(made_of: &str, component: &[u8]) -> String {
    format!("{made_of} {}\n", sha256(component))
}

/// Whole or not at all, and not at all when it is there: who watches the file sees changes only.
fn write_if_other(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}.unfinished", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    std::fs::write(&unfinished, bytes).map_err(BuildError::io(&unfinished))?;
    std::fs::rename(&unfinished, path).map_err(BuildError::io(path))
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
