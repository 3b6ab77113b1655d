//! The upload checker: no bytes may make it panic, run long, grow large or recurse deep.
//!
//! `scripts/fuzz upload 1800` in the repository (with components built, as any test run does, it begins with those).
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::decision::plugin::{contract, inspect};

const BYTES_MAX: usize = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(surface) = inspect(bytes, BYTES_MAX) {
        assert!(surface.imports.iter().chain(&surface.exports).all(|name| name.starts_with("postern:plugin/")));
        let _ = contract::check(bytes);
    }
});
