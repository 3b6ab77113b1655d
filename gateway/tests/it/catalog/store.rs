//! The records, on both engines.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postern::catalog::{
    Actor, Canary, Catalog, CatalogError, Changed, Gathered, NewToken, NewVersion, News, PluginRecord, RolloutState,
    Scope, Settled, TenantRecord, UsageDelta, VERSIONS_KEPT_MAX,
};
use postern::commit::{
    Commit, CommitId, Effect, Grant, Publication, StateKey, TimerChange, TimerKey, Who, Write, now_ms,
};
use postern::engine::embedded::{EmbeddedEngine, Options};
use postern::engine::{Engine, NodeStat, redis};
use postern::event::Payload;
use postern::room::Room;
use postern::tenant::{Role, TenantId};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::redis_server::RedisServer;

const PATIENCE: Duration = Duration::from_secs(10);

/// Two nodes' catalogs on the same data; the same engine where there can be one only.
struct Kept {
    one: Catalog,
    two: Catalog,
    engine: Arc<dyn Engine>,
    _server: Option<RedisServer>,
}

async fn embedded() -> Kept {
    let engine: Arc<dyn Engine> = EmbeddedEngine::in_memory(Options::default()).unwrap();
    engine.report(NodeStat { server: "one".into(), connections: 0 });
    let (one, two) = (catalog(&engine), catalog(&engine));
    Kept { one, two, engine, _server: None }
}

async fn on_redis() -> Kept {
    let server = RedisServer::start();
    let options = || redis::Options { beat: Duration::from_millis(50), ..redis::Options::default() };
    let one: Arc<dyn Engine> = redis::connect(&server.url(), options()).await.unwrap();
    let two: Arc<dyn Engine> = redis::connect(&server.url(), options()).await.unwrap();
    one.report(NodeStat { server: "one".into(), connections: 0 });
    two.report(NodeStat { server: "two".into(), connections: 0 });
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while one.nodes().iter().filter(|node| !node.server.is_empty()).count() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "the nodes do not see each other");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Kept { one: catalog(&one), two: catalog(&two), engine: one, _server: Some(server) }
}

fn catalog(engine: &Arc<dyn Engine>) -> Catalog {
    let files = HashMap::from([(id("filed"), "/etc/postern/tenants/filed.toml".into())]);
    Catalog::new(engine.clone(), files, false)
}

/// Runs a test on both engines.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod embedded { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::embedded().await).await }
        )* }
        mod on_redis { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::on_redis().await).await }
        )* }
    };
}

on_both! {
    a_tenant_is_made_changed_and_deleted_and_every_node_is_told,
    a_tenant_that_is_made_anew_finds_nothing_of_whoever_had_its_name,
    a_tenant_that_is_made_anew_has_no_history_timers_or_people_of_the_former,
    components_that_no_version_names_go_and_those_that_one_names_stay,
    what_a_tenant_of_another_nodes_file_has_stored_stays_whoever_deletes_or_makes_one_of_its_name,
    no_component_goes_while_a_node_serves_a_tenant_whose_record_is_lost,
    a_token_of_a_deleted_tenant_is_no_good_for_the_next_of_its_name,
    a_tenant_that_some_node_has_in_a_file_loses_nothing_to_one_that_is_made,
    two_who_make_a_tenant_of_a_deleted_ones_name_do_not_delete_from_each_other,
    a_plugin_whose_options_are_refused_now_can_be_disabled,
    a_version_that_the_tenant_does_not_trust_is_not_chosen,
    the_audit_log_says_who_changed_what_and_shows_no_secret,
    changes_at_the_same_moment_are_all_done,
    a_plugin_goes_together_with_its_tenants_others,
    the_same_component_again_is_the_same_version_and_old_versions_go,
    the_components_of_a_tenant_have_a_bound_together,
    a_version_becomes_active_when_every_node_has_it_and_is_rolled_back_at_once,
    a_node_that_cannot_load_a_version_ends_its_roll_out,
    a_tenant_in_a_file_is_not_changed,
    what_a_later_version_wrote_is_refused_and_the_others_are_read,
    tokens_hold_until_they_are_revoked_on_every_node,
    whoever_was_let_in_with_a_token_changes_nothing_after_its_end,
    accounts_are_added_once_and_told_by_the_day,
}

