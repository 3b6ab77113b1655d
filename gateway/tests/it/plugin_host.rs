//! The plugin host with real components: what one call may do, and what it cannot do to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::staged_engine::StagedEngine;
use bytes::Bytes;
use postern::client::{Client, ConnectionId, Identity};
use postern::commit::{Commit, CommitId, Effect, Grant, StateKey, TimerChange, Who, Write};
use postern::decision::plugin::{
    CallError, FailureKind, Host, HostSettings, Invocation, LoadError, Parts, Plugin, Transaction,
};
use postern::engine::embedded::{EmbeddedEngine, Options};
use postern::engine::{DueTimer, Engine, Outcome};
use postern::event::{Event, Payload};
use postern::room::Room;
use postern::tenant::{CallLimits, Instances, PluginLimits, PluginSettings, Role, TenantId};
use serde_json::{Value, json};

/// A component, built once per run of the tests.
pub(crate) fn component(name: &str) -> Bytes {
    std::fs::read(crate::support::components().join(format!("{name}.wasm"))).unwrap().into()
}

/// One host, one engine, and plugins named after their components.
pub(crate) struct World {
    pub(crate) host: Arc<Host>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) limits: CallLimits,
}

pub(crate) fn world(limits: CallLimits) -> World {
    world_on(EmbeddedEngine::in_memory(Options::default()).unwrap(), limits)
}

pub(crate) fn world_on(engine: Arc<dyn Engine>, limits: CallLimits) -> World {
    let settings = HostSettings { threads: 2, instances: 64, ..HostSettings::default() };
    World { host: Host::new(settings).unwrap(), engine, limits }
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

pub(crate) fn settings(name: &str, role: Role) -> PluginSettings {
    PluginSettings {
        name: name.into(),
        role,
        component: "".into(),
        events: None,
        settings: Default::default(),
        instances: Instances::Fresh,
        limits: PluginLimits::default(),
    }
}

impl World {
    pub(crate) async fn plugin_of(&self, tenant_name: &str, name: &str, role: Role, of: &str) -> Arc<Plugin> {
        self.host.load(&tenant(tenant_name), &settings(name, role), &self.limits, component(of)).await.unwrap()
    }

    pub(crate) async fn harm(&self) -> Arc<Plugin> {
        self.plugin_of("acme", "harm", Role::Handler, "test-harm").await
    }

    pub(crate) fn begin(&self) -> Transaction {
        self.begin_of("acme")
    }

    pub(crate) fn begin_of(&self, tenant_name: &str) -> Transaction {
        let invocation = Invocation { id: CommitId::random(), attempt: 1, now: 1_700_000_000_000 };
        Transaction::new(self.engine.clone(), tenant(tenant_name), Arc::new(self.limits.clone()), invocation)
    }

    /// Sends `harm` one order; what came of it.
    pub(crate) async fn order(&self, plugin: &Plugin, name: &str, data: Value) -> (Result<(), CallError>, Parts) {
        let mut tx = self.begin();
        let result = plugin.handle(&mut tx, &event(name, &data)).await;
        (result, tx.into_parts())
    }

    pub(crate) async fn fails(&self, name: &str, data: Value) -> (FailureKind, String) {
        let harm = self.harm().await;
        let (result, parts) = self.order(&harm, name, data).await;
        assert_nothing_done(&parts);
        match result {
            Err(CallError::Failed(failure)) => (failure.kind, failure.to_string()),
            other => panic!("{name}: {other:?}"),
        }
    }

    pub(crate) async fn store(&self, key: StateKey, text: &str) {
        let write = Write::Put { value: Bytes::copy_from_slice(text.as_bytes()), ttl_ms: None };
        let commit = Commit { writes: vec![(key, write)], ..Commit::new(CommitId::random()) };
        let outcome = self.engine.commit(&tenant("acme"), Arc::new(commit)).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed(_)));
    }
}

pub(crate) fn event(name: &str, data: &Value) -> Event {
    Event { name: name.into(), namespace: "/".into(), data: Payload::one(data), sender: Some(client("bob")) }
}

