//! Plugins in Python: `componentize-py` packs them into a component together with an interpreter.
//! Everything of WASI is stubbed out in it, so that nothing but the contract is imported.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use wasmparser::{Parser, Payload};

use super::workshop::{self, Workshop, camel};
use super::worlds::World;
use super::{BuildError, Component, output, run};

/// What says that a directory holds one, and what it is.
pub(super) const MANIFEST: &str = "pyproject.toml";

/// What to install: the tool, and what the plugin itself needs.
pub(super) const REQUIREMENTS: &str = "requirements.txt";

/// What makes components of Python, and the version to ask for where none is asked for.
const TOOL: &str = "componentize-py";
const TOOL_VERSION: &str = "0.25.1";

/// What the tool leaves in every component and only its own build calls.
const INITIALIZER: &str = "exports";

const GUARD: &str = include_str!("python/postern_guard.py");

#[derive(Deserialize)]
struct Manifest {
    project: Project,
    #[serde(default)]
    tool: Tools,
}

#[derive(Deserialize)]
struct Project {
    name: String,
}

#[derive(Default, Deserialize)]
struct Tools {
    #[serde(default)]
    postern: Settings,
}

#[derive(Default, Deserialize)]
struct Settings {
    world: Option<String>,
    module: Option<String>,
}

/// Builds the plugin in `dir`, unless its component was built of the same sources before.
pub(super) fn build(dir: &Path, out: Option<&Path>, progress: &mut dyn FnMut(&str)) -> Result<Component, BuildError> {
    let manifest = read(dir)?;
    let name = workshop::file_name(dir, "`project.name` in pyproject.toml", &manifest.project.name)?;
    let settings = manifest.tool.postern;
    let world = workshop::world(dir, "`tool.postern.world` in pyproject.toml", settings.world.as_deref())?;
    let module = settings.module.unwrap_or_else(|| name.replace(['-', '.'], "_"));
    let shop = Workshop::open(dir)?;
    check_module(&shop, &module)?;
    let entry = entry(&module, &world);
    let made_of = shop.made_of(&[GUARD, &entry, &world.name])?;
    let out = shop.out(out);
    if let Some(component) = workshop::made_before(&out, &name, &made_of) {
        progress(&format!("{name}: nothing has changed"));
        return component;
    }
    let tools = install(&shop, progress)?;
    progress(&format!("{name}: making a component with {TOOL}"));
    let bytes = componentize(&shop, &name, &tools, &entry, &world)?;
    output::write(&out, &name, &made_of, &bytes)
}

fn read(dir: &Path) -> Result<Manifest, BuildError> {
    let no_plugin = |why: String| BuildError::NoPlugin { dir: dir.to_owned(), why };
    let text = std::fs::read_to_string(dir.join(MANIFEST)).map_err(|_missing| {
        no_plugin(
            "there is no pyproject.toml in it, which says its name (project.name) and what it is \
                   (tool.postern.world)"
                .into(),
        )
    })?;
    let manifest = toml::from_str(&text).map_err(|error| no_plugin(format!("pyproject.toml: {error}")))?;
    let required = std::fs::read_to_string(dir.join(REQUIREMENTS)).unwrap_or_default();
    if !required.lines().any(|line| line.trim_start().starts_with(TOOL)) {
        let advice = format!("{TOOL}=={TOOL_VERSION}");
        return Err(no_plugin(format!("its requirements.txt does not have {TOOL}: add the line `{advice}`")));
    }
    Ok(manifest)
}

fn check_module(shop: &Workshop, module: &str) -> Result<(), BuildError> {
    let is_name = !module.is_empty() && module.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let there = shop.dir.join(format!("{module}.py")).is_file() || shop.dir.join(module).join("__init__.py").is_file();
    if is_name && there {
        return Ok(());
    }
    Err(shop.no_plugin(&format!(
        "there is no module {module:?} in it; `tool.postern.module` in pyproject.toml names the one to begin with"
    )))
}

