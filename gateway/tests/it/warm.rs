//! Warm instances: kept from one call to the next where a plugin asks for it, and never longer than they may.

use std::sync::Arc;
use std::time::Duration;

use postern::decision::plugin::{CallError, FailureKind, Plugin};
use postern::tenant::{CallLimits, Instances, PluginLimits, PluginSettings, Role, WarmLimits};
use serde_json::{Value, json};

use crate::plugin_host::{World, component, event, replied, settings, tenant, world};

const LIMITS: WarmLimits = WarmLimits { idle_max: 4, calls_max: 1_000, memory_growth_bytes_max: 4 << 20 };

async fn warm_of(world: &World, tenant_name: &str, name: &str, limits: WarmLimits) -> Arc<Plugin> {
    let settings = PluginSettings { instances: Instances::Warm(limits), ..settings(name, Role::Handler) };
    world.host.load(&tenant(tenant_name), &settings, &world.limits, component("test-harm")).await.unwrap()
}

async fn warm(world: &World, limits: WarmLimits) -> Arc<Plugin> {
    warm_of(world, "acme", "harm", limits).await
}

/// How many calls of `keep` the instance has seen before this one.
async fn kept(world: &World, plugin: &Plugin) -> Value {
    let (result, parts) = world.order(plugin, "keep", Value::Null).await;
    assert_eq!(result, Ok(()));
    replied(&parts)
}

#[tokio::test]
async fn a_fresh_instance_remembers_nothing_and_a_warm_one_does() {
    let world = world(CallLimits::default());
    let fresh = world.harm().await;
    assert_eq!([kept(&world, &fresh).await, kept(&world, &fresh).await], [0, 0]);
    let harm = warm(&world, LIMITS).await;
    assert_eq!([kept(&world, &harm).await, kept(&world, &harm).await, kept(&world, &harm).await], [0, 1, 2]);
    assert!(matches!(world.order(&harm, "refuse", Value::Null).await.0, Err(CallError::Refused(_))));
    assert_eq!(kept(&world, &harm).await, 3, "a refusal is an answer");
}

#[tokio::test]
async fn nobody_elses_instance_is_used() {
    let world = world(CallLimits::default());
    let harm = warm(&world, LIMITS).await;
    assert_eq!([kept(&world, &harm).await, kept(&world, &harm).await], [0, 1]);
    assert_eq!(kept(&world, &*warm_of(&world, "acme", "other", LIMITS).await).await, 0, "another plugin");
    assert_eq!(kept(&world, &*warm(&world, LIMITS).await).await, 0, "another version");
    let rival = warm_of(&world, "rival", "harm", LIMITS).await;
    let mut tx = world.begin_of("rival");
    rival.handle(&mut tx, &event("keep", &Value::Null)).await.unwrap();
    assert_eq!(replied(&tx.into_parts()), 0, "another tenant");
    assert_eq!(kept(&world, &harm).await, 2);
}

#[tokio::test]
async fn whatever_ends_badly_ends_the_instance() {
    let world = world(CallLimits { cpu_ms: 300, ..CallLimits::default() });
    let harm = warm(&world, LIMITS).await;
    for (order, kind) in [
        ("trap", FailureKind::Trap),
        ("flood", FailureKind::HostCalls),
        ("loop", FailureKind::CpuTime),
        ("memory", FailureKind::Memory),
    ] {
        assert_eq!([kept(&world, &harm).await, kept(&world, &harm).await], [0, 1], "before {order}");
        let (result, _) = world.order(&harm, order, Value::Null).await;
        assert!(matches!(&result, Err(CallError::Failed(failure)) if failure.kind == kind), "{order}: {result:?}");
    }
    assert_eq!(kept(&world, &harm).await, 0);
    let given_up = tokio::time::timeout(Duration::from_millis(50), world.order(&harm, "loop", Value::Null)).await;
    assert!(given_up.is_err());
    assert_eq!(kept(&world, &harm).await, 0, "the caller had gone away");
}

