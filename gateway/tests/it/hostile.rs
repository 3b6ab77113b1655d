//! Components that do harm: what stops each, by which limit, and that whoever else is there goes on.

use std::time::{Duration, Instant};

use postern::commit::TimerKey;
use postern::decision::plugin::{BreakerState, CallError, FailureKind, Hook, JournalKind, LoadError};
use postern::engine::DueTimer;
use postern::room::Room;
use postern::tenant::{BreakerLimits, CallLimits, Role};
use serde_json::{Value, json};

use crate::plugin_host::{World, assert_nothing_done, client, replied, settings, tenant, world};
use crate::support::clients::Clients;
use crate::support::hand_made::{ENDLESS, HandMade};
use crate::support::node::Node;
use crate::support::{harm, open, token};

/// A breaker that opens after three failures and rests for a moment.
const QUICK: BreakerLimits =
    BreakerLimits { failure_percent: 50, calls_min: 3, window_ms: 10_000, rest_ms: 200, rest_max_ms: 400 };

const GOOD: HandMade = HandMade { start: "", info: "", fire: "", handle: "" };

async fn loads(world: &World, hand_made: HandMade) -> Result<(), LoadError> {
    let bytes = hand_made.component().into();
    world.host.load(&tenant("acme"), &settings("p", Role::Handler), &world.limits, bytes).await.map(drop)
}

fn due(name: &str) -> DueTimer {
    DueTimer {
        tenant: tenant("acme"),
        key: TimerKey { plugin: "harm".into(), name: name.into() },
        due: 1,
        data: "{}".into(),
        token: "x".into(),
        attempt: 1,
    }
}

#[tokio::test]
async fn what_does_harm_when_it_starts_or_is_asked_what_it_is_never_gets_in() {
    let world = world(CallLimits { cpu_ms: 30, ..CallLimits::default() });
    assert_eq!(loads(&world, GOOD).await, Ok(()));
    let grows = "(drop (memory.grow (i32.const 4000))) (unreachable)";
    let nests = "(call $run)";
    let beyond = "(i32.store (i32.const 1028) (i32.const 0x7fffffff))";
    let no_text = "(i32.store8 (i32.const 1040) (i32.const 255))";
    let no_json = "(i32.store8 (i32.const 1040) (i32.const 32))";
    for (what, hand_made, names) in [
        ("an endless start", HandMade { start: ENDLESS, ..GOOD }, "call_limits.cpu_ms = 30"),
        ("an endless describe", HandMade { info: ENDLESS, ..GOOD }, "call_limits.cpu_ms = 30"),
        ("a start that wants memory", HandMade { start: grows, ..GOOD }, "call_limits.memory_bytes = 16777216"),
        ("a describe that wants memory", HandMade { info: grows, ..GOOD }, "call_limits.memory_bytes = 16777216"),
        ("a start without end of nesting", HandMade { start: nests, ..GOOD }, "524288 bytes of stack"),
        (
            "a describe without end of nesting",
            HandMade { info: "(drop (call $info))", ..GOOD },
            "524288 bytes of stack",
        ),
        ("a start that traps", HandMade { start: "(unreachable)", ..GOOD }, "unreachable"),
        ("a description that lies outside of its memory", HandMade { info: beyond, ..GOOD }, "out of bounds"),
        ("a description that is no text", HandMade { info: no_text, ..GOOD }, "utf-8"),
        ("a description that is no JSON", HandMade { info: no_json, ..GOOD }, "not valid"),
    ] {
        let begun = Instant::now();
        let error = loads(&world, hand_made).await.expect_err(what).to_string();
        assert!(error.contains(names), "{what}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{what} took {:?}", begun.elapsed());
    }
    let harm = world.harm().await;
    assert_eq!(world.order(&harm, "count_add", Value::Null).await.0, Ok(()), "the host goes on");
}

#[tokio::test]
async fn tables_do_not_grow_without_end() {
    let world = world(CallLimits::default());
    let fire = "(drop (table.grow $table (ref.null func) (i32.const 40000))) \
                (drop (table.grow $table (ref.null func) (i32.const 100000))) (unreachable)";
    let bytes = HandMade { fire, ..GOOD }.component().into();
    let loaded = world.host.load(&tenant("acme"), &settings("p", Role::Handler), &world.limits, bytes).await.unwrap();
    let mut tx = world.begin();
    let error = loaded.fire(&mut tx, &due("t")).await.unwrap_err();
    let CallError::Failed(failure) = &error else { panic!("{error:?}") };
    assert_eq!(failure.kind, FailureKind::Memory);
    assert!(failure.message.contains("table elements") && failure.message.contains("at most"), "{failure}");
}