pub(crate) fn client(subject: &str) -> Client {
    Client {
        connection: ConnectionId::from("c1"),
        identity: Identity { subject: subject.into(), claims: "{}".into(), expires_at_s: None, key: None },
        namespace: "/".into(),
    }
}

pub(crate) fn assert_nothing_done(parts: &Parts) {
    let commit = &parts.commit;
    assert!(commit.writes.is_empty() && commit.timers.is_empty() && commit.effects.is_empty(), "{parts:?}");
    assert!(parts.reply.is_none() && parts.ephemeral.is_empty(), "{parts:?}");
}

pub(crate) fn replied(parts: &Parts) -> Value {
    parts.reply.as_ref().and_then(Payload::first).unwrap()
}

#[tokio::test]
async fn an_ok_call_s_effects_are_in_its_parts() {
    let world = world(CallLimits::default());
    let harm = world.harm().await;
    let (result, parts) = world.order(&harm, "count", Value::Null).await;
    assert_eq!(result, Ok(()));
    assert_eq!(replied(&parts), json!(1));
    assert_eq!(parts.commit.reads, [(StateKey::of("harm", "n"), None)]);
    let one = Write::Put { value: "1".into(), ttl_ms: None };
    assert_eq!(parts.commit.writes, [(StateKey::of("harm", "n"), one)]);

    let (_, parts) = world.order(&harm, "set_timer", json!({"name": "t", "after_ms": 70})).await;
    let [(key, TimerChange::Set { after_ms: 70, .. })] = &parts.commit.timers[..] else { panic!("{parts:?}") };
    assert_eq!((&*key.plugin, &*key.name), ("harm", "t"));

    let (_, parts) = world.order(&harm, "join_me", json!({"room": "flat:a1"})).await;
    let [Effect::Join { who: Who::Connection(id), room, grant }] = &parts.commit.effects[..] else {
        panic!("{parts:?}")
    };
    assert_eq!((id.as_str(), room.as_str(), grant.publish), ("c1", "flat:a1", true));

    let (_, parts) = world.order(&harm, "kick", json!({"room": "user:bob"})).await;
    let [Effect::Disconnect { room, why }] = &parts.commit.effects[..] else { panic!("{parts:?}") };
    assert_eq!((room.as_str(), why.code.as_str()), ("user:bob", "kicked"));
}

#[tokio::test]
async fn a_plugin_is_described_by_what_it_is() {
    let world = world(CallLimits::default());
    let harm = world.harm().await;
    assert!(harm.exports.authorization && harm.exports.events && harm.exports.timer_events);
    assert!(harm.exports.connection_events && !harm.exports.routing);
    assert_eq!(harm.description.name, "test-harm");
    assert!(harm.description.events[0].matches("anything"));
    assert_eq!(harm.digest.len(), 64);
    let mut tx = world.begin();
    let error = harm.route(&mut tx, None, &"/".into(), &"x".into()).await.unwrap_err();
    assert!(matches!(error, CallError::Failed(failure) if failure.kind == FailureKind::NotExported));
}

#[tokio::test]
async fn a_trap_and_every_failure_leave_nothing() {
    let world = world(CallLimits::default());
    let harm = world.harm().await;
    for name in ["publish_then_trap", "publish_then_refuse", "refuse", "retry", "fatal", "trap"] {
        let (result, parts) = world.order(&harm, name, Value::Null).await;
        assert_nothing_done(&parts);
        let error = result.unwrap_err();
        let kind = match name {
            "publish_then_trap" | "trap" => matches!(&error, CallError::Failed(f) if f.kind == FailureKind::Trap),
            "retry" => matches!(&error, CallError::Retry(_)),
            "fatal" => matches!(&error, CallError::Failed(failure) if failure.kind == FailureKind::Fatal),
            _ => matches!(&error, CallError::Refused(refusal) if refusal.code == "refused"),
        };
        assert!(kind, "{name}: {error:?}");
    }
    assert_eq!(world.order(&harm, "count_add", Value::Null).await.0, Ok(()), "the next call is a fresh instance's");
}

