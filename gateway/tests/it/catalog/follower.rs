//! Nodes do as the catalog says, without a restart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern::catalog::{Canary, RolloutState, TenantRecord};
use postern::commit::{Commit, CommitId, StateKey, Write};
use postern::decision::plugin::sign;
use postern::tenant::TenantId;
use serde_json::{Value, json};

use super::site::{DEADLINE, PATIENCE, Site, component, eventually, id, operator, token};
use crate::hostile_uploads::{PRIVATE_KEY, PUBLIC_KEY};
use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};

/// Connects a client and waits until it is in; it may have to come again while the node has not heard of the tenant.
pub(super) fn join(ws: &mut Clients, url: &str, name: &str, tenant: &str) {
    ws.try_ws(name, url, &token(tenant, name));
    ws.message(name, json!({ "event": "connected" }));
}

pub(super) fn version(ws: &mut Clients, name: &str) -> Value {
    ws.request(name, "version", json!({}))
}

/// Waits until a connected client is answered by a version.
pub(super) fn runs(ws: &mut Clients, name: &str, wanted: &str) {
    eventually(&format!("{name} is answered by {wanted}"), || version(ws, name) == wanted);
}

fn a_version_is_swapped_while_clients_stay(site: &Site) {
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    let names: Vec<_> = (0..site.nodes.len()).map(|n| format!("user{n}")).collect();
    for (node, name) in site.nodes.iter().zip(&names) {
        join(&mut ws, &node.ws("acme"), name, "acme");
        runs(&mut ws, name, "0001");
    }
    assert_eq!(site.upload("acme", "echo", component(2)), 2);
    for name in &names {
        assert_eq!(version(&mut ws, name), "0001", "an upload alone changes nothing");
    }
    site.roll_out("acme", "echo", 2);
    for name in &names {
        runs(&mut ws, name, "0002");
    }
    let status = site.rollout("acme", "echo");
    assert_eq!((status.nodes.len(), status.message.as_str()), (site.nodes.len(), ""));
    let begun = Instant::now();
    assert_eq!(site.roll_back("acme", "echo"), 1);
    for name in &names {
        runs(&mut ws, name, "0001");
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "rolling back took {:?}", begun.elapsed());
    assert!(ws.all(&json!({ "what": "closed" })).is_empty(), "a connection was closed");
}

#[test]
fn two_nodes_swap_a_version_while_clients_stay() {
    let site = Site::on_redis(2);
    a_version_is_swapped_while_clients_stay(&site);
    site.stop();
}

#[test]
fn an_embedded_node_swaps_a_version_and_has_everything_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.redb");
    let site = Site::embedded(&path);
    a_version_is_swapped_while_clients_stay(&site);
    site.roll_out("acme", "echo", 2);
    site.stop();
    let site = Site::embedded(&path);
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    assert_eq!(version(&mut ws, "bob"), "0002");
    assert_eq!(site.roll_back("acme", "echo"), 1);
    runs(&mut ws, "bob", "0001");
    site.stop();
}

#[test]
fn a_version_that_cannot_be_loaded_ends_its_roll_out_and_the_old_one_goes_on() {
    let site = Site::on_redis(2);
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    let mut broken = component(2).to_vec();
    broken.truncate(broken.len() / 2);
    assert_eq!(site.upload("acme", "echo", broken.into()), 2);
    site.activate("acme", "echo", 2, DEADLINE);
    let status = site.wait_for_rollout("acme", "echo", RolloutState::Failed);
    assert!(status.message.contains("cannot load it"), "{status:?}");
    assert_eq!(version(&mut ws, "bob"), "0001");
    // Whoever forces it in gets the old one still, and is told.
    let acme = id("acme");
    let forced = site.catalog.roll_back(operator(), &acme, "echo", Some(2));
    site.runtime.block_on(forced).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(version(&mut ws, "bob"), "0001");
    site.roll_out("acme", "echo", 1);
    assert_eq!(version(&mut ws, "bob"), "0001");
    site.stop();
}

