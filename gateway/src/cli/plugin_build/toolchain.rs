//! What compiles for `wasm32-unknown-unknown` on this machine.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::BuildError;

/// The target of every plugin: nothing of an operating system is there to import.
pub(super) const TARGET: &str = "wasm32-unknown-unknown";

/// What an outer cargo or rustup sets, and what would bend the build: the toolchain is
/// chosen here, by what it can do.
const NOT_INHERITED: &[&str] = &[
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTUP_TOOLCHAIN",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
];

/// Small and without unwinding, whatever the crate's own profile says. Names of functions
/// stay: a trap names them.
const PROFILE: &[(&str, &str)] = &[
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "none"),
    ("CARGO_PROFILE_RELEASE_STRIP", "debuginfo"),
];

/// The linkers that Debian's rustc can use, the one of its own LLVM first.
const DEBIAN_LINKERS: &[&str] = &["wasm-ld-22", "wasm-ld"];

/// A cargo that compiles for `wasm32-unknown-unknown`.
#[derive(Debug, Clone)]
pub struct Toolchain {
    cargo: PathBuf,
    env: Vec<(&'static str, PathBuf)>,
    build_args: &'static [&'static str],
}

impl Toolchain {
    /// Looks for one: the cargo in `PATH`, as it is in the plugin's directory, or Debian's
    /// with the sources of the standard library.
    ///
    /// # Errors
    /// When there is neither; the text says what was found and what to install.
    pub fn find(dir: &Path) -> Result<Toolchain, BuildError> {
        Toolchain::find_among(dir, "rustc", Path::new("/usr"))
    }

    /// [`Toolchain::find`] with other places to look at: the program to take for rustc, and the
    /// directory that has Debian's `bin` and `lib`.
    ///
    /// # Errors
    /// As [`Toolchain::find`].
    pub fn find_among(dir: &Path, rustc: &str, debian: &Path) -> Result<Toolchain, BuildError> {
        let installed = match with_target(dir, rustc) {
            Ok(toolchain) => return Ok(toolchain),
            Err(why) => why,
        };
        let packaged = match with_sources(debian) {
            Ok(toolchain) => return Ok(toolchain),
            Err(why) => why,
        };
        Err(BuildError::NoToolchain(format!(
            "nothing here compiles for {TARGET}: {installed}; {packaged}. Either run\n    \
             rustup target add {TARGET}\nor, on Debian and where rustup cannot reach its servers,\n    \
             apt-get install -y --no-install-recommends rustc-web cargo-web rust-web-src lld-22"
        )))
    }

    /// `cargo {subcommand}` on a manifest, in the manifest's directory: what the project
    /// says about toolchains and settings holds.
    pub(super) fn cargo(&self, subcommand: &str, manifest: &Path) -> Command {
        let mut command = Command::new(&self.cargo);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command.envs(PROFILE.iter().copied());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = manifest.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            command.current_dir(dir);
        }
        command.arg(subcommand);
        if subcommand == "build" {
            command.args(self.build_args);
        }
        command.arg("--manifest-path").arg(manifest);
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.build_args.is_empty() { "the target installed" } else { "the standard library from source" };
        write!(f, "{} ({how})", self.cargo.display())
    }
}

/// The cargo in `PATH`, if its rustc has the target.
fn with_target(dir: &Path, rustc: &str) -> Result<Toolchain, String> {
    let mut command = Command::new(rustc);
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    if dir.is_dir() {
        command.current_dir(dir);
    }
    let output = command.args(["--print", "sysroot"]).output().map_err(|error| format!("`{rustc}`: {error}"))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let target = sysroot.join("lib/rustlib").join(TARGET);
    if output.status.success() && target.join("lib").is_dir() {
        return Ok(Toolchain { cargo: "cargo".into(), env: Vec::new(), build_args: &[] });
    }
    Err(format!("the `{rustc}` in PATH has no {}", target.display()))
}

/// Debian's cargo, which has no such target but the sources to make it.
fn with_sources(root: &Path) -> Result<Toolchain, String> {
    let there = |path: &str| Some(root.join(path)).filter(|path| path.exists());
    let or_missing = |path: &str| there(path).ok_or_else(|| format!("there is no {}", root.join(path).display()));
    let cargo = or_missing("bin/cargo")?;
    let rustc = or_missing("bin/rustc")?;
    or_missing("lib/rustlib/src/rust/library/std/Cargo.toml")?;
    let linker = DEBIAN_LINKERS.iter().find_map(|name| there(&format!("bin/{name}")));
    let linker = linker.ok_or_else(|| format!("there is no {}", root.join("bin").join(DEBIAN_LINKERS[0]).display()))?;
    let env = vec![
        ("RUSTC", rustc),
        // `-Zbuild-std` is not for stable compilers without it.
        ("RUSTC_BOOTSTRAP", "1".into()),
        ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker),
    ];
    Ok(Toolchain { cargo, env, build_args: &["-Zbuild-std=std,panic_abort"] })
}