#[tokio::test]
async fn a_refusal_keeps_its_reads_so_that_they_can_be_validated() {
    let world = world(CallLimits { state_value_bytes: 0, ..CallLimits::default() });
    let harm = world.harm().await;
    let (result, parts) = world.order(&harm, "count", Value::Null).await;
    assert!(matches!(result, Err(CallError::Refused(refusal)) if refusal.code == "too-large"));
    assert_nothing_done(&parts);
    assert_eq!(parts.commit.reads, [(StateKey::of("harm", "n"), None)]);
}

#[tokio::test]
async fn an_endless_loop_ends_when_its_computing_time_is_spent() {
    let world = world(CallLimits { cpu_ms: 30, ..CallLimits::default() });
    let begun = Instant::now();
    let (kind, text) = world.fails("loop", Value::Null).await;
    assert_eq!(kind, FailureKind::CpuTime);
    assert!(
        text.contains("call_limits.cpu_ms = 30") && text.contains("`harm`") && text.contains("events.handle"),
        "{text}"
    );
    assert!(begun.elapsed() < Duration::from_secs(4), "long before call_limits.wall_ms");
}

#[tokio::test]
async fn every_limit_that_is_broken_is_named() {
    // Enough time that on a busy machine, too, the other limits come first.
    let world = world(CallLimits { cpu_ms: 5_000, wall_ms: 20_000, ..CallLimits::default() });
    let (kind, text) = world.fails("memory", Value::Null).await;
    assert!(kind == FailureKind::Memory && text.contains("call_limits.memory_bytes = 16777216"), "{kind:?} {text}");
    let (kind, text) = world.fails("flood", Value::Null).await;
    assert!(kind == FailureKind::HostCalls && text.contains("call_limits.host_calls = 1000"), "{kind:?} {text}");
    let (kind, text) = world.fails("huge_reply", json!(2 << 20)).await;
    assert!(kind == FailureKind::Output && text.contains("call_limits.output_bytes = 1048576"), "{kind:?} {text}");
    let (kind, text) = world.fails("nest", Value::Null).await;
    assert!(kind == FailureKind::Stack && text.contains("524288 bytes of stack"), "{kind:?} {text}");
    // A component keeps what is large of its frames in its own memory, and is at that one's end first: to the gateway an
    // access out of bounds like any other.
    let (kind, text) = world.fails("stack", Value::Null).await;
    assert!(kind == FailureKind::Trap && text.contains("out of bounds"), "{kind:?} {text}");
}

#[tokio::test]
async fn what_goes_a_little_beyond_a_limit_is_answered_with_the_limit() {
    let world = world(CallLimits { publications: 3, timers: 0, memberships: 0, ..CallLimits::default() });
    let harm = world.harm().await;
    for (name, data, setting) in [
        ("many_publications", json!(4), "call_limits.publications = 3"),
        ("huge_reply", json!((1 << 20) + 1), "call_limits.output_bytes = 1048576"),
        ("set_timer", json!({"name": "t", "after_ms": 1}), "call_limits.timers = 0"),
        ("kick", json!({"room": "user:bob"}), "call_limits.memberships = 0"),
    ] {
        let (result, parts) = world.order(&harm, name, data).await;
        assert_nothing_done(&parts);
        let Err(CallError::Refused(refusal)) = result else { panic!("{name}: {result:?}") };
        assert!(refusal.code == "quota" && refusal.message.contains(setting), "{name}: {refusal:?}");
    }
    assert_eq!(world.order(&harm, "many_publications", json!(3)).await.1.commit.effects.len(), 3);
    let flooded = world.order(&harm, "log_flood", json!(500)).await;
    assert_eq!(flooded.0, Ok(()), "lines beyond the limit are dropped, not the call");
}