/// The module that is componentized: the plugin's classes, each of them guarded.
fn entry(module: &str, world: &World) -> String {
    let mut text = String::from("# Made by `postern plugin build`.\nfrom postern_guard import guarded\n");
    text += &format!("import {module} as plugin\n\n");
    for export in &world.exports {
        let name = camel(&export.interface, true);
        let functions = workshop::functions(export, |function| function.replace('-', "_"));
        let can_fail = if export.can_fail { "True" } else { "False" };
        text += &format!("{name} = guarded(plugin, {name:?}, {functions}, {can_fail})\n");
    }
    text
}

/// The environment that has what the plugin's requirements say; made if there is none.
fn install(shop: &Workshop, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, BuildError> {
    let env = output::default_dir(&shop.dir).join("venv");
    let required = shop.dir.join(REQUIREMENTS);
    let required = std::fs::read(&required).map_err(BuildError::io(&required))?;
    let installed = env.join(REQUIREMENTS);
    if std::fs::read(&installed).is_ok_and(|installed| installed == required) {
        return Ok(env);
    }
    progress(&format!("{}: installing {REQUIREMENTS} in target/postern/venv", shop.name()));
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&env);
    run::run(venv, &mut |_| {}, &mut |_| {}).map_err(|error| {
        BuildError::NoToolchain(format!(
            "plugins in Python are built in a virtual environment, which cannot be made here: {error}\n\
             Install Python 3.9 or newer with its venv (on Debian: apt-get install python3-venv) and try again"
        ))
    })?;
    let mut pip = Command::new(env.join("bin/python"));
    pip.current_dir(&shop.dir).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip.args(["-r", REQUIREMENTS]);
    run::run(pip, &mut |_| {}, &mut |_| {})?;
    // Last: an installation that did not come to its end is repeated.
    std::fs::write(&installed, required).map_err(BuildError::io(&installed))?;
    Ok(env)
}

fn componentize(shop: &Workshop, name: &str, env: &Path, entry: &str, world: &World) -> Result<Vec<u8>, BuildError> {
    shop.put("postern_guard.py", GUARD)?;
    shop.put("postern_entry.py", entry)?;
    let made = shop.build.join("made.wasm");
    let mut tool = Command::new(env.join("bin/componentize-py"));
    tool.current_dir(&shop.dir).env("VIRTUAL_ENV", env).env("PYTHONDONTWRITEBYTECODE", "1");
    // The tool's own backtrace helps nobody who writes a plugin.
    tool.env("RUST_BACKTRACE", "0");
    tool.arg("--quiet").arg("--wit-path").arg(shop.build.join("wit")).args(["--world", &world.name]);
    tool.args(["componentize", "postern_entry", "--stub-wasi"]);
    tool.arg("--python-path").arg(&shop.build).arg("--python-path").arg(&shop.dir).arg("--output").arg(&made);
    run::run(tool, &mut |_| {}, &mut |_| {}).map_err(|error| match workshop::source_error(name, error) {
        BuildError::Source { name, what } => BuildError::Source { name, what: traceback(&what) },
        other => other,
    })?;
    let bytes = std::fs::read(&made).map_err(BuildError::io(&made))?;
    let not_a_component = |why: String| BuildError::NotAComponent { name: name.to_owned(), why };
    without_export(&bytes, INITIALIZER).map_err(not_a_component)
}

/// The plugin's part of what the tool said: not the tool's own frames, nor what it says twice. Files are called
/// as in the plugin's directory, which the tool shows to Python as `/1`.
fn traceback(said: &str) -> String {
    const OURS: &str = "File \"/0/";
    let its = said.split_once("AssertionError: ").map_or(said, |(_, its)| its);
    let its = its.split_once("\nCaused by:").map_or(its, |(its, _)| its);
    let mut lines = Vec::new();
    let mut ours = false;
    for line in its.lines() {
        let frame = line.trim_start().starts_with("File \"");
        ours = if frame { line.contains(OURS) } else { ours && line.starts_with("    ") };
        if !ours {
            lines.push(line.replace("File \"/1/", "File \""));
        }
    }
    lines.join("\n")
}

