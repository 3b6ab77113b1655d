//! A tenant's settings as a JSON document: the keys, checks and mistakes of a tenant file, without what only whoever
//! has the gateway's machine may name: files and variables of it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::context::Context;
use super::source::{Document, Mistakes, Place, Report};
use super::tenant;
use crate::tenant::{PluginSettings, Tenant, TenantId};

/// What mistakes call the document.
const SOURCE: &str = "settings";

/// What stands for the file of a component that was uploaded.
const UPLOADED: &str = "(uploaded)";

/// The longest document, in bytes as JSON.
pub const DOCUMENT_BYTES_MAX: usize = 256 << 10;

/// Keys that are not for documents, with what to do instead: at the root, in `auth`, in one of `auth.keys`.
const ELSEWHERE: [(&str, &str); 7] = [
    ("name", "the name stands in the address"),
    ("disabled", "a tenant is disabled by a call of its own"),
    ("plugins", "plugins are uploaded, each by itself"),
    ("backend_token_env", "give `backend_token`: the environment is the gateway's own"),
    ("jwks_file", "give each key in `keys`: files are the gateway's own"),
    ("secret_env", "give `secret`: the environment is the gateway's own"),
    ("pem_file", "give `pem`: files are the gateway's own"),
];

/// Reads a tenant's settings; answers it without plugins, and what is to be warned of.
///
/// # Errors
/// All mistakes, each with its key.
pub fn tenant_from_json(id: &TenantId, settings: &Value, demo: bool) -> Result<(Tenant, Vec<String>), Mistakes> {
    let mut report = Report::default();
    let tenant = read(id, settings, demo, &mut report);
    for mistake in &mut report.mistakes {
        // The lines are those of a text that nobody wrote.
        mistake.place.line = None;
    }
    match tenant {
        Some(tenant) if report.mistakes.is_empty() => Ok((tenant, report.warnings)),
        _ => Err(Mistakes(report.mistakes)),
    }
}

/// Reads a plugin of a tenant: `document` has the keys of a `[[plugins]]` of a tenant's file, without `name` and
/// `component`, which comes by itself.
///
/// # Errors
/// All mistakes, each with its key.
pub fn plugin_from_json(name: &str, document: &Map<String, Value>) -> Result<PluginSettings, Mistakes> {
    let mut report = Report::default();
    for key in ["name", "component"].into_iter().filter(|key| document.contains_key(*key)) {
        report.mistake(place(key), "is not for this document");
    }
    let mut plugin = document.clone();
    plugin.insert("name".into(), name.into());
    plugin.insert("component".into(), UPLOADED.into());
    let text = match toml::to_string(&Map::from_iter([("plugin".to_owned(), Value::Object(plugin))])) {
        Ok(text) => text,
        Err(error) => {
            report.mistake(place(""), format!("cannot be read: {error} (no null, no number beyond 64 bits)"));
            return Err(Mistakes(report.mistakes));
        }
    };
    let env = BTreeMap::new();
    let document = Document::parse("plugin", &text, &mut report);
    let section = document.as_ref().and_then(|document| document.root().section("plugin", &mut report));
    let plugin = section.and_then(|section| tenant::plugin(section, &without_a_file(name, &env, false), &mut report));
    for mistake in &mut report.mistakes {
        mistake.place.line = None;
    }
    match plugin {
        Some(plugin) if report.mistakes.is_empty() => Ok(plugin),
        _ => Err(Mistakes(report.mistakes)),
    }
}

/// Nothing of this machine is at hand, whatever a document says.
fn without_a_file<'a>(name: &'a str, env: &'a BTreeMap<String, String>, demo: bool) -> Context<'a> {
    Context { path: Path::new(SOURCE), name, env, demo, plugins_dir: None, with_components: false, of_a_file: false }
}

fn read(id: &TenantId, settings: &Value, demo: bool, report: &mut Report) -> Option<Tenant> {
    let Value::Object(settings) = settings else {
        report.mistake(place(""), "must be a JSON object");
        return None;
    };
    let bytes = serde_json::to_vec(settings).map_or(usize::MAX, |json| json.len());
    if bytes > DOCUMENT_BYTES_MAX {
        report.mistake(place(""), format!("has {bytes} bytes as JSON; at most {DOCUMENT_BYTES_MAX}"));
        return None;
    }
    let auth = settings.get("auth");
    let keys = auth.and_then(|auth| auth.get("keys")).and_then(Value::as_array);
    let api_keys = settings.get("api_keys").and_then(Value::as_array);
    for (index, key) in api_keys.into_iter().flatten().enumerate() {
        elsewhere(&format!("api_keys[{index}]."), key.as_object().into_iter().flat_map(|key| key.keys()), report);
    }
    elsewhere("", settings.keys(), report);
    elsewhere("auth.", auth.and_then(Value::as_object).into_iter().flat_map(|auth| auth.keys()), report);
    for (index, key) in keys.into_iter().flatten().enumerate() {
        elsewhere(&format!("auth.keys[{index}]."), key.as_object().into_iter().flat_map(|key| key.keys()), report);
    }
    if !report.mistakes.is_empty() {
        return None;
    }
    let mut named = settings.clone();
    named.insert("name".into(), id.as_str().into());
    let text = match toml::to_string(&named) {
        Ok(text) => text,
        Err(error) => {
            report.mistake(place(""), format!("cannot be read: {error} (no null, no number beyond 64 bits)"));
            return None;
        }
    };
    let document = Document::parse(SOURCE, &text, report)?;
    let env = BTreeMap::new();
    tenant::of_document(&document, &without_a_file(id.as_str(), &env, demo), report)
}