#[tokio::test]
async fn rooms_of_the_gateway_and_names_that_are_none_are_refused() {
    let world = world(CallLimits::default());
    let harm = world.harm().await;
    for (room, code) in [("everyone", "denied"), ("user:somebody", "denied"), ("/x", "invalid"), ("", "invalid")] {
        let (result, _) = world.order(&harm, "join_me", json!({"room": room})).await;
        assert!(matches!(&result, Err(CallError::Refused(r)) if r.code == code), "{room}: {result:?}");
    }
    let (result, _) = world.order(&harm, "kick", json!({"room": "flat:a1"})).await;
    assert!(matches!(&result, Err(CallError::Refused(r)) if r.code == "invalid"), "{result:?}");
    let (result, _) = world.order(&harm, "write_other", json!({"key": "a\nb"})).await;
    assert!(matches!(&result, Err(CallError::Refused(r)) if r.code == "invalid"), "{result:?}");
}

#[tokio::test]
async fn an_authorizer_decides_and_changes_nothing() {
    let world = world(CallLimits::default());
    let harm = world.plugin_of("acme", "harm", Role::Authorizer, "test-harm").await;
    let full = Grant { publish: true, presence: true, history: true };
    let mut tx = world.begin();
    let joins =
        async |tx: &mut Transaction, room: &str| harm.join(tx, &client("bob"), &Room::parse(room).unwrap(), None).await;
    assert_eq!(joins(&mut tx, "flat:a1").await.unwrap().grant, full);
    let denied = joins(&mut tx, "write:1").await.unwrap_err();
    assert!(matches!(&denied, CallError::Refused(r) if r.code == "denied"), "{denied:?}");
    assert!(matches!(joins(&mut tx, "no:1").await, Err(CallError::Refused(_))));
    assert!(matches!(joins(&mut tx, "trap:1").await, Err(CallError::Failed(_))));
    assert_nothing_done(&tx.into_parts());
}

#[tokio::test]
async fn an_authorizer_cannot_put_anybody_into_the_gateways_rooms() {
    let world = world(CallLimits::default());
    let harm = world.plugin_of("acme", "harm", Role::Authorizer, "test-harm").await;
    let rooms = harm.connect(&mut world.begin(), &client("forger")).await.unwrap();
    let names: Vec<_> = rooms.iter().map(|(room, _)| room.as_str()).collect();
    assert_eq!(names, ["public"]);
    assert!(matches!(harm.connect(&mut world.begin(), &client("refused-connect")).await, Err(CallError::Refused(_))));
    assert!(matches!(harm.connect(&mut world.begin(), &client("bad-connect")).await, Err(CallError::Failed(_))));
}

#[tokio::test]
async fn waiting_for_a_slow_engine_is_not_charged() {
    let engine = StagedEngine::slow(EmbeddedEngine::in_memory(Options::default()).unwrap(), Duration::from_millis(150));
    let world = world_on(engine, CallLimits { cpu_ms: 60, ..CallLimits::default() });
    let harm = world.harm().await;
    let begun = Instant::now();
    let (result, parts) = world.order(&harm, "slow_read", Value::Null).await;
    assert_eq!(result, Ok(()));
    assert!(begun.elapsed() >= Duration::from_millis(150));
    assert_eq!(replied(&parts), Value::Null);
}

#[tokio::test]
async fn an_engine_that_never_answers_ends_the_call_and_is_to_blame() {
    let engine = StagedEngine::slow(EmbeddedEngine::in_memory(Options::default()).unwrap(), Duration::from_secs(600));
    let world = world_on(engine, CallLimits { wall_ms: 120, ..CallLimits::default() });
    let harm = world.harm().await;
    let (result, parts) = world.order(&harm, "slow_read", Value::Null).await;
    assert_nothing_done(&parts);
    let Err(CallError::EngineUnavailable(text)) = result else { panic!("{result:?}") };
    assert!(text.contains("call_limits.wall_ms = 120"), "{text}");
}

#[tokio::test]
async fn a_call_that_takes_too_long_without_waiting_is_to_blame_itself() {
    let world = world(CallLimits { wall_ms: 60, cpu_ms: 10_000, ..CallLimits::default() });
    let (kind, text) = world.fails("loop", Value::Null).await;
    assert!(kind == FailureKind::WallTime && text.contains("call_limits.wall_ms = 60"), "{kind:?} {text}");
}

