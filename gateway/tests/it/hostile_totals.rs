//! Plugins that leave more and more behind, call by call: each ends at its tenant's limit, and only there.

use std::time::{Duration, Instant};

use postern::decision::plugin::{CallError, FailureKind, Plugin};
use postern::tenant::{CallLimits, PluginLimits, PluginSettings, Role};
use serde_json::{Value, json};

use crate::plugin_host::{World, settings, tenant, world};
use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::{harm, open, token};

const OPERATOR: &str = "operator-of-the-totals-0123456789abcdef";

/// A node with the tenant `harm`, which may keep so much, and a neighbour.
fn node(limits: &str) -> (Node, Clients) {
    let config = format!("admin_token = \"{OPERATOR}\"\n");
    let node = Node::with(Settings { tenants: vec![harm("harm", limits), open("good", "")], config, redis_url: None });
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    ws.join_ws(&node, "eve", "good", &token("good", "eve", json!({})));
    (node, ws)
}

/// What the admin API says that the tenant keeps.
fn stored(node: &Node) -> Value {
    let bearer = format!("Bearer {OPERATOR}");
    let (status, body) = node.http("GET", "/admin/v1/tenants/harm/usage", &[("authorization", &bearer)], "");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["stored"].clone()
}

/// Sends orders until one is refused; answers how many were not, and the refusal.
fn until_refused(ws: &mut Clients, mut order: impl FnMut(u64) -> (&'static str, Value)) -> (u64, Value) {
    for n in 0..1_000 {
        let (event, data) = order(n);
        let answer = ws.request("bob", event, data);
        if answer["error"].is_object() {
            return (n, answer["error"].clone());
        }
    }
    panic!("nothing was refused");
}

fn says(refusal: &Value, code: &str, parts: &[&str]) {
    let message = refusal["message"].as_str().unwrap_or_default();
    assert!(refusal["code"] == code && parts.iter().all(|part| message.contains(part)), "{refusal}");
}

#[test]
fn state_that_grows_call_by_call_ends_at_the_tenants_limit_and_can_be_cleaned_up() {
    let (node, mut ws) = node("limits.state_bytes = 1000\nlimits.state_keys = 30\n");
    // `harm/k10` and 92 bytes.
    let value = "x".repeat(92);
    let (done, refusal) =
        until_refused(&mut ws, |n| ("write_other", json!({ "key": format!("k{}", n + 10), "value": value })));
    assert_eq!(done, 10);
    says(&refusal, "state_quota", &["`harm`", "events.handle", "1100 bytes", "limits.state_bytes = 1000"]);
    assert_eq!(stored(&node), json!({ "state_bytes": 1_000, "state_keys": 10, "timers": 0 }));
    let labels = "tenant=\"harm\",plugin=\"harm\",what=\"state_bytes\"";
    assert_eq!(node.metric("plugin_quota_refusals_total", labels), 1.0);
    assert_eq!(ws.request("eve", "echo", json!(1)), 1, "the neighbour goes on");

    // What does not grow is not refused, and what shrinks makes room.
    ws.request("bob", "write_other", json!({ "key": "k10", "value": "y".repeat(92) }));
    ws.request("bob", "write_other", json!({ "key": "k10", "value": "y" }));
    assert_eq!(ws.request("bob", "read", json!("k10")), "y");
    let (done, refusal) =
        until_refused(&mut ws, |n| ("write_other", json!({ "key": format!("s{}", n + 10), "value": "" })));
    assert_eq!(done, 11, "91 bytes are eleven more keys");
    says(&refusal, "state_quota", &["limits.state_bytes = 1000"]);
    ws.request("bob", "write_other", json!({ "key": "k11", "value": "" }));
    let (done, refusal) =
        until_refused(&mut ws, |n| ("write_other", json!({ "key": format!("t{}", n + 10), "value": "" })));
    assert_eq!(done, 9);
    says(&refusal, "state_quota", &["31 keys", "limits.state_keys = 30"]);
    assert_eq!(stored(&node)["state_keys"], 30);
}

#[test]
fn timers_set_call_by_call_end_at_the_tenants_limit_and_fire_all_the_same() {
    let (node, mut ws) = node("limits.timers = 12\n");
    let (done, refusal) =
        until_refused(&mut ws, |n| ("set_timer", json!({ "name": format!("far-{n}"), "after_ms": 3_600_000 })));
    assert_eq!(done, 12);
    says(&refusal, "timer_quota", &["`harm`", "13 pending timers", "limits.timers = 12"]);
    assert_eq!((stored(&node)["timers"].clone(), ws.request("eve", "echo", json!(1))), (json!(12), json!(1)));
    // One that is there can be set anew; when it has fired there is room for another.
    ws.request("bob", "set_timer", json!({ "name": "far-3", "after_ms": 1 }));
    assert_eq!(ws.message("bob", json!({ "event": "fired" }))["data"]["name"], "far-3");
    assert!(ws.request("bob", "set_timer", json!({ "name": "new", "after_ms": 3_600_000 }))["error"].is_null());
    assert_eq!(stored(&node)["timers"], 12);
}

#[test]
fn timers_that_set_two_timers_each_end_at_the_tenants_limit() {
    let (node, mut ws) = node("limits.timers = 16\n");
    ws.request("bob", "breed", json!({}));
    let begun = Instant::now();
    let labels = "tenant=\"harm\",plugin=\"harm\",what=\"timers\"";
    while node.metric("plugin_quota_refusals_total", labels) < 16.0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "they do not come to their limit");
        assert!(stored(&node)["timers"].as_u64().unwrap() <= 16);
        assert_eq!(ws.request("eve", "echo", json!(1)), 1);
    }
    assert!(node.log().contains("limits.timers = 16"), "the operator reads of it, too");
    assert_eq!(ws.request("bob", "count", json!({})), 1, "whatever sets no timer goes on");
}

