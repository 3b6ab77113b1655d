//! Tenants: of files, which are shown, and of the API, which are made and changed.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::query::Query;
use super::token::needs;
use super::{Asked, Denied, Done, body, no_tenant, ok, route::Need};
use crate::catalog::{CatalogError, PAGE_MAX, Scope, TenantRecord, UsageRow, day_of};
use crate::commit::now_ms;
use crate::config::{Mistakes, NOT_SHOWN, tenant_from_json, without_secrets};
use crate::decision::pipeline::Pipeline;
use crate::gateway::Gateway;
use crate::tenant::{Role, TenantId};

/// How many tenants one call lists unless it says otherwise, and at most.
const LISTED: usize = 100;
const LISTED_MAX: usize = 500;

/// What only an operator changes: what a tenant may use up, which hosts are its, and whose components are believed:
/// whoever has stolen a token to push with cannot do without the signature.
const OF_THE_OPERATOR: [&str; 5] = ["limits", "call_limits", "hosts", "signature_keys", "require_signature"];

/// How many days of accounts are answered unless the call says otherwise, in milliseconds.
const USAGE_MS: u64 = 30 * 86_400_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    name: String,
    #[serde(default)]
    settings: Map<String, Value>,
}

/// The tenant of a call whose path names one: of a file or of the API.
pub(super) enum Subject {
    /// Written in a file of this node: only shown.
    File,
    /// Made over the API.
    Made(TenantRecord),
}

/// # Errors
/// There is none of that name.
pub(super) async fn subject(gateway: &Gateway, id: &TenantId) -> Result<Subject, Denied> {
    if gateway.catalog.file_of(id).is_some() {
        return Ok(Subject::File);
    }
    match gateway.catalog.tenant(id).await? {
        Some(record) => Ok(Subject::Made(record)),
        None => Err(no_tenant(id.as_str())),
    }
}

