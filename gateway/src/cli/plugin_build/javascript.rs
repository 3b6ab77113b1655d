//! Plugins in JavaScript: `@bytecodealliance/componentize-js` packs them into a component together
//! with an engine. With all of its WASI features off nothing but the contract is imported.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use super::workshop::{self, Workshop, camel};
use super::worlds::World;
use super::{BuildError, Component, output, run};
use crate::decision::plugin::digest;

/// What says that a directory holds one, and what it is.
const MANIFEST: &str = "package.json";

/// What pins everything that the plugin is built with.
const LOCK: &str = "package-lock.json";

/// In `node_modules`: what it was installed from.
const INSTALLED: &str = ".postern-installed";

/// What makes components of JavaScript, and the version to install where there is none.
const TOOL: &str = "@bytecodealliance/componentize-js";
const TOOL_VERSION: &str = "0.23.0";

/// Lines of what npm said that an error repeats.
const NPM_LINES_TOLD: usize = 12;

/// The oldest Node.js, by major version.
const NODE_MIN: u32 = 20;

/// What the tool says of an import that it does not find, and what there is instead.
const NOT_LOADED: &str = "Error loading module";
const MAY_BE_IMPORTED: &str = "what may be imported: the plugin's own files, plain JavaScript that npm installed, and \
     postern:plugin/NAME@0.1.0 with config, invocation, log, presence, rooms, state or timers; nothing of Node.js is there";

const GUARD: &str = include_str!("javascript/guard.js");
const DRIVER: &str = include_str!("javascript/build.mjs");

#[derive(Deserialize)]
struct Manifest {
    name: String,
    #[serde(default = "default_main")]
    main: String,
    #[serde(default)]
    postern: Settings,
    #[serde(default)]
    scripts: BTreeMap<String, String>,
    #[serde(default)]
    dependencies: BTreeMap<String, String>,
    #[serde(default, rename = "devDependencies")]
    dev_dependencies: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Settings {
    world: Option<String>,
}

fn default_main() -> String {
    "index.js".into()
}

/// Builds the plugin in `dir`, unless its component was built of the same sources before.
pub(super) fn build(dir: &Path, out: Option<&Path>, progress: &mut dyn FnMut(&str)) -> Result<Component, BuildError> {
    let manifest = read(dir)?;
    let plain = manifest.name.rsplit_once('/').map_or(manifest.name.as_str(), |(_, name)| name);
    let name = workshop::file_name(dir, "`name` in package.json", plain)?;
    let world = workshop::world(dir, "`postern.world` in package.json", manifest.postern.world.as_deref())?;
    let shop = Workshop::open(dir)?;
    let entry = entry(&manifest.main, &world, &workshop::elsewhere(dir, &world)?);
    let ours = [GUARD, DRIVER, &entry, &world.name];
    let made_of = shop.made_of(&ours)?;
    let out = shop.out(out);
    if let Some(component) = workshop::made_before(&out, &name, &made_of) {
        progress(&format!("{name}: nothing has changed"));
        return component;
    }
    need_node()?;
    install(&shop, progress)?;
    if manifest.scripts.contains_key("build") {
        progress(&format!("{name}: npm run build"));
        let mut npm = npm(&shop, "run");
        npm.args(["--silent", "build"]);
        run::run(npm, &mut |_| {}, progress).map_err(|error| workshop::source_error(&name, error))?;
    }
    // A first installation writes the lock file, and `build` writes what it makes: both are there the next time.
    let made_of = shop.made_of(&ours)?;
    if !shop.dir.join(&manifest.main).is_file() {
        return Err(shop.no_plugin(&format!("`main` in package.json is {:?}, which is no file", manifest.main)));
    }
    progress(&format!("{name}: making a component with {TOOL}"));
    let bytes = componentize(&shop, &name, &entry, &world)?;
    output::write(&out, &name, &made_of, &bytes)
}

fn read(dir: &Path) -> Result<Manifest, BuildError> {
    let no_plugin = |why: String| BuildError::NoPlugin { dir: dir.to_owned(), why };
    let path = dir.join(MANIFEST);
    let text = std::fs::read_to_string(&path).map_err(BuildError::io(&path))?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|error| no_plugin(format!("package.json: {error}")))?;
    if !manifest.dependencies.contains_key(TOOL) && !manifest.dev_dependencies.contains_key(TOOL) {
        let advice = format!("npm install --save-dev --save-exact {TOOL}@{TOOL_VERSION}");
        return Err(no_plugin(format!("its package.json does not have {TOOL} among its devDependencies: `{advice}`")));
    }
    let inside = !manifest.main.starts_with('/') && !manifest.main.split('/').any(|part| part == "..");
    if !inside || manifest.main.contains(|char: char| char == '\'' || char == '\\' || char.is_control()) {
        return Err(no_plugin(format!("`main` in package.json is {:?}; it must be a file in it", manifest.main)));
    }
    Ok(manifest)
}