#[tokio::test]
async fn an_engine_that_is_away_is_not_the_plugins_fault() {
    let engine = StagedEngine::away(EmbeddedEngine::in_memory(Options::default()).unwrap());
    let world = world_on(engine, CallLimits::default());
    let harm = world.harm().await;
    let (result, parts) = world.order(&harm, "slow_read", Value::Null).await;
    assert!(matches!(result, Err(CallError::EngineUnavailable(_))), "{result:?}");
    assert_nothing_done(&parts);
}

#[tokio::test]
async fn fifty_loops_of_one_tenant_do_not_stop_another_tenants_calls() {
    let limits = CallLimits {
        cpu_ms: 1_000,
        wall_ms: 60_000,
        concurrent_calls: 50,
        cpu_ms_per_second: 0,
        ..CallLimits::default()
    };
    let world = Arc::new(world(limits));
    let harm = world.plugin_of("acme", "harm", Role::Handler, "test-harm").await;
    let quiet = world.plugin_of("quiet", "bench", Role::Handler, "bench").await;
    let ended = Arc::new(AtomicBool::new(false));
    let mut loops = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (world, harm, ended) = (world.clone(), harm.clone(), ended.clone());
        loops.spawn(async move {
            let _ = world.order(&harm, "loop", Value::Null).await;
            ended.store(true, Ordering::Relaxed);
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for n in 0..20 {
        let mut tx = world.begin_of("quiet");
        assert_eq!(quiet.handle(&mut tx, &event("echo", &json!(n))).await, Ok(()));
        assert_eq!(replied(&tx.into_parts()), json!(n));
    }
    assert!(!ended.load(Ordering::Relaxed), "twenty calls went through before one of fifty loops had its second");
    loops.shutdown().await;
    let (result, _) = world.order(&harm, "count_add", Value::Null).await;
    assert_eq!(result, Ok(()), "loops whose callers went away make room");
}

#[tokio::test]
async fn reads_are_the_same_for_every_plugin_of_one_input() {
    let world = world(CallLimits::default());
    let (first, second) = (world.harm().await, world.plugin_of("acme", "other", Role::Handler, "test-harm").await);
    world.store(StateKey::of("", "/shared"), "before").await;
    let mut tx = world.begin();
    first.handle(&mut tx, &event("read", &json!({"key": "/shared"}))).await.unwrap();
    world.store(StateKey::of("", "/shared"), "after").await;
    second.handle(&mut tx, &event("read", &json!({"key": "/shared"}))).await.unwrap();
    let parts = tx.into_parts();
    assert_eq!(replied(&parts), json!("before"));
    assert_eq!(parts.commit.reads.len(), 1);
    let outcome = world.engine.commit(&tenant("acme"), Arc::new(parts.commit)).await.unwrap();
    assert_eq!(outcome, Outcome::Conflict(StateKey::of("", "/shared")));
}

#[tokio::test]
async fn two_plugins_share_one_transaction() {
    let world = world(CallLimits::default());
    let (first, second) = (world.harm().await, world.plugin_of("acme", "other", Role::Handler, "test-harm").await);
    let mut tx = world.begin();
    let shared = json!({"key": "/shared", "value": "from the first"});
    first.handle(&mut tx, &event("write_other", &shared)).await.unwrap();
    second.handle(&mut tx, &event("read", &json!({"key": "/shared"}))).await.unwrap();
    second.handle(&mut tx, &event("count", &Value::Null)).await.unwrap();
    let parts = tx.into_parts();
    assert_eq!(replied(&parts), json!(1));
    let keys: Vec<_> = parts.commit.writes.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["/shared", "other/n"]);

    let mut tx = world.begin();
    first.handle(&mut tx, &event("count", &Value::Null)).await.unwrap();
    second.handle(&mut tx, &event("refuse", &Value::Null)).await.unwrap_err();
    assert_nothing_done(&tx.into_parts());
}

#[tokio::test]
async fn a_timer_fires_at_the_plugin_that_set_it() {
    let world = world(CallLimits::default());
    let harm = world.harm().await;
    let timer = DueTimer {
        tenant: tenant("acme"),
        key: postern::commit::TimerKey { plugin: "harm".into(), name: "t".into() },
        due: 1,
        data: "{}".into(),
        token: "x".into(),
        attempt: 1,
    };
    let mut tx = world.begin();
    harm.fire(&mut tx, &timer).await.unwrap();
    let parts = tx.into_parts();
    assert_eq!(parts.commit.writes, [(StateKey::of("harm", "fired"), Write::Add(1))]);
    let [Effect::Publish(publication)] = &parts.commit.effects[..] else { panic!("{parts:?}") };
    assert_eq!((&*publication.event, publication.room.as_str()), ("fired", "everyone"));
    assert_eq!(publication.data.first(), Some(json!({"name": "t"})));
}

#[tokio::test]
async fn a_tenant_with_too_many_calls_is_told_which_setting() {
    let engine = StagedEngine::slow(EmbeddedEngine::in_memory(Options::default()).unwrap(), Duration::from_millis(300));
    let limits = CallLimits { concurrent_calls: 1, waiting_calls: 0, ..CallLimits::default() };
    let world = world_on(engine, limits);
    let harm = world.harm().await;
    let (first, second) =
        tokio::join!(world.order(&harm, "slow_read", Value::Null), world.order(&harm, "slow_read", Value::Null));
    assert_eq!(first.0, Ok(()));
    let Err(CallError::Overloaded(text)) = second.0 else { panic!("{:?}", second.0) };
    assert!(text.contains("call_limits.waiting_calls = 0"), "{text}");
}

#[tokio::test]
async fn what_does_not_belong_is_not_loaded_and_the_reason_is_given() {
    let world = world(CallLimits::default());
    let load = async |role, bytes: Bytes| {
        world.host.load(&tenant("acme"), &settings("p", role), &world.limits, bytes).await.unwrap_err()
    };
    assert_eq!(load(Role::Handler, Bytes::from_static(b"\0asm\x01\0\0\0")).await, LoadError::CoreModule);
    assert!(matches!(load(Role::Handler, Bytes::from_static(b"junk")).await, LoadError::NotAComponent(_)));
    let empty = Bytes::from_static(b"\0asm\x0d\0\x01\0");
    assert!(matches!(load(Role::Handler, empty).await, LoadError::Contract(_)));
    let missing = LoadError::Role { role: Role::Router, missing: "routing" };
    assert_eq!(load(Role::Router, component("test-harm")).await, missing);
    let mut cut = component("test-harm").to_vec();
    cut.truncate(cut.len() / 2);
    assert!(matches!(load(Role::Handler, cut.into()).await, LoadError::NotAComponent(_)));
    let small = CallLimits { memory_bytes: 64 << 10, ..CallLimits::default() };
    let error = world.host.load(&tenant("acme"), &settings("p", Role::Handler), &small, component("test-harm")).await;
    assert!(matches!(error, Err(LoadError::Memory { limit: 65_536, .. })), "{error:?}");
}

#[tokio::test]
async fn bytes_that_are_broken_anywhere_never_break_the_host() {
    let world = world(CallLimits::default());
    let good = component("bench");
    for at in (8..good.len()).step_by(good.len() / 40) {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0x55;
        let _ = world.host.load(&tenant("acme"), &settings("p", Role::Handler), &world.limits, bytes.into()).await;
    }
    let bench = world.plugin_of("acme", "bench", Role::Handler, "bench").await;
    assert_eq!(world.order(&bench, "echo", json!("still here")).await.0, Ok(()));
}

#[tokio::test]
async fn after_shutdown_calls_are_refused() {
    let world = world(CallLimits::default());
    let harm = world.harm().await;
    world.host.shutdown();
    let (result, _) = world.order(&harm, "count_add", Value::Null).await;
    assert!(matches!(result, Err(CallError::Overloaded(_))), "{result:?}");
}
