//! A tenant's plugins: what each is for, and whether it takes part.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::tenants::{Subject, merge, subject};
use super::{Asked, Denied, Done, body, ok};
use crate::catalog::{CatalogError, PluginRecord, Scope};
use crate::config::{NOT_SHOWN, SET, only_names, role_name, without_secrets};
use crate::gateway::Gateway;
use crate::tenant::{Pattern, Role, TenantId};

/// What a plugin is to be. What is absent stays; `null` takes it back to what it is by default.
#[derive(Default, Deserialize)]
pub(super) struct Wanted {
    #[serde(default, deserialize_with = "given")]
    role: Option<Option<Role>>,
    #[serde(default, deserialize_with = "given")]
    position: Option<Option<u32>>,
    #[serde(default, deserialize_with = "given")]
    events: Option<Option<Vec<Pattern>>>,
    #[serde(default, deserialize_with = "given")]
    settings: Option<Option<BTreeMap<String, Setting>>>,
    #[serde(default, deserialize_with = "given")]
    auto_rollback: Option<Option<bool>>,
    /// Everything else that a `[[plugins]]` of a tenant's file may say; whether it may, the catalog says.
    #[serde(flatten)]
    options: Map<String, Value>,
}

/// What `config.get` answers: a text as it is, everything else as JSON.
#[derive(Clone, Deserialize)]
#[serde(try_from = "Value")]
struct Setting(String);

impl TryFrom<Value> for Setting {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Setting, &'static str> {
        match value {
            Value::Null => Err("a setting is a text, a number, true or false, an array or an object"),
            Value::String(text) => Ok(Setting(text)),
            other => Ok(Setting(other.to_string())),
        }
    }
}

/// Tells `null` from what is absent.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// `GET /tenants/{tenant}/plugins`.
pub(super) async fn list(asked: Asked) -> Done {
    let id = asked.tenant()?;
    let plugins: Vec<Value> = match subject(&asked.gateway, id).await? {
        Subject::File => of_file(&asked, id),
        Subject::Made(_) => {
            let plugins = asked.gateway.catalog.plugins(id).await?;
            plugins.iter().map(|plugin| shown(plugin, asked.actor.scope)).collect()
        }
    };
    let with_standing = |mut plugin: Value| {
        let name = plugin["name"].as_str().unwrap_or_default().to_owned();
        stands(&asked.gateway, id, &name, &mut plugin);
        plugin
    };
    Ok(ok(json!({ "plugins": plugins.into_iter().map(with_standing).collect::<Vec<_>>() })))
}

/// `GET /tenants/{tenant}/plugins/{plugin}`.
pub(super) async fn show(asked: Asked) -> Done {
    let (id, name) = (asked.tenant()?, &asked.names.plugin);
    let mut plugin = match subject(&asked.gateway, id).await? {
        Subject::File => {
            let found = of_file(&asked, id).into_iter().find(|plugin| plugin["name"] == name.as_str());
            found.ok_or_else(|| no_plugin(name))?
        }
        Subject::Made(_) => shown(&record(&asked).await?, asked.actor.scope),
    };
    stands(&asked.gateway, id, name, &mut plugin);
    Ok(ok(plugin))
}

/// How a plugin stands on this node: its breakers, and why it does not run as it is written.
fn stands(gateway: &Gateway, id: &TenantId, name: &str, plugin: &mut Value) {
    plugin["breakers"] = breakers(gateway, id, name).into();
    let of_this = format!("plugin {name}, ");
    let troubles = gateway.catalog.troubles(id).into_iter();
    plugin["troubles"] = troubles.filter(|trouble| trouble.starts_with(&of_this)).collect::<Vec<_>>().into();
}