/// The component without one of the instances that it exports. An empty instance takes its place, so
/// that whatever is counted behind it keeps its number.
fn without_export(component: &[u8], unwanted: &str) -> Result<Vec<u8>, String> {
    /// A section of component instances (5), 3 bytes long, with one, made of exports (1), of which there are none.
    const EMPTY_INSTANCE: [u8; 5] = [5, 3, 1, 1, 0];
    const EXPORT_SECTION: u8 = 11;
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(|error| error.to_string())? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(section) if depth == 1 => {
                let range = section.range();
                let mut names = Vec::new();
                for export in section {
                    names.push(export.map_err(|error| error.to_string())?.name.name);
                }
                if names.contains(&unwanted) {
                    if names.len() > 1 {
                        return Err(format!(
                            "`{unwanted}` is not exported by itself; is this another version of {TOOL}?"
                        ));
                    }
                    // Before it stand its kind and its size; such a small one takes one byte.
                    let head = range.start.saturating_sub(2);
                    if component.get(head).copied() != Some(EXPORT_SECTION) {
                        return Err(format!("the export `{unwanted}` cannot be taken out"));
                    }
                    return Ok([&component[..head], &EMPTY_INSTANCE, &component[range.end..]].concat());
                }
            }
            _ => {}
        }
    }
    Ok(component.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_without_the_tool_s_own_frames() {
        let said = r#"Traceback (most recent call last):
  File "/x/venv/bin/componentize-py", line 8, in <module>
    sys.exit(script())
AssertionError: Traceback (most recent call last):
  File "/0/postern_entry.py", line 3, in <module>
    import plugin as plugin
  File "/1/rules.py", line 69
    def tally(poll)
                   ^
SyntaxError: expected ':'


Caused by:
    SyntaxError: expected ':' (rules.py, line 69)"#;
        let told = r#"Traceback (most recent call last):
  File "rules.py", line 69
    def tally(poll)
                   ^
SyntaxError: expected ':'
"#;
        assert_eq!(traceback(said).trim_end(), told.trim_end());
    }

    /// A component that exports empty instances.
    fn component(names: &[&[u8]]) -> Vec<u8> {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        for (index, name) in names.iter().enumerate() {
            // An instance of nothing, and its export.
            bytes.extend([5, 3, 1, 1, 0]);
            let mut section = vec![1, 0, name.len() as u8];
            section.extend(*name);
            section.extend([5, 2 * index as u8, 0]);
            bytes.extend([11, section.len() as u8]);
            bytes.extend(section);
        }
        bytes
    }

    fn exports(component: &[u8]) -> Vec<String> {
        wasmparser::Validator::new().validate_all(component).unwrap();
        let mut names = Vec::new();
        for payload in Parser::new(0).parse_all(component) {
            if let Payload::ComponentExportSection(section) = payload.unwrap() {
                names.extend(section.into_iter().map(|export| export.unwrap().name.name.to_owned()));
            }
        }
        names
    }

    #[test]
    fn the_initializer_is_taken_out_and_everything_else_stays_valid() {
        let whole = component(&[b"a:b/c", b"exports", b"d:e/f"]);
        assert_eq!(exports(&whole), ["a:b/c", "exports", "d:e/f"]);
        assert_eq!(exports(&without_export(&whole, INITIALIZER).unwrap()), ["a:b/c", "d:e/f"]);
        let without = component(&[b"a:b/c"]);
        assert_eq!(without_export(&without, INITIALIZER).unwrap(), without);
        assert!(without_export(b"no component", INITIALIZER).is_err());
    }
}