/// The module that is componentized: the plugin's exports, each of them guarded. `elsewhere`: interfaces that only other
/// worlds have, and which.
fn entry(main: &str, world: &World, elsewhere: &[(String, String)]) -> String {
    let main = main.strip_prefix("./").unwrap_or(main);
    let mut text =
        String::from("// Made by `postern plugin build`.\nimport { guarded, unwanted } from './guard.js';\n");
    text += &format!("import * as plugin from '../../../{main}';\n");
    for (interface, worlds) in elsewhere {
        text += &format!("unwanted(plugin, '{}', '{}', '{worlds}');\n", camel(interface, false), world.name);
    }
    for export in &world.exports {
        let name = camel(&export.interface, false);
        let functions = workshop::functions(export, |function| camel(function, false));
        text += &format!("export const {name} = guarded(plugin, '{name}', {functions}, {});\n", export.can_fail);
    }
    text
}

fn need_node() -> Result<(), BuildError> {
    let missing = |found: &str| {
        BuildError::NoToolchain(format!(
            "plugins in JavaScript are built with Node.js {NODE_MIN} or newer and npm; {found}. \
             Install both (on Debian: apt-get install nodejs npm) and try again"
        ))
    };
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output();
        output.map_err(|error| missing(&format!("`{program}` cannot be run: {error}")))
    };
    let node = version("node")?;
    let text = String::from_utf8_lossy(&node.stdout).trim().to_owned();
    let major = text.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < NODE_MIN) {
        return Err(missing(&format!("the `node` here is {text:?}")));
    }
    version("npm").map(|_| ())
}

/// Installs what the plugin's lock file says, unless that is what there is.
fn install(shop: &Workshop, progress: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
    let stamp = shop.dir.join("node_modules").join(INSTALLED);
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted(shop)) {
        return Ok(());
    }
    // Without a lock file npm chooses, and writes down what it chose.
    let subcommand = if shop.dir.join(LOCK).is_file() { "ci" } else { "install" };
    progress(&format!("{}: npm {subcommand}", shop.name()));
    let mut npm = npm(shop, subcommand);
    npm.args(["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]);
    // npm says first what is wrong, then all that could be.
    let mut said = Vec::new();
    let installed = run::run(npm, &mut |_| {}, &mut |line| {
        if said.len() < NPM_LINES_TOLD {
            said.push(line.to_owned());
        }
    });
    installed.map_err(|error| match error {
        BuildError::Program { program, why, .. } => BuildError::Program { program, why, output: said.join("\n") },
        other => other,
    })?;
    // Last: an installation that did not come to its end is repeated.
    std::fs::write(&stamp, wanted(shop)).map_err(BuildError::io(&stamp))
}

/// What an installation is made from.
fn wanted(shop: &Workshop) -> String {
    let read = |file: &str| std::fs::read(shop.dir.join(file)).unwrap_or_default();
    digest(&[read(MANIFEST), read(LOCK)].concat())
}

fn npm(shop: &Workshop, subcommand: &str) -> Command {
    let mut npm = Command::new("npm");
    npm.current_dir(&shop.dir).arg(subcommand);
    npm
}

fn componentize(shop: &Workshop, name: &str, entry: &str, world: &World) -> Result<Vec<u8>, BuildError> {
    shop.put("guard.js", GUARD)?;
    shop.put("entry.js", entry)?;
    shop.put("build.mjs", DRIVER)?;
    let made = shop.build.join("made.wasm");
    let mut node = Command::new("node");
    node.current_dir(&shop.dir).arg(shop.build.join("build.mjs")).arg(shop.build.join("entry.js"));
    node.arg(shop.build.join("wit")).arg(&world.name).arg(&made);
    run::run(node, &mut |_| {}, &mut |_| {}).map_err(|error| match workshop::source_error(name, error) {
        BuildError::Source { name, what } if what.contains(NOT_LOADED) => {
            BuildError::Source { name, what: format!("{}\n{MAY_BE_IMPORTED}", what.trim_end()) }
        }
        other => other,
    })?;
    std::fs::read(&made).map_err(BuildError::io(&made))
}
