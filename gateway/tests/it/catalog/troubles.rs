//! Nodes keep to the catalog while components, records or its log are not to be had, and afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postern::catalog::{Canary, CatalogFollower, PluginRecord, RolloutState, TenantRecord};
use postern::commit::{Commit, CommitId, Effect, Publication, StateKey, Write};
use postern::config;
use postern::decision::plugin::{Host, HostSettings, sign};
use postern::drain::Tasks;
use postern::event::Payload;
use postern::gateway::Gateway;
use postern::room::Room;
use postern::tenant::{Pattern, Role, TenantId};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::follower::{join, runs, version};
use super::site::{DEADLINE, Site, component, eventually, id, operator, token};
use crate::hostile_uploads::{PRIVATE_KEY, PUBLIC_KEY};
use crate::support::clients::Clients;
use crate::support::staged_engine::{Answers, Faults, StagedEngine};

/// Well under what waits for the engine take ([`Answers::Silent`] makes them 10 s), well over what the rest takes.
const SOON: Duration = Duration::from_secs(5);

fn sole() -> (Site, Arc<Faults>) {
    let (site, mut faults) = Site::on_faulty_redis(1);
    (site, faults.swap_remove(0))
}

/// Connects a client of a tenant that may not be served yet, again and again.
fn join_at_last(ws: &mut Clients, site: &Site, tenant: &str) {
    let mut tries = 0;
    eventually("the tenant is served", || {
        tries += 1;
        let name = format!("{tenant}{tries}");
        ws.try_ws(&name, &site.nodes[0].ws(tenant), &token(tenant, &name));
        std::thread::sleep(Duration::from_millis(200));
        !ws.all(&json!({ "what": "message", "name": name, "json": { "event": "connected" } })).is_empty()
    });
}

/// Waits until the node has asked for components so many times more.
fn asked_again(faults: &Faults, times: usize) {
    let before = faults.components_asked.load(Ordering::Acquire);
    eventually("the node asks for the component", || faults.components_asked.load(Ordering::Acquire) >= before + times);
}

/// Another limit of the tenant's calls: all its components are loaded anew.
fn loaded_anew(mut tenant: TenantRecord, cpu_ms: u32) -> TenantRecord {
    tenant.settings.insert("call_limits".into(), json!({ "cpu_ms": cpu_ms }));
    tenant
}

fn other_key(mut tenant: TenantRecord) -> TenantRecord {
    let secret = "another-secret-of-no-real-tenant-0123456789";
    let auth = json!({ "keys": [{ "id": "k2", "algorithm": "HS256", "secret": secret }] });
    tenant.settings.insert("auth".into(), auth);
    tenant
}

/// What nobody sees that listens: the record, one change more, and an entry in the log.
fn write_record(site: &Site, record: &TenantRecord) {
    let value = serde_json::to_vec(record).unwrap().into();
    let put = (StateKey::of("", &format!("/tenant/{}", record.name)), Write::Put { value, ttl_ms: None });
    let add = (StateKey::of("", "/count/changes"), Write::Add(1));
    let changed = json!({ "what": "tenant", "tenant": record.name });
    let data = Payload::one(&changed);
    let told = Publication { room: Room::everyone("/"), event: "changed".into(), data, except: None };
    let effects = vec![Effect::Publish(told)];
    let commit = Commit { writes: vec![put, add], effects, ..Commit::new(CommitId::random()) };
    site.runtime.block_on(site.engine.commit(&TenantId::catalog(), Arc::new(commit))).unwrap();
}

/// Takes a component out of Redis, as a loss of its data would.
fn lose_component(site: &Site, number: u32) {
    let digest: String = Sha256::digest(component(number)).iter().map(|byte| format!("{byte:02x}")).collect();
    let redis = site.redis.as_ref().unwrap();
    let names: Vec<String> = redis::from_redis_value(redis.command(&["KEYS", &format!("*{digest}*")])).unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    redis.command(&["DEL", &names[0]]);
}