#[tokio::test]
async fn every_hook_is_stopped_by_the_same_limits() {
    let limits = CallLimits { cpu_ms: 200, wall_ms: 20_000, cpu_ms_per_second: 0, ..CallLimits::default() };
    let world = world(CallLimits { cpu_ms: 1_000, ..limits.clone() });
    let harm = world.plugin_of("acme", "harm", Role::Authorizer, "test-harm").await;
    let join = async |room: &str| {
        let mut tx = world.begin();
        harm.join(&mut tx, &client("bob"), &Room::parse(room).unwrap(), None).await.map(drop)
    };
    let connect = async |subject: &str| {
        let mut tx = world.begin();
        harm.connect(&mut tx, &client(subject)).await.map(drop)
    };
    let fire = async |name: &str| {
        let mut tx = world.begin();
        let ended = harm.fire(&mut tx, &due(name)).await;
        assert_nothing_done(&tx.into_parts());
        ended
    };
    for (ended, hook, kind) in [
        (join("loop:1").await, Hook::Join, FailureKind::CpuTime),
        (join("memory:1").await, Hook::Join, FailureKind::Memory),
        (join("flood:1").await, Hook::Join, FailureKind::HostCalls),
        (join("trap:1").await, Hook::Join, FailureKind::Trap),
        (join("nest:1").await, Hook::Join, FailureKind::Stack),
        // Frames in its memory: those are at its memory's end before its calls are too deep.
        (join("stack:1").await, Hook::Join, FailureKind::Trap),
        (connect("loop-connect").await, Hook::Connect, FailureKind::CpuTime),
        (connect("memory-connect").await, Hook::Connect, FailureKind::Memory),
        (connect("bad-connect").await, Hook::Connect, FailureKind::Trap),
        (fire("loop-1").await, Hook::Fire, FailureKind::CpuTime),
        (fire("trap-1").await, Hook::Fire, FailureKind::Trap),
    ] {
        let Err(CallError::Failed(failure)) = ended else { panic!("{hook:?} {kind:?}: {ended:?}") };
        assert_eq!((failure.hook, failure.kind), (hook, kind), "{failure}");
    }
}

#[tokio::test]
async fn texts_of_a_hundred_megabytes_and_deep_json_get_nowhere() {
    let limits = CallLimits { cpu_ms: 5_000, wall_ms: 30_000, cpu_ms_per_second: 0, ..CallLimits::default() };
    let mega = json!(100 << 20);
    for (order, data, memory, kind, names) in [
        ("huge_reply", &mega, 16 << 20, FailureKind::Memory, "call_limits.memory_bytes = 16777216"),
        ("huge_reply", &mega, 256 << 20, FailureKind::Memory, "call_limits.memory_bytes = 268435456"),
        ("huge_log", &mega, 256 << 20, FailureKind::Output, "call_limits.output_bytes = 1048576"),
        ("slow_memory", &json!(null), 1 << 21, FailureKind::Memory, "call_limits.memory_bytes = 2097152"),
    ] {
        let world = world(CallLimits { memory_bytes: memory, ..limits.clone() });
        let (found, text) = world.fails(order, data.clone()).await;
        assert!(found == kind && text.contains(names), "{order}: {found:?} {text}");
    }
    let world = world(limits);
    let harm = world.harm().await;
    let (result, parts) = world.order(&harm, "deep_json", json!(200_000)).await;
    assert_nothing_done(&parts);
    let Err(CallError::Refused(refusal)) = result else { panic!("{result:?}") };
    assert!(refusal.code == "invalid" && refusal.message.contains("deeper than 127 levels"), "{refusal:?}");
}