/// How the breakers of a plugin stand on this node; those that were never needed are left out.
fn breakers(gateway: &Gateway, id: &TenantId, name: &str) -> Vec<Value> {
    let Some(tenant) = gateway.tenant(id.as_str()) else { return Vec::new() };
    let pipeline = tenant.pipeline.load();
    let handlers = pipeline.handlers.iter().map(|(plugin, _)| plugin);
    let canaries = pipeline.canaries.iter().map(|canary| &canary.plugin);
    let all = pipeline.authorizer.iter().chain(&pipeline.router).chain(handlers).chain(canaries);
    let of_this = all.filter(|plugin| &*plugin.name == name);
    let stands = of_this.flat_map(|plugin| plugin.breakers().into_iter().map(move |breaker| (plugin, breaker)));
    stands
        .map(|(plugin, breaker)| {
            json!({
                "digest": plugin.digest,
                "hook": breaker.hook.name(),
                "state": breaker.state.word(),
                "calls": breaker.calls,
                "failures": breaker.failures,
                "retry_after_ms": breaker.retry_after_ms,
            })
        })
        .collect()
}

/// The plugin that the path names.
pub(super) async fn record(asked: &Asked) -> Result<PluginRecord, Denied> {
    let (id, name) = (asked.tenant()?, &asked.names.plugin);
    let found = asked.gateway.catalog.plugin(id, name).await?;
    found.ok_or_else(|| no_plugin(name).into())
}

pub(super) fn no_plugin(name: &str) -> CatalogError {
    CatalogError::NotFound { what: "plugin", name: name.into() }
}

/// The plugins of a tenant that is written in a file, as they run.
fn of_file(asked: &Asked, id: &TenantId) -> Vec<Value> {
    let tenant = asked.gateway.tenant(id.as_str()).map(|tenant| tenant.settings());
    let plugins = tenant.iter().flat_map(|tenant| &tenant.plugins);
    plugins
        .map(|plugin| {
            json!({
                "name": plugin.name,
                "source": "file",
                "role": role_name(plugin.role),
                "component": plugin.component,
                "events": plugin.events,
                "settings": settings(&json!(plugin.settings), asked.actor.scope),
                "versions": [],
            })
        })
        .collect()
}

/// A plugin's own settings, as far as this scope sees them: whoever may only read sees which there are.
fn settings(settings: &Value, scope: Scope) -> Value {
    match scope {
        Scope::Operator | Scope::TenantAdmin => without_secrets(settings),
        Scope::TenantRead => only_names(settings),
    }
}

/// A plugin as the API writes it: with the further keys among the others, as they are put.
pub(super) fn shown(plugin: &PluginRecord, scope: Scope) -> Value {
    let mut value = serde_json::to_value(plugin).unwrap_or_default();
    let Value::Object(members) = &mut value else { return value };
    members.remove("format");
    let options = members.remove("options");
    for (name, option) in options.and_then(|options| options.as_object().cloned()).unwrap_or_default() {
        members.entry(name).or_insert(option);
    }
    members.insert("source".into(), "api".into());
    members.insert("settings".into(), settings(&json!(plugin.settings), scope));
    members.insert("canary".into(), canary(plugin));
    let versions = plugin.versions.iter().map(version).collect();
    members.insert("versions".into(), Value::Array(versions));
    value
}

fn canary(plugin: &PluginRecord) -> Value {
    let canary = plugin.canary.map(|canary| json!({ "version": canary.version, "percent": canary.percent() }));
    canary.unwrap_or_default()
}

/// A version as the API writes it.
pub(super) fn version(version: &crate::catalog::VersionRecord) -> Value {
    json!({
        "version": version.version,
        "digest": version.digest,
        "bytes": version.bytes,
        "description": { "name": version.described_name, "version": version.described_version },
        "events": version.events,
        "imports": version.imports,
        "exports": version.exports,
        "signed_by": version.signature.as_ref().map(|signature| &signature.key),
        "uploaded_ms": version.uploaded_ms,
        "by": version.by,
    })
}