#[test]
fn a_tenant_that_was_deleted_and_made_anew_in_one_is_another_one() {
    let (site, faults) = sole();
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    assert_eq!(ws.request("bob", "count", json!({})), "0001");
    faults.records.send_replace(Answers::Silent);
    site.change("acme", |_| None);
    // With the same key: it is another tenant all the same.
    site.create("acme");
    site.plugin("acme", "gate", Role::Authorizer);
    site.upload("acme", "gate", component(1));
    faults.records.send_replace(Answers::Well);
    assert_eq!(ws.closed("bob").1, "tenant_disabled");
    site.roll_out("acme", "gate", 1);
    join(&mut ws, &site.nodes[0].ws("acme"), "eve", "acme");
    assert_eq!(version(&mut ws, "eve")["error"]["code"], "unknown_event", "a plugin of the former tenant runs");
    assert_eq!(site.handled("acme", "0001"), 0);
    site.stop();
}

#[test]
fn a_tenant_whose_records_were_missing_for_a_moment_is_deleted_when_they_are_deleted() {
    let (site, faults) = sole();
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    let looked_through = || {
        let before = faults.sweeps_asked.load(Ordering::Acquire);
        faults.deaf.store(true, Ordering::Release);
        site.create(&format!("other{before}"));
        eventually("the node looks", || faults.sweeps_asked.load(Ordering::Acquire) > before);
        std::thread::sleep(Duration::from_millis(300));
        faults.deaf.store(false, Ordering::Release);
    };
    faults.empty.store(true, Ordering::Release);
    looked_through();
    assert_eq!(version(&mut ws, "bob"), "0001", "what is lost goes on");
    faults.empty.store(false, Ordering::Release);
    looked_through();
    site.change("acme", |_| None);
    assert_eq!(ws.closed("bob").1, "tenant_disabled");
    site.stop();
}

#[test]
fn a_roll_out_does_not_wait_for_another_plugin_that_cannot_be_loaded_now() {
    let (site, _faults) = sole();
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    site.upload("acme", "gate", component(2));
    lose_component(&site, 2);
    site.runtime.block_on(site.catalog.roll_back(operator(), &id("acme"), "gate", Some(2))).unwrap();
    site.upload("acme", "echo", component(3));
    site.activate("acme", "echo", 2, Duration::from_secs(10));
    site.wait_for_rollout("acme", "echo", RolloutState::Active);
    runs(&mut ws, "bob", "0003");
    site.stop();
}

#[test]
fn a_component_that_was_lost_runs_as_soon_as_it_is_uploaded_again() {
    let (site, faults) = sole();
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    site.upload("acme", "echo", component(2));
    lose_component(&site, 2);
    site.runtime.block_on(site.catalog.roll_back(operator(), &id("acme"), "echo", Some(2))).unwrap();
    // It rests longer each time: 1, 2, 4, then 8 s.
    asked_again(&faults, 4);
    assert_eq!(version(&mut ws, "bob"), "0001");
    let begun = Instant::now();
    assert_eq!(site.upload("acme", "echo", component(2)), 2);
    runs(&mut ws, "bob", "0002");
    assert!(begun.elapsed() < SOON, "it ran only after {:?}", begun.elapsed());
    site.stop();
}

#[test]
fn a_deleted_tenant_that_had_clients_is_not_followed_any_more() {
    let site = Site::on_redis(1);
    site.tenant_of_version_1("acme");
    site.tenant_of_version_1("globex");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    join(&mut ws, &site.nodes[0].ws("globex"), "eve", "globex");
    let followed = |tenant: &str| {
        let channels = site.redis.as_ref().unwrap().command(&["PUBSUB", "SHARDCHANNELS", &format!("*:{tenant}:ch")]);
        !redis::from_redis_value::<Vec<String>>(channels).unwrap().is_empty()
    };
    assert!(followed("acme") && followed("globex"));
    // Whoever keeps who is there true has begun with it.
    std::thread::sleep(Duration::from_millis(800));
    site.change("acme", |_| None);
    assert_eq!(ws.closed("bob").1, "tenant_disabled");
    eventually("nobody follows the deleted tenant", || !followed("acme"));
    assert!(followed("globex"));
    site.stop();
}

