use std::process::Command;
use std::time::Duration;

use wit_component::{StringEncoding, embed_component_metadata};

use super::rust::{componentize, encode};
use super::*;
use crate::decision::plugin::digest;

/// A component of the given world, made of a core module in text; `world` stands in a
/// package of its own beside the contract.
fn component(files: &[(&str, &str)], world: &str, core: &[u8]) -> Result<Vec<u8>, BuildError> {
    let (resolve, package) = contract::parse(files.iter().copied()).unwrap();
    let mut core = core.to_vec();
    embed_component_metadata(&mut core, &resolve, resolve.packages[package].worlds[world], StringEncoding::UTF8)
        .unwrap();
    encode("planted", &core)
}

/// An empty core module.
const EMPTY: &[u8] = b"\0asm\x01\0\0\0";

/// A core module whose only function, of no parameters and one result, is exported as `name`;
/// with the memory that returning a string needs.
fn core_exporting(name: &str) -> Vec<u8> {
    let mut core = EMPTY.to_vec();
    core.extend([1, 5, 1, 0x60, 0, 1, 0x7f]);
    core.extend([3, 2, 1, 0]);
    core.extend([5, 3, 1, 0, 1]);
    let mut exports = vec![2, name.len() as u8];
    exports.extend(name.bytes());
    exports.extend([0, 0, 6]);
    exports.extend(b"memory");
    exports.extend([2, 0]);
    core.extend([7, exports.len() as u8]);
    core.extend(exports);
    core.extend([10, 6, 1, 4, 0, 0x41, 0, 0x0b]);
    core
}

const INFO: &str = "postern:plugin/describe@0.1.0#info";

#[test]
fn a_component_that_keeps_the_contract_passes() {
    let own = "package postern:plugin@0.1.0;
        interface describe { info: func() -> string; }
        world w { export describe; }";
    let component = component(&[("own.wit", own)], "w", &core_exporting(INFO)).unwrap();
    let shape = contract::check(&component).unwrap();
    assert_eq!(shape.exports, ["postern:plugin/describe@0.1.0"]);
    assert!(shape.imports.is_empty());
}

#[test]
fn the_difference_to_the_contract_is_named() {
    for (own, export, difference) in [
        (
            "package postern:plugin@0.1.0; interface describe { info: func() -> u32; } world w { export describe; }",
            INFO,
            "postern:plugin/describe@0.1.0: the function `info` is `func() -> u32`, \
             the contract says `func() -> string`",
        ),
        (
            "package postern:plugin@0.1.0; interface describe { tell: func() -> u32; } world w { export describe; }",
            "postern:plugin/describe@0.1.0#tell",
            "postern:plugin/describe@0.1.0: the contract has no function `tell` there",
        ),
        (
            "package postern:plugin@0.1.0; interface describe { tell: func() -> u32; } world w { export describe; }",
            "postern:plugin/describe@0.1.0#tell",
            "postern:plugin/describe@0.1.0: it lacks the function `info`",
        ),
        (
            "package postern:plugin@0.2.0; interface describe { info: func() -> u32; } world w { export describe; }",
            "postern:plugin/describe@0.2.0#info",
            "it exports postern:plugin/describe@0.2.0, but the contract here is postern:plugin/describe@0.1.0",
        ),
        (
            "package wasi:clocks@0.2.0; interface wall { now: func() -> u32; } world w { export wall; }",
            "wasi:clocks/wall@0.2.0#now",
            "it exports wasi:clocks/wall@0.2.0, but there is no WASI here: no files, sockets, randomness, clock",
        ),
        (
            "package mine:things; world w { export now: func() -> u32; }",
            "now",
            "it exports the function `now` outside of any interface",
        ),
    ] {
        let component = component(&[("own.wit", own)], "w", &core_exporting(export)).unwrap();
        let differences = contract::check(&component).unwrap_err();
        assert!(differences.iter().any(|found| found == difference), "{differences:#?}");
    }
}