fn id(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

fn operator() -> Actor {
    Actor::gateway("ops")
}

async fn create(catalog: &Catalog, name: &str, settings: Value) -> Result<Option<TenantRecord>, CatalogError> {
    let settings = settings.as_object().unwrap().clone();
    let new = |present: Option<TenantRecord>| match present {
        Some(_) => Err(CatalogError::Exists { what: "tenant", name: name.into() }),
        None => Ok(Some(TenantRecord::new(id(name), settings.clone()))),
    };
    catalog.change_tenant(&operator(), &id(name), "tenant.create", new).await
}

async fn plugin(catalog: &Catalog, tenant: &str, name: &str, role: Role) -> Result<(), CatalogError> {
    let new = |_| Ok(Some(PluginRecord::new(name, role)));
    catalog.change_plugin(&operator(), &id(tenant), name, "plugin.create", new).await.map(drop)
}

async fn upload(catalog: &Catalog, tenant: &str, name: &str, text: &str) -> (u64, bool) {
    let digest: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    let new = NewVersion { digest: digest.into(), ..NewVersion::default() };
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    let added = catalog.add_version(&operator(), &id(tenant), name, new, bytes).await.unwrap();
    (added.version.version, added.existed)
}

async fn news(feeder: &mut postern::catalog::Feeder) -> News {
    loop {
        let some = tokio::time::timeout(PATIENCE, feeder.next()).await.expect("no news").expect("the feed ended");
        if let Some(first) = some.into_iter().next() {
            return first;
        }
    }
}

async fn a_tenant_is_made_changed_and_deleted_and_every_node_is_told(kept: Kept) {
    let mut feeder = kept.two.follow().await.unwrap();
    let made = create(&kept.one, "acme", json!({ "relay": ["a"] })).await.unwrap().unwrap();
    let told = News::Changed(Changed::Tenant { tenant: id("acme") });
    assert_eq!(news(&mut feeder).await, told);
    assert!(matches!(create(&kept.two, "acme", json!({})).await, Err(CatalogError::Exists { .. })));
    let disabled = |present: Option<TenantRecord>| Ok(present.map(|tenant| TenantRecord { disabled: true, ..tenant }));
    kept.two.change_tenant(&operator(), &id("acme"), "tenant.disable", disabled).await.unwrap();
    assert_eq!(news(&mut feeder).await, told);
    let now = kept.one.tenant(&id("acme")).await.unwrap().unwrap();
    assert!(now.disabled && now.revision == made.revision + 1 && now.settings == made.settings);
    plugin(&kept.one, "acme", "echo", Role::Handler).await.unwrap();
    create(&kept.one, "globex", json!({})).await.unwrap();
    let page = kept.two.tenants(None, 1).await.unwrap();
    assert_eq!((page.tenants[0].name.as_str(), page.next.as_deref()), ("acme", Some("acme")));
    let page = kept.two.tenants(page.next.as_deref(), 10).await.unwrap();
    assert_eq!((page.tenants[0].name.as_str(), page.next), ("globex", None));
    kept.one.change_tenant(&operator(), &id("acme"), "tenant.delete", |_| Ok(None)).await.unwrap();
    assert!(kept.two.whole(&id("acme")).await.unwrap().is_none());
    let again = create(&kept.one, "acme", json!({})).await.unwrap().unwrap();
    assert!(again.revision > now.revision, "followers would take it for the tenant that was deleted");
    assert_eq!(kept.two.plugins(&id("acme")).await.unwrap(), [], "plugins outlived their tenant");
    let mistakes = create(&kept.one, "bad", json!({ "relai": [], "limits": { "connections": 0 } })).await.unwrap_err();
    assert!(matches!(&mistakes, CatalogError::Invalid(all) if all.len() == 2), "{mistakes}");
}

async fn a_tenant_that_is_made_anew_finds_nothing_of_whoever_had_its_name(kept: Kept) {
    let acme = id("acme");
    let put = |n: usize| (StateKey::of("echo", &format!("k{n}")), Write::Put { value: "x".into(), ttl_ms: None });
    let fill = async || {
        let commit = Commit { writes: (0..1_200).map(put).collect(), ..Commit::new(CommitId::random()) };
        kept.engine.commit(&acme, Arc::new(commit)).await.unwrap();
    };
    let stored = async || kept.engine.list_keys(&acme, "", None, 10).await.unwrap().keys.len();
    create(&kept.one, "acme", json!({})).await.unwrap();
    fill().await;
    kept.one.change_tenant(&operator(), &acme, "tenant.delete", |_| Ok(None)).await.unwrap();
    assert_eq!(stored().await, 0);
    // A call that was still running writes on.
    fill().await;
    create(&kept.two, "acme", json!({})).await.unwrap();
    assert_eq!(stored().await, 0);
}

async fn a_tenant_that_is_made_anew_has_no_history_timers_or_people_of_the_former(kept: Kept) {
    let acme = id("acme");
    let room = Room::parse("flat:a1").unwrap();
    let live = async |word: &str| {
        let arrive = Effect::Arrive { id: word.into(), subject: "bob".into(), namespace: "/".into() };
        let who = Who::Connection(word.into());
        let join = Effect::Join { who, room: room.clone(), grant: Grant::default() };
        let data = Payload::one(&json!(word));
        let said = Publication { room: room.clone(), event: "said".into(), data, except: None };
        let key = TimerKey { plugin: "echo".into(), name: word.into() };
        let timers = vec![(key, TimerChange::Set { after_ms: 60_000, data: "{}".into() })];
        let effects = vec![arrive, join, Effect::Publish(said)];
        let commit = Commit { effects, timers, ..Commit::new(CommitId::random()) };
        kept.engine.commit(&acme, Arc::new(commit)).await.unwrap();
    };
    let left = async || {
        let history = kept.engine.history(&acme, &room, None, 10).await.unwrap().len();
        let people = kept.engine.count(&acme, &room).await.unwrap();
        (history, people, kept.engine.stored(&acme).await.unwrap().timers)
    };
    create(&kept.one, "acme", json!({})).await.unwrap();
    live("first").await;
    assert_eq!(left().await, (1, 1, 1));
    kept.one.change_tenant(&operator(), &acme, "tenant.delete", |_| Ok(None)).await.unwrap();
    assert_eq!(left().await, (0, 0, 0));
    // A client that was still there says something more.
    live("late").await;
    create(&kept.two, "acme", json!({})).await.unwrap();
    assert_eq!(left().await, (0, 0, 0));
    live("new").await;
    assert_eq!(left().await, (1, 1, 1));
    // What is not the catalog's is left alone.
    assert_eq!(kept.engine.list_keys(&acme, "", None, 10).await.unwrap().keys, []);
}

async fn components_that_no_version_names_go_and_those_that_one_names_stay(kept: Kept) {
    const KEPT_MS: u64 = 300;
    for tenant in ["acme", "globex"] {
        create(&kept.one, tenant, json!({})).await.unwrap();
        plugin(&kept.one, tenant, "echo", Role::Handler).await.unwrap();
        for text in ["shared", tenant] {
            upload(&kept.one, tenant, "echo", text).await;
        }
    }
    let digest = |text: &str| Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let there = async |text: &str| kept.engine.artifact(&digest(text)).await.unwrap().is_some();
    let collect = async || kept.two.collect_components(KEPT_MS).await.unwrap();
    // Stored for a version that was never recorded.
    kept.engine.put_artifact(&digest("abandoned"), "abandoned".into()).await.unwrap();
    kept.one.change_tenant(&operator(), &id("acme"), "tenant.delete", |_| Ok(None)).await.unwrap();
    assert_eq!(collect().await, 0, "they are not old enough");
    tokio::time::sleep(Duration::from_millis(KEPT_MS + 50)).await;
    // One is being uploaded again: it is new.
    kept.engine.put_artifact(&digest("acme"), "acme".into()).await.unwrap();
    assert_eq!(collect().await, 1);
    assert!(!there("abandoned").await && there("acme").await && there("shared").await && there("globex").await);
    tokio::time::sleep(Duration::from_millis(KEPT_MS + 50)).await;
    assert_eq!(collect().await, 1);
    assert!(!there("acme").await && there("shared").await && there("globex").await);
    // What nobody can read may name any of them.
    let later = Write::Put { value: r#"{"format":99}"#.into(), ttl_ms: None };
    let commit =
        Commit { writes: vec![(StateKey::of("", "/plugin/initech/echo"), later)], ..Commit::new(CommitId::random()) };
    kept.engine.commit(&TenantId::catalog(), Arc::new(commit)).await.unwrap();
    kept.one.change_plugin(&operator(), &id("globex"), "echo", "plugin.delete", |_| Ok(None)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(KEPT_MS + 50)).await;
    assert!(matches!(kept.two.collect_components(0).await, Err(CatalogError::Later { .. })));
    assert!(there("globex").await);
}

async fn a_token_of_a_deleted_tenant_is_no_good_for_the_next_of_its_name(kept: Kept) {
    let acme = id("acme");
    let new = |name: &str| NewToken {
        name: name.into(),
        scope: Scope::TenantAdmin,
        tenant: Some(id("acme")),
        expires_ms: None,
    };
    let early = kept.one.create_token(&operator(), new("early")).await;
    assert!(matches!(early, Err(CatalogError::NotFound { what: "tenant", .. })), "{early:?}");
    create(&kept.one, "acme", json!({})).await.unwrap();
    let (record, text) = kept.one.create_token(&operator(), new("former")).await.unwrap();
    assert!(kept.two.token_of(&text).await.unwrap().is_some());
    kept.one.change_tenant(&operator(), &acme, "tenant.delete", |_| Ok(None)).await.unwrap();
    assert_eq!(kept.two.tokens().await.unwrap(), []);
    // One that was being made at that moment.
    let write = Write::Put { value: serde_json::to_vec(&record).unwrap().into(), ttl_ms: None };
    let writes = vec![(StateKey::of("", &format!("/token/{}", record.id)), write)];
    let commit = Commit { writes, ..Commit::new(CommitId::random()) };
    kept.engine.commit(&TenantId::catalog(), Arc::new(commit)).await.unwrap();
    assert_eq!(kept.two.token_of(&text).await.unwrap(), None);
    tokio::time::sleep(Duration::from_millis(5)).await;
    create(&kept.two, "acme", json!({})).await.unwrap();
    assert_eq!(kept.one.tokens().await.unwrap().len(), 1);
    assert_eq!(kept.one.token_of(&text).await.unwrap(), None);
    // What the former owner did is for operators only.
    let told = kept.one.audit_of_owner(&acme, None, 10).await.unwrap();
    assert_eq!(told.iter().map(|record| &*record.what).collect::<Vec<_>>(), ["tenant.create"]);
    assert!(kept.one.audit(Some(&acme), None, 10).await.unwrap().len() > 3);
    let used = |day: &str| {
        (
            day.to_owned(),
            UsageDelta {
                tenant: id("acme"),
                plugin: "echo".into(),
                what: "calls".into(),
                number: 1,
                gathered: Gathered::Sum,
            },
        )
    };
    for (day, delta) in [used("2020-01-01"), used(&postern::catalog::day_of(now_ms()))] {
        kept.one.add_usage(&CommitId::random(), &day, &[delta]).await.unwrap();
    }
    assert_eq!(kept.two.usage_of_owner(&acme, "2019-12-31", "2099-01-01").await.unwrap().len(), 1);
    assert_eq!(kept.two.usage(&acme, "2019-12-31", "2099-01-01").await.unwrap().len(), 2);
    // What others used on the same day under its name is not its own.
    kept.one.begin_accounts(&acme).await.unwrap();
    assert_eq!(kept.two.usage_of_owner(&acme, "2019-12-31", "2099-01-01").await.unwrap(), []);
    let (today, delta) = used(&postern::catalog::day_of(now_ms()));
    kept.one.add_usage(&CommitId::random(), &today, &[UsageDelta { number: 5, ..delta }]).await.unwrap();
    let own = kept.two.usage_of_owner(&acme, "2019-12-31", "2099-01-01").await.unwrap();
    assert_eq!(json!(own[0].used), json!({ "calls": 5 }));
}

async fn put(kept: &Kept, tenant: &TenantId, key: &str) {
    let writes = vec![(StateKey::of("echo", key), Write::Put { value: "x".into(), ttl_ms: None })];
    let commit = Commit { writes, ..Commit::new(CommitId::random()) };
    kept.engine.commit(tenant, Arc::new(commit)).await.unwrap();
}

async fn a_tenant_that_some_node_has_in_a_file_loses_nothing_to_one_that_is_made(kept: Kept) {
    put(&kept, &id("elsewhere"), "kept").await;
    create(&kept.one, "elsewhere", json!({})).await.unwrap();
    assert_eq!(kept.engine.list_keys(&id("elsewhere"), "", None, 10).await.unwrap().keys.len(), 1);
}

async fn what_a_tenant_of_another_nodes_file_has_stored_stays_whoever_deletes_or_makes_one_of_its_name(kept: Kept) {
    let moved = id("moved");
    let files = HashMap::from([(moved.clone(), "/etc/postern/tenants/moved.toml".into())]);
    let third = Catalog::new(kept.engine.clone(), files, false);
    let there = async || kept.engine.list_keys(&moved, "", None, 10).await.unwrap().keys.len();
    let delete = async || kept.one.change_tenant(&operator(), &moved, "tenant.delete", |_| Ok(None)).await.unwrap();
    // From the catalog into a file, node by node: first the file, then the record goes.
    create(&kept.one, "moved", json!({})).await.unwrap();
    put(&kept, &moved, "kept").await;
    third.say("third", Vec::new()).await.unwrap();
    delete().await;
    assert_eq!(there().await, 1);
    create(&kept.two, "moved", json!({})).await.unwrap();
    assert_eq!(there().await, 1);
    // Deleted before the file came, and the rest not yet.
    third.say("third", Vec::new()).await.unwrap();
    let nobody = Catalog::new(kept.engine.clone(), HashMap::new(), false);
    nobody.say("third", Vec::new()).await.unwrap();
    delete().await;
    assert_eq!(there().await, 0);
    put(&kept, &moved, "of the file").await;
    third.say("third", Vec::new()).await.unwrap();
    nobody.say("third", Vec::new()).await.unwrap();
    create(&kept.one, "moved", json!({})).await.unwrap();
    assert_eq!(there().await, 1);
}

async fn no_component_goes_while_a_node_serves_a_tenant_whose_record_is_lost(kept: Kept) {
    create(&kept.one, "acme", json!({})).await.unwrap();
    plugin(&kept.one, "acme", "echo", Role::Handler).await.unwrap();
    upload(&kept.one, "acme", "echo", "named").await;
    let digest = Sha256::digest("of a lost one").iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    kept.engine.put_artifact(&digest, "of a lost one".into()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    kept.two.say("two", vec![id("globex")]).await.unwrap();
    assert_eq!(kept.one.collect_components(10).await.unwrap(), 0);
    kept.two.say("two", Vec::new()).await.unwrap();
    assert_eq!(kept.one.collect_components(10).await.unwrap(), 1);
}

async fn two_who_make_a_tenant_of_a_deleted_ones_name_do_not_delete_from_each_other(kept: Kept) {
    let acme = id("acme");
    for round in 0..5 {
        create(&kept.one, "acme", json!({})).await.unwrap();
        for n in 0..450 {
            put(&kept, &acme, &format!("old{n}")).await;
        }
        let by = operator();
        let deleted = kept.one.change_tenant(&by, &acme, "tenant.delete", |_| Ok(None));
        let made = async || {
            loop {
                match create(&kept.two, "acme", json!({})).await {
                    Ok(_) => break,
                    Err(CatalogError::Exists { .. } | CatalogError::Conflict(_)) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
            put(&kept, &acme, "new").await;
        };
        let (deleted, ()) = tokio::join!(deleted, made());
        deleted.unwrap();
        let keys = kept.engine.list_keys(&acme, "", None, 10).await.unwrap().keys;
        assert_eq!(keys, [StateKey::of("echo", "new")], "round {round}");
        kept.one.change_tenant(&operator(), &acme, "tenant.delete", |_| Ok(None)).await.unwrap();
    }
}

async fn a_plugin_whose_options_are_refused_now_can_be_disabled(kept: Kept) {
    create(&kept.one, "acme", json!({})).await.unwrap();
    plugin(&kept.one, "acme", "echo", Role::Handler).await.unwrap();
    let mut record = kept.one.plugin(&id("acme"), "echo").await.unwrap().unwrap();
    record.options.insert("of-an-earlier-version".into(), json!(1));
    let write = Write::Put { value: serde_json::to_vec(&record).unwrap().into(), ttl_ms: None };
    let commit =
        Commit { writes: vec![(StateKey::of("", "/plugin/acme/echo"), write)], ..Commit::new(CommitId::random()) };
    kept.engine.commit(&TenantId::catalog(), Arc::new(commit)).await.unwrap();
    let change = async |change: fn(PluginRecord) -> PluginRecord| {
        let change = |present: Option<PluginRecord>| Ok(present.map(change));
        kept.one.change_plugin(&operator(), &id("acme"), "echo", "plugin.change", change).await
    };
    let refused = change(|plugin| PluginRecord { events: Some(Vec::new()), ..plugin }).await;
    assert!(matches!(refused, Err(CatalogError::Invalid(_))), "{refused:?}");
    assert!(change(|plugin| PluginRecord { disabled: true, ..plugin }).await.unwrap().unwrap().disabled);
}

async fn a_version_that_the_tenant_does_not_trust_is_not_chosen(kept: Kept) {
    let acme = id("acme");
    create(&kept.one, "acme", json!({ "require_signature": false })).await.unwrap();
    plugin(&kept.one, "acme", "echo", Role::Handler).await.unwrap();
    upload(&kept.one, "acme", "echo", "one").await;
    upload(&kept.one, "acme", "echo", "two").await;
    kept.one.roll_back(&operator(), &acme, "echo", Some(1)).await.unwrap();
    let strict = |present: Option<TenantRecord>| {
        Ok(present.map(|mut tenant| {
            tenant.settings.insert("require_signature".into(), json!(true));
            let key = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
            tenant.settings.insert("signature_keys".into(), json!([{ "id": "ci", "public_key": key }]));
            tenant
        }))
    };
    kept.one.change_tenant(&operator(), &acme, "tenant.settings", strict).await.unwrap();
    let deadline = Duration::from_secs(5);
    for refused in [
        kept.one.activate(&operator(), &acme, "echo", 2, deadline).await.map(drop),
        kept.one.roll_back(&operator(), &acme, "echo", Some(2)).await.map(drop),
        kept.one.set_canary(&operator(), &acme, "echo", Some(Canary { version: 2, share: 100 })).await.map(drop),
    ] {
        assert!(matches!(&refused, Err(CatalogError::Conflict(why)) if why.contains("signature")), "{refused:?}");
    }
    assert_eq!(kept.two.plugin(&acme, "echo").await.unwrap().unwrap().active, Some(1));
}

async fn the_audit_log_says_who_changed_what_and_shows_no_secret(kept: Kept) {
    let secret = "0123456789abcdef0123456789abcdef";
    let keys = json!({ "auth": { "keys": [{ "id": "k1", "algorithm": "HS256", "secret": secret }] } });
    create(&kept.one, "acme", keys).await.unwrap();
    create(&kept.one, "globex", json!({})).await.unwrap();
    let relays = |present: Option<TenantRecord>| {
        let mut tenant = present.unwrap();
        tenant.settings.insert("relay".into(), json!(["a"]));
        Ok(Some(tenant))
    };
    let eve = Actor { name: "eve".into(), scope: Scope::TenantAdmin, tenant: Some(id("acme")), token: None };
    kept.one.change_tenant(&eve, &id("acme"), "tenant.settings", relays).await.unwrap();
    let all = kept.two.audit(None, None, 10).await.unwrap();
    let what: Vec<_> = all.iter().map(|record| (&*record.by, &*record.what)).collect();
    assert_eq!(what, [("eve", "tenant.settings"), ("ops", "tenant.create"), ("ops", "tenant.create")]);
    assert_eq!(
        (&all[0].before, &all[0].after),
        (&json!({ "settings": {} }), &json!({ "settings": { "relay": ["a"] } }))
    );
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains(secret) && text.contains("k1"), "{text}");
    let acme = kept.two.audit(Some(&id("acme")), None, 1).await.unwrap();
    let older = kept.two.audit(Some(&id("acme")), Some(&acme[0].id), 10).await.unwrap();
    assert_eq!((older.len(), &*older[0].what), (1, "tenant.create"));
}

async fn changes_at_the_same_moment_are_all_done(kept: Kept) {
    create(&kept.one, "acme", json!({})).await.unwrap();
    let names: Vec<_> = (0..8).map(|n| format!("p{n}")).collect();
    let made = names.iter().enumerate().map(|(n, name)| {
        let catalog = if n % 2 == 0 { &kept.one } else { &kept.two };
        plugin(catalog, "acme", name, Role::Handler)
    });
    for made in futures_util::future::join_all(made).await {
        made.unwrap();
    }
    let (tenant, plugins) = kept.one.whole(&id("acme")).await.unwrap().unwrap();
    assert_eq!(plugins.len(), 8);
    assert_eq!(tenant.revision, tenant.created_ms + 9, "a change was not counted");
    assert_eq!(kept.one.changes().await.unwrap(), 9);
}

async fn a_plugin_goes_together_with_its_tenants_others(kept: Kept) {
    create(&kept.one, "acme", json!({})).await.unwrap();
    plugin(&kept.one, "acme", "gate", Role::Authorizer).await.unwrap();
    let second = plugin(&kept.two, "acme", "other-gate", Role::Authorizer).await.unwrap_err();
    assert!(second.to_string().contains("at most one authorizer"), "{second}");
    for name in ["", "Upper", "a/b", "..", &"x".repeat(65)] {
        assert!(
            matches!(plugin(&kept.one, "acme", name, Role::Handler).await, Err(CatalogError::Invalid(_))),
            "{name}"
        );
    }
    let missing = plugin(&kept.one, "nobody", "echo", Role::Handler).await.unwrap_err();
    assert!(matches!(missing, CatalogError::NotFound { what: "tenant", .. }), "{missing}");
    let odd = |_| {
        let options = json!({ "colour": "green" }).as_object().unwrap().clone();
        Ok(Some(PluginRecord { options, ..PluginRecord::new("odd", Role::Handler) }))
    };
    let odd = kept.one.change_plugin(&operator(), &id("acme"), "odd", "plugin.create", odd).await.unwrap_err();
    assert!(odd.to_string().contains("colour"), "{odd}");
}

async fn the_same_component_again_is_the_same_version_and_old_versions_go(kept: Kept) {
    create(&kept.one, "acme", json!({})).await.unwrap();
    plugin(&kept.one, "acme", "echo", Role::Handler).await.unwrap();
    assert_eq!(upload(&kept.one, "acme", "echo", "component 1").await, (1, false));
    assert_eq!(upload(&kept.two, "acme", "echo", "component 1").await, (1, true));
    let rollout = kept.one.activate(&operator(), &id("acme"), "echo", 1, PATIENCE).await.unwrap();
    for server in ["one", "two"] {
        kept.one.report_ready(&id("acme"), "echo", &rollout.id, server, Ok(())).await.unwrap();
    }
    assert_eq!(kept.two.settle(&id("acme"), "echo", &rollout.id, false).await.unwrap(), Settled::Over);
    for n in 2..=VERSIONS_KEPT_MAX + 5 {
        upload(&kept.one, "acme", "echo", &format!("component {n}")).await;
    }
    let echo = kept.two.plugin(&id("acme"), "echo").await.unwrap().unwrap();
    assert_eq!(echo.versions.len(), VERSIONS_KEPT_MAX);
    assert!(echo.version(1).is_some(), "the active version was dropped");
    assert!(echo.version(2).is_none() && echo.version(25).is_some());
    let bytes = kept.two.component(&echo.version(25).unwrap().digest).await.unwrap();
    assert_eq!(&bytes[..], b"component 25");
}

async fn the_components_of_a_tenant_have_a_bound_together(kept: Kept) {
    let bounded = Catalog::bounded(kept.engine.clone(), HashMap::new(), false, 1_000);
    for tenant in ["acme", "other"] {
        create(&bounded, tenant, json!({})).await.unwrap();
        plugin(&bounded, tenant, "first", Role::Handler).await.unwrap();
        plugin(&bounded, tenant, "second", Role::Handler).await.unwrap();
    }
    let text = |letter: &str| letter.repeat(400);
    upload(&bounded, "acme", "first", &text("a")).await;
    upload(&bounded, "acme", "second", &text("b")).await;
    upload(&bounded, "other", "first", &text("c")).await;
    // What nothing needs goes first.
    assert_eq!(upload(&bounded, "acme", "first", &text("d")).await, (2, false));
    let first = bounded.plugin(&id("acme"), "first").await.unwrap().unwrap();
    assert_eq!(first.versions.iter().map(|version| version.version).collect::<Vec<_>>(), [2]);
    // The same again needs no room.
    assert_eq!(upload(&bounded, "acme", "first", &text("d")).await, (2, true));
    let new = NewVersion { digest: "e".repeat(64).into(), ..NewVersion::default() };
    let refused =
        bounded.add_version(&operator(), &id("acme"), "first", new, Bytes::from(vec![0; 700])).await.unwrap_err();
    assert!(matches!(refused, CatalogError::Limit { value: 1_100, limit: 1_000, .. }), "{refused:?}");
    assert!(refused.to_string().contains("admin.component_bytes_per_tenant"), "{refused}");
    assert_eq!(kept.engine.artifact(&"e".repeat(64)).await.unwrap(), None, "it was stored all the same");
}

async fn a_version_becomes_active_when_every_node_has_it_and_is_rolled_back_at_once(kept: Kept) {
    let acme = id("acme");
    let servers: Vec<_> = kept.engine.nodes().into_iter().map(|node| node.server).collect();
    create(&kept.one, "acme", json!({})).await.unwrap();
    plugin(&kept.one, "acme", "echo", Role::Handler).await.unwrap();
    assert_eq!(kept.one.rollout(&acme, "echo").await.unwrap().state, RolloutState::None);
    for (n, text) in [(1, "component 1"), (2, "component 2")] {
        upload(&kept.one, "acme", "echo", text).await;
        let rollout = kept.one.activate(&operator(), &acme, "echo", n, PATIENCE).await.unwrap();
        for server in &servers {
            assert_eq!(kept.two.settle(&acme, "echo", &rollout.id, false).await.unwrap(), Settled::Waiting);
            assert_eq!(kept.two.rollout(&acme, "echo").await.unwrap().state, RolloutState::Waiting);
            kept.two.report_ready(&acme, "echo", &rollout.id, server, Ok(())).await.unwrap();
        }
        let [one, two] = [&kept.one, &kept.two].map(|catalog| catalog.settle(&acme, "echo", &rollout.id, false));
        assert!(matches!(tokio::join!(one, two), (Ok(Settled::Over), Ok(Settled::Over))));
        let status = kept.one.rollout(&acme, "echo").await.unwrap();
        assert_eq!((status.version, status.state, status.nodes.len()), (Some(n), RolloutState::Active, servers.len()));
    }
    let echo = kept.two.plugin(&acme, "echo").await.unwrap().unwrap();
    assert_eq!((echo.active, &*echo.previous), (Some(2), &[1][..]), "an activation was counted twice");
    kept.one.set_canary(&operator(), &acme, "echo", Canary::of_percent(1, 10.0)).await.unwrap();
    assert_eq!(kept.two.roll_back(&operator(), &acme, "echo", None).await.unwrap(), 1);
    let echo = kept.one.plugin(&acme, "echo").await.unwrap().unwrap();
    assert_eq!((echo.active, &*echo.previous, echo.canary), (Some(1), &[][..], None));
    let nowhere = kept.one.roll_back(&operator(), &acme, "echo", None).await.unwrap_err();
    assert!(nowhere.to_string().contains("name the version"), "{nowhere}");
    assert_eq!(kept.one.roll_back(&operator(), &acme, "echo", Some(2)).await.unwrap(), 2);
    let what: Vec<_> = kept.one.audit(Some(&acme), None, 2).await.unwrap();
    assert_eq!(
        (&*what[0].what, &what[0].before["active"], &what[0].after["active"]),
        ("plugin.rollback", &json!(1), &json!(2))
    );
}

async fn a_node_that_cannot_load_a_version_ends_its_roll_out(kept: Kept) {
    let acme = id("acme");
    create(&kept.one, "acme", json!({})).await.unwrap();
    plugin(&kept.one, "acme", "echo", Role::Handler).await.unwrap();
    upload(&kept.one, "acme", "echo", "component 1").await;
    let rollout = kept.one.activate(&operator(), &acme, "echo", 1, PATIENCE).await.unwrap();
    kept.two.report_ready(&acme, "echo", &rollout.id, "one", Err("it does not compile".into())).await.unwrap();
    assert_eq!(kept.one.settle(&acme, "echo", &rollout.id, false).await.unwrap(), Settled::Over);
    let status = kept.two.rollout(&acme, "echo").await.unwrap();
    assert!(status.state == RolloutState::Failed && status.message.contains("it does not compile"), "{status:?}");
    assert_eq!(kept.two.plugin(&acme, "echo").await.unwrap().unwrap().active, None);
    // Nobody was ready in time; then one was.
    for ready in [None, Some("one")] {
        let rollout = kept.one.activate(&operator(), &acme, "echo", 1, PATIENCE).await.unwrap();
        if let Some(server) = ready {
            kept.one.report_ready(&acme, "echo", &rollout.id, server, Ok(())).await.unwrap();
        }
        kept.one.settle(&acme, "echo", &rollout.id, true).await.unwrap();
        let active = kept.one.plugin(&acme, "echo").await.unwrap().unwrap().active;
        assert_eq!(active.is_some(), ready.is_some());
    }
    for (deadline, word) in [(Duration::from_millis(1), "deadline_ms"), (Duration::from_secs(601), "deadline_ms")] {
        let refused = kept.one.activate(&operator(), &acme, "echo", 1, deadline).await.unwrap_err();
        assert!(refused.to_string().contains(word), "{refused}");
    }
    let missing = kept.one.activate(&operator(), &acme, "echo", 9, PATIENCE).await.unwrap_err();
    assert!(matches!(missing, CatalogError::NotFound { what: "version", .. }), "{missing}");
}

async fn a_tenant_in_a_file_is_not_changed(kept: Kept) {
    let refused = create(&kept.one, "filed", json!({})).await.unwrap_err();
    assert!(refused.to_string().contains("/etc/postern/tenants/filed.toml"), "{refused}");
    let refused = plugin(&kept.one, "filed", "echo", Role::Handler).await.unwrap_err();
    assert!(matches!(refused, CatalogError::ReadOnly { .. }), "{refused}");
    let refused = kept.two.roll_back(&operator(), &id("filed"), "echo", None).await.unwrap_err();
    assert!(matches!(refused, CatalogError::ReadOnly { .. }), "{refused}");
}

async fn what_a_later_version_wrote_is_refused_and_the_others_are_read(kept: Kept) {
    create(&kept.one, "acme", json!({})).await.unwrap();
    create(&kept.one, "globex", json!({})).await.unwrap();
    let later = json!({ "format": 2, "name": "acme" }).to_string();
    let write = (StateKey::of("", "/tenant/acme"), Write::Put { value: later.into(), ttl_ms: None });
    let commit = Commit { writes: vec![write], ..Commit::new(CommitId::random()) };
    kept.engine.commit(&TenantId::catalog(), Arc::new(commit)).await.unwrap();
    for refused in [
        kept.one.tenant(&id("acme")).await.map(drop),
        kept.one.whole(&id("acme")).await.map(drop),
        plugin(&kept.one, "acme", "echo", Role::Handler).await,
        kept.one.change_tenant(&operator(), &id("acme"), "tenant.delete", |_| Ok(None)).await.map(drop),
    ] {
        assert!(matches!(refused, Err(CatalogError::Later { format: 2, .. })), "{refused:?}");
    }
    let page = kept.one.tenants(None, 10).await.unwrap();
    assert_eq!((page.tenants.len(), page.unreadable.len()), (1, 1));
}

async fn tokens_hold_until_they_are_revoked_on_every_node(kept: Kept) {
    create(&kept.one, "acme", json!({})).await.unwrap();
    let new = |name: &str, expires_ms| NewToken {
        name: name.into(),
        scope: Scope::TenantAdmin,
        tenant: Some(id("acme")),
        expires_ms,
    };
    let (record, text) = kept.one.create_token(&operator(), new("eve", None)).await.unwrap();
    let known = kept.two.token_of(&text).await.unwrap().unwrap();
    assert_eq!((&known.id, known.tenant), (&record.id, Some(id("acme"))));
    let forged = format!("{}x", &text[..text.len() - 1]);
    for wrong in [&*forged, "", "postern_", "postern_../../tenant/acmexxxxxxxxx", &text[1..], &format!("{text}x")] {
        assert_eq!(kept.two.token_of(wrong).await.unwrap(), None, "{wrong}");
    }
    let (_, brief) = kept.one.create_token(&operator(), new("brief", Some(now_ms() + 150))).await.unwrap();
    assert!(kept.two.token_of(&brief).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(kept.two.token_of(&brief).await.unwrap(), None);
    assert_eq!(kept.two.tokens().await.unwrap().len(), 1);
    kept.two.revoke_token(&operator(), &record.id).await.unwrap();
    assert_eq!(kept.one.token_of(&text).await.unwrap(), None);
    assert!(matches!(kept.one.revoke_token(&operator(), &record.id).await, Err(CatalogError::NotFound { .. })));
    let told = serde_json::to_string(&kept.one.audit(None, None, 10).await.unwrap()).unwrap();
    assert!(told.contains("token.revoke") && !told.contains(&record.digest) && !told.contains(&text));
    let nobody = NewToken { tenant: None, ..new("", Some(1)) };
    let refused = kept.one.create_token(&operator(), nobody).await.unwrap_err();
    assert!(matches!(&refused, CatalogError::Invalid(all) if all.len() == 3), "{refused}");
}

async fn whoever_was_let_in_with_a_token_changes_nothing_after_its_end(kept: Kept) {
    create(&kept.one, "acme", json!({})).await.unwrap();
    let new = |name: &str, expires_ms| NewToken {
        name: name.into(),
        scope: Scope::TenantAdmin,
        tenant: Some(id("acme")),
        expires_ms,
    };
    let change = async |by: &Actor, name: &str| {
        let new = |_| Ok(Some(PluginRecord::new(name, Role::Handler)));
        kept.one.change_plugin(by, &id("acme"), name, "plugin.create", new).await.map(drop)
    };
    let (record, text) = kept.one.create_token(&operator(), new("eve", None)).await.unwrap();
    let eve = kept.one.actor_of(&text).await.unwrap().unwrap();
    change(&eve, "good").await.unwrap();
    kept.one.still_good(&eve).await.unwrap();
    kept.two.revoke_token(&operator(), &record.id).await.unwrap();
    let (_, text) = kept.one.create_token(&operator(), new("brief", Some(now_ms() + 1_000))).await.unwrap();
    let brief = kept.one.actor_of(&text).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for by in [&eve, &brief] {
        let refused = change(by, "evil").await;
        assert!(matches!(refused, Err(CatalogError::Revoked)), "{}: {refused:?}", by.name);
        let refused = kept.one.add_version(by, &id("acme"), "good", NewVersion::default(), Bytes::new()).await;
        assert!(matches!(refused, Err(CatalogError::Revoked)), "{}: {refused:?}", by.name);
        assert!(matches!(kept.one.still_good(by).await, Err(CatalogError::Revoked)));
    }
    assert_eq!(kept.two.plugins(&id("acme")).await.unwrap().len(), 1);
    // A token can end itself.
    let (record, text) = kept.one.create_token(&operator(), new("last", None)).await.unwrap();
    let last = kept.one.actor_of(&text).await.unwrap().unwrap();
    kept.one.revoke_token(&last, &record.id).await.unwrap();
}

async fn accounts_are_added_once_and_told_by_the_day(kept: Kept) {
    let delta = |tenant: &str, what: &str, number| UsageDelta {
        tenant: id(tenant),
        plugin: "echo".into(),
        what: what.into(),
        number,
        gathered: Gathered::Sum,
    };
    let commit = CommitId::random();
    for _ in 0..2 {
        let deltas = [delta("acme", "calls", 3), delta("acme", "calls", 4), delta("globex", "calls", 1)];
        kept.one.add_usage(&commit, "2026-11-22", &deltas).await.unwrap();
    }
    let (one, two) = ([delta("acme", "calls", 10)], [delta("acme", "cpu_us", 5)]);
    let (one_id, two_id) = (CommitId::random(), CommitId::random());
    let (one, two) =
        tokio::join!(kept.one.add_usage(&one_id, "2026-11-22", &one), kept.two.add_usage(&two_id, "2026-11-23", &two));
    one.and(two).unwrap();
    let rows = kept.two.usage(&id("acme"), "2026-11-22", "2026-11-23").await.unwrap();
    let rows: Vec<_> = rows.iter().map(|row| (&*row.day, json!(row.used))).collect();
    assert_eq!(rows, [("2026-11-22", json!({ "calls": 17 })), ("2026-11-23", json!({ "cpu_us": 5 }))]);
    assert_eq!(kept.one.usage(&id("acme"), "2026-11-20", "2026-11-21").await.unwrap(), []);
    assert_eq!(kept.one.usage(&id("acme"), "2026-11-23", "2026-12-01").await.unwrap().len(), 1);
    assert!(matches!(kept.one.usage(&id("acme"), "x", "2026-12-01").await, Err(CatalogError::Invalid(_))));
    // Of numbers that are no sums the largest of all nodes counts, in whatever order they come.
    let most = |number| [UsageDelta { gathered: Gathered::Most, ..delta("acme", "connections-peak", number) }];
    let day = "2026-11-24";
    kept.one.add_usage(&CommitId::random(), day, &most(3)).await.unwrap();
    let (at_one, at_two) = ((CommitId::random(), most(7)), (CommitId::random(), most(5)));
    let (at_one, at_two) =
        tokio::join!(kept.one.add_usage(&at_one.0, day, &at_one.1), kept.two.add_usage(&at_two.0, day, &at_two.1));
    at_one.and(at_two).unwrap();
    kept.two.add_usage(&CommitId::random(), day, &most(6)).await.unwrap();
    let rows = kept.one.usage(&id("acme"), day, day).await.unwrap();
    assert_eq!(json!(rows[0].used), json!({ "connections-peak": 7 }));
    let odd = kept.one.add_usage(&CommitId::random(), "2026-11-22", &[delta("acme", "../x", 1)]).await;
    assert!(matches!(odd, Err(CatalogError::Invalid(_))), "{odd:?}");
}