/// `GET /tenants`: those of files and those of the API, by name.
pub(super) async fn list(asked: Asked) -> Done {
    let limit = asked.query.limit(LISTED, LISTED_MAX)?;
    let after = asked.query.text("after");
    let catalog = &asked.gateway.catalog;
    let page = catalog.tenants(after, limit.min(PAGE_MAX)).await?;
    let mut found: Vec<(String, Value)> = Vec::new();
    for tenant in &asked.gateway.config.tenants {
        let name = tenant.id.as_str();
        // What lies behind the page's end comes with a later page.
        let is_in = after.is_none_or(|after| name > after) && page.next.as_deref().is_none_or(|last| name <= last);
        if is_in {
            let plugins = tenant.plugins.len();
            found.push((name.into(), listed(name, "file", tenant.disabled, plugins)));
        }
    }
    for record in page.tenants {
        let name = record.name.as_str();
        match found.iter_mut().find(|(other, _)| other == name) {
            // The file counts; the other is not served as long as it is there.
            Some((_, of_file)) => of_file["hides_api_tenant"] = true.into(),
            None => {
                let plugins = catalog.plugins(&record.name).await?.len();
                let mut tenant = listed(name, "api", record.disabled, plugins);
                let troubles = troubles(&asked.gateway, &record.name);
                if !troubles.is_empty() {
                    tenant["troubles"] = troubles.into();
                }
                found.push((name.into(), tenant));
            }
        }
    }
    for (id, why) in page.unreadable {
        found.push((id.to_string(), json!({ "name": id, "source": "api", "unreadable": why })));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let more = page.next.is_some() || found.len() > limit;
    found.truncate(limit);
    Ok(ok(json!({ "tenants": found.into_iter().map(|(_, tenant)| tenant).collect::<Vec<_>>(), "more": more })))
}

fn listed(name: &str, source: &str, disabled: bool, plugins: usize) -> Value {
    json!({ "name": name, "source": source, "disabled": disabled, "plugins": plugins })
}

/// `POST /tenants`.
pub(super) async fn create(asked: Asked) -> Done {
    let NewTenant { name, settings } = body::json(asked.body).await?;
    let id = TenantId::parse(&name).map_err(|error| Denied::invalid(format!("name: {error}")))?;
    free_hosts(&asked.gateway, &id, settings.get("hosts"))?;
    let record = TenantRecord::new(id.clone(), settings);
    let made = asked
        .gateway
        .catalog
        .change_tenant(&asked.actor, &id, "tenant.create", |there| match there {
            Some(_) => Err(CatalogError::Exists { what: "tenant", name: name.clone() }),
            None => Ok(Some(record.clone())),
        })
        .await?;
    if let Err(error) = asked.gateway.catalog.begin_accounts(&id).await {
        tracing::warn!(tenant = %id, %error, "today's accounts may have what others used under this name before");
    }
    Ok((StatusCode::CREATED, shown(&asked.gateway, &made.unwrap_or(record))))
}

/// `GET /tenants/{tenant}`.
pub(super) async fn show(asked: Asked) -> Done {
    let id = asked.tenant()?;
    Ok(ok(match subject(&asked.gateway, id).await? {
        Subject::Made(record) => shown(&asked.gateway, &record),
        Subject::File => of_file(&asked.gateway, id),
    }))
}

/// A tenant of the API, without its secrets, and what is to be warned of.
fn shown(gateway: &Gateway, record: &TenantRecord) -> Value {
    let settings = Value::Object(record.settings.clone());
    let (mistakes, warnings) = match tenant_from_json(&record.name, &settings, gateway.config.demo) {
        Ok((_, warnings)) => (Vec::new(), warnings),
        Err(Mistakes(mistakes)) => (mistakes.iter().map(ToString::to_string).collect(), Vec::new()),
    };
    json!({
        "name": record.name,
        "source": "api",
        "disabled": record.disabled,
        "revision": record.revision,
        "created_ms": record.created_ms,
        "changed_ms": record.changed_ms,
        "settings": without_secrets(&settings),
        "warnings": warnings,
        // Settings that an earlier version took and this one does not.
        "mistakes": mistakes,
        "troubles": troubles(gateway, &record.name),
    })
}

/// What is wrong with a tenant here: what this node cannot serve as written, and what nobody would notice but its clients.
fn troubles(gateway: &Gateway, name: &TenantId) -> Vec<String> {
    let mut troubles = gateway.catalog.troubles(name);
    let served = gateway.tenant(name.as_str()).filter(|tenant| !tenant.settings().disabled);
    let nobody_decides =
        |pipeline: &Pipeline| pipeline.authorizer.is_none() && pipeline.missing(Role::Authorizer, None).is_none();
    if served.is_some_and(|tenant| nobody_decides(&tenant.pipeline.load())) {
        troubles.push(
            "there is no authorizer, so nobody can connect: push a component for a plugin with the role authorizer"
                .to_owned(),
        );
    }
    troubles
}

/// A tenant of a file, as the file is now: the node may run with what it was at its start.
fn of_file(gateway: &Gateway, id: &TenantId) -> Value {
    let file = gateway.catalog.file_of(id);
    let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    let mut settings: Map<String, Value> = toml::from_str(&text).unwrap_or_default();
    settings.remove("name");
    settings.remove("plugins");
    let disabled = gateway.tenant(id.as_str()).is_some_and(|tenant| tenant.settings().disabled);
    json!({
        "name": id,
        "source": "file",
        "file": file,
        "disabled": disabled,
        "settings": without_secrets(&Value::Object(settings)),
    })
}

/// `PATCH /tenants/{tenant}/settings`: a merge patch (RFC 7396).
pub(super) async fn change_settings(asked: Asked) -> Done {
    let id = asked.tenant()?.clone();
    let patch: Map<String, Value> = body::json(asked.body).await?;
    if asked.actor.scope != Scope::Operator
        && let Some(name) = OF_THE_OPERATOR.iter().find(|name| patch.contains_key(**name))
    {
        let denied = needs(&asked.actor, Need::Operator);
        return Err(denied.about(&format!("the setting {name}")));
    }
    let mut hidden = Vec::new();
    not_shown(&Value::Object(patch.clone()), "settings", &mut hidden);
    if !hidden.is_empty() {
        return Err(Denied::mistakes(hidden));
    }
    free_hosts(&asked.gateway, &id, patch.get("hosts"))?;
    let changed = asked.gateway.catalog.change_tenant(&asked.actor, &id, "tenant.settings", |there| {
        let mut tenant = there.ok_or_else(|| missing(&id))?;
        let mut settings = Value::Object(std::mem::take(&mut tenant.settings));
        merge(&mut settings, &Value::Object(patch.clone()));
        tenant.settings = settings.as_object().cloned().unwrap_or_default();
        Ok(Some(tenant))
    });
    let changed = changed.await?.ok_or_else(|| no_tenant(id.as_str()))?;
    let mut answer = shown(&asked.gateway, &changed);
    if ["signature_keys", "require_signature"].iter().any(|name| patch.contains_key(*name)) {
        answer["stopped"] = asked.gateway.catalog.distrusted(&changed).await?.into();
    }
    Ok(ok(answer))
}

/// Refuses hosts that another tenant has, as this node knows them: of two with one host only one is served there.
fn free_hosts(gateway: &Gateway, id: &TenantId, hosts: Option<&Value>) -> Result<(), CatalogError> {
    for host in hosts.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        let host = host.to_ascii_lowercase();
        let others = gateway.tenants().into_iter().filter(|tenant| tenant.id != *id);
        if let Some(other) = others.into_iter().find(|tenant| tenant.settings().hosts.contains(&host)) {
            return Err(CatalogError::Conflict(format!("{host:?} is also a host of the tenant {}", other.id)));
        }
    }
    Ok(())
}