#[test]
fn a_type_of_another_shape_is_a_difference() {
    let own = "package postern:plugin@0.1.0;
        interface log { enum level { trace, debug } f: func() -> level; }
        interface describe { info: func() -> string; }
        world w { import log; export describe; }";
    let mut core = EMPTY.to_vec();
    core.extend([1, 5, 1, 0x60, 0, 1, 0x7f]);
    let module = b"postern:plugin/log@0.1.0";
    let mut import = vec![1, module.len() as u8];
    import.extend(module);
    import.extend([1, b'f', 0, 0]);
    core.extend([2, import.len() as u8]);
    core.extend(import);
    core.extend(&core_exporting(INFO)[EMPTY.len() + 7..]);
    // The exported function is the second now.
    let export = core.windows(INFO.len()).position(|window| window == INFO.as_bytes()).unwrap() + INFO.len() + 1;
    core[export] = 1;
    let differences = contract::check(&component(&[("own.wit", own)], "w", &core).unwrap()).unwrap_err();
    assert_eq!(
        differences[0],
        "postern:plugin/log@0.1.0: the type `level` is `enum {trace, debug}`, \
         the contract says `enum {trace, debug, info, warn, error}`"
    );
}

#[test]
fn what_is_no_component_is_refused() {
    assert!(contract::check(EMPTY).unwrap_err()[0].contains("no component"));
    assert!(contract::check(b"").is_err());
    assert!(contract::check(b"not wasm at all").is_err());
}

#[test]
fn without_a_toolchain_the_error_names_both_remedies() {
    let empty = tempfile::tempdir().unwrap();
    let error = Toolchain::find_among(empty.path(), "no-such-rustc", empty.path()).unwrap_err().to_string();
    assert!(error.contains("rustup target add wasm32-unknown-unknown"), "{error}");
    assert!(error.contains("rustc-web cargo-web rust-web-src lld-22"), "{error}");
    assert!(error.contains("no-such-rustc"), "{error}");
}

#[test]
fn a_build_does_not_inherit_the_outer_cargos_choices() {
    let toolchain = with_a_fake_debian();
    let cargo = toolchain.cargo("build", Path::new("/somewhere/Cargo.toml"));
    let env = |name: &str| cargo.get_envs().find(|(key, _)| *key == name).map(|(_, value)| value);
    assert_eq!(env("RUSTFLAGS"), Some(None));
    assert_eq!(env("RUSTUP_TOOLCHAIN"), Some(None));
    assert!(env("RUSTC").flatten().is_some_and(|rustc| rustc.to_string_lossy().ends_with("bin/rustc")));
}

fn with_a_fake_debian() -> Toolchain {
    let root = tempfile::tempdir().unwrap();
    for file in ["bin/cargo", "bin/rustc", "bin/wasm-ld-22", "lib/rustlib/src/rust/library/std/Cargo.toml"] {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    Toolchain::find_among(root.path(), "no-such-rustc", root.path()).unwrap()
}

#[test]
fn a_run_that_takes_too_long_is_ended() {
    let mut sleep = Command::new("sleep");
    sleep.arg("60");
    let error = run::run_within(Duration::from_millis(50), sleep, &mut |_| {}, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("did not end within"), "{error}");
}

#[test]
fn a_run_that_fails_says_what_it_said() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo out; echo why >&2; exit 3"]);
    let mut out = Vec::new();
    let error = run::run(shell, &mut |line| out.push(line.to_owned()), &mut |_| {}).unwrap_err();
    assert_eq!(out, ["out"]);
    assert!(error.to_string().contains("why"), "{error}");
}

#[test]
fn a_component_is_written_again_only_when_its_core_module_changed() {
    let dir = tempfile::tempdir().unwrap();
    let own = "package postern:plugin@0.1.0;
        interface describe { info: func() -> string; }
        world w { export describe; }";
    let (resolve, package) = contract::parse([("own.wit", own)]).unwrap();
    let mut core = core_exporting(INFO);
    embed_component_metadata(&mut core, &resolve, resolve.packages[package].worlds["w"], StringEncoding::UTF8).unwrap();
    let module = dir.path().join("core.wasm");
    std::fs::write(&module, &core).unwrap();
    let out = dir.path().join("out");
    let made = |out: &Path| std::fs::metadata(out.join("p.wasm")).unwrap().modified().unwrap();

    let first = componentize("p", &module, &out).unwrap();
    let first_made = made(&out);
    let again = componentize("p", &module, &out).unwrap();
    assert_eq!((first.sha256, first_made), (again.sha256.clone(), made(&out)));

    // Somebody else's file of the same name is not taken for ours.
    std::fs::write(&again.path, EMPTY).unwrap();
    assert_eq!(componentize("p", &module, &out).unwrap().sha256, again.sha256);
    assert_eq!(digest(&std::fs::read(&again.path).unwrap()), again.sha256);
}
