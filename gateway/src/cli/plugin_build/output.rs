//! What a build leaves behind: a component that keeps the contract, and a note of what it
//! was made of, so that it is not made again for nothing.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{BuildError, Component, contract};
use crate::decision::plugin::digest;

/// Where a plugin's component goes when nothing else is said.
pub(super) fn default_dir(plugin: &Path) -> PathBuf {
    plugin.join("target/postern")
}

/// Gathers what a component is made of, beginning with what makes it: this gateway and its contract.
pub(super) struct Stamp(Sha256);

impl Stamp {
    pub(super) fn new() -> Stamp {
        let mut stamp = Stamp(Sha256::new());
        stamp.add(env!("CARGO_PKG_VERSION"));
        for (_, text) in contract::FILES {
            stamp.add(text);
        }
        stamp
    }

    /// Two parts are never the same as one: each goes in with its length.
    pub(super) fn add(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    pub(super) fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The component in `out`, if it was made of just this and nobody has touched it since.
pub(super) fn made_before(out: &Path, name: &str, made_of: &str) -> Option<Vec<u8>> {
    let (path, stamp_path) = paths(out, name);
    let bytes = std::fs::read(path).ok()?;
    let stamp = std::fs::read_to_string(stamp_path).ok()?;
    (stamp == stamp_text(made_of, &bytes)).then_some(bytes)
}

/// Holds a component against the contract and writes it as `{out}/{name}.wasm`.
pub(super) fn write(out: &Path, name: &str, made_of: &str, bytes: &[u8]) -> Result<Component, BuildError> {
    let shape =
        contract::check(bytes).map_err(|differences| BuildError::Contract { name: name.to_owned(), differences })?;
    let (path, stamp_path) = paths(out, name);
    std::fs::create_dir_all(out).map_err(BuildError::io(out))?;
    write_if_other(&path, bytes)?;
    write_if_other(&stamp_path, stamp_text(made_of, bytes).as_bytes())?;
    Ok(Component {
        name: name.to_owned(),
        path,
        bytes: bytes.len() as u64,
        sha256: digest(bytes),
        imports: shape.imports,
        exports: shape.exports,
    })
}

fn paths(out: &Path, name: &str) -> (PathBuf, PathBuf) {
    (out.join(format!("{name}.wasm")), out.join(format!("{name}.wasm.made-of")))
}

fn stamp_text(made_of: &str, component: &[u8]) -> String {
    format!("{made_of} {}\n", digest(component))
}

/// Whole or not at all, and not at all when it is there: who watches the file sees changes only.
pub(super) fn write_if_other(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}.unfinished", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    std::fs::write(&unfinished, bytes).map_err(BuildError::io(&unfinished))?;
    std::fs::rename(&unfinished, path).map_err(BuildError::io(path))
}
