//! A tenant's keys, one by one. Answers never hold what makes them keys.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::tenants::{Subject, missing, subject};
use super::{Asked, Denied, Done, body, ok};
use crate::catalog::{CatalogError, TenantRecord};
use crate::gateway::Gateway;
use crate::tenant::{KeyMaterial, TenantId};

/// The longest id of a key, in bytes.
const ID_BYTES_MAX: usize = 128;

/// Where a key's material may stand in settings.
const MATERIALS: [&str; 3] = ["secret", "pem", "jwk"];

/// What is put.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKey {
    algorithm: Option<String>,
    secret: Option<String>,
    pem: Option<String>,
    /// An object, or its text.
    jwk: Option<Value>,
}

impl NewKey {
    /// As settings write it; whether it is a key, they say.
    fn document(self, id: &str) -> Map<String, Value> {
        let jwk = self.jwk.map(|jwk| if jwk.is_string() { jwk } else { jwk.to_string().into() });
        let fields = [
            ("algorithm", self.algorithm.map(Value::from)),
            ("secret", self.secret.map(Value::from)),
            ("pem", self.pem.map(Value::from)),
            ("jwk", jwk),
        ];
        let mut key = Map::from_iter([("id".to_owned(), id.into())]);
        key.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        key
    }
}

/// `GET /tenants/{tenant}/keys`.
pub(super) async fn list(asked: Asked) -> Done {
    Ok(ok(json!({ "keys": shown_keys(&asked.gateway, asked.tenant()?).await? })))
}

/// `GET /tenants/{tenant}/keys/{id}`.
pub(super) async fn show(asked: Asked) -> Done {
    let keys = shown_keys(&asked.gateway, asked.tenant()?).await?;
    let found = keys.into_iter().find(|key| key["id"] == asked.names.id.as_str());
    found.map(ok).ok_or_else(|| no_key(&asked.names.id).into())
}

async fn shown_keys(gateway: &Gateway, id: &TenantId) -> Result<Vec<Value>, Denied> {
    if let Subject::Made(record) = subject(gateway, id).await? {
        return Ok(keys(&record).iter().map(shown).collect());
    }
    // Those of a file are as they were read: it may name further files and variables.
    let tenant = gateway.tenant(id.as_str()).map(|tenant| tenant.settings());
    let keys = tenant.iter().flat_map(|tenant| &tenant.auth.keys);
    let kind = |material: &KeyMaterial| match material {
        KeyMaterial::Secret(_) => "secret",
        KeyMaterial::Pem(_) => "pem",
        KeyMaterial::Jwk(_) => "jwk",
    };
    Ok(keys.map(|key| json!({ "id": key.id, "algorithm": key.algorithm, "kind": kind(&key.material) })).collect())
}

fn keys(record: &TenantRecord) -> Vec<Value> {
    let keys = record.settings.get("auth").and_then(|auth| auth.get("keys"));
    keys.and_then(Value::as_array).cloned().unwrap_or_default()
}

fn shown(key: &Value) -> Value {
    let kind = MATERIALS.into_iter().find(|name| key.get(*name).is_some());
    json!({ "id": key["id"], "algorithm": key["algorithm"], "kind": kind })
}

/// `PUT /tenants/{tenant}/keys/{id}`: a further key, or another in the place of one.
pub(super) async fn put(asked: Asked) -> Done {
    let (tenant, id) = (asked.tenant()?.clone(), asked.names.id.clone());
    if id.len() > ID_BYTES_MAX || id.chars().any(char::is_control) {
        return Err(Denied::invalid(format!("a key's id has 1 to {ID_BYTES_MAX} bytes, and no control characters")));
    }
    let key: NewKey = body::json(asked.body).await?;
    let key = Value::Object(key.document(&id));
    change(&asked.gateway, &asked.actor, &tenant, ("key.put", &id), |keys| {
        let same =
            |there: &&Value| MATERIALS.iter().any(|name| there.get(name).is_some_and(|it| Some(it) == key.get(name)));
        if let Some(other) = keys.iter().filter(|there| there["id"] != id.as_str()).find(same) {
            let text = format!(
                "the same key stands under {}: taking one of them away would keep nobody out",
                other["id"].as_str().map_or_else(String::new, |id| format!("{id:?}"))
            );
            return Err(CatalogError::Conflict(text));
        }
        match keys.iter_mut().find(|there| there["id"] == id.as_str()) {
            Some(there) => *there = key.clone(),
            None => keys.push(key.clone()),
        }
        Ok(())
    })
    .await?;
    Ok(ok(shown(&key)))
}

/// `DELETE /tenants/{tenant}/keys/{id}`: connections that it admitted end.
pub(super) async fn delete(asked: Asked) -> Done {
    let (tenant, id) = (asked.tenant()?, &asked.names.id);
    change(&asked.gateway, &asked.actor, tenant, ("key.delete", id), |keys| {
        let before = keys.len();
        keys.retain(|key| key["id"] != id.as_str());
        if keys.len() == before { Err(no_key(id)) } else { Ok(()) }
    })
    .await?;
    Ok((StatusCode::NO_CONTENT, Value::Null))
}

async fn change(
    gateway: &Gateway,
    by: &crate::catalog::Actor,
    tenant: &TenantId,
    what: (&str, &str),
    change: impl Fn(&mut Vec<Value>) -> Result<(), CatalogError>,
) -> Result<(), Denied> {
    let changed = gateway.catalog.change_part(by, tenant, what, |there| {
        let mut record = there.ok_or_else(|| missing(tenant))?;
        let mut all = keys(&record);
        change(&mut all)?;
        let auth = record.settings.entry("auth").or_insert_with(|| json!({}));
        if !auth.is_object() {
            return Err(CatalogError::Invalid(vec!["settings: auth must be an object".into()]));
        }
        auth["keys"] = Value::Array(all);
        Ok(Some(record))
    });
    changed.await?;
    Ok(())
}

fn no_key(id: &str) -> CatalogError {
    CatalogError::NotFound { what: "key", name: id.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_without_what_makes_it_one() {
        let key: NewKey = serde_json::from_value(json!({ "jwk": { "kty": "oct", "k": "abc" } })).unwrap();
        let key = Value::Object(key.document("k1"));
        assert_eq!(key["jwk"], r#"{"k":"abc","kty":"oct"}"#);
        assert_eq!(shown(&key), json!({ "id": "k1", "algorithm": null, "kind": "jwk" }));
    }
}