/// Secrets that come back as they were shown would replace the real ones.
fn not_shown(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.contains(NOT_SHOWN) => {
            found.push(format!("{path}: {NOT_SHOWN} stands for what is not shown: give the value, or leave it out"));
        }
        Value::Object(object) => {
            object.iter().for_each(|(name, value)| not_shown(value, &format!("{path}.{name}"), found))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| not_shown(value, &format!("{path}[{index}]"), found));
        }
        _ => {}
    }
}

/// RFC 7396: objects are merged, null removes, everything else replaces.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// `POST /tenants/{tenant}/disable` and `/enable`.
pub(super) async fn disable(asked: Asked, disabled: bool) -> Done {
    let id = asked.tenant()?.clone();
    let what = if disabled { "tenant.disable" } else { "tenant.enable" };
    let changed = asked.gateway.catalog.change_tenant(&asked.actor, &id, what, |there| {
        let tenant = there.ok_or_else(|| missing(&id))?;
        Ok(Some(TenantRecord { disabled, ..tenant }))
    });
    let changed = changed.await?.ok_or_else(|| no_tenant(id.as_str()))?;
    Ok(ok(shown(&asked.gateway, &changed)))
}

/// `DELETE /tenants/{tenant}`.
pub(super) async fn delete(asked: Asked) -> Done {
    let id = asked.tenant()?;
    let deleted = asked.gateway.catalog.change_tenant(&asked.actor, id, "tenant.delete", |there| match there {
        Some(_) => Ok(None),
        None => Err(missing(id)),
    });
    deleted.await?;
    Ok((StatusCode::NO_CONTENT, Value::Null))
}

pub(super) fn missing(id: &TenantId) -> CatalogError {
    CatalogError::NotFound { what: "tenant", name: id.to_string() }
}

/// `GET /tenants/{tenant}/usage`.
pub(super) async fn usage(asked: Asked) -> Done {
    let id = asked.tenant()?;
    subject(&asked.gateway, id).await?;
    let (from, to) = days(&asked.query);
    let catalog = &asked.gateway.catalog;
    let rows = match asked.actor.scope {
        Scope::Operator => catalog.usage(id, &from, &to).await?,
        _ => catalog.usage_of_owner(id, &from, &to).await?,
    };
    let stored = asked.gateway.engine.stored(id).await.map_err(CatalogError::Engine)?;
    Ok(ok(json!({ "tenant": id, "from": from, "to": to, "days": by_day(rows), "stored": stored })))
}

fn days(query: &Query) -> (String, String) {
    let now = now_ms();
    let day = |name, at_ms| query.text(name).map_or_else(|| day_of(at_ms), str::to_owned);
    (day("from", now.saturating_sub(USAGE_MS)), day("to", now))
}

fn by_day(rows: Vec<UsageRow>) -> Vec<Value> {
    let mut days: Vec<Value> = Vec::new();
    for row in rows {
        if days.last().is_none_or(|last| last["day"] != row.day.as_str()) {
            days.push(json!({ "day": row.day, "plugins": {} }));
        }
        if let Some(last) = days.last_mut() {
            last["plugins"][row.plugin] = json!(row.used);
        }
    }
    days
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_patch_does_what_its_rfc_says() {
        // The examples of RFC 7396, appendix A, that begin with an object.
        for (target, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, result, "{target} with {patch}");
        }
    }

    #[test]
    fn a_secret_as_it_is_shown_is_not_taken_for_one() {
        let mut found = Vec::new();
        not_shown(
            &json!({ "auth": { "keys": [{ "secret": "real" }, { "secret": "(secret)" }] } }),
            "settings",
            &mut found,
        );
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("settings.auth.keys[1].secret: "), "{found:?}");
    }

    #[test]
    fn accounts_are_grouped_by_day() {
        let row = |day: &str, plugin: &str| UsageRow {
            day: day.into(),
            plugin: plugin.into(),
            used: [("calls".into(), 3)].into(),
        };
        let days = by_day(vec![row("2026-11-21", "a"), row("2026-11-21", "b"), row("2026-11-22", "a")]);
        assert_eq!(days.len(), 2);
        assert_eq!(days[0]["plugins"], json!({ "a": { "calls": 3 }, "b": { "calls": 3 } }));
    }
}