#[test]
fn what_a_key_signed_that_is_removed_runs_on_no_node_until_the_key_is_back() {
    let site = Site::on_redis(2);
    site.tenant_of_version_1("acme");
    let trusts = |keys: Value| {
        site.change("acme", move |mut tenant| {
            tenant.settings.insert("signature_keys".into(), keys.clone());
            Some(tenant)
        });
    };
    let key = json!([{ "id": "ci", "public_key": PUBLIC_KEY }]);
    trusts(key.clone());
    let number = site.upload_signed("acme", "echo", component(2), |digest| {
        sign(PRIVATE_KEY, "ci", &id("acme"), "echo", digest).unwrap()
    });
    site.roll_out("acme", "echo", number);
    let mut ws = Clients::ws();
    let users = ["user0", "user1"];
    for (node, user) in site.nodes.iter().zip(users) {
        join(&mut ws, &node.ws("acme"), user, "acme");
        runs(&mut ws, user, "0002");
    }
    trusts(json!([]));
    for user in users {
        eventually("it runs no more", || version(&mut ws, user)["error"]["code"] == "plugin_unavailable");
    }
    trusts(key);
    for user in users {
        runs(&mut ws, user, "0002");
    }
    assert!(ws.all(&json!({ "what": "closed" })).is_empty(), "a connection was closed");
    site.stop();
}

#[test]
fn who_is_tried_with_a_version_keeps_it_while_it_cannot_be_loaded_anew() {
    let (site, faults) = sole();
    site.tenant_of_version_1("acme");
    site.upload("acme", "echo", component(2));
    let everybody = Canary::of_percent(2, 100.0);
    site.runtime.block_on(site.catalog.set_canary(operator(), &id("acme"), "echo", everybody)).unwrap();
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    runs(&mut ws, "bob", "0002");
    faults.components.send_replace(Answers::Away);
    site.change("acme", |tenant| Some(loaded_anew(tenant, 900)));
    // Those that run, the one that is tried, and at least once again.
    asked_again(&faults, 4);
    for _ in 0..20 {
        assert_eq!(version(&mut ws, "bob"), "0002");
    }
    faults.components.send_replace(Answers::Well);
    asked_again(&faults, 1);
    runs(&mut ws, "bob", "0002");
    site.stop();
}

#[test]
fn keys_and_settings_hold_before_components_are_there() {
    let (site, faults) = sole();
    for tenant in ["acme", "globex"] {
        site.tenant_of_version_1(tenant);
    }
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    join(&mut ws, &site.nodes[0].ws("globex"), "eve", "globex");
    faults.components.send_replace(Answers::Silent);
    site.change("acme", |tenant| Some(TenantRecord { disabled: true, ..loaded_anew(tenant, 900) }));
    site.change("globex", |tenant| Some(other_key(loaded_anew(tenant, 900))));
    assert_eq!(ws.closed("bob").1, "tenant_disabled");
    assert_eq!(ws.closed("eve").1, "unauthorized");
    faults.components.send_replace(Answers::Well);
    site.stop();
}