#[test]
fn rooms_beyond_the_tenants_limit_are_joined_by_nobody() {
    let (_node, mut ws) = node("limits.rooms = 3\n");
    let join = |ws: &mut Clients, n: u64| ws.request("bob", "join_room", json!({ "room": format!("good:{n}") }));
    for n in 0..3 {
        assert_eq!(join(&mut ws, n)["room_name"], format!("good:{n}"));
    }
    says(&join(&mut ws, 3)["error"], "room_limit", &["at most 3", "limits.rooms"]);
    assert_eq!(join(&mut ws, 2)["room_name"], "good:2", "where one is already, one stays");
    let joined = ws.request("bob", "join_me", json!({ "room": "given:1" }));
    says(&joined["error"], "room_limit", &["limits.rooms"]);
    ws.request("bob", "leave_room", json!({ "room": "good:0" }));
    assert_eq!(join(&mut ws, 3)["room_name"], "good:3");
    assert_eq!(ws.request("eve", "echo", json!(1)), 1);
}

async fn limited(world: &World, name: &str, limits: PluginLimits) -> std::sync::Arc<Plugin> {
    let settings = PluginSettings { limits, ..settings(name, Role::Handler) };
    let component = std::fs::read(crate::support::components().join("test-harm.wasm")).unwrap();
    world.host.load(&tenant("acme"), &settings, &world.limits, component.into()).await.unwrap()
}

#[tokio::test]
async fn a_plugin_with_limits_of_its_own_is_stopped_by_them_and_the_tenants_others_are_not() {
    let world = world(CallLimits { publications: 40, ..CallLimits::default() });
    let few = PluginLimits { host_calls: Some(5), publications: Some(3), ..PluginLimits::default() };
    let (few, others) = (limited(&world, "few", few).await, world.harm().await);
    let (result, _) = world.order(&few, "flood", Value::Null).await;
    let Err(CallError::Failed(failure)) = result else { panic!("{result:?}") };
    assert_eq!(failure.kind, FailureKind::HostCalls);
    assert!(
        failure.to_string().contains("`few`") && failure.message.contains("call_limits.host_calls = 5"),
        "{failure}"
    );
    let (result, _) = world.order(&few, "many_publications", json!(4)).await;
    let Err(CallError::Refused(refusal)) = result else { panic!("{result:?}") };
    assert!(refusal.message.contains("call_limits.publications = 3"), "{refusal:?}");
    assert_eq!(world.order(&others, "many_publications", json!(40)).await.0, Ok(()));
    // Both in one transaction: each by its own.
    let mut tx = world.begin();
    assert!(few.handle(&mut tx, &crate::plugin_host::event("many_publications", &json!(2))).await.is_ok());
    assert!(others.handle(&mut tx, &crate::plugin_host::event("many_publications", &json!(30))).await.is_ok());
    // What the tenant has less of, the plugin has less of.
    let more = PluginLimits { publications: Some(100), ..PluginLimits::default() };
    let more = limited(&world, "more", more).await;
    let (result, _) = world.order(&more, "many_publications", json!(41)).await;
    let Err(CallError::Refused(refusal)) = result else { panic!("{result:?}") };
    assert!(refusal.message.contains("call_limits.publications = 40"), "{refusal:?}");
}

#[tokio::test]
async fn a_plugin_that_may_run_one_call_at_a_time_does_not_hold_the_tenants_others_up() {
    let world = world(CallLimits { cpu_ms: 400, cpu_ms_per_second: 0, ..CallLimits::default() });
    let one = PluginLimits { concurrent_calls: Some(1), ..PluginLimits::default() };
    let (one, others) = (limited(&world, "one", one).await, world.harm().await);
    let begun = Instant::now();
    let (first, second, other) =
        tokio::join!(world.order(&one, "loop", Value::Null), world.order(&one, "loop", Value::Null), async {
            (world.order(&others, "count", Value::Null).await.0, begun.elapsed())
        });
    assert!(matches!((first.0, second.0), (Err(CallError::Failed(_)), Err(CallError::Failed(_)))));
    assert!(begun.elapsed() >= Duration::from_millis(800), "one after the other");
    assert!(other.0 == Ok(()) && other.1 < Duration::from_millis(400), "{other:?}");
}
