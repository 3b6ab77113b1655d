//! What a fresh plugin call costs without the commit: the echo of `bench`, over many.
//! `cargo bench --bench plugin_call`.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

#[path = "support/process.rs"]
mod process;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use postern::cli::plugin_build::build_reference;
use postern::commit::CommitId;
use postern::decision::plugin::{Host, HostSettings, Invocation, Transaction};
use postern::engine::embedded::{EmbeddedEngine, Options};
use postern::event::{Event, Payload};
use postern::tenant::{CallLimits, PluginSettings, Role, TenantId};
use process::Cpu;

const CALLS: usize = 20_000;
const CONCURRENT: usize = 32;
/// Measurements of the same; the one with the least computing time counts.
const REPEATED: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let components = root.join("target/components");
    build_reference(root, &components, &mut |line| println!("{line}")).unwrap();
    let component = std::fs::read(components.join("bench.wasm")).unwrap();
    let tenant = TenantId::parse("bench").unwrap();
    let settings = PluginSettings {
        name: "bench".into(),
        role: Role::Handler,
        component: "bench.wasm".into(),
        events: None,
        settings: Default::default(),
        instances: Default::default(),
    };
    let limits = Arc::new(CallLimits::default());
    let engine = EmbeddedEngine::in_memory(Options::default()).unwrap();
    let host = Host::new(HostSettings::default()).unwrap();
    let plugin = host.load(&tenant, &settings, &limits, component.into()).await.unwrap();
    let event = Event {
        name: "echo".into(),
        namespace: "/".into(),
        data: Payload::one(&serde_json::json!({ "flat_id": "a1", "visitor_name": "Asha", "purpose": "delivery" })),
        sender: None,
    };
    let call = async || {
        let invocation = Invocation { id: CommitId::random(), attempt: 1, now: 0 };
        let mut tx = Transaction::new(engine.clone(), tenant.clone(), limits.clone(), invocation);
        plugin.handle(&mut tx, &event).await.unwrap();
        assert!(tx.into_parts().reply.is_some());
    };
    let mut took = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begun = Instant::now();
        call().await;
        took.push(begun.elapsed());
    }
    took.sort();
    println!(
        "fresh call, one after the other, to the other runtime and back: median {:.1} µs, p99 {:.1} µs",
        took[CALLS / 2].as_secs_f64() * 1e6,
        took[CALLS * 99 / 100].as_secs_f64() * 1e6
    );
    let mut runs = Vec::new();
    for _ in 0..REPEATED {
        let (begun, before) = (Instant::now(), Cpu::of(std::process::id()));
        futures_util::stream::iter(0..CALLS).for_each_concurrent(CONCURRENT, |_| call()).await;
        let cpu = Cpu::of(std::process::id()).since(before);
        let each = |time: std::time::Duration| time.as_secs_f64() * 1e6 / CALLS as f64;
        runs.push([each(cpu.total()), each(cpu.system), each(begun.elapsed())]);
    }
    runs.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [cpu, kernel, each] = runs[0];
    println!(
        "fresh call, {CONCURRENT} at a time, {} threads: {cpu:.1} µs CPU each, both runtimes ({kernel:.1} in the kernel); \
         one every {each:.1} µs",
        HostSettings::default().threads
    );
}