#[test]
fn who_is_disabled_or_deleted_while_its_components_are_being_loaded_does_not_wait_for_them() {
    let (site, faults) = sole();
    let tenants = ["acme", "globex", "initech"];
    let mut ws = Clients::ws();
    for tenant in tenants {
        site.tenant_of_version_1(tenant);
        join(&mut ws, &site.nodes[0].ws(tenant), tenant, tenant);
    }
    faults.components.send_replace(Answers::Silent);
    let before = faults.components_asked.load(Ordering::Acquire);
    for tenant in tenants {
        site.change(tenant, |tenant| Some(loaded_anew(tenant, 900)));
    }
    eventually("all are being loaded", || faults.components_asked.load(Ordering::Acquire) >= before + tenants.len());
    site.change("acme", |tenant| Some(TenantRecord { disabled: true, ..tenant }));
    site.change("globex", |_| None);
    site.change("initech", |tenant| Some(other_key(tenant)));
    assert_eq!(ws.closed("acme").1, "tenant_disabled");
    assert_eq!(ws.closed("globex").1, "tenant_disabled");
    assert_eq!(ws.closed("initech").1, "unauthorized");
    faults.components.send_replace(Answers::Well);
    site.change("acme", |tenant| Some(TenantRecord { disabled: false, ..tenant }));
    join_at_last(&mut ws, &site, "acme");
    site.stop();
}

#[test]
fn a_node_starts_without_components_that_it_does_not_get() {
    let site = Site::without_nodes();
    for tenant in ["acme", "globex"] {
        site.create(tenant);
        site.plugin(tenant, "gate", Role::Authorizer);
        site.upload(tenant, "gate", component(if tenant == "acme" { 1 } else { 2 }));
    }
    // Only one of them has something to load.
    site.runtime.block_on(site.catalog.roll_back(operator(), &id("acme"), "gate", Some(1))).unwrap();
    let faults = Arc::new(Faults::default());
    faults.components.send_replace(Answers::Silent);
    let engine = StagedEngine::faulty(site.engine.clone(), faults.clone());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    let config = config::load(&BTreeMap::from([("tenants", path.clone()), ("data", path)]), &BTreeMap::new()).unwrap();
    let begun = Instant::now();
    let served: Vec<_> = site.runtime.block_on(async {
        let host = Host::new(HostSettings::default()).unwrap();
        let gateway = Arc::new(Gateway::new(config, engine, host, Tasks::new()));
        let first_look_max = Duration::from_millis(500);
        let _follower = CatalogFollower::start(gateway.clone(), first_look_max).await.unwrap();
        ["acme", "globex"].into_iter().filter(|name| gateway.tenant(name).is_some()).collect()
    });
    assert!(begun.elapsed() < SOON, "it started after {:?}", begun.elapsed());
    assert_eq!(served, ["globex"]);
    assert_eq!(faults.components_asked.load(Ordering::Acquire), 1);
}

#[test]
fn a_version_that_could_not_be_tried_for_want_of_room_is_tried_again() {
    let (site, faults) = Site::with_room_for_one_call();
    site.tenant_of_version_1("acme");
    let sees = |plugin: &'static str, events: &'static [&str], wall_ms: u32| {
        site.change_plugin("acme", plugin, move |plugin| {
            let events = events.iter().map(|event| Pattern((*event).to_owned())).collect();
            let mut plugin = PluginRecord { events: Some(events), ..plugin };
            plugin.options.insert("call_limits".into(), json!({ "wall_ms": wall_ms }));
            Some(plugin)
        });
    };
    site.plugin("acme", "slow", Role::Handler);
    site.upload("acme", "slow", component(1));
    site.roll_out("acme", "slow", 1);
    sees("slow", &["read"], 5_000);
    sees("echo", &["version"], 300);
    site.upload("acme", "echo", component(2));
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    runs(&mut ws, "bob", "0001");
    faults.state.send_replace(Answers::Silent);
    // One call at a time, and this one lasts.
    ws.tell(json!({ "do": "send", "name": "bob", "json": { "id": 1_000, "event": "read", "data": {} } }));
    std::thread::sleep(Duration::from_millis(200));
    site.activate("acme", "echo", 2, DEADLINE);
    asked_again(&faults, 2);
    assert_eq!(site.rollout("acme", "echo").state, RolloutState::Waiting);
    faults.state.send_replace(Answers::Well);
    site.wait_for_rollout("acme", "echo", RolloutState::Active);
    assert_eq!(ws.message("bob", json!({ "id": 1_000 }))["data"], "0001");
    runs(&mut ws, "bob", "0002");
    site.stop();
}