fn place(key: &str) -> Place {
    Place { source: SOURCE.into(), line: None, key: key.into() }
}

fn elsewhere<'a>(path: &str, keys: impl Iterator<Item = &'a String>, report: &mut Report) {
    for key in keys {
        if let Some((key, instead)) = ELSEWHERE.iter().find(|(name, _)| name == key) {
            report.mistake(place(&format!("{path}{key}")), format!("is not for this document: {instead}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn acme() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    fn mistakes(settings: &Value) -> Vec<String> {
        tenant_from_json(&acme(), settings, false).unwrap_err().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_document_says_what_a_tenant_file_says() {
        let settings = json!({
            "auth": {"keys": [{"id": "k", "algorithm": "HS256", "secret": SECRET}], "leeway_s": 5},
            "limits": {"connections": 7, "user_events_per_minute": {"pem_file": 3}},
            "relay": ["chat:*"],
            "presence_events": ["flat"],
        });
        let (tenant, _) = tenant_from_json(&acme(), &settings, false).unwrap();
        assert_eq!((tenant.id.as_str(), tenant.limits.connections), ("acme", 7));
        assert_eq!(tenant.auth.keys[0].id.as_deref(), Some("k"));
        assert_eq!(tenant.limits.user_events_per_minute["pem_file"].get(), 3);
        assert!(tenant.plugins.is_empty() && tenant.relay[0].matches("chat:x"));
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_their_keys_and_without_secrets() {
        let settings = json!({
            "auth": {"keys": [{"algorithm": "HS256", "secret": "hunter2"}]},
            "limits": {"connections": 0, "conections": 1},
        });
        let found = mistakes(&settings).join("\n");
        for part in ["settings: auth.keys[0]: the secret has 7 bytes", "limits.connections", "no setting `conections`"]
        {
            assert!(found.contains(part), "{part}: {found}");
        }
        assert!(!found.contains("hunter2"), "{found}");
    }

    #[test]
    fn a_document_names_no_file_and_no_variable_of_the_gateways_machine() {
        let settings = json!({
            "name": "x", "plugins": [], "disabled": true, "backend_token_env": "HOME",
            "auth": {"jwks_file": "/etc/passwd", "keys": [{"algorithm": "HS256", "secret_env": "POSTERN_ADMIN_TOKEN"}, {"algorithm": "ES256", "pem_file": "/etc/passwd"}]},
        });
        let found = mistakes(&settings);
        for (key, _) in ELSEWHERE {
            assert!(found.iter().any(|mistake| mistake.contains(key)), "{key}: {found:#?}");
        }
        assert_eq!(found.len(), ELSEWHERE.len());
    }

    #[test]
    fn a_tenant_without_keys_is_only_warned_of_for_they_are_put_one_by_one() {
        for settings in [json!({}), json!({"auth": {}}), json!({"auth": {"keys": []}})] {
            let (tenant, warnings) = tenant_from_json(&acme(), &settings, false).unwrap();
            assert!(tenant.auth.keys.is_empty() && !tenant.auth.anonymous);
            assert!(warnings[0].contains("no key yet"), "{warnings:?}");
        }
    }

    #[test]
    fn a_documents_key_set_is_fetched_from_the_public_internet_only() {
        let with = |url: &str| json!({"auth": {"jwks_url": url}});
        for inside in ["http://127.0.0.1:8200/keys", "http://localhost/", "http://id.example/jwks"] {
            assert!(mistakes(&with(inside)).join("").contains("must be https"), "{inside}");
        }
        let (tenant, _) = tenant_from_json(&acme(), &with("https://10.0.0.1/jwks"), false).unwrap();
        let source = &tenant.auth.key_sets[0].source;
        assert!(matches!(source, crate::tenant::KeySetSource::Url { public_only: true, .. }), "{source:?}");
    }

    #[test]
    fn a_plugin_says_what_a_tenant_file_says_of_one() {
        let document = |value: Value| value.as_object().unwrap().clone();
        let plugin = document(json!({"role": "handler", "events": ["a*"], "settings": {"timeout_ms": 5}}));
        let plugin = plugin_from_json("echo", &plugin).unwrap();
        assert_eq!((&*plugin.name, plugin.settings["timeout_ms"].as_str()), ("echo", "5"));
        let wrong = document(json!({"role": "chef", "component": "/etc/passwd", "evnts": []}));
        let Mistakes(found) = plugin_from_json("echo", &wrong).unwrap_err();
        let found = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for part in ["plugin.role", "component", "no setting `evnts`"] {
            assert!(found.contains(part), "{part}: {found}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        assert!(mistakes(&json!([])).join("").contains("must be a JSON object"));
        assert!(mistakes(&json!({"relay": null})).join("").contains("null"));
        let long = "x".repeat(DOCUMENT_BYTES_MAX);
        assert!(mistakes(&json!({"relay": [long]})).join("").contains("at most 262144"));
    }
}
