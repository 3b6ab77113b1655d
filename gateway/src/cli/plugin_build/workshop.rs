//! What JavaScript and Python have in common: an interpreter is packed into the component together
//! with the plugin's sources, by a tool that the plugin's own directory pins.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::output::{self, Stamp};
use super::worlds::{Export, World, worlds};
use super::{BuildError, Component, contract};
use crate::config::SCENARIO_ENDING;

/// Files that are a plugin's sources, at most; more are taken for a mistake.
const SOURCES_MAX: usize = 10_000;

/// The size of all of them, in bytes.
const SOURCE_BYTES_MAX: u64 = 64 << 20;

/// Directories that hold no sources: what was installed or built.
const NOT_SOURCES: [&str; 4] = ["node_modules", "target", "__pycache__", "venv"];

/// How files end that are no sources: scenarios, and components, which may lie about.
const NO_SOURCE_ENDINGS: [&str; 2] = [SCENARIO_ENDING, ".wasm"];

/// The longest name of a plugin's package, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// A plugin's directory while it is built; no other build works in it meanwhile.
pub(super) struct Workshop {
    /// The plugin's directory, absolute.
    pub(super) dir: PathBuf,
    /// Where the build puts what it needs and nobody else does.
    pub(super) build: PathBuf,
    /// The directory as it was given, for people.
    given: PathBuf,
    _lock: File,
}

impl Workshop {
    pub(super) fn open(dir: &Path) -> Result<Workshop, BuildError> {
        let given = dir.to_owned();
        let dir = dir.canonicalize().map_err(BuildError::io(dir))?;
        let build = output::default_dir(&dir).join("build");
        let wit = build.join("wit");
        std::fs::create_dir_all(&wit).map_err(BuildError::io(&wit))?;
        let lock_path = build.join("lock");
        let lock = File::create(&lock_path).map_err(BuildError::io(&lock_path))?;
        lock.lock().map_err(BuildError::io(&lock_path))?;
        let workshop = Workshop { dir, build, given, _lock: lock };
        for (name, text) in contract::FILES {
            workshop.put(&format!("wit/{name}"), text)?;
        }
        Ok(workshop)
    }

    /// Writes a file of the build's own.
    pub(super) fn put(&self, name: &str, text: &str) -> Result<(), BuildError> {
        output::write_if_other(&self.build.join(name), text.as_bytes())
    }

    /// The plugin's sources, and `ours`, what the build adds to them, as one text.
    pub(super) fn made_of(&self, ours: &[&str]) -> Result<String, BuildError> {
        let mut files = Vec::new();
        self.gather(&self.dir, &mut files)?;
        files.sort();
        let mut stamp = Stamp::new();
        ours.iter().for_each(|part| stamp.add(part));
        let mut bytes = 0;
        for path in &files {
            let content = std::fs::read(path).map_err(BuildError::io(path))?;
            bytes += content.len() as u64;
            if bytes > SOURCE_BYTES_MAX {
                return Err(self.no_plugin(&format!("its sources have more than {SOURCE_BYTES_MAX} bytes")));
            }
            stamp.add(path.strip_prefix(&self.dir).unwrap_or(path).as_os_str().as_encoded_bytes());
            stamp.add(content);
        }
        Ok(stamp.finish())
    }

    fn gather(&self, dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), BuildError> {
        for entry in std::fs::read_dir(dir).map_err(BuildError::io(dir))? {
            let entry = entry.map_err(BuildError::io(dir))?;
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().map_err(BuildError::io(&path))?;
            if name.as_encoded_bytes().starts_with(b".") || NOT_SOURCES.iter().any(|skipped| name == *skipped) {
                continue;
            }
            if kind.is_dir() {
                self.gather(&path, files)?;
            } else if kind.is_file() && !NO_SOURCE_ENDINGS.iter().any(|end| name.to_string_lossy().ends_with(end)) {
                files.push(path);
            }
            if files.len() > SOURCES_MAX {
                return Err(self.no_plugin(&format!("there are more than {SOURCES_MAX} files in it")));
            }
        }
        Ok(())
    }