#[test]
fn a_node_that_does_not_answer_is_not_waited_for_beyond_the_deadline_and_follows_when_it_is_back() {
    let site = Site::without_nodes();
    let node = || {
        let redis_url = site.redis.as_ref().map(|redis| redis.url());
        Node::with(Settings { tenants: Vec::new(), config: "node_lease_ms = 12000\n".into(), redis_url })
    };
    let (one, two) = (node(), node());
    // Whom a node does not know of yet is not waited for. The third is this test.
    eventually("the nodes see each other", || one.metric("nodes", "") >= 3.0 && two.metric("nodes", "") >= 3.0);
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &one.ws("acme"), "ann", "acme");
    join(&mut ws, &two.ws("acme"), "bob", "acme");
    site.upload("acme", "echo", component(2));
    two.signal("STOP");
    site.activate("acme", "echo", 2, Duration::from_millis(1_500));
    assert_eq!(site.rollout("acme", "echo").state, RolloutState::Waiting);
    let status = site.wait_for_rollout("acme", "echo", RolloutState::Active);
    assert!(status.message.contains("not ready in time"), "{status:?}");
    runs(&mut ws, "ann", "0002");
    two.signal("CONT");
    runs(&mut ws, "bob", "0002");
    assert!(ws.all(&json!({ "what": "closed" })).is_empty(), "a connection was closed");
}

#[test]
fn a_canary_is_for_its_share_of_the_users_the_same_on_every_node() {
    let site = Site::on_redis(2);
    site.tenant_of_version_1("acme");
    site.upload("acme", "echo", component(2));
    let mut ws = Clients::ws();
    let users: Vec<_> = (0..40).map(|n| format!("user{n}")).collect();
    for user in &users {
        for (n, node) in site.nodes.iter().enumerate() {
            ws.try_ws(&format!("{user}@{n}"), &node.ws("acme"), &token("acme", user));
        }
    }
    for user in &users {
        for n in 0..site.nodes.len() {
            ws.message(&format!("{user}@{n}"), json!({ "event": "connected" }));
        }
    }
    let mut had: Vec<String> = Vec::new();
    for percent in [30.0, 60.0] {
        let canary = Canary::of_percent(2, percent);
        site.runtime.block_on(site.catalog.set_canary(operator(), &id("acme"), "echo", canary)).unwrap();
        let mut of_each = Vec::new();
        eventually("both nodes have the canary", || {
            of_each = (0..site.nodes.len())
                .map(|n| {
                    let has = |user: &&String| version(&mut ws, &format!("{user}@{n}")) == "0002";
                    users.iter().filter(has).cloned().collect::<Vec<_>>()
                })
                .collect();
            of_each[0] == of_each[1] && of_each[0].len() > had.len()
        });
        let now = of_each.swap_remove(0);
        #[expect(clippy::cast_precision_loss, reason = "there are 40")]
        let share = now.len() as f64 * 100.0 / users.len() as f64;
        assert!((share - percent).abs() < 20.0, "{share} % of the users have it, not {percent}");
        assert!(had.iter().all(|user| now.contains(user)), "a user lost the canary while its share grew");
        had = now;
    }
    site.runtime.block_on(site.catalog.set_canary(operator(), &id("acme"), "echo", None)).unwrap();
    for n in 0..site.nodes.len() {
        runs(&mut ws, &format!("{}@{n}", had[0]), "0001");
    }
    site.stop();
}

