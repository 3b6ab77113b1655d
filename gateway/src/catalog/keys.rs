//! Where the catalog's records are: keys of the catalog's tenant.
//!
//! | key | what |
//! |---|---|
//! | `/tenant/{tenant}` | [`TenantRecord`](super::TenantRecord) |
//! | `/gone/{tenant}` | a [`GoneRecord`](super::tenants::GoneRecord): there was a tenant of this name, and it was deleted |
//! | `/node/{node}` | what a node says of itself, for a while: see [`nodes`](super::nodes) |
//! | `/plugin/{tenant}/{plugin}` | [`PluginRecord`](super::PluginRecord) |
//! | `/ready/{tenant}/{plugin}/{roll-out}/{node}` | [`ReadyRecord`](super::ReadyRecord), for a while |
//! | `/token/{id}` | [`TokenRecord`](super::TokenRecord) |
//! | `/audit/{id}` | [`AuditRecord`](super::AuditRecord); ids are in order, the latest first |
//! | `/audit-of/{tenant}/{id}` | nothing: that the record concerns the tenant |
//! | `/usage/{tenant}/{day}/{plugin}/{what}` | a counter |
//! | `/usage-of-former/{tenant}` | what others had used under this name on the day on which it was made anew |
//! | `/count/{what}` | how many there are; `changes`: how many there were |
//!
//! Names of tenants, plugins, nodes and ids hold no `/`.

use crate::commit::StateKey;
use crate::tenant::TenantId;

pub(super) const TENANTS: &str = "/tenant/";
/// The plugins of all tenants.
pub(super) const PLUGINS: &str = "/plugin/";
pub(super) const TOKENS: &str = "/token/";
pub(super) const AUDIT: &str = "/audit/";
/// How many changes of tenants and plugins there have been.
pub(super) const CHANGES: &str = "/count/changes";
pub(super) const TENANT_COUNT: &str = "/count/tenants";

pub(super) fn tenant(id: &TenantId) -> StateKey {
    StateKey::stored(&format!("{TENANTS}{id}"))
}

/// What all nodes say.
pub(super) const NODES: &str = "/node/";

pub(super) fn node(server: &str) -> StateKey {
    StateKey::stored(&format!("{NODES}{server}"))
}

pub(super) fn gone(tenant: &TenantId) -> StateKey {
    StateKey::stored(&format!("/gone/{tenant}"))
}

pub(super) fn plugins(tenant: &TenantId) -> String {
    format!("{PLUGINS}{tenant}/")
}

pub(super) fn plugin(tenant: &TenantId, plugin: &str) -> StateKey {
    StateKey::stored(&format!("{PLUGINS}{tenant}/{plugin}"))
}

pub(super) fn ready_reports(tenant: &TenantId, plugin: &str, rollout: &str) -> String {
    format!("/ready/{tenant}/{plugin}/{rollout}/")
}

pub(super) fn ready(tenant: &TenantId, plugin: &str, rollout: &str, server: &str) -> StateKey {
    StateKey::stored(&format!("/ready/{tenant}/{plugin}/{rollout}/{server}"))
}

pub(super) fn token(id: &str) -> StateKey {
    StateKey::stored(&format!("{TOKENS}{id}"))
}

pub(super) fn audit(id: &str) -> StateKey {
    StateKey::stored(&format!("{AUDIT}{id}"))
}

pub(super) fn audits_of(tenant: &TenantId) -> String {
    format!("/audit-of/{tenant}/")
}

pub(super) fn audit_of(tenant: &TenantId, id: &str) -> StateKey {
    StateKey::stored(&format!("/audit-of/{tenant}/{id}"))
}

pub(super) fn usage_of(tenant: &TenantId) -> String {
    format!("/usage/{tenant}/")
}

pub(super) fn usage_of_former(tenant: &TenantId) -> StateKey {
    StateKey::stored(&format!("/usage-of-former/{tenant}"))
}

pub(super) fn usage(tenant: &TenantId, day: &str, plugin: &str, what: &str) -> StateKey {
    StateKey::stored(&format!("/usage/{tenant}/{day}/{plugin}/{what}"))
}