    /// What to call it while nothing else is known.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.given.display()
    }

    /// Where the component goes.
    pub(super) fn out(&self, out: Option<&Path>) -> PathBuf {
        out.map_or_else(|| output::default_dir(&self.given), Path::to_owned)
    }

    pub(super) fn no_plugin(&self, why: &str) -> BuildError {
        BuildError::NoPlugin { dir: self.given.clone(), why: why.to_owned() }
    }
}

/// The component that an earlier build made of just the same, if it is still there.
pub(super) fn made_before(out: &Path, name: &str, made_of: &str) -> Option<Result<Component, BuildError>> {
    let bytes = output::made_before(out, name, made_of)?;
    Some(output::write(out, name, made_of, &bytes))
}

/// The interfaces that only other worlds have, each with the worlds that have it beside all of `world`; where none has,
/// with all that have it.
pub(super) fn elsewhere(dir: &Path, world: &World) -> Result<Vec<(String, String)>, BuildError> {
    let worlds = worlds().map_err(|why| BuildError::NoPlugin { dir: dir.to_owned(), why })?;
    let has = |world: &World, interface: &str| world.exports.iter().any(|export| export.interface == interface);
    let covers = |other: &World| world.exports.iter().all(|export| has(other, &export.interface));
    let mut found: Vec<(String, String)> = Vec::new();
    for interface in worlds.iter().flat_map(|world| &world.exports).map(|export| &export.interface) {
        if has(world, interface) || found.iter().any(|(known, _)| known == interface) {
            continue;
        }
        let with: Vec<&World> = worlds.iter().filter(|other| has(other, interface)).collect();
        let wider: Vec<&World> = with.iter().copied().filter(|other| covers(other)).collect();
        let names: Vec<&str> =
            if wider.is_empty() { &with } else { &wider }.iter().map(|world| world.name.as_str()).collect();
        found.push((interface.clone(), names.join(" or ")));
    }
    Ok(found)
}

/// The world that a plugin's manifest names; `key` is where it does.
pub(super) fn world(dir: &Path, key: &str, named: Option<&str>) -> Result<World, BuildError> {
    let no_plugin = |why: String| BuildError::NoPlugin { dir: dir.to_owned(), why };
    let worlds = worlds().map_err(no_plugin)?;
    let names: Vec<&str> = worlds.iter().map(|world| world.name.as_str()).collect();
    let names = names.join(", ");
    let Some(named) = named else {
        return Err(no_plugin(format!("{key} is missing; it says what the plugin is: one of {names}")));
    };
    worlds
        .into_iter()
        .find(|world| world.name == named)
        .ok_or_else(|| no_plugin(format!("{key} is {named:?}; it must be one of {names}")))
}

/// A package's name as the name of a file.
pub(super) fn file_name(dir: &Path, key: &str, named: &str) -> Result<String, BuildError> {
    let fits = !named.is_empty()
        && named.len() <= NAME_BYTES_MAX
        && !named.starts_with('.')
        && named.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    let why = || format!("{key} is {named:?}; it must be 1 to {NAME_BYTES_MAX} of A-Z, a-z, 0-9, `-`, `_` and `.`");
    if fits { Ok(named.to_owned()) } else { Err(BuildError::NoPlugin { dir: dir.to_owned(), why: why() }) }
}

/// What a program that judges sources has said is about the sources.
pub(super) fn source_error(name: &str, error: BuildError) -> BuildError {
    match error {
        BuildError::Program { output, .. } if !output.trim().is_empty() => {
            BuildError::Source { name: name.to_owned(), what: output }
        }
        other => other,
    }
}

/// `timer-events` as `timerEvents`, or with `up` as `TimerEvents`.
pub(super) fn camel(name: &str, mut up: bool) -> String {
    let mut text = String::with_capacity(name.len());
    for char in name.chars() {
        if char == '-' {
            up = true;
        } else if std::mem::take(&mut up) {
            text.extend(char.to_uppercase());
        } else {
            text.push(char);
        }
    }
    text
}

/// The functions of an export, as a list in JSON, which is one in JavaScript and Python too.
pub(super) fn functions(export: &Export, spelled: impl Fn(&str) -> String) -> String {
    let names: Vec<String> = export.functions.iter().map(|name| format!("{:?}", spelled(name))).collect();
    format!("[{}]", names.join(", "))
}