#[tokio::test]
async fn keys_that_look_like_anothers_are_the_plugins_own() {
    let world = world(CallLimits::default());
    let (harm, other) = (world.harm().await, world.plugin_of("acme", "other", Role::Handler, "test-harm").await);
    for key in ["..", "../other/n", "other/n", "{acme}", "{other}:s", "*", "rival/harm/n", "harm/n", "\u{202e}n"] {
        let (result, parts) = world.order(&harm, "write_other", json!({ "key": key, "value": "mine" })).await;
        assert_eq!(result, Ok(()), "{key:?}");
        let stored: Vec<_> = parts.commit.writes.iter().map(|(key, _)| key.as_str().to_owned()).collect();
        assert_eq!(stored, [format!("harm/{key}")], "always beneath the plugin's own name");
        world.engine.commit(&tenant("acme"), std::sync::Arc::new(parts.commit)).await.unwrap();
    }
    for key in ["n", "../n", "harm/n"] {
        assert_eq!(replied(&world.order(&other, "read", json!(key)).await.1), Value::Null, "{key}");
    }
    // What begins with `/` is the tenant's plugins' together, and no other tenant's.
    let (_, parts) = world.order(&harm, "write_other", json!({ "key": "/../rival/n", "value": "shared" })).await;
    world.engine.commit(&tenant("acme"), std::sync::Arc::new(parts.commit)).await.unwrap();
    assert_eq!(replied(&world.order(&other, "read", json!("/../rival/n")).await.1), json!("shared"));
    let rival = world.plugin_of("rival", "harm", Role::Handler, "test-harm").await;
    let mut tx = world.begin_of("rival");
    rival.handle(&mut tx, &crate::plugin_host::event("read", &json!("/../rival/n"))).await.unwrap();
    assert_eq!(replied(&tx.into_parts()), Value::Null);
}

#[tokio::test]
async fn a_breaker_opens_tries_one_call_and_closes_and_whoever_listens_is_told() {
    let world = world(CallLimits { breaker: QUICK, ..CallLimits::default() });
    let harm = world.harm().await;
    let mut changes = world.host.breaker_changes();
    for _ in 0..3 {
        assert!(matches!(world.order(&harm, "trap", Value::Null).await.0, Err(CallError::Failed(_))));
    }
    let (result, parts) = world.order(&harm, "count", Value::Null).await;
    assert_nothing_done(&parts);
    let Err(CallError::BreakerOpen { message, retry_after_ms }) = result else { panic!("{result:?}") };
    assert!((1..=200).contains(&retry_after_ms));
    assert!(message.contains("`harm`") && message.contains("call_limits.breaker.failure_percent = 50"), "{message}");
    let joined = harm.join(&mut world.begin(), &client("bob"), &Room::parse("good:1").unwrap(), None).await;
    assert!(joined.is_ok(), "another hook goes on: {joined:?}");
    let anew = world.harm().await;
    assert_eq!(world.order(&anew, "count", Value::Null).await.0, Ok(()), "another version begins anew");
    let opened = changes.recv().await.unwrap();
    assert_eq!((opened.state, opened.hook, opened.calls, opened.failures), (BreakerState::Open, Hook::Handle, 3, 3));
    assert_eq!((opened.tenant.as_str(), &*opened.plugin, &opened.digest), ("acme", "harm", &harm.digest));
    let breakers = harm.breakers();
    let standing = breakers.iter().find(|one| one.hook == Hook::Handle).unwrap();
    assert_eq!((standing.state, standing.failures), (BreakerState::Open, 3));

    tokio::time::sleep(Duration::from_millis(220)).await;
    assert_eq!(world.order(&harm, "count", Value::Null).await.0, Ok(()));
    let states = [changes.recv().await.unwrap().state, changes.recv().await.unwrap().state];
    assert_eq!(states, [BreakerState::HalfOpen, BreakerState::Closed]);
    let journal = world.host.journal(&tenant("acme")).latest(100);
    let texts: Vec<_> = journal.iter().map(|entry| (entry.kind, &*entry.message)).collect();
    assert_eq!(texts.iter().filter(|(kind, text)| *kind == JournalKind::Failure && text.contains("trap")).count(), 3);
    assert!(texts.iter().any(|(_, text)| text.contains("opened for 200 ms: 3 of 3 calls failed")), "{texts:?}");
}

#[tokio::test]
async fn refusals_and_wishes_to_be_called_later_do_not_open_a_breaker() {
    let world = world(CallLimits { breaker: QUICK, ..CallLimits::default() });
    let harm = world.harm().await;
    for order in ["refuse", "retry"].iter().cycle().take(12) {
        let (result, _) = world.order(&harm, order, Value::Null).await;
        assert!(!matches!(result, Err(CallError::BreakerOpen { .. })), "{order}");
    }
}

