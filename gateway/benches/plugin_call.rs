//! What a plugin call costs without the commit, in a fresh instance and in a warm one, over many: the echo of `bench`,
//! and the examples in JavaScript and Python where they are built. `cargo bench --bench plugin_call`.
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
use postern::tenant::{CallLimits, Instances, PluginSettings, Role, TenantId, WarmLimits};
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
    let host = Host::new(HostSettings::default()).unwrap();
    let visitor = serde_json::json!({ "flat_id": "a1", "visitor_name": "Asha", "purpose": "delivery" });
    measure(&host, &components.join("bench.wasm"), "echo", visitor, CALLS).await;
    let said = serde_json::json!({ "channel": "general", "text": "good morning" });
    measure(&host, &components.join("word-filter.wasm"), "chat_send", said, CALLS / 10).await;
    let poll = serde_json::json!({ "channel": "general", "question": "tea?", "options": ["yes", "no"] });
    measure(&host, &components.join("poll.wasm"), "poll_open", poll, CALLS / 10).await;
    measure_router(&host, &components.join("event-routing.wasm")).await;
}

/// Asks a router where events go: names that it has answered before, and new ones.
async fn measure_router(host: &Arc<Host>, path: &Path) {
    let tenant = TenantId::parse("bench").unwrap();
    let limits = Arc::new(CallLimits { cpu_ms_per_second: 0, ..CallLimits::default() });
    let engine = EmbeddedEngine::in_memory(Options::default()).unwrap();
    let routes = r#"{ "task:*": "task-updates", "typing:*": { "to": "typing-status", "feature": "typing" } }"#;
    let settings = PluginSettings {
        name: "event-routing".into(),
        role: Role::Router,
        component: path.to_owned(),
        events: None,
        settings: [("routes", routes), ("features", r#"{ "typing": true }"#)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        limits: Default::default(),
        instances: Instances::Fresh,
    };
    let component = std::fs::read(path).unwrap();
    let plugin = host.load(&tenant, &settings, &limits, component.into()).await.unwrap();
    let namespace: Arc<str> = "/".into();
    for (what, names) in [("known names", 1), ("new names", CALLS)] {
        let names: Vec<Arc<str>> = (0..names).map(|n| format!("task:edit-{n}").into()).collect();
        let mut took: Vec<_> = Vec::with_capacity(CALLS);
        for n in 0..CALLS {
            let invocation = Invocation { id: CommitId::random(), attempt: 1, now: 0 };
            let mut tx = Transaction::new(engine.clone(), tenant.clone(), limits.clone(), invocation);
            let begun = Instant::now();
            let answer = plugin.route(&mut tx, None, &namespace, &names[n % names.len()]).await.unwrap();
            took.push(begun.elapsed());
            assert_eq!(answer, ["task-updates"]);
        }
        took.sort();
        println!(
            "event-routing: {what}, one after the other: median {:.2} µs, p99 {:.2} µs",
            took[CALLS / 2].as_secs_f64() * 1e6,
            took[CALLS * 99 / 100].as_secs_f64() * 1e6
        );
    }
}

/// Calls one component with one event, fresh and warm, and prints what it took.
async fn measure(host: &Arc<Host>, path: &Path, event: &str, data: serde_json::Value, calls: usize) {
    let Ok(component) = std::fs::read(path) else {
        println!("{} is not built (any run of the tests builds it): not measured", path.display());
        return;
    };
    let name = path.file_stem().unwrap().to_str().unwrap();
    let tenant = TenantId::parse("bench").unwrap();
    let limits = Arc::new(CallLimits { cpu_ms_per_second: 0, ..CallLimits::default() });
    let engine = EmbeddedEngine::in_memory(Options::default()).unwrap();
    let event = Event { name: event.into(), namespace: "/".into(), data: Payload::one(&data), sender: None };
    let warm = WarmLimits { idle_max: CONCURRENT, ..WarmLimits::default() };
    for (mode, instances) in [("fresh", Instances::Fresh), ("warm", Instances::Warm(warm))] {
        let settings = PluginSettings {
            name: name.into(),
            role: Role::Handler,
            component: path.to_owned(),
            events: None,
            settings: Default::default(),
            limits: Default::default(),
            instances,
        };
        let plugin = host.load(&tenant, &settings, &limits, component.clone().into()).await.unwrap();
        let call = async || {
            let invocation = Invocation { id: CommitId::random(), attempt: 1, now: 0 };
            let mut tx = Transaction::new(engine.clone(), tenant.clone(), limits.clone(), invocation);
            plugin.handle(&mut tx, &event).await.unwrap();
            let parts = tx.into_parts();
            assert!(parts.reply.is_some() || !parts.commit.effects.is_empty());
        };
        let mut took = Vec::with_capacity(calls);
        for _ in 0..calls {
            let begun = Instant::now();
            call().await;
            took.push(begun.elapsed());
        }
        took.sort();
        println!(
            "{name}: {mode} call, one after the other, to the other runtime and back: median {:.1} µs, p99 {:.1} µs",
            took[calls / 2].as_secs_f64() * 1e6,
            took[calls * 99 / 100].as_secs_f64() * 1e6
        );
        let mut runs = Vec::new();
        for _ in 0..REPEATED {
            let (begun, before) = (Instant::now(), Cpu::of(std::process::id()));
            futures_util::stream::iter(0..calls).for_each_concurrent(CONCURRENT, |_| call()).await;
            let cpu = Cpu::of(std::process::id()).since(before);
            let each = |time: std::time::Duration| time.as_secs_f64() * 1e6 / calls as f64;
            runs.push([each(cpu.total()), each(cpu.system), each(begun.elapsed())]);
        }
        runs.sort_by(|a, b| a[0].total_cmp(&b[0]));
        let [cpu, kernel, each] = runs[0];
        println!(
            "{name}: {mode} call, {CONCURRENT} at a time, {} threads: {cpu:.1} µs CPU each, both runtimes ({kernel:.1} in the kernel); \
             one every {each:.1} µs",
            HostSettings::default().threads
        );
    }
}