/// `PUT /tenants/{tenant}/plugins/{plugin}`: makes it, or changes what is named.
pub(super) async fn put(asked: Asked) -> Done {
    let (id, name) = (asked.tenant()?.clone(), asked.names.plugin.clone());
    let wanted: Wanted = body::json(asked.body).await?;
    let changed = asked
        .gateway
        .catalog
        .change_plugin(&asked.actor, &id, &name, "plugin.put", |there| wanted.applied(there, &name).map(Some));
    let changed = changed.await?.ok_or_else(|| no_plugin(&name))?;
    Ok(ok(shown(&changed, asked.actor.scope)))
}

impl Wanted {
    /// A plugin of this role, if it is new.
    pub(super) fn of_role(role: Role) -> Wanted {
        Wanted { role: Some(Some(role)), ..Wanted::default() }
    }

    /// The plugin as it is to be.
    pub(super) fn applied(&self, there: Option<PluginRecord>, name: &str) -> Result<PluginRecord, CatalogError> {
        let role = self.role.flatten();
        let mut plugin = match (there, role) {
            (Some(plugin), role) => {
                if role.is_some_and(|role| role != plugin.role) && !plugin.versions.is_empty() {
                    let text = format!("{name:?} is a {} and has versions: delete it first", role_name(plugin.role));
                    return Err(CatalogError::Conflict(text));
                }
                PluginRecord { role: role.unwrap_or(plugin.role), ..plugin }
            }
            (None, Some(role)) => PluginRecord::new(name, role),
            (None, None) => {
                let text = format!("the plugin {name:?} is new: give its role (authorizer, router or handler)");
                return Err(CatalogError::Invalid(vec![text]));
            }
        };
        if let Some(position) = self.position {
            plugin.position = position.unwrap_or_default();
        }
        if let Some(events) = &self.events {
            plugin.events.clone_from(events);
        }
        if let Some(settings) = &self.settings {
            // What comes back as it was shown would replace the real one.
            let back = settings.iter().flatten().filter(|(_, value)| {
                let text = &value.0;
                text == SET || text.contains(NOT_SHOWN)
            });
            let back: Vec<_> =
                back.map(|(name, _)| format!("settings.{name}: give the value, or leave it out")).collect();
            if !back.is_empty() {
                return Err(CatalogError::Invalid(back));
            }
            let settings = settings.iter().flatten();
            plugin.settings = settings.map(|(name, value)| (name.clone(), value.0.clone())).collect();
        }
        if let Some(auto_rollback) = self.auto_rollback {
            plugin.auto_rollback = auto_rollback.unwrap_or_default();
        }
        if self.options.get("instances").is_some_and(|instances| instances != "warm") {
            // What held for warm ones goes with them.
            plugin.options.retain(|name, _| !name.starts_with("warm_"));
        }
        for (name, value) in &self.options {
            // As tenants' settings are changed: what is not named stays, within tables as well.
            if value.is_null() {
                plugin.options.remove(name);
            } else {
                merge(plugin.options.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        Ok(plugin)
    }
}

/// `POST …/disable` and `…/enable`.
pub(super) async fn disable(asked: Asked, disabled: bool) -> Done {
    let (id, name) = (asked.tenant()?, &asked.names.plugin);
    let what = if disabled { "plugin.disable" } else { "plugin.enable" };
    let changed = asked.gateway.catalog.change_plugin(&asked.actor, id, name, what, |there| {
        let plugin = there.ok_or_else(|| no_plugin(name))?;
        Ok(Some(PluginRecord { disabled, ..plugin }))
    });
    let changed = changed.await?.ok_or_else(|| no_plugin(name))?;
    Ok(ok(shown(&changed, asked.actor.scope)))
}

/// `DELETE /tenants/{tenant}/plugins/{plugin}`.
pub(super) async fn delete(asked: Asked) -> Done {
    let (id, name) = (asked.tenant()?, &asked.names.plugin);
    let deleted = asked.gateway.catalog.change_plugin(&asked.actor, id, name, "plugin.delete", |there| match there {
        Some(_) => Ok(None),
        None => Err(no_plugin(name)),
    });
    deleted.await?;
    Ok((StatusCode::NO_CONTENT, Value::Null))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(value: Value) -> Wanted {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_absent_stays_and_null_takes_it_back() {
        let all = wanted(json!({
            "role": "handler", "events": ["a*"], "position": 3,
            "settings": { "n": 5, "on": true, "s": "x", "colors": { "a": [1, null] } },
            "auto_rollback": true, "instances": "warm",
        }));
        let plugin = all.applied(None, "echo").unwrap();
        assert_eq!((plugin.role, plugin.position, plugin.auto_rollback), (Role::Handler, 3, true));
        assert_eq!((&*plugin.settings["n"], &*plugin.settings["on"], &*plugin.settings["s"]), ("5", "true", "x"));
        assert_eq!(plugin.settings["colors"], r#"{"a":[1,null]}"#);
        assert_eq!(plugin.options["instances"], "warm");
        let same = wanted(json!({})).applied(Some(plugin.clone()), "echo").unwrap();
        assert_eq!(same, plugin);
        let bare = wanted(json!({ "events": null, "settings": null, "instances": null, "position": null }));
        let bare = bare.applied(Some(plugin), "echo").unwrap();
        assert!(bare.events.is_none() && bare.settings.is_empty() && bare.options.is_empty() && bare.position == 0);
        assert!(bare.auto_rollback);
        let null = serde_json::from_value::<Wanted>(json!({ "settings": { "n": null } }));
        assert!(null.err().is_some_and(|error| error.to_string().contains("a setting is a text")));
    }

    #[test]
    fn limits_of_warm_instances_go_with_them() {
        let warm = wanted(json!({ "role": "handler", "instances": "warm", "warm_calls_max": 2 }));
        let warm = warm.applied(None, "echo").unwrap();
        for instances in [json!("fresh"), Value::Null] {
            let cold = wanted(json!({ "instances": instances })).applied(Some(warm.clone()), "echo").unwrap();
            assert!(!cold.options.contains_key("warm_calls_max"), "{:?}", cold.options);
        }
        let still = wanted(json!({ "position": 3 })).applied(Some(warm), "echo").unwrap();
        assert_eq!(still.options["warm_calls_max"], 2);
    }

    #[test]
    fn a_plugin_that_is_new_needs_a_role_and_one_with_versions_keeps_its() {
        assert!(matches!(wanted(json!({})).applied(None, "echo"), Err(CatalogError::Invalid(_))));
        let version = serde_json::from_value(json!({ "version": 1, "digest": "d" })).unwrap();
        let plugin = PluginRecord { versions: vec![version], ..PluginRecord::new("echo", Role::Handler) };
        assert!(matches!(
            Wanted::of_role(Role::Router).applied(Some(plugin.clone()), "echo"),
            Err(CatalogError::Conflict(_))
        ));
        assert!(Wanted::of_role(Role::Handler).applied(Some(plugin), "echo").is_ok());
    }

    #[test]
    fn a_plugins_own_settings_are_for_whoever_may_change_them() {
        let written =
            [("api_token", "x"), ("words", "3"), ("dsn", "pg://u:p@h/x"), ("mail", r#"{"host":"h","password":"p"}"#)];
        let settings = written.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let plugin = PluginRecord { settings, ..PluginRecord::new("echo", Role::Handler) };
        for scope in [Scope::Operator, Scope::TenantAdmin] {
            let seen = json!({ "api_token": "(secret)", "words": "3", "dsn": "pg://(secret)@h/x", "mail": r#"{"host":"h","password":"(secret)"}"# });
            assert_eq!(shown(&plugin, scope)["settings"], seen);
        }
        let seen = json!({ "api_token": "(set)", "words": "(set)", "dsn": "(set)", "mail": "(set)" });
        assert_eq!(shown(&plugin, Scope::TenantRead)["settings"], seen);
    }
}
