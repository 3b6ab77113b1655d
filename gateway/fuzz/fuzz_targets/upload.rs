//! The upload checker: no bytes may make it panic, run long, grow large or recurse deep.
//!
//! With components built (any test run does): `mkdir -p corpus/upload && cp ../../target/components/*.wasm corpus/upload/` and
//! `cargo +nightly fuzz run upload -- -max_len=300000 -rss_limit_mb=2048 -timeout=10 -max_total_time=1800` in `gateway/fuzz`.
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
