//! The `[plugins]` of the gateway: what the plugin host may use.

use std::path::Path;

use super::source::{Report, Section};
use crate::decision::plugin::{CodeCache, HostSettings};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Compiled code on the disk where the settings do not say, in bytes.
const CODE_CACHE_BYTES: u64 = GIB;

/// `base` is what paths are relative to, `data_dir` where the gateway keeps its data.
pub(super) fn plugins(
    section: Option<Section<'_>>,
    base: Option<&Path>,
    data_dir: &Path,
    report: &mut Report,
) -> HostSettings {
    let mut settings = HostSettings::default();
    let mut cache = CodeCache { dir: data_dir.join("code-cache"), bytes_max: CODE_CACHE_BYTES };
    if let Some(mut given) = section {
        given.integer("instances", 1..=100_000, &mut settings.instances, report);
        given.integer("memory_bytes_max", MIB..=4 * GIB, &mut settings.memory_bytes_max, report);
        given.integer("component_bytes_max", KIB..=256 * MIB, &mut settings.component_bytes_max, report);
        given.integer("compilations", 1..=64, &mut settings.compilations, report);
        given.integer("compile_ms_max", 1_000..=3_600_000, &mut settings.compile_ms_max, report);
        let memory = 256 * MIB..=64 * GIB;
        given.integer("compile_memory_bytes_max", memory, &mut settings.compile_memory_bytes_max, report);
        given.integer("code_cache_bytes", 0..=1_024 * GIB, &mut cache.bytes_max, report);
        if let Some(dir) = given.get("code_cache_dir").and_then(|dir| dir.path(base, report)) {
            cache.dir = dir;
        }
        given.finish(report);
    }
    settings.code_cache = (cache.bytes_max > 0).then_some(cache);
    settings
}