#[test]
fn a_tenant_is_disabled_enabled_deleted_and_made_again_while_nodes_run() {
    let site = Site::on_redis(2);
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[1].ws("acme"), "bob", "acme");
    site.change("acme", |tenant| Some(TenantRecord { disabled: true, ..tenant }));
    assert_eq!(ws.closed("bob").1, "tenant_disabled");
    site.change("acme", |tenant| Some(TenantRecord { disabled: false, ..tenant }));
    let mut tries = 0;
    eventually("the tenant is served again", || {
        tries += 1;
        let name = format!("again{tries}");
        ws.try_ws(&name, &site.nodes[1].ws("acme"), &token("acme", &name));
        std::thread::sleep(Duration::from_millis(200));
        !ws.all(&json!({ "what": "message", "name": name, "json": { "event": "connected" } })).is_empty()
    });
    let name = format!("again{tries}");
    runs(&mut ws, &name, "0001");
    site.change_plugin("acme", "echo", |plugin| Some(postern::catalog::PluginRecord { disabled: true, ..plugin }));
    eventually("the plugin is out", || version(&mut ws, &name)["error"]["code"] == "unknown_event");
    site.change("acme", |_| None);
    assert_eq!(ws.closed(&name).1, "tenant_disabled");
    site.tenant_of_version_1("acme");
    join(&mut ws, &site.nodes[0].ws("acme"), "new0", "acme");
    join(&mut ws, &site.nodes[1].ws("acme"), "new1", "acme");
    runs(&mut ws, "new1", "0001");
    // A key that is gone ends whom it let in.
    site.change("acme", |mut tenant| {
        let other = "another-secret-of-no-real-tenant-0123456789";
        let key = json!({ "keys": [{ "id": "k2", "algorithm": "HS256", "secret": other }] });
        tenant.settings.insert("auth".into(), key);
        Some(tenant)
    });
    assert_eq!(ws.closed("new0").1, "unauthorized");
    assert_eq!(ws.closed("new1").1, "unauthorized");
    site.stop();
}

#[test]
fn an_authorizer_is_swapped_and_without_one_nobody_joins() {
    let site = Site::on_redis(1);
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    let asked = |ws: &mut Clients| ws.request("bob", "join_room", json!({ "room": "who:asks" }))["error"].clone();
    assert_eq!(asked(&mut ws)["message"], "0001");
    site.upload("acme", "gate", component(7));
    site.roll_out("acme", "gate", 2);
    eventually("the new authorizer is asked", || asked(&mut ws)["message"] == "0007");
    site.change_plugin("acme", "gate", |_| None);
    eventually("nobody joins", || asked(&mut ws)["code"] == "plugin_unavailable");
    site.stop();
}

#[test]
fn a_new_version_that_keeps_failing_is_rolled_back_by_itself_once() {
    let site = Site::on_redis(2);
    site.tenant_of_version_1("acme");
    site.change_plugin("acme", "echo", |plugin| Some(postern::catalog::PluginRecord { auto_rollback: true, ..plugin }));
    for number in [2, 3] {
        site.upload("acme", "echo", component(number));
        site.roll_out("acme", "echo", number.into());
    }
    let mut ws = Clients::ws();
    for (n, node) in site.nodes.iter().enumerate() {
        join(&mut ws, &node.ws("acme"), &format!("user{n}"), "acme");
        runs(&mut ws, &format!("user{n}"), "0003");
    }
    for n in 0..200 {
        ws.request(&format!("user{}", n % 2), "trap", json!("0003"));
        if site.rollout("acme", "echo").state == RolloutState::Failed {
            break;
        }
    }
    let status = site.wait_for_rollout("acme", "echo", RolloutState::Failed);
    assert!(status.message.contains("rolled back by itself"), "{status:?}");
    for n in 0..site.nodes.len() {
        runs(&mut ws, &format!("user{n}"), "0002");
    }
    // Not beyond the version before, however many nodes saw it fail.
    std::thread::sleep(Duration::from_millis(500));
    let echo = site.runtime.block_on(site.catalog.plugin(&id("acme"), "echo")).unwrap().unwrap();
    assert_eq!((echo.active, &*echo.previous), (Some(2), &[1][..]));
    let last = site.runtime.block_on(site.catalog.audit(Some(&id("acme")), None, 1)).unwrap().swap_remove(0);
    assert_eq!((&*last.by, &*last.what), ("breaker", "plugin.rollback"));
    site.stop();
}

