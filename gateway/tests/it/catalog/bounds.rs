//! How many there may be of what the gateway keeps: one more is refused with the bound, and one less makes room.

use std::collections::HashMap;
use std::sync::Arc;

use postern::catalog::{
    Actor, Catalog, CatalogError, NewToken, Scope, TENANTS_MAX, TOKENS_MAX, TenantRecord, TokenRecord,
};
use postern::commit::{Commit, CommitId, StateKey, Write, now_ms};
use postern::decision::backlog::Backlog;
use postern::decision::revocation::{REVOCATIONS_MAX, Revocation, RevokedTokens};
use postern::decision::{Decisions, Undecided};
use postern::engine::embedded::{EmbeddedEngine, Options};
use postern::engine::{Engine, NodeStat};
use postern::tenant::{CallLimits, TenantId};
use serde_json::Map;

/// Records that one commit writes.
const WRITTEN_AT_ONCE: usize = 10_000;

fn id(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

fn operator() -> Actor {
    Actor::gateway("ops")
}

fn kept() -> (Arc<dyn Engine>, Catalog) {
    let engine: Arc<dyn Engine> = EmbeddedEngine::in_memory(Options::default()).unwrap();
    engine.report(NodeStat { server: "one".into(), connections: 0 });
    (engine.clone(), Catalog::new(engine, HashMap::new(), false))
}

/// Writes records past whatever counts them.
async fn write(engine: &Arc<dyn Engine>, tenant: &TenantId, records: Vec<(String, Vec<u8>)>) {
    for some in records.chunks(WRITTEN_AT_ONCE) {
        let put = |(key, value): &(String, Vec<u8>)| {
            (StateKey::stored(key), Write::Put { value: value.clone().into(), ttl_ms: None })
        };
        let commit = Commit { writes: some.iter().map(put).collect(), ..Commit::new(CommitId::random()) };
        engine.commit(tenant, Arc::new(commit)).await.unwrap();
    }
}

async fn make_tenant(catalog: &Catalog, name: &str) -> Result<(), CatalogError> {
    let new = |_| Ok(Some(TenantRecord::new(id(name), Map::new())));
    catalog.change_tenant(&operator(), &id(name), "tenant.create", new).await.map(drop)
}

async fn make_token(catalog: &Catalog, name: &str) -> Result<String, CatalogError> {
    let new = NewToken { name: name.into(), scope: Scope::Operator, tenant: None, expires_ms: None };
    catalog.create_token(&operator(), new).await.map(|(record, _)| record.id)
}

#[tokio::test]
async fn there_are_so_many_tenants_and_one_that_is_deleted_makes_room() {
    let (engine, catalog) = kept();
    // All but one of those that there may be.
    let count = (TENANTS_MAX - 1).to_string().into_bytes();
    write(&engine, &TenantId::catalog(), vec![("/count/tenants".into(), count)]).await;
    make_tenant(&catalog, "last").await.unwrap();
    let refused = make_tenant(&catalog, "late").await.unwrap_err();
    assert_eq!(refused.to_string(), "tenants: 100001, at most 100000");
    assert!(catalog.tenant(&id("late")).await.unwrap().is_none());
    let changed = |present: Option<TenantRecord>| Ok(present.map(|tenant| TenantRecord { disabled: true, ..tenant }));
    catalog.change_tenant(&operator(), &id("last"), "tenant.disable", changed).await.unwrap();
    catalog.change_tenant(&operator(), &id("last"), "tenant.delete", |_| Ok(None)).await.unwrap();
    make_tenant(&catalog, "late").await.unwrap();
}

#[tokio::test]
async fn there_are_so_many_tokens_and_one_that_is_revoked_makes_room() {
    let (engine, catalog) = kept();
    let first = make_token(&catalog, "first").await.unwrap();
    let record = catalog.tokens().await.unwrap().pop().unwrap();
    let others = (2..TOKENS_MAX).map(|n| {
        let (id, name) = (format!("{n:020}"), format!("token {n}"));
        let other = TokenRecord { id: id.clone(), name, ..record.clone() };
        (format!("/token/{id}"), serde_json::to_vec(&other).unwrap())
    });
    write(&engine, &TenantId::catalog(), others.collect()).await;
    make_token(&catalog, "last").await.unwrap();
    assert_eq!(catalog.tokens().await.unwrap().len(), TOKENS_MAX);
    let refused = make_token(&catalog, "late").await.unwrap_err();
    assert_eq!(refused.to_string(), "tokens: 1001, at most 1000");
    catalog.revoke_token(&operator(), &first).await.unwrap();
    make_token(&catalog, "late").await.unwrap();
}

#[tokio::test]
async fn there_are_so_many_revocations_and_one_that_is_taken_back_makes_room() {
    let (engine, _) = kept();
    let tenant = id("acme");
    let of = |token_id: &str| Revocation {
        what: RevokedTokens::Token { token_id: token_id.into() },
        until_ms: now_ms() + 60_000,
    };
    let digests = (2..REVOCATIONS_MAX + 1).map(|n| (format!("_revoked/token:{n:064}"), b"{}".to_vec()));
    write(&engine, &tenant, digests.collect()).await;
    let node = Backlog::of_node();
    let decisions = Decisions::new(tenant, engine, CallLimits::default(), Backlog::of_tenant(&node));
    decisions.revoke(&of("last")).await.unwrap();
    let refused = decisions.revoke(&of("late")).await.unwrap_err();
    let Undecided::Refused(refusal) = &refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code, "limit");
    assert_eq!(refusal.message, "the tenant has 100000 revocations, at most 100000: take some back");
    decisions.revoke(&of("last")).await.unwrap();
    decisions.take_back(&of("last").what).await.unwrap();
    decisions.revoke(&of("late")).await.unwrap();
}
