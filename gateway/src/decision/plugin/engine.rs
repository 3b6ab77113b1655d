//! The one wasmtime engine: what components may be made of, how many run at a time, and the
//! clock that interrupts them.

use std::thread;
use std::time::Duration;

use wasmtime::{
    Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, ModuleVersionStrategy, PoolingAllocationConfig,
    Strategy,
};

use super::{HostError, HostSettings};

/// How often a computing component is looked after: the longest turn it has while others wait.
const TICK: Duration = Duration::from_millis(1);

/// Core instances, memories and tables per component instance, and the most that a single component
/// may have of them. A component made of one core module has one or two core instances, JavaScript's
/// engine has 3; Python's interpreter is linked from some 40 modules, most of them stubs, around one memory.
/// Core instances are only counted; places for memories and tables are addresses that are reserved.
const CORE_INSTANCES_EACH: u32 = 64;
const MEMORIES_EACH: u32 = 2;
const TABLES_EACH: u32 = 4;
const CORE_INSTANCES_MAX: u32 = 64;
const MEMORIES_MAX: u32 = 4;
const TABLES_MAX: u32 = 16;

/// Bookkeeping of one component instance, in bytes.
const INSTANCE_BYTES_MAX: usize = 1 << 20;

/// Elements of one table. Large components have one entry per function whose address is taken.
pub(super) const TABLE_ELEMENTS_MAX: usize = 50_000;

/// How deep a component's calls may nest, in bytes of stack.
pub(super) const STACK_BYTES: usize = 512 << 10;

/// The whole stack of a call: what host functions need comes on top of [`STACK_BYTES`].
const ASYNC_STACK_BYTES: usize = 1 << 20;

/// What a freed slot keeps of its memory, in bytes, so that the next call does not fault it in again.
/// Worth it only where the kernel says which pages were written.
const KEEP_RESIDENT_BYTES: usize = 1 << 20;
const TABLE_KEEP_RESIDENT_BYTES: usize = 16 << 10;

/// Frames in the backtrace of a trap.
const BACKTRACE_FRAMES_MAX: usize = 16;

/// Compiled code of another version of wasmtime or of ours is never loaded.
pub(super) const CODE_VERSION: &str = concat!("postern-", env!("CARGO_PKG_VERSION"), "-wasmtime-", "48.0.8");

/// Makes the engine and starts its clock.
pub(super) fn start(settings: &HostSettings) -> Result<Engine, HostError> {
    // `PAGEMAP_SCAN` (Linux 6.7) halves what a fresh instance costs; without it everything works too.
    let engine = match Engine::new(&config(settings, Enabled::Yes)?) {
        Ok(engine) => engine,
        Err(_) => Engine::new(&config(settings, Enabled::No)?)
            .map_err(|error| HostError::Pool { instances: settings.instances, reason: format!("{error:#}") })?,
    };
    let clock = engine.weak();
    thread::Builder::new()
        .name("plugin-clock".into())
        .spawn(move || tick(&clock))
        .map_err(|error| HostError::Threads(error.to_string()))?;
    Ok(engine)
}

fn tick(engine: &EngineWeak) {
    while let Some(engine) = engine.upgrade() {
        engine.increment_epoch();
        drop(engine);
        thread::sleep(TICK);
    }
}

fn config(settings: &HostSettings, pagemap_scan: Enabled) -> Result<Config, HostError> {
    let instances = settings.instances;
    let scans = matches!(pagemap_scan, Enabled::Yes);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_EACH))
        .total_memories(instances.saturating_mul(MEMORIES_EACH))
        .total_tables(instances.saturating_mul(TABLES_EACH))
        .total_stacks(instances)
        .max_component_instance_size(INSTANCE_BYTES_MAX)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(settings.memory_bytes_max)
        .linear_memory_keep_resident(if scans { KEEP_RESIDENT_BYTES } else { 0 })
        .table_keep_resident(if scans { TABLE_KEEP_RESIDENT_BYTES } else { 0 })
        .pagemap_scan(pagemap_scan);
    let mut config = compiling()?;
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Ok(config)
}

/// An engine that compiles for [`start`]'s, and reserves nothing.
pub(super) fn compiler() -> Result<Engine, HostError> {
    Engine::new(&compiling()?).map_err(|error| HostError::Contract(format!("{error:#}")))
}

/// Everything that compiled code depends on.
fn compiling() -> Result<Config, HostError> {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .async_stack_size(ASYNC_STACK_BYTES)
        .concurrency_support(false)
        .shared_memory(false)
        .gc_support(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_relaxed_simd(false)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_FRAMES_MAX));
    config
        .module_version(ModuleVersionStrategy::Custom(CODE_VERSION.into()))
        .map_err(|error| HostError::Contract(format!("{error:#}")))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_compiled_code_names_the_wasmtime_that_compiles_it() {
        let lock = include_str!("../../../../Cargo.lock");
        let version = CODE_VERSION.rsplit_once('-').unwrap().1;
        assert!(lock.contains(&format!("name = \"wasmtime\"\nversion = \"{version}\"")), "{CODE_VERSION}");
    }

    #[test]
    fn what_the_compiler_makes_is_for_the_engine_that_runs_it() {
        let settings = HostSettings { instances: 4, ..HostSettings::default() };
        let running = start(&settings).unwrap();
        let other = HostSettings { instances: 8, memory_bytes_max: 64 << 20, ..HostSettings::default() };
        let hash = super::super::code_hash;
        assert_eq!(hash(&compiler().unwrap()), hash(&running));
        assert_eq!(hash(&start(&other).unwrap()), hash(&running));
        let mut changed = compiling().unwrap();
        changed.epoch_interruption(false);
        assert_ne!(hash(&Engine::new(&changed).unwrap()), hash(&running));
    }

    #[test]
    fn a_pool_that_cannot_be_had_is_an_error_and_names_the_setting() {
        let settings = HostSettings { instances: 1_000_000, ..HostSettings::default() };
        let error = start(&settings).err().unwrap().to_string();
        assert!(error.contains("plugins.instances") && error.contains("1000000"), "{error}");
    }
}