#[test]
fn a_tenant_that_wants_signatures_is_served_no_component_without_one() {
    let site = Site::on_redis(1);
    site.tenant_of_version_1("acme");
    site.change("acme", |mut tenant| {
        tenant.settings.insert("signature_keys".into(), json!([{ "id": "ci", "public_key": PUBLIC_KEY }]));
        Some(tenant)
    });
    let signed = |plugin: &str, of: u32, named: &str| {
        site.upload_signed("acme", plugin, component(of), |digest| {
            sign(PRIVATE_KEY, "ci", &id("acme"), named, digest).unwrap()
        })
    };
    let number = signed("gate", 1, "gate");
    site.roll_out("acme", "gate", number);
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    assert_eq!(version(&mut ws, "bob"), "0001");
    // What runs without a signature ends when one is wanted.
    site.change("acme", |mut tenant| {
        tenant.settings.insert("require_signature".into(), json!(true));
        Some(tenant)
    });
    eventually("the component without a signature does not run", || {
        version(&mut ws, "bob")["error"]["code"] == "plugin_unavailable"
    });
    let refused = |number: u64| {
        let acme = id("acme");
        let begun = site.catalog.activate(operator(), &acme, "echo", number, DEADLINE);
        site.runtime.block_on(begun).unwrap_err().to_string()
    };
    let number = site.upload("acme", "echo", component(2));
    assert!(refused(number).contains("signature"));
    let number = signed("echo", 3, "another");
    assert!(refused(number).contains("does not hold"));
    let number = signed("echo", 3, "echo");
    site.roll_out("acme", "echo", number);
    runs(&mut ws, "bob", "0003");
    site.stop();
}

pub(super) fn write(site: &Site, key: &str, value: &Value) {
    let write = (StateKey::of("", key), Write::Put { value: value.to_string().into(), ttl_ms: None });
    let add = (StateKey::of("", "/count/changes"), Write::Add(1));
    let commit = Commit { writes: vec![write, add], ..Commit::new(CommitId::random()) };
    site.runtime.block_on(site.engine.commit(&TenantId::catalog(), Arc::new(commit))).unwrap();
}

#[test]
fn what_a_later_version_wrote_is_left_alone_and_the_last_good_state_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.redb");
    let site = Site::embedded(&path);
    site.tenant_of_version_1("acme");
    site.tenant_of_version_1("globex");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    write(&site, "/plugin/acme/echo", &json!({ "format": 2, "name": "echo", "parts": [] }));
    site.change("acme", Some);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(version(&mut ws, "bob"), "0001");
    site.upload("globex", "echo", component(2));
    site.roll_out("globex", "echo", 2);
    join(&mut ws, &site.nodes[0].ws("globex"), "eve", "globex");
    runs(&mut ws, "eve", "0002");
    site.stop();
    // A node that starts then serves whom it can.
    let site = Site::embedded(&path);
    join(&mut ws, &site.nodes[0].ws("globex"), "ann", "globex");
    assert_eq!(version(&mut ws, "ann"), "0002");
    site.stop();
}

#[test]
fn a_catalog_that_is_lost_with_its_redis_takes_nobody_out_of_service() {
    let site = Site::on_redis(1);
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    site.redis.as_ref().unwrap().command(&["FLUSHALL"]);
    // Told of with the next change, or when the node looks through everything: some time later, so that one good answer
    // says nothing yet.
    site.create("globex");
    let (begun, mut answered) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(3) || answered == 0 {
        assert!(begun.elapsed() < PATIENCE, "it is not served any more");
        let asked = version(&mut ws, "bob");
        if asked == "0001" {
            answered += 1;
        } else {
            assert_eq!(asked["error"]["code"], "engine_unavailable", "{asked}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(version(&mut ws, "bob"), "0001");
    site.stop();
}