#[tokio::test]
async fn an_instance_is_worn_out_by_calls_and_by_memory() {
    let world = world(CallLimits::default());
    let harm = warm(&world, WarmLimits { calls_max: 2, ..LIMITS }).await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(kept(&world, &harm).await);
    }
    assert_eq!(seen, [0, 1, 0, 1, 0]);
    let harm = warm(&world, WarmLimits { memory_growth_bytes_max: 64 << 10, ..LIMITS }).await;
    assert_eq!([kept(&world, &harm).await, kept(&world, &harm).await], [0, 1]);
    assert_eq!(world.order(&harm, "huge_reply", json!(700_000)).await.0, Ok(()));
    assert_eq!(kept(&world, &harm).await, 0, "its memory had grown by more than 64 KiB");
}

#[tokio::test]
async fn limits_hold_for_each_call_and_what_a_call_did_is_its_own() {
    let world = world(CallLimits { host_calls: 6, publications: 3, log_lines: 2, ..CallLimits::default() });
    let harm = warm(&world, LIMITS).await;
    for _ in 0..3 {
        let (result, parts) = world.order(&harm, "many_publications", json!(3)).await;
        assert_eq!((result, parts.commit.effects.len()), (Ok(()), 3));
    }
    let (result, parts) = world.order(&harm, "many_publications", json!(4)).await;
    assert!(matches!(result, Err(CallError::Refused(refusal)) if refusal.code == "quota"));
    assert!(parts.commit.effects.is_empty());
    assert_eq!(kept(&world, &harm).await, 0);
    assert_eq!(kept(&world, &harm).await, 1, "one instance served them all");
}

#[tokio::test]
async fn calls_at_the_same_time_have_each_an_instance_and_only_some_are_kept() {
    let limits = CallLimits { cpu_ms_per_second: 0, ..CallLimits::default() };
    let world = world(limits);
    let harm = warm(&world, WarmLimits { idle_max: 1, ..LIMITS }).await;
    let many = (0..8).map(|_| async { kept(&world, &harm).await.as_u64().unwrap() });
    futures_util::future::join_all(many).await;
    // One is left. As often as it is called it alone is used.
    let first = kept(&world, &harm).await.as_u64().unwrap();
    for more in 1..5 {
        assert_eq!(kept(&world, &harm).await, first + more);
    }
}

#[tokio::test]
async fn one_tenants_idle_instances_leave_room_for_others() {
    // 64 instances: 16 may idle, 4 of one tenant.
    let world = world(CallLimits::default());
    let names: Vec<String> = (0..20).map(|n| format!("harm-{n}")).collect();
    let mut many = Vec::new();
    for name in &names {
        many.push(warm_of(&world, "acme", name, LIMITS).await);
    }
    let mut seen = Vec::new();
    for _ in 0..2 {
        for plugin in &many {
            seen.push(kept(&world, plugin).await);
        }
    }
    let again = seen.iter().filter(|seen| **seen != 0).count();
    assert_eq!(again, 4, "{seen:?}");
    let rival = warm_of(&world, "rival", "harm", LIMITS).await;
    for count in 0..2 {
        let mut tx = world.begin_of("rival");
        rival.handle(&mut tx, &event("keep", &Value::Null)).await.unwrap();
        assert_eq!(replied(&tx.into_parts()), count);
    }
}

#[tokio::test]
async fn a_plugin_with_computing_time_of_its_own_is_slowed_down_and_the_tenants_others_are_not() {
    let world = world(CallLimits { cpu_ms: 2_000, wall_ms: 700, ..CallLimits::default() });
    let limits = PluginLimits { cpu_ms_per_second: Some(20), ..PluginLimits::default() };
    let settings = PluginSettings { limits, ..settings("greedy", Role::Handler) };
    let greedy = world.host.load(&tenant("acme"), &settings, &world.limits, component("test-harm")).await.unwrap();
    let other = world.harm().await;
    for _ in 0..2 {
        // A second's worth at once, then a fiftieth of a core; the next call waits for what this one owes.
        let (result, _) = world.order(&greedy, "loop", Value::Null).await;
        let Err(CallError::Overloaded(text)) = result else { panic!("{result:?}") };
        assert!(text.contains("call_limits.cpu_ms_per_second = 20"), "{text}");
        let begun = std::time::Instant::now();
        assert_eq!(world.order(&other, "count", Value::Null).await.0, Ok(()));
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    }
}