#[tokio::test]
async fn a_component_that_says_of_itself_that_it_is_broken_opens_its_breaker() {
    let world = world(CallLimits { breaker: QUICK, ..CallLimits::default() });
    let harm = world.harm().await;
    for _ in 0..3 {
        let fatal = world.order(&harm, "fatal", Value::Null).await.0;
        assert!(matches!(fatal, Err(CallError::Failed(failure)) if failure.kind == FailureKind::Fatal));
    }
    assert!(matches!(world.order(&harm, "count", Value::Null).await.0, Err(CallError::BreakerOpen { .. })));
}

#[tokio::test]
async fn a_tenant_beyond_its_computing_time_is_slowed_down_and_told_so() {
    let limits = CallLimits { cpu_ms: 2_000, wall_ms: 700, cpu_ms_per_second: 20, ..CallLimits::default() };
    let world = world(limits);
    let (harm, quiet) = (world.harm().await, world.plugin_of("quiet", "bench", Role::Handler, "bench").await);
    // A second's worth at once, then a fiftieth of a core.
    let (result, _) = world.order(&harm, "loop", Value::Null).await;
    let Err(CallError::Overloaded(text)) = result else { panic!("{result:?}") };
    assert!(
        text.contains("call_limits.cpu_ms_per_second = 20") && text.contains("call_limits.wall_ms = 700"),
        "{text}"
    );
    let begun = Instant::now();
    for n in 0..20 {
        let mut tx = world.begin_of("quiet");
        assert_eq!(quiet.handle(&mut tx, &crate::plugin_host::event("echo", &json!(n))).await, Ok(()));
    }
    assert!(begun.elapsed() < Duration::from_millis(500), "the others do not wait: {:?}", begun.elapsed());
}

#[tokio::test]
async fn floods_of_log_lines_and_terminal_escapes_stay_within_bounds() {
    let world = world(CallLimits { log_lines: 10, log_lines_per_minute: "25".parse().ok(), ..CallLimits::default() });
    let harm = world.harm().await;
    for _ in 0..10 {
        assert_eq!(world.order(&harm, "log_flood", json!(500)).await.0, Ok(()));
    }
    let journal = world.host.journal(&tenant("acme"));
    let texts: Vec<_> = journal.latest(1_000).iter().map(|entry| entry.message.clone()).collect();
    assert_eq!(texts.iter().filter(|text| text.starts_with("line ")).count(), 25);
    assert!(texts.iter().any(|text| text.contains("call_limits.log_lines = 10")), "{texts:?}");
    let dropped = "call_limits.log_lines_per_minute = 25";
    assert_eq!(texts.iter().filter(|text| text.contains(dropped)).count(), 1, "{texts:?}");

    let rival = world.plugin_of("rival", "harm", Role::Handler, "test-harm").await;
    let mut tx = world.begin_of("rival");
    let _ = rival.handle(&mut tx, &crate::plugin_host::event("escapes", &Value::Null)).await;
    let lines = world.host.journal(&tenant("rival")).latest(10);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0].message, "\\u{1b}]0;owned\\u{7}\\u{1b}[2J\\r\\nlevel=ERROR forged=line");
    assert!(lines.iter().all(|line| !line.message.chars().any(char::is_control)), "{lines:?}");
}