#[test]
fn a_revision_that_is_given_twice_after_a_loss_is_taken_for_another() {
    let (site, faults) = sole();
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    assert_eq!(version(&mut ws, "bob"), "0001");
    let record = site.runtime.block_on(site.catalog.tenant(&id("acme"))).unwrap().unwrap();
    // A server took over that did not have the latest revision, and somebody made another of that number.
    faults.deaf.store(true, Ordering::Release);
    let changed_ms = record.changed_ms + 1;
    write_record(&site, &TenantRecord { changed_ms, ..other_key(record) });
    assert_eq!(ws.closed("bob").1, "unauthorized");
    site.stop();
}

#[test]
fn changes_of_tenants_that_are_served_do_not_wait_for_those_that_are_only_just_loaded() {
    let (site, faults) = sole();
    site.tenant_of_version_1("acme");
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    faults.components.send_replace(Answers::Silent);
    let before = faults.components_asked.load(Ordering::Acquire);
    let new: Vec<_> = (0..20).map(|n| format!("new{n}")).collect();
    for tenant in &new {
        site.create(tenant);
        site.plugin(tenant, "gate", Role::Authorizer);
        site.upload(tenant, "gate", component(1));
        site.runtime.block_on(site.catalog.roll_back(operator(), &id(tenant), "gate", Some(1))).unwrap();
    }
    eventually("as many as may be are being loaded", || faults.components_asked.load(Ordering::Acquire) >= before + 16);
    site.change("acme", |tenant| Some(TenantRecord { disabled: true, ..tenant }));
    assert_eq!(ws.closed("bob").1, "tenant_disabled");
    faults.components.send_replace(Answers::Well);
    join_at_last(&mut ws, &site, &new[19]);
    site.stop();
}

#[test]
fn a_look_through_the_catalog_that_gets_no_answer_holds_nothing_up() {
    let (site, faults) = sole();
    site.tenant_of_version_1("acme");
    site.change_plugin("acme", "echo", |plugin| Some(PluginRecord { auto_rollback: true, ..plugin }));
    site.upload("acme", "echo", component(2));
    let mut ws = Clients::ws();
    join(&mut ws, &site.nodes[0].ws("acme"), "bob", "acme");
    runs(&mut ws, "bob", "0001");
    faults.sweeps.send_replace(Answers::Silent);
    site.create("other");
    site.plugin("other", "gate", Role::Authorizer);
    site.upload("other", "gate", component(1));
    faults.deaf.store(true, Ordering::Release);
    let before = faults.sweeps_asked.load(Ordering::Acquire);
    site.runtime.block_on(site.catalog.roll_back(operator(), &id("other"), "gate", Some(1))).unwrap();
    eventually("the node looks", || faults.sweeps_asked.load(Ordering::Acquire) > before);
    faults.deaf.store(false, Ordering::Release);
    let begun = Instant::now();
    site.roll_out("acme", "echo", 2);
    runs(&mut ws, "bob", "0002");
    assert!(begun.elapsed() < SOON, "the roll-out took {:?}", begun.elapsed());
    let begun = Instant::now();
    while site.rollout("acme", "echo").state != RolloutState::Failed {
        ws.request("bob", "trap", json!("0002"));
        assert!(begun.elapsed() < SOON, "it was not rolled back by itself");
    }
    runs(&mut ws, "bob", "0001");
    assert!(begun.elapsed() < SOON, "the roll-back took {:?}", begun.elapsed());
    // What it could not look at is looked at when the engine answers again.
    faults.sweeps.send_replace(Answers::Well);
    join_at_last(&mut ws, &site, "other");
    site.stop();
}
