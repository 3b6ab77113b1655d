//! What a tenant's settings are read with: where they come from, and what they may name there.

use std::path::{Path, PathBuf};

use super::Environment;
use super::source::{Given, Place, Report, read_file};
use crate::tenant::Secret;

/// What the secrets of the examples contain; they are in a public repository.
const DEMO_MARK: &[u8] = b"demo-only";

/// What a tenant file is read with.
pub(super) struct Context<'a> {
    pub(super) path: &'a Path,
    /// The tenant's name, which the file's name says.
    pub(super) name: &'a str,
    pub(super) env: &'a dyn Environment,
    pub(super) demo: bool,
    /// What component paths are relative to; `None`: the tenant file's directory.
    pub(super) plugins_dir: Option<&'a Path>,
    /// Is a component that is not there a mistake?
    pub(super) with_components: bool,
    /// May files and variables of this machine be named? Only whoever has it writes its files.
    pub(super) of_a_file: bool,
}

impl Context<'_> {
    /// The bytes of a file that the tenant file names, relative to itself.
    pub(super) fn read(&self, path: &str) -> Result<(PathBuf, Vec<u8>), String> {
        if !self.of_a_file {
            return Err("only a tenant file can name files".into());
        }
        let path = self.path.parent().unwrap_or(Path::new("")).join(path);
        read_file(&path).map(|bytes| (path, bytes))
    }

    pub(super) fn place(&self, key: &str) -> Place {
        Place { source: self.path.display().to_string().into(), line: None, key: key.into() }
    }
}

/// The secret in a variable of the environment.
pub(super) fn secret_of_environment(
    given: &Given<'_>,
    variable: &str,
    context: &Context<'_>,
    report: &mut Report,
) -> Option<Secret> {
    let value = context.env.get(variable).filter(|value| !value.is_empty());
    if value.is_none() {
        report.mistake(given.at.clone(), format!("the environment variable `{variable}` is not set"));
    }
    value.map(|value| Secret(value.into_bytes()))
}

/// A secret that can be guessed is a mistake, and in a demonstration a warning.
pub(super) fn strength(secret: &[u8], bytes_min: usize, at: &Place, context: &Context<'_>, report: &mut Report) {
    if secret.len() < bytes_min {
        let problem = format!("the secret has {} bytes; at least {bytes_min} are needed", secret.len());
        if context.demo {
            report.warn(at, problem);
        } else {
            report.mistake(at.clone(), problem);
        }
    } else if !context.demo && secret.windows(DEMO_MARK.len()).any(|window| window == DEMO_MARK) {
        report.warn(at, "this is the public secret of an example: anybody can make tokens with it");
    }
}
