//! Plugins in Rust: crates, compiled by cargo and made components by `wit-component`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use wit_component::ComponentEncoder;

use super::output::{self, Stamp};
use super::toolchain::{self, Toolchain};
use super::{BuildError, Component, headroom, run};

/// Builds all of them, those of one workspace in one run of cargo; in their order.
pub(super) fn build(
    toolchain: &Toolchain,
    dirs: &[&Path],
    out: Option<&Path>,
    target_dir: Option<&Path>,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Component>, BuildError> {
    progress(&format!("building with {toolchain}"));
    let mut plugins = Vec::new();
    for dir in dirs {
        plugins.push(Plugin::read(toolchain, dir)?);
    }
    let modules = compile(toolchain, &plugins, target_dir, progress)?;
    let mut components = Vec::new();
    for plugin in &plugins {
        let module = modules.get(&plugin.manifest).ok_or_else(|| plugin.no_plugin("cargo made no wasm file of it"))?;
        let out = out.map_or_else(|| output::default_dir(&plugin.dir), Path::to_owned);
        components.push(componentize(&plugin.name, module, &out)?);
    }
    Ok(components)
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
        run::run(cargo, &mut collect, progress).map_err(|error| match error {
            // All that cargo said went to `progress` already.
            BuildError::Program { program, why, .. } => {
                BuildError::Program { program, why, output: "what it said stands above".into() }
            }
            other => other,
        })?;
    }
    Ok(modules)
}

/// Makes `{out}/{name}.wasm` of a core module, unless it was made of the same one before.
pub(super) fn componentize(name: &str, module: &Path, out: &Path) -> Result<Component, BuildError> {
    let core = std::fs::read(module).map_err(BuildError::io(module))?;
    let mut stamp = Stamp::new();
    stamp.add(include_str!("headroom.rs"));
    stamp.add(&core);
    let made_of = stamp.finish();
    let bytes = match output::made_before(out, name, &made_of) {
        Some(bytes) => bytes,
        None => encode(name, &core)?,
    };
    output::write(out, name, &made_of, &bytes)
}

pub(super) fn encode(name: &str, core: &[u8]) -> Result<Vec<u8>, BuildError> {
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