#[test]
fn a_plugin_that_always_fails_is_answered_for_and_neither_its_sockets_nor_the_neighbours_notice() {
    let breaker = "call_limits.breaker.calls_min = 5\ncall_limits.breaker.rest_ms = 1500\n";
    let node = Node::start(vec![harm("harm", breaker), open("good", "")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    ws.join_ws(&node, "eve", "good", &token("good", "eve", json!({})));
    for _ in 0..5 {
        assert_eq!(ws.request("bob", "trap", json!({}))["error"]["code"], "plugin_failed");
        assert_eq!(ws.request("eve", "echo", json!(1)), 1);
    }
    let opened = Instant::now();
    let refused = ws.request("bob", "count", json!({}));
    assert_eq!(refused["error"]["code"], "plugin_unavailable", "{refused}");
    let retry = refused["error"]["retry_after_ms"].as_u64().unwrap();
    assert!((1..=1_500).contains(&retry), "{refused}");
    assert_eq!(ws.request("bob", "join_room", json!({ "room": "good:1" }))["room_name"], "good:1");
    assert_eq!(ws.request("eve", "echo", json!(2)), 2);
    std::thread::sleep(Duration::from_millis(1_600).saturating_sub(opened.elapsed()));
    assert_eq!(ws.request("bob", "count", json!({})), 1, "one call is tried, and it works");
    let log = node.log();
    assert_eq!(log.matches("the breaker opened for 1500 ms").count(), 1);
    assert_eq!(log.matches("the breaker closed").count(), 1);
    let labels = "tenant=\"harm\",plugin=\"harm\",hook=\"events.handle\"";
    assert_eq!(node.metric("plugin_breaker_openings_total", labels), 1.0);
    assert_eq!(node.metric("plugin_breakers_open", labels), 0.0);
}

#[test]
fn a_tenant_that_publishes_too_much_is_told_so_and_nothing_of_the_input_happens() {
    let node = Node::start(vec![harm("harm", "call_limits.publications_per_second = 100\n"), open("good", "")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    ws.join_ws(&node, "eve", "good", &token("good", "eve", json!({})));
    // What its connecting published took one of the hundred.
    assert_eq!(ws.request("bob", "many_publications", json!(90)), 90);
    let refused = ws.request("bob", "many_publications", json!(90));
    assert_eq!(refused["error"]["code"], "rate_limit", "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("call_limits.publications_per_second = 100"));
    let wait = refused["error"]["retry_after_ms"].as_u64().unwrap();
    assert_eq!(ws.request("eve", "echo", json!(1)), 1);
    std::thread::sleep(Duration::from_millis(wait + 50));
    assert_eq!(ws.request("bob", "many_publications", json!(90)), 90);
}

#[test]
fn an_authorizer_that_always_fails_lets_nobody_in_and_says_when_to_come_back() {
    let breaker = "call_limits.breaker.calls_min = 3\ncall_limits.breaker.rest_ms = 60000\ncall_limits.breaker.rest_max_ms = 60000\n";
    let node = Node::start(vec![harm("harm", breaker)]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    for _ in 0..3 {
        assert_eq!(ws.request("bob", "join_room", json!({ "room": "trap:1" }))["error"]["code"], "plugin_unavailable");
    }
    let refused = ws.request("bob", "join_room", json!({ "room": "good:1" }));
    assert_eq!(refused["error"]["code"], "plugin_unavailable", "{refused}");
    assert!(refused["error"]["retry_after_ms"].as_u64().unwrap() > 50_000, "{refused}");
    let spoken = ws.request("bob", "publish", json!({ "room": "good:1", "event": "x" }));
    assert_eq!(spoken["error"]["code"], "forbidden", "it was joined after all");
    for n in 0..4 {
        let name = format!("bad{n}");
        ws.try_ws(&name, &node.ws("harm"), &token("harm", "bad-connect", json!({})));
        assert_eq!(ws.closed(&name), (4004, "authorizer_unavailable".into()));
    }
    ws.try_ws("eve", &node.ws("harm"), &token("harm", "eve", json!({})));
    assert_eq!(ws.closed("eve"), (4004, "authorizer_unavailable".into()), "its breaker is open: nobody gets in");
    assert_eq!(ws.request("bob", "count", json!({})), 1, "whoever is in goes on");
}

#[test]
fn timers_of_a_plugin_whose_breaker_is_open_wait_and_fire_later() {
    let breaker =
        "call_limits.breaker.calls_min = 2\ncall_limits.breaker.rest_ms = 700\ncall_limits.breaker.rest_max_ms = 700\n";
    let node = Node::start(vec![harm("harm", breaker)]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "harm", &token("harm", "bob", json!({})));
    for name in ["trap-1", "trap-2"] {
        ws.request("bob", "set_timer", json!({ "name": name, "after_ms": 1 }));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(node.log().contains("the breaker opened"), "{}", node.log());
    ws.request("bob", "set_timer", json!({ "name": "good", "after_ms": 1 }));
    assert_eq!(ws.message("bob", json!({ "event": "fired" }))["data"]["name"], "good");
}
