//! What a plugin costs, as metrics. Labels are bounded names of tenants and plugins and closed lists, never a
//! component's words.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use hashbrown::HashMap;
use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;

use super::breaker::BreakerState;
use super::failure::Hook;
use crate::quota::StoredKind;
use crate::telemetry::labels;

/// The most memory so far, by labels, of which there are so many: a new version does not take it back.
static PEAKS: LazyLock<Mutex<Peaks>> = LazyLock::new(Mutex::default);

type Peaks = HashMap<(String, String), Arc<AtomicUsize>>;

/// The handles of one plugin, looked up once.
pub(super) struct Metering {
    tenant: String,
    plugin: String,
    hooks: [OnceLock<HookMetrics>; Hook::COUNT],
    cpu: OnceLock<Counter>,
    memory: OnceLock<Gauge>,
    peak_bytes: AtomicUsize,
    /// The same of all that share its labels: its other versions, or all that are `other`.
    peak_of_all_bytes: Arc<AtomicUsize>,
    /// Hooks whose breakers are counted as not closed, a bit each.
    open: AtomicU32,
}

struct HookMetrics {
    ok: Counter,
    seconds: Histogram,
}

impl Metering {
    pub(super) fn new(tenant: &str, plugin: &str) -> Metering {
        let (tenant, plugin) = labels::of_plugin(tenant, plugin);
        let peak_of_all_bytes = PEAKS.lock().entry((tenant.clone(), plugin.clone())).or_default().clone();
        Metering {
            peak_of_all_bytes,
            tenant,
            plugin,
            hooks: [const { OnceLock::new() }; Hook::COUNT],
            cpu: OnceLock::new(),
            memory: OnceLock::new(),
            peak_bytes: AtomicUsize::new(0),
            open: AtomicU32::new(0),
        }
    }

    /// Counts one call; `outcome` is from a closed list.
    pub(super) fn call(&self, hook: Hook, outcome: &'static str, took: Duration) {
        let handles = self.hooks[hook as usize].get_or_init(|| HookMetrics {
            ok: self.calls(hook, "ok"),
            seconds: metrics::histogram!(
                "plugin_call_seconds",
                "tenant" => self.tenant.clone(), "plugin" => self.plugin.clone(), "hook" => hook.name()
            ),
        });
        if outcome == "ok" {
            handles.ok.increment(1);
        } else {
            self.calls(hook, outcome).increment(1);
        }
        handles.seconds.record(took.as_secs_f64());
    }

    /// Adds what an instance used.
    pub(super) fn used(&self, cpu: Duration, memory_bytes: usize) {
        let counter = self.cpu.get_or_init(|| {
            metrics::counter!(
                "plugin_cpu_microseconds_total", "tenant" => self.tenant.clone(), "plugin" => self.plugin.clone()
            )
        });
        counter.increment(u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX));
        self.peak_bytes.fetch_max(memory_bytes, Ordering::Relaxed);
        if self.peak_of_all_bytes.fetch_max(memory_bytes, Ordering::Relaxed) < memory_bytes {
            let gauge = self.memory.get_or_init(|| {
                metrics::gauge!(
                    "plugin_memory_peak_bytes", "tenant" => self.tenant.clone(), "plugin" => self.plugin.clone()
                )
            });
            #[expect(clippy::cast_precision_loss, reason = "memories are far below 2^52 bytes")]
            gauge.set(memory_bytes as f64);
        }
    }

    /// The most memory that an instance had, in bytes.
    pub(super) fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    /// A breaker has changed: how many of the hook's, over all versions that are there, are not closed.
    pub(super) fn breaker(&self, hook: Hook, state: BreakerState) {
        let gauge = metrics::gauge!(
            "plugin_breakers_open",
            "tenant" => self.tenant.clone(), "plugin" => self.plugin.clone(), "hook" => hook.name()
        );
        let bit = 1 << hook as u32;
        if state == BreakerState::Closed {
            if self.open.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
                gauge.decrement(1.0);
            }
        } else if self.open.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            gauge.increment(1.0);
        }
        if state == BreakerState::Open {
            metrics::counter!(
                "plugin_breaker_openings_total",
                "tenant" => self.tenant.clone(), "plugin" => self.plugin.clone(), "hook" => hook.name()
            )
            .increment(1);
        }
    }

    /// What it did was refused for what the tenant would keep in all.
    pub(super) fn went_over(&self, kind: StoredKind) {
        metrics::counter!(
            "plugin_quota_refusals_total",
            "tenant" => self.tenant.clone(), "plugin" => self.plugin.clone(), "what" => kind.word()
        )
        .increment(1);
    }

    fn calls(&self, hook: Hook, outcome: &'static str) -> Counter {
        metrics::counter!(
            "plugin_calls_total",
            "tenant" => self.tenant.clone(), "plugin" => self.plugin.clone(),
            "hook" => hook.name(), "outcome" => outcome
        )
    }
}
